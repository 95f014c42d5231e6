"""Every reader, on good files and on each kind of bad one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from joulesweep import texts
from joulesweep.config import DatasetConfig
from joulesweep.errors import UserError

ROOT = Path(__file__).parent.parent
VIZWIZ = ROOT.parent / "shared" / "data" / "vizwiz" / "val.json"
EXPECTED_VIZWIZ = "expected VizWiz-VQA annotations: a list of objects with image and question"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield
    assert not list((tmp_path / "temporary").iterdir()), "something was left behind"


def put(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def read(local, form, field=None):
    lines, manifest = texts.fetch_dataset(DatasetConfig(source={"local": local}, format=form, field=field))
    return [json.loads(line)["text"] for line in lines.split("\n") if line], manifest


def mistake(local, form, field=None):
    with pytest.raises(UserError) as caught:
        read(local, form, field)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_jsonl_keeps_order_and_exact_text():
    content = '{"q": " two  spaces "}\n\n{"q": "line\\u2028separator", "n": 1}\n{"q": "é"}\n{"q": "é"}\n'
    found, manifest = read(put("a.jsonl", content), "jsonl", "q")
    assert found == [" two  spaces ", "line\u2028separator", "é", "é"]
    assert (manifest["num_texts"], manifest["num_unique"], manifest["num_empty"]) == (4, 3, 0)
    assert manifest["files"] == {"a.jsonl": hashlib.sha256(content.encode()).hexdigest()}
    assert manifest["source"] == {"source": {"local": "a.jsonl"}, "format": "jsonl", "field": "q"}


def test_sha256_is_of_the_output():
    lines, manifest = texts.fetch_dataset(
        DatasetConfig(source={"local": put("a.txt", "é\nb\n")}, format="text", split="unique")
    )
    assert lines == '{"text": "é"}\n{"text": "b"}\n'
    assert manifest["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert "split" not in manifest["source"], "how it is split does not change the texts"


def test_several_files_are_pooled_in_the_order_given():
    put("b.jsonl", '{"q": "first"}\n')
    put("a.jsonl", '{"q": "second", "extra": [1]}\n')
    assert read(["b.jsonl", "a.jsonl"], "jsonl", "q")[0] == ["first", "second"]


def test_empty_texts_are_dropped_and_counted():
    found, manifest = read(put("a.jsonl", '{"q": ""}\n{"q": "x"}\n{"q": " \\t"}\n'), "jsonl", "q")
    assert (found, manifest["num_empty"], manifest["num_texts"]) == (["x"], 2, 1)


def test_csv_cells_are_text():
    content = 'q,n\n007,1\nNA,2\n"quoted ""word"",\nsecond line",3\n,4\n'
    found, manifest = read(put("a.csv", content), "csv", "q")
    assert found == ["007", "NA", 'quoted "word",\nsecond line']
    assert manifest["num_empty"] == 1


def test_csv_cell_may_be_long():
    assert read(put("a.csv", f"q\n{'x' * 200_000}\n"), "csv", "q")[0] == ["x" * 200_000]


def test_csv_row_may_have_exotic_line_separators():
    assert read(put("a.csv", "q,n\none\u2028two,1\n"), "csv", "q")[0] == ["one\u2028two"]


def test_text_is_one_per_line():
    found, manifest = read(put("a.txt", "one\r\n\ntwo \u2028 more\nthree"), "text")
    assert found == ["one", "two \u2028 more", "three"]
    assert manifest["num_empty"] == 1


@pytest.mark.parametrize(
    ("form", "content"), [("jsonl", '{"q": "x"}\n'), ("csv", "q,n\nx,1\n"), ("text", "x\n"), ("vizwiz", None)]
)
def test_byte_order_mark_is_no_text(form, content):
    content = content or '[{"image": "i.jpg", "question": "x"}]'
    put("a", b"\xef\xbb\xbf" + content.encode())
    assert read("a", form, "q" if form in ("jsonl", "csv") else None)[0] == ["x"]


def test_name_with_wildcards_is_a_name():
    put("a[1]*.jsonl", '{"q": "x"}\n')
    put("a1.jsonl", '{"q": "other"}\n')
    assert read("a[1]*.jsonl", "jsonl", "q")[0] == ["x"]


def test_chat_logs_are_rows_like_any_other():
    assert read(put("a.jsonl", '{"type": "user", "message": {"role": "x"}}\n'), "jsonl", "type")[0] == ["user"]


def test_official_vizwiz_file():
    if not VIZWIZ.is_file():
        pytest.skip("no shared/data beside the checkout")
    found, manifest = read(str(VIZWIZ), "vizwiz")
    assert (manifest["num_texts"], manifest["num_unique"]) == (3172, 1972)
    assert found[0] == "What's this?"
    assert found.count("What is this?") == 446
    assert read([str(VIZWIZ)] * 2, "vizwiz")[1]["num_texts"] == 6344


BAD_JSONL = {
    '{"q": "x"}\n{"q": bad}\n': "a.jsonl:2: corrupt JSON: Expecting value at column 7",
    '{"q": "x"}\n\n{"q": "y"\n': "a.jsonl:3: corrupt JSON: Expecting ',' delimiter at column 10",
    '{"q": "x"}\n[1]\n': "a.jsonl:2: not a JSON object",
    '{"quest": "x", "n": 1}\n': "a.jsonl: unknown field 'q'; allowed: quest, n",
    '{"q": "x"}\n{"p": "y"}\n': "a.jsonl:2: unknown field 'q'; allowed: p",
    '{"q": "x"}\n{"q": 5}\n': "a.jsonl:2: field 'q' is a number, expected text",
    '{"q": 5}\n{"q": 6}\n': "a.jsonl:1: field 'q' is a number, expected text",
    '{"q": true}\n': "a.jsonl:1: field 'q' is true or false, expected text",
    '{"q": "x"}\n{"q": null}\n': "a.jsonl:2: field 'q' is null, expected text",
    '{"q": ["x"]}\n': "a.jsonl:1: field 'q' is a list, expected text",
    '{"q": {"r": "x"}}\n': "a.jsonl:1: field 'q' is an object, expected text",
    '{"q": "x"}\n{"q": {"r": "x"}}\n': "a.jsonl:2: field 'q' is an object, expected text",
    '{"q": "\\ud800"}\n': "a.jsonl:1: field 'q' is not valid Unicode",
    b'{"q": "x"}\n{"q": "\xff"}\n': "a.jsonl:2: not UTF-8: byte 0xff",
    "": "a.jsonl: no texts",
    '{"q": " "}\n{"q": ""}\n': "a.jsonl: no texts; all 2 are empty",
}


@pytest.mark.parametrize(("content", "line"), BAD_JSONL.items())
def test_bad_jsonl(content, line):
    assert mistake(put("a.jsonl", content), "jsonl", "q") == line


BAD_CSV = {
    "question,n\nx,1\n": "a.csv: unknown field 'questin'; allowed: question, n (did you mean 'question'?)",
    "questin,n\nx,1\ny,2,3\n": "a.csv:3: 3 cells, the header has 2",
    'questin,n\n"a\nb",1\nz\n': "a.csv:4: 1 cells, the header has 2",
    'questin,n\n"x,1\n': "a.csv:2: not CSV: unexpected end of data",
    "questin,questin\nx,y\n": "a.csv:1: two columns are named 'questin'",
    b"questin\n\xe9\n": "a.csv:2: not UTF-8: byte 0xe9",
    "": "a.csv: no texts",
    "questin\n": "a.csv: no texts",
}


@pytest.mark.parametrize(("content", "line"), BAD_CSV.items())
def test_bad_csv(content, line):
    assert mistake(put("a.csv", content), "csv", "questin") == line


BAD_VIZWIZ = {
    "{}": f"a.json: not a list; {EXPECTED_VIZWIZ}",
    '[{"image": "a.jpg", "question": "x"}, {"image": "b.jpg"}]': (
        f"a.json: annotation 1 has no question in text; {EXPECTED_VIZWIZ}"
    ),
    '[{"question": 5}]': f"a.json: annotation 0 has no question in text; {EXPECTED_VIZWIZ}",
    '["x"]': f"a.json: annotation 0 has no question in text; {EXPECTED_VIZWIZ}",
    '[{"question": "x"': "a.json: not JSON: Expecting ',' delimiter: line 1 column 18 (char 17)",
    "[]": "a.json: no texts",
}


@pytest.mark.parametrize(("content", "line"), BAD_VIZWIZ.items())
def test_bad_vizwiz(content, line):
    assert mistake(put("a.json", content), "vizwiz") == line


def test_bad_text():
    assert mistake(put("a.txt", b"x\n\n\xff\n"), "text") == "a.txt:3: not UTF-8: byte 0xff"
    assert mistake(put("a.txt", "\n \n"), "text") == "a.txt: no texts; all 2 are empty"
    assert mistake(put("a.txt", ""), "text") == "a.txt: no texts"


def test_missing_file():
    assert mistake("nowhere.jsonl", "jsonl", "q") == "nowhere.jsonl: no such file"
    assert mistake(".", "jsonl", "q") == ".: not a file"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_data(tmp_path, monkeypatch):
    """A hub data set as the cache holds it, with the hub out of reach."""
    repository = tmp_path / "hub" / "datasets--org--questions"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "data").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "data" / "train.jsonl").write_text('{"q": "one", "n": 1}\n{"q": "two", "n": 2}\n')
    (snapshot / "data" / "test.jsonl").write_text('{"q": "three", "n": 3}\n{"q": null, "n": 4}\n')
    (snapshot / "data" / "validation.jsonl").write_text('{"q": "four", "n": 3}\n')
    (snapshot / "run_me.py").write_text("raise SystemExit('code from the hub was run')")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def from_hub(field="q", **source):
    source = {"hub": "org/questions", **source}
    lines, manifest = texts.fetch_dataset(DatasetConfig(source=source, format="hub", field=field))
    return [json.loads(line)["text"] for line in lines.splitlines()], manifest


def test_hub_data_set_pools_the_splits(hub_data):
    found, manifest = from_hub(splits=["validation", "train"])
    assert found == ["four", "one", "two"]
    assert manifest["revision"] == COMMIT
    assert list(manifest["files"]) == ["data/test.jsonl", "data/train.jsonl", "data/validation.jsonl"]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"field": "n"}, "hub org/questions@main: split train: field 'n' holds int64, expected text"),
        ({"field": "p"}, "hub org/questions@main: split train: unknown field 'p'; allowed: q, n"),
        ({"splits": ["test"]}, "hub org/questions@main: split test: field 'q' of row 1 is null, expected text"),
        (
            {"splits": ["tes"]},
            'hub org/questions@main: split tes: Unknown split "tes". '
            "Should be one of ['train', 'validation', 'test'].",
        ),
        (
            {"subset": "small"},
            "hub org/questions@main: split train: BuilderConfig 'small' not found. Available: ['default']",
        ),
        (
            {"hub": "org/other"},
            "hub org/other@main: the hub cannot be reached and the cache does not hold this dataset; "
            "run where there is network: hf download org/other --repo-type dataset --revision main",
        ),
    ],
)
def test_bad_hub_data_set(hub_data, source, line):
    with pytest.raises(UserError) as caught:
        from_hub(**source)
    assert str(caught.value) == line


def script(source, **environment):
    command = [sys.executable, "-m", "scripts.fetch_dataset", "--source", json.dumps(source)]
    command += ["--output", "out/a.jsonl", "--manifest", "out/a.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_script_writes_texts_and_manifest_and_nothing_else(tmp_path):
    put("a.jsonl", '{"q": "x"}\n')
    source = {"source": {"local": "a.jsonl"}, "format": "jsonl", "field": "q", "split": "unique"}
    done = script(source, HF_HOME=str(tmp_path / "hf"), TMPDIR=str(tmp_path / "temporary"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "work/a.jsonl",
        "work/out/a.json",
        "work/out/a.jsonl",
    ]
    assert json.loads(Path("out/a.json").read_text())["format"] == "joulesweep-dataset"


def test_script_tells_a_mistake_in_one_line_and_writes_nothing():
    put("a.jsonl", '{"q": "x"}\n{"q": bad}\n')
    done = script({"source": {"local": "a.jsonl"}, "format": "jsonl", "field": "q"})
    assert done.returncode == 2
    assert done.stderr == "error: a.jsonl:2: corrupt JSON: Expecting value at column 7\n"
    assert not Path("out").exists()


def test_script_refuses_what_is_no_section():
    done = script({"format": "jsonl"})
    assert (done.returncode, done.stderr) == (2, "error: --source: source: Field required\n")
