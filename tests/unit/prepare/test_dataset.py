"""Every reader, on good files and on each kind of bad one."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

from joulesweep.core.errors import UserError
from joulesweep.plan.config import DatasetConfig
from joulesweep.prepare import dataset

ROOT = tiny_run.REPOSITORY
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


def read(local, form, field=None, **keys):
    rows, manifest = read_rows(local, form, field, **keys)
    return [row["text"] for row in rows], manifest


def read_rows(local, form, field=None, **keys):
    lines, manifest = dataset.fetch_dataset(DatasetConfig(source={"local": local}, format=form, field=field, **keys))
    return [json.loads(line) for line in lines.split("\n") if line], manifest


def mistake(local, form, field=None, **keys):
    with pytest.raises(UserError) as caught:
        read(local, form, field, **keys)
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
    lines, manifest = dataset.fetch_dataset(
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


BAD_JSONL = {
    '{"q": "x"}\n{"q": bad}\n': "a.jsonl:2: corrupt JSON: Expecting value at column 7",
    '{"q": "x"}\n\n{"q": "y"\n': "a.jsonl:3: corrupt JSON: Expecting ',' delimiter at column 10",
    '{"q": "x"}\n[1]\n': "a.jsonl:2: not a JSON object",
    '{"quest": "x", "n": 1}\n': "a.jsonl:1: unknown field 'q'; allowed: quest, n",
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


HEADERLESS = 'uno,ce\n"dos\nlíneas",ome\n,nada\n'


@pytest.mark.parametrize(("field", "target"), [(0, 1), ("0", "1")])
def test_columns_without_a_header_are_taken_by_number(field, target):
    rows, manifest = read_rows(put("a.csv", HEADERLESS), "csv", field, target=target, header=False)
    assert rows == [{"text": "uno", "targets": ["ce"]}, {"text": "dos\nlíneas", "targets": ["ome"]}]
    assert (manifest["num_empty"], manifest["source"]["header"], manifest["source"]["field"]) == (1, False, "0")
    assert read(put("b.csv", "uno,ce\ndos,ome\n"), "csv", 1, header=False)[0] == ["ce", "ome"]


@pytest.mark.parametrize(
    ("content", "line"),
    {
        HEADERLESS: "a.csv: unknown field '2'; allowed: 0, 1",
        "uno,ce,x\ndos,ome\n": "a.csv:2: 2 cells, the first row has 3",
        "": "a.csv: no texts",
    }.items(),
)
def test_bad_csv_without_a_header(content, line):
    assert mistake(put("a.csv", content), "csv", 2, header=False) == line


BAD_VIZWIZ = {
    "{}": f"a.json: not a list; {EXPECTED_VIZWIZ}",
    '[{"image": "a.jpg", "question": "x"}, {"image": "b.jpg"}]': (
        f"a.json: annotation 1 has no question in text; {EXPECTED_VIZWIZ}"
    ),
    '[{"question": 5}]': f"a.json: annotation 0 has no question in text; {EXPECTED_VIZWIZ}",
    '["x"]': f"a.json: annotation 0 has no question in text; {EXPECTED_VIZWIZ}",
    '[{"question": "x"': "a.json:1: corrupt JSON: Expecting ',' delimiter at column 18",
    "[]": "a.json: no texts",
}


@pytest.mark.parametrize(("content", "line"), BAD_VIZWIZ.items())
def test_bad_vizwiz(content, line):
    assert mistake(put("a.json", content), "vizwiz") == line


def jsonl(name, *rows):
    return put(name, "".join(json.dumps(row) + "\n" for row in rows))


PLAIN = {
    "jsonl": ('{"q": "é \\"x\\"", "t": "y", "c": ["a", "b"], "i": 1}\n{"q": "z"}\n', "q"),
    "csv": ('q,t\n"é ""x""",y\nz,w\n', "q"),
    "text": ('é "x"\nz\n', None),
    "vizwiz": ('[{"image": "i.jpg", "question": "é \\"x\\""}, {"image": "j.jpg", "question": "z"}]', None),
}


