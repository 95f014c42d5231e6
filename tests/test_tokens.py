"""Tokens are complete, without special ones, and the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny import bert_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from joulesweep import tokens
from joulesweep.errors import UserError

ROOT = Path(__file__).parent.parent


def texts_file(path, texts):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return path


@pytest.fixture
def model(tmp_path):
    return bert_tokenizer(tmp_path / "model", mask_token="[MASK]")


def test_ids_offsets_and_groups(tmp_path, model):
    texts = ["What is this", "a\u2028b", "what is this?", "What is this", "\u200b"]
    found = tokens.tokenise(texts_file(tmp_path / "t.jsonl", texts), model)
    assert found.ids.tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 1, 5, 6, 7]
    assert found.offsets.tolist() == [0, 3, 5, 9, 12, 12]
    assert found.group.tolist() == [0, 1, 2, 0, 3]
    assert (found.ids.dtype, found.offsets.dtype, found.group.dtype) == (np.int32, np.int64, np.int32)


def test_manifest_describes_the_tokenizer(tmp_path, model):
    manifest = tokens.tokenise(texts_file(tmp_path / "t.jsonl", ["a", "b"]), model).manifest
    assert manifest.pop("sha256")
    assert manifest == {
        "format": "joulesweep-tokens",
        "version": 1,
        "num_texts": 2,
        "num_tokens": 2,
        "num_without_tokens": 0,
        "vocab_size": 11,
        "mask_id": 4,
        "pad_id": 0,
        "prefix": [2],
        "suffix": [3],
        "special_ids": [0, 1, 2, 3, 4],
    }


def test_texts_are_not_cut_and_nothing_is_said(tmp_path, model, capfd):
    """The tokenizer's own limit is four tokens."""
    found = tokens.tokenise(texts_file(tmp_path / "t.jsonl", ["a b " * 500]), model)
    assert len(found.ids) == 1000
    assert capfd.readouterr() == ("", "")


def test_tokenizer_without_mask_or_surroundings(tmp_path):
    """As causal models have them: the id of the mask is null, not made up."""
    folder = tmp_path / "causal"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"what": 0, "<unk>": 1, "is": 2, "a": 3, "b": 4, "<|end|>": 5}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    manifest = tokens.tokenise(texts_file(tmp_path / "t.jsonl", ["what is"]), folder).manifest
    assert (manifest["mask_id"], manifest["pad_id"]) == (None, None)
    assert (manifest["prefix"], manifest["suffix"]) == ([], [])
    assert manifest["special_ids"] == [5]


def test_written_file_is_the_same_every_time(tmp_path, model):
    texts = texts_file(tmp_path / "t.jsonl", ["what is this", "a b"])
    for name in ("one", "two"):
        tokens.write(tmp_path / name / "m.safetensors", tokens.tokenise(texts, model))
    one, two = ((tmp_path / name / "m.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "a"}\n{"text": \n', 't.jsonl:2: corrupt data set: expected {"text": …}; fetch it again'),
        ('{"text": "a"}\n["b"]\n', 't.jsonl:2: corrupt data set: expected {"text": …}; fetch it again'),
        ("\n", "t.jsonl: the tokenizer of model makes no token of any text"),
        (None, "t.jsonl: No such file or directory; expected a fetched data set"),
    ],
)
def test_bad_texts(tmp_path, model, monkeypatch, content, line):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("t.jsonl").write_text(content)
    with pytest.raises(UserError) as caught:
        tokens.tokenise(Path("t.jsonl"), Path("model"))
    assert str(caught.value) == line


def test_bad_model_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts_file(Path("t.jsonl"), ["a"])
    with pytest.raises(UserError) as caught:
        tokens.tokenise(Path("t.jsonl"), Path("nowhere"))
    assert str(caught.value) == "nowhere: no such folder; expected a fetched model"
    Path("model").mkdir()
    Path("model/tokenizer.json").write_text("{")
    with pytest.raises(UserError) as caught:
        tokens.tokenise(Path("t.jsonl"), Path("model"))
    assert str(caught.value).startswith("model: the tokenizer cannot be loaded: ")
    assert "\n" not in str(caught.value)


def script(folder, texts):
    command = [sys.executable, "-m", "scripts.tokenise", "--texts", str(texts), "--model-folder", str(folder / "model")]
    command += ["--output", str(folder / "out" / "m.safetensors"), "--manifest", str(folder / "out" / "m.json")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_script_writes_tokens_with_their_manifest(tmp_path, model):
    done = script(tmp_path, texts_file(tmp_path / "t.jsonl", ["what is this", "a b"]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = load_file(tmp_path / "out" / "m.safetensors")
    assert written["ids"].tolist() == [5, 6, 7, 8, 9]
    manifest = json.loads((tmp_path / "out" / "m.json").read_text())
    with safe_open(tmp_path / "out" / "m.safetensors", "numpy") as opened:
        assert json.loads(opened.metadata()["manifest"]) == manifest


def test_script_tells_a_mistake_in_one_line_and_writes_nothing(tmp_path, model):
    done = script(tmp_path, tmp_path / "t.jsonl")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/t.jsonl: No such file or directory; expected a fetched data set\n"
    assert not (tmp_path / "out").exists()
