"""Each reader does what its row says, and a change of one reader concerns its format alone."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_run

from joulesweep import readers
from joulesweep.core import places
from joulesweep.core.errors import UserError
from joulesweep.plan import config, definitions, staleness
from joulesweep.plan.sweep import Sweep
from joulesweep.prepare import dataset

FIELDS = {"needs_field": {"field": "text"}, "target": {"target": "t"}, "choices": {"choices": "c", "answer": "i"}}
FILES = [name for name in readers.names() if readers.load(name).read is not None]
ROW = {"text": "x", "t": "y", "c": ["y", "z"], "i": 0}
CONTENT = {
    "csv": "text,t\nx,y\n",
    "dialogsum": json.dumps({"dialogue": "x", "summary": "y"}),
    "jsonl": json.dumps(ROW),
    "scitldr": json.dumps({"source": ["x"], "target": ["y"]}),
    "text": "x\n",
    "vizwiz": json.dumps([{"question": "x"}]),
}


def fetch(path, name, **keys):
    """The rows of a file in a format."""
    source = {"source": {"local": str(path)}, "format": name, **keys}
    lines, _ = dataset.fetch_dataset(config.DatasetConfig.model_validate(source))
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize("name", readers.names())
def test_a_reader_says_what_it_reads_and_how(name):
    reader = readers.load(name)
    assert (reader.read is None) != (reader.read_snapshot is None)
    assert set(reader.options) <= set(readers.OPTIONS)
    assert ("choices" in reader.options) == ("answer" in reader.options)
    assert readers.module(name).__doc__


@pytest.mark.parametrize("name", FILES)
def test_rows_have_targets_where_the_reader_or_the_config_says_so(tmp_path, name):
    reader, path = readers.load(name), tmp_path / "file"
    path.write_text(CONTENT[name], encoding="utf-8")
    named = FIELDS["needs_field"] if reader.needs_field else {}
    (row,) = fetch(path, name, **named)
    assert (row["text"], "targets" in row) == ("x", reader.has_targets)
    for option in set(reader.options) & {"target", "choices"}:
        (row,) = fetch(path, name, **named, **FIELDS[option])
        assert (row["targets"], "choices" in row) == (["y"], option == "choices")


def test_an_unknown_format_is_one_line():
    with pytest.raises(UserError, match=r"^unknown format 'jsn'; allowed: csv, .* \(did you mean 'jsonl'\?\)$"):
        readers.load("jsn")


def test_a_change_of_a_reader_concerns_the_data_sets_of_its_format(tmp_path, monkeypatch):
    folder = tmp_path / "joulesweep" / "readers"
    for name in definitions.PACKAGES:
        shutil.copytree(places.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    real = readers.path
    monkeypatch.setattr(readers, "path", lambda name: folder / real(name).name)
    for name, path in (("ROOT", tmp_path), ("PACKAGE", tmp_path / "joulesweep"), ("RESOURCES", tmp_path / "resources")):
        monkeypatch.setattr(places, name, path)

    def codes():
        for function in (definitions._module, definitions.encoded, staleness._sources, staleness.code_digest):
            function.cache_clear()
        return {name: sweep.dataset_code(key) for key, name in sweep._datasets.items()}

    source, named = {"local": "file"}, ("csv", "jsonl", "scitldr", "text")
    datasets = {
        name: {"source": source, "format": name, **({"field": "q"} if readers.load(name).needs_field else {})}
        for name in named
    }
    sweep = Sweep(config.validate(tiny_run.config(datasets=datasets, grid__dataset=["text"])))
    before = codes()
    assert len(set(before.values())) == len(named)
    for name, old, new, concerned in (
        ("text", "newline=None", "newline=''", {"text"}),
        ("csv", "strict=True", "strict=False", {"csv"}),
        ("jsonl", "4000", "3000", {"jsonl", "scitldr"}),
    ):
        path = folder / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        changed = codes()
        assert {one for one in named if changed[one] != before[one]} == concerned
        before = changed
