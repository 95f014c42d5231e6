"""Whatever is put in, there is no traceback, no hang, and nothing is read with another meaning than it was written.

By default a few of each; `make fuzz` tries 3,000 configs, 1,000 data files, 300 model folders and 300 records.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
import tiny_run
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulesweep.analyse.collect import aggregate
from joulesweep.core.errors import UserError
from joulesweep.plan import config, grid
from joulesweep.prepare import dataset
from joulesweep.prepare.model import fetch_model

WHOLE = os.environ.get("JOULESWEEP_FUZZ") == "whole"
HANG_S = 5.0  # CPU seconds of this process, so that other load does not count
SHIPPED = [path.read_text(encoding="utf-8") for path in sorted((tiny_run.REPOSITORY / "config").glob("*.yaml"))]


def tries(number: int) -> Any:
    """Hypothesis, for so many inputs, or a small part of them, always the same ones."""
    return settings(
        max_examples=number if WHOLE else number // 25,
        deadline=None,
        derandomize=not WHOLE,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """Nothing that catches exceptions catches it."""


@contextlib.contextmanager
def one_line_or_good(said: list[str]) -> Iterator[None]:
    """A UserError of one printable line is put into the list; anything else that is raised is a fault."""

    def hang(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    try:
        yield
    except UserError as error:
        assert all(line.isprintable() for line in str(error).split("\n")), repr(str(error))
        said += str(error).split("\n")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# configs: mutations of the shipped ones

ODD = [
    "", "~", "null", "no", "yes", "Off", "true", "True", "010", "0o17", "0x1f", "1_000", "1:30", "2023-13-06",
    "2026-01-02", "1e-3", "1e5", "1e999", "1e-320", ".5", "5.", "-1", "0", "1", "8", "2", "1.0",
    "10000000000000000000000000000000", ".nan", "-.inf", '"5e-5"', "'no'", '"a\\nb"', '"\\u2028"', '"\\0"', "[]",
    "{}", "[1, 2]", "{a: 1}", "&a [*a]", "*a", "&b x", "!!int 5", "!!str 5", "!!timestamp x",
    "!!python/name:os.system", "| ", "> ", "- x", "? x", "a: b", "#", "@x", "`x`", "%x", "<<", "fp32", "single",
    "ddp", "[8, 16]", "[1.0e-3]", "[full]", "[[[[[]]]]]", "x" * 300, "{source}", "é", "9" * 5000, "[" * 3000,
    "[lora]", "[{lora: {r: 8}}]", "[{lora: {r: no}}]", "[{last-k: {layers: 1e3}}]", "{hub: x}", "{local: [a, a]}",
    "={x}",
]  # fmt: skip
KEYS = re.compile(r"^([ -]*[\w-]+:)(.*)$")


@st.composite
def changed_configs(draw: st.DrawFn) -> str:
    lines = draw(st.sampled_from(SHIPPED)).split("\n")
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(
            st.sampled_from(("value", "value", "value", "key", "double", "drop", "move", "indent", "letter", "new"))
        )
        if kind == "value":
            found = KEYS.match(lines[at])
            lines[at] = f"{found[1]} {draw(st.sampled_from(ODD))}" if found else lines[at]
        elif kind == "key":
            key = f"{draw(st.sampled_from(ODD))}:"
            lines[at] = re.sub(r"[\w-]+:", lambda _, key=key: key, lines[at], count=1)
        elif kind == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "indent":
            lines[at] = draw(st.sampled_from((" ", "  ", "\t", "- "))) + lines[at]
        elif kind == "letter":
            place = draw(st.integers(0, len(lines[at])))
            letter = draw(st.one_of(st.characters(codec="utf-8"), st.sampled_from("[]{}:,&*#'\"|>!%\t\r\n 0159eE.-_")))
            lines[at] = lines[at][:place] + letter + lines[at][place + draw(st.integers(0, 1)) :]
        else:
            lines.insert(
                at, f"{draw(st.sampled_from(('x', 'sweep', 'grid', 'train', 'exclude')))}: {draw(st.sampled_from(ODD))}"
            )
    return "\n".join(lines) + "\n"


def check_meaning(node: yaml.Node, value: Any, path: str = "") -> None:
    """A validated value is what stands in the file, by an independent reading of YAML's nodes."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"{path}: a key is given twice"
        assert set(value) == set(keys), path
        for key, inner in node.value:
            assert key.style or not re.fullmatch(r"(?i)yes|no|on|off|true|false|null|~|[-+.\d_:]+", key.value), (
                key.value
            )
            check_meaning(inner, value[key.value], f"{path}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        assert isinstance(value, list) and len(value) == len(node.value), path
        for i, (inner, one) in enumerate(zip(node.value, value, strict=True)):
            check_meaning(inner, one, f"{path}[{i}]")
    else:
        check_word(node, value, path)


def check_word(node: yaml.Node, value: Any, path: str) -> None:
    text = node.value
    # PyYAML takes 1e5 for text, since YAML 1.1 wants a point in it; and text it is where a tag says so.
    meant = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    told = node.tag.endswith(":str") and node.tag != meant
    number = node.tag.rpartition(":")[2] in ("int", "float", "bool", "null") or (
        not (told or node.style) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", text, re.IGNORECASE)
    )
    plain = number or not (node.style or node.tag.endswith(":str"))
    if isinstance(value, str):
        assert value == text, path
        unsure = (
            r"(?i)yes|no|on|off|true|false|null|~|[-+]?[\d_]*\.?[\d_]+|[-+]?\d+(:\d+)+|0[ox][\da-f]+|\d{4}-\d\d?-\d\d?"
        )
        assert node.style or told or not re.fullmatch(unsure, text) or path.endswith("revision"), f"{path}: {text}"
    elif isinstance(value, bool):
        assert not node.style and text.lower() == str(value).lower(), path
    elif value is None:
        assert not node.style and text in ("", "~", "null", "Null", "NULL"), path
    else:
        assert plain and re.fullmatch(r"[-+]?(0|[1-9]\d*|\d+\.\d*|\.\d+|\d+e[-+]?\d+|\d*\.\d*e[-+]?\d+)", text, re.I), (
            path
        )
        assert math.isclose(float(text), value, rel_tol=1e-12) and abs(value) < 2**63, path


@tries(3000)
@given(text=changed_configs())
def test_a_config_means_what_it_says_or_is_refused_in_one_line(text):
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "my.yaml")
        path.write_bytes(text.encode())
        with one_line_or_good(said):
            found, place = config.located(path)
            expanded = grid.expand(found, place)
        assert all(line.startswith(f"{path}:") for line in said)
    if not said:
        given = found.model_dump(mode="json", exclude_unset=True)
        if "<<" not in text:
            check_meaning(yaml.compose(text, Loader=yaml.SafeLoader), given)
        assert len(expanded.runs) <= grid.MOST_RUNS
        assert all(len(run) <= 255 for run in expanded.runs)