@pytest.mark.parametrize(("form", "given"), PLAIN.items())
def test_without_targets_a_line_is_its_text_alone(form, given):
    content, field = given
    lines, manifest = dataset.fetch_dataset(
        DatasetConfig(source={"local": put("a", content)}, format=form, field=field, target=None, prompt="{source}")
    )
    assert lines == '{"text": "é \\"x\\""}\n{"text": "z"}\n'
    assert set(manifest["source"]) == {"source", "format"} | ({"field"} if field else set())


def test_a_target_is_a_text_or_a_list_whose_first_is_trained_on():
    path = jsonl("a.jsonl", {"q": "one", "t": " y "}, {"q": "two", "t": ["b", "a"], "n": 1})
    found, manifest = read_rows(path, "jsonl", "q", target="t", prompt="{source} TL;DR: ")
    assert found == [{"text": "one", "targets": [" y "]}, {"text": "two", "targets": ["b", "a"]}]
    assert manifest["source"] == {
        "source": {"local": "a.jsonl"},
        "format": "jsonl",
        "field": "q",
        "target": "t",
        "prompt": "{source} TL;DR: ",
    }


def test_a_target_in_a_csv_file_is_text():
    found, manifest = read_rows(put("a.csv", "q,n,t\none,1,007\ntwo,2,NA\nthree,3,\n"), "csv", "q", target="t")
    assert found == [{"text": "one", "targets": ["007"]}, {"text": "two", "targets": ["NA"]}]
    assert manifest["num_empty"] == 1


def test_the_right_choice_is_the_target():
    rows = [{"q": "one", "c": ["a", "b", "c"], "i": 2}, {"q": "two", "c": ["d", "e"], "i": 0}]
    found, manifest = read_rows(jsonl("a.jsonl", *rows), "jsonl", "q", choices="c", answer="i")
    assert found == [
        {"text": "one", "targets": ["c"], "choices": ["a", "b", "c"], "answer": 2},
        {"text": "two", "targets": ["d"], "choices": ["d", "e"], "answer": 0},
    ]
    assert (manifest["source"]["choices"], manifest["source"]["answer"]) == ("c", "i")


def test_rows_without_text_target_or_choice_are_left_out_and_counted():
    targets = [{"q": "x", "t": " "}, {"q": " ", "t": "y"}, {"q": "x", "t": []}, {"q": "x", "t": ["\t", "y"]}]
    found, manifest = read_rows(jsonl("a.jsonl", *targets), "jsonl", "q", target="t")
    assert (found, manifest["num_empty"]) == ([{"text": "x", "targets": ["y"]}], 3)
    choices = [
        {"q": "x", "c": ["a", " "], "i": 0},
        {"q": "x", "c": ["a", "b"], "i": 0},
        {"q": "x", "c": ["", "b"], "i": 0},
    ]
    found, manifest = read_rows(jsonl("a.jsonl", *choices), "jsonl", "q", choices="c", answer="i")
    assert ([row["choices"] for row in found], manifest["num_empty"]) == ([["a", "b"]], 2)
    assert mistake(jsonl("a.jsonl", *targets[:3]), "jsonl", "q", target="t") == "a.jsonl: no texts; all 3 are empty"


BAD_TARGETS = {
    '"y"}\n{"q": "x"}': "a.jsonl:2: unknown field 't'; allowed: q",
    "5}": "a.jsonl:1: field 't' is a number, expected text or a list of texts",
    "null}": "a.jsonl:1: field 't' is null, expected text or a list of texts",
    '"y"}\n{"q": "x", "t": ["y", 1]}': "a.jsonl:2: field 't' is a list with a number, expected text or a list of texts",
    '["y", null]}': "a.jsonl:1: field 't' is a list with null, expected text or a list of texts",
    '["y", "\\ud800"]}': "a.jsonl:1: field 't' is not valid Unicode",
    '"y"}\n["x"]': "a.jsonl:2: not a JSON object",
    '"y"': "a.jsonl:1: corrupt JSON: Expecting ',' delimiter at column 20",
    '"y"}\n{"q": ["x"], "t": "y"}': "a.jsonl:2: field 'q' is a list, expected text",
}


