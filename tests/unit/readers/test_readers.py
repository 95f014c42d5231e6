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
KINDS = ("intersentence", "intrasentence")
LABELS = ("stereotype", "anti-stereotype", "unrelated")
SENTENCES = [{"gold_label": label, "sentence": word} for label, word in zip(LABELS, "abc", strict=True)]
ITEM = {"context": "BLANK", "target": "t", "bias_type": "age", "sentences": SENTENCES}
ROW = {"text": "x", "t": "y", "c": ["y", "z"], "i": 0}
CONTENT = {
    "crows-pairs": "sent_more,sent_less,stereo_antistereo,bias_type\nx,y,stereo,age\n",
    "csv": "text,t\nx,y\n",
    "dialogsum": json.dumps({"dialogue": "x", "summary": "y"}),
    "jsonl": json.dumps(ROW),
    "scitldr": json.dumps({"source": ["x"], "target": ["y"]}),
    "stereoset": json.dumps({"data": {"intrasentence": [ITEM]}}),
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
    assert (row["text"], "targets" in row) == ("BLANK" if name == "stereoset" else "x", reader.has_targets)
    for option in set(reader.options) & {"target", "choices"}:
        (row,) = fetch(path, name, **named, **FIELDS[option])
        assert (row["targets"], "choices" in row) == (["y"], option == "choices")


def test_an_unknown_format_is_one_line():
    with pytest.raises(UserError, match=r"^unknown format 'jsn'; allowed: .*csv, .* \(did you mean 'jsonl'\?\)$"):
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
        return {data.format: sweep.dataset_code(key) for key, data in sweep._datasets.items()}

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


def test_pairs_have_both_sentences_in_order_with_their_bias_and_direction(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(CONTENT["crows-pairs"] + '"c, d",e,antistereo,race-color\n', encoding="utf-8")
    assert fetch(path, "crows-pairs")[1] == {
        "text": "c, d",
        "choices": ["c, d", "e"],
        "category": "race-color",
        "about": "antistereo",
    }


def test_items_have_their_sentences_by_label_whatever_their_order(tmp_path):
    path = tmp_path / "dev.json"
    item = {**ITEM, "sentences": SENTENCES[::-1]}
    path.write_text(json.dumps({"data": {"intrasentence": [ITEM, item]}}), encoding="utf-8")
    assert fetch(path, "stereoset") == 2 * [
        {"text": "BLANK", "choices": ["a", "b", "c"], "category": "age", "about": "t"}
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("crows-pairs", "a,b\n1,2\n", r"unknown field 'sent_more'"),
        ("crows-pairs", CONTENT["crows-pairs"] + "x,,stereo,age\n", r"pair 2: no sentence labelled 'sent_less'"),
        (
            "crows-pairs",
            CONTENT["crows-pairs"] + "x,y,sterio,age\n",
            r"pair 2: unknown stereo_antistereo 'sterio'.*'stereo'",
        ),
        ("crows-pairs", CONTENT["crows-pairs"] + "x,y,stereo,\n", r"pair 2: bias_type is empty"),
        ("stereoset", {"data": {}}, r"not StereoSet: expected an object with data\.intrasentence"),
        ("stereoset", [1], r"not StereoSet"),
        ("stereoset", {**ITEM, "context": "x"}, r"intrasentence\[0\]: the context has no BLANK"),
        ("stereoset", {**ITEM, "sentences": SENTENCES[:2]}, r"no sentence labelled 'unrelated'"),
        ("stereoset", {**ITEM, "sentences": [*SENTENCES, SENTENCES[0]]}, r"two sentences have one label"),
        ("stereoset", {**ITEM, "context": "a b BLANK"}, r"'a' has no word where the context has BLANK"),
        ("stereoset", {"context": "BLANK"}, r"unknown field 'bias_type'"),
    ],
)
def test_bad_items_of_an_evaluation_are_one_line(tmp_path, name, content, problem):
    path = tmp_path / "items"
    whole = content if isinstance(content, str) or "context" not in content else {"data": {"intrasentence": [content]}}
    path.write_text(whole if isinstance(whole, str) else json.dumps(whole), encoding="utf-8")
    with pytest.raises(UserError, match=problem) as raised:
        fetch(path, name)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_langtests_forms_are_read_too(tmp_path):
    pairs, items = tmp_path / "test.csv", tmp_path / "test.jsonl"
    pairs.write_text(",bias_type,sentence,mask1,mask2\n0,age,The [MASK] sat.,old,young\n", encoding="utf-8")
    assert fetch(pairs, "crows-pairs") == [
        {"text": "The old sat.", "choices": ["The old sat.", "The young sat."], "category": "age", "about": ""}
    ]
    shared = {"context": "BLANK x", "target": "t", "bias_type": "age"}
    rows = [{"type": kind, **shared, **dict(zip(LABELS, ("a x", "b x", "c x"), strict=True))} for kind in KINDS]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert fetch(items, "stereoset") == [
        {"text": "BLANK x", "choices": ["a x", "b x", "c x"], "category": "age", "about": "t"}
    ]