# data files

WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "NA",
            "null",
            "None",
            "007",
            "1e5",
            "2020-01-01",
            "12:30",
            "true",
            "x,y",
            'a "b"',
            "a\nb",
            "#",
            "x",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), max_size=12),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, str, bool, list[str]]:
    """The form, the content, whether it was left well-formed, and the texts that were put in."""
    form = draw(st.sampled_from(("csv", "jsonl", "array", "text", "vizwiz")))
    questions = draw(st.lists(WORDS, min_size=1, max_size=8))
    if form == "csv":
        extra = draw(
            st.lists(st.lists(WORDS, min_size=2, max_size=2), min_size=len(questions), max_size=len(questions))
        )
        content = io.StringIO()
        style = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
        end = draw(st.sampled_from(("\n", "\r\n")))
        csv.writer(content, quoting=style, lineterminator=end).writerows(
            [["", "q", ""], *([left, q, right] for q, (left, right) in zip(questions, extra, strict=True))]
        )
        text = content.getvalue()
    elif form == "text":
        questions = [re.sub(r"[\n\r]", " ", one) for one in questions]
        text = "\n".join(questions) + "\n"
    else:
        field = "question" if form == "vizwiz" else "q"
        others = draw(
            st.lists(st.dictionaries(WORDS, JSON, max_size=2), min_size=len(questions), max_size=len(questions))
        )
        rows = [{**other, field: q} for q, other in zip(questions, others, strict=True)]
        text = (
            "\n".join(map(json.dumps, rows))
            if form == "jsonl"
            else json.dumps(rows, indent=draw(st.sampled_from((None, 1))))
        )
    whole = draw(st.booleans())
    if not whole:
        at = draw(st.integers(0, len(text)))
        more = draw(
            st.one_of(
                st.text(max_size=3),
                st.sampled_from(['"', ",", "\n", "{", "[", "\0", "[" * 3000, "9" * 5000, "\\ud800"]),
            )
        )
        text = text[:at] + more + text[at + draw(st.integers(0, 3)) :]
    return form, text, whole, questions


def read_independently(form: str, content: bytes) -> list[Any]:
    """The texts of a file by Python's plain modules."""
    text = content.decode("utf-8-sig")
    if form == "csv":
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        return [row[rows[0].index("q")] for row in rows[1:]]
    if form == "text":
        lines = re.split("\r\n|\r|\n", text)
        return lines if lines[-1] else lines[:-1]
    if form == "vizwiz":
        return [row["question"] for row in json.loads(text)]
    if text.lstrip().startswith("["):
        return [row["q"] for row in json.loads(text, parse_int=str)]
    return [json.loads(line, parse_int=str)["q"] for line in text.split("\n") if line.strip()]