@pytest.mark.parametrize(("content", "line"), BAD_TARGETS.items())
def test_bad_targets(content, line):
    assert mistake(put("a.jsonl", f'{{"q": "x", "t": {content}\n'), "jsonl", "q", target="t") == line


def test_a_csv_file_without_the_targets_field():
    path = put("a.csv", "q,summary\nx,y\n")
    line = "a.csv: unknown field 'summry'; allowed: q, summary (did you mean 'summary'?)"
    assert mistake(path, "csv", "q", target="summry") == line


BAD_CHOICES = {
    ('["a"]', "0"): "field 'c' is a list, expected a list of at least 2 texts",
    ('"ab"', "0"): "field 'c' is text, expected a list of at least 2 texts",
    ('["a", 1]', "0"): "field 'c' is a list with a number, expected a list of at least 2 texts",
    ('["a", "b"]', "2"): "field 'i' is 2, expected the index of a choice, 0 to 1",
    ('["a", "b"]', "-1"): "field 'i' is -1, expected the index of a choice, 0 to 1",
    ('["a", "b"]', '"B"'): "field 'i' is text, expected the index of a choice",
    ('["a", "b"]', "true"): "field 'i' is true or false, expected the index of a choice",
    ('["a", "b"]', "1.0"): "field 'i' is a number, expected the index of a choice",
}


@pytest.mark.parametrize(("given", "line"), BAD_CHOICES.items())
def test_bad_choices(given, line):
    good = '{"q": "x", "c": ["a", "b"], "i": 0}\n'
    path = put("a.jsonl", f'{good}{{"q": "x", "c": {given[0]}, "i": {given[1]}}}\n')
    assert mistake(path, "jsonl", "q", choices="c", answer="i") == f"a.jsonl:2: {line}"


def test_scitldr_joins_sentences_and_keeps_every_summary():
    rows = [
        {"source": ["One.", "Two."], "source_labels": [0, 1], "target": ["first", "second"], "title": "t"},
        {"source": [], "target": ["none"]},
    ]
    found, manifest = read_rows(jsonl("a.jsonl", *rows), "scitldr")
    assert found == [{"text": "One. Two.", "targets": ["first", "second"]}]
    assert (manifest["num_empty"], manifest["source"]) == (1, {"source": {"local": "a.jsonl"}, "format": "scitldr"})


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"source": "One.", "target": ["x"]}, "field 'source' is text, expected a list of texts"),
        ({"source": ["One."], "target": "x"}, "field 'target' is text, expected a list of texts"),
        ({"source": ["One.", 2], "target": ["x"]}, "field 'source' is a list with a number, expected a list of texts"),
        (
            {"dialogue": "x", "summary": "y"},
            "unknown field 'source'; allowed: dialogue, summary (did you mean 'summary'?)",
        ),
        (["One."], "not a JSON object"),
    ],
)
def test_bad_scitldr(row, line):
    good = {"source": ["One."], "target": ["x"]}
    assert mistake(jsonl("a.jsonl", good, row), "scitldr") == f"a.jsonl:2: {line}"


@pytest.mark.parametrize(
    ("name", "num_texts", "num_references"), [("train", 1992, 1992), ("dev", 619, 1453), ("test", 618, 1967)]
)
def test_official_scitldr_files(shared_data, name, num_texts, num_references):
    path = shared_data / "scitldr" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the folder ../shared/data has no scitldr")
    found, manifest = read_rows(str(path), "scitldr", prompt="{source} TL;DR: ")
    assert (manifest["num_texts"], manifest["num_empty"]) == (num_texts, 0)
    assert sum(len(row["targets"]) for row in found) == num_references


