"""What readers of YAML disagree about is refused, and every refusal is one line with its number."""

from __future__ import annotations

import pytest

from joulesweep.core.errors import LONGEST_LINE, UserError, one_of
from joulesweep.plan import strict
from joulesweep.plan.strict import Place


def value(text):
    return strict.parse(text, "f")[0]


def refusal(text):
    with pytest.raises(UserError) as caught:
        strict.parse(text, "f")
    line = str(caught.value)
    assert line.isprintable()
    return line


WORDS = ["1e", "e3", "word1e3", "1e-3x", "a1.5", "<<", "=", "1.2.3", "2026-01", "y"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, -2, +3, 0, 1.5, .5, 2., 1e-3, 1.5e3, 1E+2]", [1, -2, 3, 0, 1.5, 0.5, 2.0, 1e-3, 1500.0, 100.0]),
        ("a: [true, False, null, ~]", [True, False, None, None]),
        ("a: ['010', \"no\", '2026-01-01', '1:30', '', !!str 5]", ["010", "no", "2026-01-01", "1:30", "", "5"]),
        (f"a: [{', '.join(WORDS)}]", WORDS),
        ("b: &x {p: 1, q: 2}\na: {<<: *x, q: 3}", {"p": 1, "q": 3}),
        ("b: &x {p: 1}\nc: &y {p: 2, r: 4}\na: {<<: [*x, *y]}", {"p": 1, "r": 4}),
        ("b: &x [1, 2]\na: *x", [1, 2]),
        ("a: |\n  two\n  lines\n", "two\nlines\n"),
        ('{\n\t"a": [1, "x"]\n}', [1, "x"]),
    ],
)
def test_what_is_plain_is_read_as_it_stands(text, expected):
    found = value(text)["a"]
    assert found == expected
    if isinstance(expected, list):
        assert list(map(type, found)) == list(map(type, expected))


NUMBER = "some readers of YAML take this for another number; write it in plain decimals, or quote it as text"
TRUTH = "yes, no, on and off are true or false to some readers of YAML; write true or false, or quote it as text"
DATE = "some readers of YAML take this for a date; quote it as text"
DATES = ("2026-01-02", "2023-13-06", "2001-12-14t21:59:43Z")
REFUSED = {
    **{f"a: 1\nb: {word}": f"f:2: b: {word!r}: {NUMBER}" for word in ("010", "0x1f", "0b1", "0o17", "1:30", "1_000")},
    **{f"a: 1\nb: {word}": f"f:2: b: {word!r}: {TRUTH}" for word in ("yes", "No", "on", "OFF")},
    **{f"a:\n- {word}": f"f:2: a[0]: {word!r}: {DATE}" for word in DATES},
    "a: .nan": "f:1: a: .nan: not a number that a sweep can have",
    "a: -.inf": "f:1: a: -.inf: not a number that a sweep can have",
    "a: 1e999": "f:1: a: '1e999': a number beyond 64 bits; quote it if it is text",
    "a: 1e-320": "f:1: a: '1e-320': a number beyond 64 bits; quote it if it is text",
    f"a: {2**63}": f"f:1: a: '{2**63}': a number beyond 64 bits; quote it if it is text",
    "a: &b [*b]": "f:1: a[0]: *b names no value that is complete before it",
    "a: *b": "f:1: a: *b names no value that is complete before it",
    "a: 1\nb: 2\na: 3": "f:3: a: the key is given twice, first in line 1",
    "a:\n  b: 1\n  b: 1": "f:3: a.b: the key is given twice, first in line 2",
    "{a: 1, a: 2}": "f:1: a: the key is given twice, first in line 1",
    "5: x": "f:1: key '5': a key is text; quote it",
    "no: x": f"f:1: 'no': {TRUTH}",
    "[a]: x": "f:1: a key is text",
    "a: !!int abc": "f:1: a: tags such as 'tag:yaml.org,2002:int' have no meaning here",
    "a: !!timestamp abc": "f:1: a: tags such as 'tag:yaml.org,2002:timestamp' have no meaning here",
    "a: !new {}": "f:1: a: tags such as '!new' have no meaning here",
    "a: 1\n---\nb: 2": "f:2: a second document begins; a config file is one",
    "a: 1\nb: {<<: 5}": "f:2: b: << merges mappings, and only those",
}


@pytest.mark.parametrize(("text", "line"), REFUSED.items())
def test_what_is_ambiguous_is_refused(text, line):
    assert refusal(text) == line


def test_depth_digits_and_aliases_are_bounded():
    assert refusal(f"a:\n  {'[' * 100_000}") == "f:2: nested deeper than 40 levels"
    assert refusal("\n".join(" " * i + "a:" for i in range(500))) == "f:42: nested deeper than 40 levels"
    assert refusal(f"a: {'9' * 5000}").startswith("f:1: a: '9999")
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert refusal("\n".join(bomb)).endswith("more than 100,000 values")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^f: Is a directory$"):
        strict.read(tmp_path, "f")
    (tmp_path / "large").write_bytes(b"#" * 200_001)
    with pytest.raises(UserError, match=r"^f: 200,001 bytes; a config has at most 200,000$"):
        strict.read(tmp_path / "large", "f")


def test_each_value_knows_its_line():
    _, place = strict.parse("a: 1\nb:\n- x\n- {c: 1,\n   d: 2}\ne: &e {g: 1}\nf: *e\n", "f")
    lines = {(): "f", ("a",): "f:1", ("b",): "f:2", ("b", 1): "f:4", ("b", 1, "d"): "f:5", ("b", 1, "z"): "f:4"}
    assert {at: place.at(*at) for at in lines} == lines
    assert [place.at("f", "g"), Place("g").at("a", "b")] == ["f:7", "g"]


def test_a_value_laid_over_another_says_where_it_comes_from():
    given, place = strict.parse("a: {b: 1, c: 2}\nd: [1]\n", "f")
    found, now = strict.override(given, place, {"a": {"b": 3}, "d": [2, 3], "e": {"g": 4}}, "here")
    assert found == {"a": {"b": 3, "c": 2}, "d": [2, 3], "e": {"g": 4}}
    assert given == {"a": {"b": 1, "c": 2}, "d": [1]}
    wanted = {("a", "b"): "here", ("a", "c"): "f:1", ("d", 0): "here", ("e", "g"): "here", ("a",): "f:1"}
    assert {at: now.at(*at) for at in wanted} == wanted


def test_an_error_is_one_line_whatever_it_shows():
    line = str(UserError("a\nb\r\x1b[31m\u2028c\ud800 é"))
    assert line == "a\\nb\\r\\x1b[31m\\u2028c\\ud800 é"
    assert len(str(UserError("x" * 10**6))) <= LONGEST_LINE + 3
    assert len(one_of("key", "k" * 10**6, ["a"])) < 200