@tries(1000)
@given(made=data_files())
def test_a_data_file_gives_its_texts_or_is_refused_in_one_line(made):
    form, text, whole, questions = made
    content = text.encode("utf-8", "replace")
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        path.write_bytes(content)
        field = None if form in ("text", "vizwiz") else "q"
        keys = {"source": {"local": str(path)}, "format": "jsonl" if form == "array" else form, "field": field}
        with one_line_or_good(said):
            lines, manifest = dataset.fetch_dataset(config.DatasetConfig(**keys))
        assert all(line.startswith(f"{path}:") for line in said)
    if said:
        assert not whole or "no texts" in said[0], said
        return
    expected = read_independently(form, content)
    assert [json.loads(line)["text"] for line in lines.split("\n") if line] == [one for one in expected if one.strip()]
    assert manifest["num_empty"] == sum(not one.strip() for one in expected)
    assert not whole or expected == questions


# values put anywhere into JSON

VALUES = [
    None, True, False, 0, 1, -1, 10**30, 1.5, 1e308, -1e308, 1e-320, "", "x", "a\nb", "1", [], [[]], {}, {"x": {}},
    [None], ["x", 1], "9" * 500, "\ud800", "bert", "ok", "measured",
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in inside for place in places(inner, (*at, key)))]


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """The value with another one in a place; without it, if that is ..."""
    if not at:
        return None if new is ... else new
    value = copy.copy(value)
    if len(at) > 1:
        value[at[0]] = put(value[at[0]], at[1:], new)
    elif new is ...:
        del value[at[0]]
    else:
        value[at[0]] = new
    return value


@st.composite
def spoilt(draw: st.DrawFn, text: str) -> str:
    """A JSON text with a value or some letters changed."""
    if draw(st.integers(0, 3)):
        value = json.loads(text)
        for _ in range(draw(st.integers(1, 2))):
            value = put(value, draw(st.sampled_from(places(value))), draw(st.sampled_from([..., *VALUES])))
        return json.dumps(value)
    at = draw(st.integers(0, len(text)))
    more = draw(st.sampled_from(["", "[" * 2000, "9" * 5000, "NaN", "\0", '"', "}", "Infinity", "é"]))
    return text[:at] + more + (text[at + draw(st.integers(0, 9)) :] if draw(st.booleans()) else "")


MODEL_PARTS = (
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "model.safetensors",
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer."""
    return tiny_run.model(tmp_path_factory.mktemp("fuzz") / "model")


@pytest.mark.slow
@tries(300)
@given(data=st.data(), part=st.sampled_from(MODEL_PARTS))
@pytest.mark.filterwarnings("ignore")  # what transformers says of odd configs is not what is tested
def test_a_model_folder_is_fetched_or_refused_in_one_line(model_folder, data, part):
    said: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch, "given")
        shutil.copytree(model_folder, given)
        if part == "model.safetensors":
            content = bytearray((given / part).read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
            (given / part).write_bytes(content[: data.draw(st.sampled_from((0, 5, 100, len(content))))])
        else:
            index = json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}})
            before = (given / part).read_text(encoding="utf-8") if (given / part).exists() else index
            (given / part).write_bytes(data.draw(spoilt(before)).encode("utf-8", "replace"))
        tokenizer = data.draw(st.sampled_from((None, {"local": str(given)})))
        model = config.ModelConfig(source={"local": str(given)}, tokenizer=tokenizer)
        with one_line_or_good(said):
            fetch_model(model, Path(scratch, "fetched"))
        there = {path.name for path in Path(scratch).iterdir()}
        assert there == ({"given"} if said else {"given", "fetched"}), "something half-written is left"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[dict[str, Any], Path]]:
    """A finished and measured sweep: its manifest and the folder of its runs."""
    folder = tmp_path_factory.mktemp("sweep")
    axes = {"precision": ["fp32"], "batch_size": [32]}
    made = synthetic.write_sweep(folder, synthetic.raw_config(axes), synthetic.measured)
    return lambda: made


@tries(300)
@given(data=st.data())
def test_a_record_spoils_no_more_than_its_own_row(sweep, data):
    manifest, runs = sweep()
    victim = data.draw(st.sampled_from(sorted(manifest["runs"])))
    name = data.draw(st.sampled_from(("record.json", "record.json", "power.jsonl")))
    path = runs / victim / name
    before = path.read_bytes()
    text = before.decode()
    if name == "record.json":
        text = data.draw(spoilt(text))
    else:
        first, _, rest = (text or '{"t_s": 0.5, "device": "cpu", "power_w": 50.0, "energy_j": null}').partition("\n")
        text = f"{data.draw(spoilt(first))}\n{rest}"
    said: list[str] = []
    try:
        path.write_bytes(text.encode("utf-8", "replace"))
        with one_line_or_good(said):
            found = aggregate(manifest, runs)
    finally:
        path.write_bytes(before)
    assert said == [], "the other runs' tables are not there"
    assert found.runs["run"].to_list() == list(manifest["runs"])
    others = found.runs.filter(found.runs["run"] != victim)
    assert set(others["status"]) == {"ok"}
    assert found.cells.height