def test_dialogsum_has_one_summary_in_training_and_three_in_the_test_file():
    train = {"fname": "train_0", "dialogue": "#Person1#: Hi.\n#Person2#: Hi.", "summary": "They greet.", "topic": "t"}
    test = {"fname": "test_0", "dialogue": "d", "summary1": "a", "topic1": "t", "summary2": "b", "summary3": "c"}
    found, manifest = read_rows([jsonl("train.jsonl", train), jsonl("test.jsonl", test)], "dialogsum")
    assert found == [
        {"text": "#Person1#: Hi.\n#Person2#: Hi.", "targets": ["They greet."]},
        {"text": "d", "targets": ["a", "b", "c"]},
    ]
    assert manifest["source"]["format"] == "dialogsum"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"dialogue": "x"}, "unknown field 'summary'; allowed: dialogue"),
        ({"summary": "x"}, "unknown field 'dialogue'; allowed: summary"),
        ({"dialogue": "x", "summary": ["y"]}, "field 'summary' is a list, expected text"),
        (
            {"dialogue": "x", "summary1": "y", "summary2": "z"},
            "unknown field 'summary3'; allowed: dialogue, summary1, summary2 (did you mean 'summary2'?)",
        ),
    ],
)
def test_bad_dialogsum(row, line):
    assert mistake(jsonl("a.jsonl", {"dialogue": "x", "summary": "y"}, row), "dialogsum") == f"a.jsonl:2: {line}"


def test_bad_text():
    assert mistake(put("a.txt", b"x\n\n\xff\n"), "text") == "a.txt:3: not UTF-8: byte 0xff"
    assert mistake(put("a.txt", "\n \n"), "text") == "a.txt: no texts; all 2 are empty"
    assert mistake(put("a.txt", ""), "text") == "a.txt: no texts"


def test_missing_file():
    assert mistake("nowhere.jsonl", "jsonl", "q") == "nowhere.jsonl: no such file"
    assert mistake(".", "jsonl", "q") == ".: not a file"


OTHER_COLUMNS = {
    "jsonl": [
        '{"q": "x", "id": 1}\n{"q": "y", "id": "a"}\n',
        '{"q": "x", "o": {"a": 1}}\n{"q": "y", "o": [1]}\n{"q": "z", "o": null, "more": []}\n',
        '{"q": "2020-01-01", "n": 1}\n{"q": "2021-05-05T10:00:00", "n": NaN}\n',
        '{"q": "12:30:00"}\n{"q": "NaN"}\n',
        '{"q": "2020-01-01"}\n{"q": "2021-05-06"}\n',
        '{"q": "2020-01-01T10:00:00"}\n{"q": "2021-05-06T00:00:00Z"}\n',
        '{"q": "2020-01-01 10:00:00"}\n{"q": "2021-05-06 11:30:00"}\n',
        f'{{"q": "x", "id": {2**70}}}\n{{"q": "y", "id": {"9" * 5000}}}\n',
        '{"q": "x", "\\ud800": "\\ud800", "d": 1, "d": 2}\n',
        '{"q": "x", "": 1}\n \t\n{"q": "", "": {}}\n{"q": "  "}\n',
        '[{"q": "x", "id": 1},\n {"q": "y", "id": "a"}]',
    ],
    "csv": [
        ",q\n0,x\n1,y\n",
        "q,n,\nx,1,\ny,2,\n",
        "q,n,n\nx,1,2\n",
        "q\nx\n   \n\ny\n",
        "q,n\nNA,1\nnull,NA\nNone,2\n007,3\n1e5,x\n2020-01-01,\nTrue,1\n",
        'q,n\r\n"two\r\nlines",1\r\ny,2\r\n',
    ],
}


@pytest.mark.parametrize(("form", "content"), [(form, one) for form, some in OTHER_COLUMNS.items() for one in some])
def test_only_what_is_asked_for_matters_whatever_else_is(form, content):
    """An independent reading gives the same texts, with targets and without."""
    if form == "csv":
        rows = [dict(row) for row in csv.DictReader(io.StringIO(content, newline=""))]
    else:
        lines = [content] if content.startswith("[") else [line for line in content.split("\n") if line.strip()]
        rows = [json.loads(line, parse_int=str) for line in lines]
        rows = rows[0] if content.startswith("[") else rows
    expected = [row["q"] for row in rows]
    found, manifest = read(put("a", content), form, "q")
    assert found == [text for text in expected if text.strip()]
    assert manifest["num_empty"] == len(expected) - len(found)
    assert read("a", form, "q", target="q")[0] == found


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"q": "x", "d": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "a:1: JSON nested too deep"),
        ('{"q": "x"}\n{"q": ' + "9" * 5000 + "}\n", "a:2: field 'q' is a number, expected text"),
        ('{"q":\n "x"}\n', "a:1: corrupt JSON: Expecting value at column 6"),
        ('{"q": "x", "q": "y"}\n', "a:1: field 'q' is given twice"),
        ('[{"q": "x"},\n{"q": 5}]', "a: row 1: field 'q' is a number, expected text"),
        ('[{"q": "x"},\n{"q": }]', "a:2: corrupt JSON: Expecting value at column 7"),
        ('["x"]', "a: row 0: not a JSON object"),
        ("[]", "a: no texts"),
    ],
)
def test_what_is_asked_for_is_bounded_and_plain(content, line):
    assert mistake(put("a", content), "jsonl", "q") == line
    assert mistake("a", "jsonl", "q", target="q") == line.replace("expected text or", "expected text")


def test_an_official_file_that_is_deep_is_one_line():
    deep = '[{"question": ' + "[" * 100_000 + "]" * 100_000 + "}]"
    assert mistake(put("a", deep), "vizwiz") == "a:1: JSON nested too deep"


OFFICIAL = {
    "vizwiz": '[{"question": "x", "n": VALUE}]',
    "scitldr": '{"source": ["x"], "target": ["y"], "n": VALUE}',
    "dialogsum": '{"dialogue": "x", "summary": "y", "n": VALUE}',
}


@pytest.mark.parametrize(("form", "content"), OFFICIAL.items())
def test_what_stands_beside_the_texts_of_official_files_is_bounded(form, content):
    assert read(put("a", content.replace("VALUE", "9" * 5000)), form)[0] == ["x"]
    deep = "[" * 100_000 + "]" * 100_000
    assert mistake(put("a", content.replace("VALUE", deep)), form) == "a:1: JSON nested too deep"


def test_a_file_named_twice_is_told():
    put("a.jsonl", '{"q": "x"}\n')
    Path("b.jsonl").symlink_to("a.jsonl")
    told = "b.jsonl: the same file as a.jsonl: each of its texts would count twice"
    assert mistake(["a.jsonl", "b.jsonl"], "jsonl", "q") == told


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
    return snapshot


def from_hub(field="q", **source):
    source = {"hub": "org/questions", **source}
    lines, manifest = dataset.fetch_dataset(DatasetConfig(source=source, format="hub", field=field))
    return [json.loads(line)["text"] for line in lines.splitlines()], manifest


def test_hub_data_set_pools_the_splits(hub_data):
    found, manifest = from_hub(splits=["validation", "train"])
    assert found == ["four", "one", "two"]
    assert manifest["revision"] == COMMIT
    assert list(manifest["files"]) == ["data/test.jsonl", "data/train.jsonl", "data/validation.jsonl"]


def test_hub_data_set_with_targets_and_with_choices(hub_data):
    rows = [{"q": "one", "t": ["y", "z"], "c": ["a", "b"], "i": 1}, {"q": "two", "t": [" "], "c": ["a", "c"], "i": 0}]
    jsonl(hub_data / "data" / "train.jsonl", *rows)
    for name in ("test", "validation"):
        (hub_data / "data" / f"{name}.jsonl").unlink()

    def rows_of(**keys):
        lines, _ = dataset.fetch_dataset(
            DatasetConfig(source={"hub": "org/questions"}, format="hub", field="q", **keys)
        )
        return [json.loads(line) for line in lines.splitlines()]

    assert rows_of(target="t") == [{"text": "one", "targets": ["y", "z"]}]
    assert rows_of(choices="c", answer="i") == [
        {"text": "one", "targets": ["b"], "choices": ["a", "b"], "answer": 1},
        {"text": "two", "targets": ["a"], "choices": ["a", "c"], "answer": 0},
    ]
    with pytest.raises(UserError) as caught:
        rows_of(target="i")
    told = "data/train.jsonl:1: field 'i' is a number, expected text or a list of texts"
    assert str(caught.value) == f"hub org/questions@main: {told}"


EXOTIC = "q,n\nNA,1\nnull,2\n007,3\n  ,4\n1.50,5\n2020-01-01,x\n"


def of_hub(snapshot, name, content):
    """The hub data set with nothing but one file."""
    for path in (snapshot / "data").iterdir():
        path.unlink()
    path = snapshot / "data" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", EXOTIC),
        ("train.tsv", EXOTIC.replace(",", "\t")),
        ("train.jsonl", '{"q": "2020-01-01", "n": 1}\n{"q": "NA", "n": "x"}\n'),
        ("train.json", '[{"q": "12:30:00", "n": 1}, {"q": "7", "n": "x"}]'),
    ],
)
def test_a_file_of_the_hub_gives_the_texts_that_it_gives_on_this_machine(hub_data, name, content):
    path = of_hub(hub_data, name, content)
    local = Path("local")
    local.write_text(content.replace("\t", ",") if name.endswith("tsv") else content)
    found, manifest = read("local", "jsonl" if "json" in name else "csv", "q")
    from_there, there = from_hub()
    assert (from_there, there["num_empty"]) == (found, manifest["num_empty"])
    assert len(found) > 1
    assert path.name in next(iter(there["files"]))


def test_packed_and_typed_files_of_the_hub_are_read_by_datasets(hub_data):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"q": ["one", "2020-01-01", "NA"], "n": [1, 2, 3]})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    of_hub(hub_data, "train.parquet", buffer.getvalue())
    assert from_hub()[0] == ["one", "2020-01-01", "NA"]
    assert from_hub(splits=["train[:2]"])[0] == ["one", "2020-01-01"]
    of_hub(hub_data, "train.jsonl.gz", gzip.compress(b'{"q": "packed"}\n'))
    assert from_hub()[0] == ["packed"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [("train[:50%]", ["one"]), ("train[1:]", ["two"]), ("train+validation", ["one", "two", "four"])],
)
def test_a_part_of_a_split_may_be_named(hub_data, part, expected):
    assert from_hub(splits=[part])[0] == expected


def test_a_wrong_part_of_a_split_is_one_line(hub_data):
    with pytest.raises(UserError, match=r"^hub org/questions@main: split 'train\[x\]': "):
        from_hub(splits=["train[x]"])


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"field": "n"}, "hub org/questions@main: data/train.jsonl:1: field 'n' is a number, expected text"),
        ({"field": "p"}, "hub org/questions@main: data/train.jsonl:1: unknown field 'p'; allowed: q, n"),
        ({"splits": ["test"]}, "hub org/questions@main: data/test.jsonl:2: field 'q' is null, expected text"),
        (
            {"splits": ["tes"]},
            "hub org/questions@main: unknown split 'tes'; allowed: train, validation, test (did you mean 'test'?)",
        ),
        (
            {"subset": "small"},
            "hub org/questions@main: BuilderConfig 'small' not found. Available: ['default']",
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
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "fetching texts a\n")
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
    assert done.stderr.partition("\n")[2] == "error: a.jsonl:2: corrupt JSON: Expecting value at column 7\n"
    assert not Path("out").exists()


def test_script_refuses_what_is_no_section():
    done = script({"format": "jsonl"})
    assert (done.returncode, done.stderr) == (2, "fetching texts a\nerror: --source: source: Field required\n")
