"""Tokens are complete, without special ones, and the same every time."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny import bert_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from joulesweep.core.errors import UserError
from joulesweep.prepare import fetched, tokens

ROOT = tiny_run.REPOSITORY

#: Arrays of a file of tokens.
TEXTS = {"ids", "offsets", "group", "words", "characters"}
TARGETS = {"target_ids", "target_offsets", "target_words", "target_characters"}


def texts_file(path, texts):
    return rows_file(path, [{"text": text} for text in texts])


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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
        "num_target_tokens": 0,
        "vocab_size": 11,
        "mask_id": 4,
        "pad_id": 0,
        "bos_id": 2,
        "eos_id": 3,
        "prefix": [2],
        "suffix": [3],
        "prompt_before": [],
        "prompt_after": [],
        "special_ids": [0, 1, 2, 3, 4],
    }


def test_targets_are_tokenised_beside_the_texts(tmp_path, model):
    rows = [
        {"text": "What is this", "targets": ["a b", "this"]},
        {"text": "a", "targets": ["b"]},
        {"text": "what is", "targets": ["a " * 500]},
        {"text": "a", "targets": ["\u200b"]},
    ]
    found = tokens.tokenise(rows_file(tmp_path / "t.jsonl", rows), model)
    assert found.ids.tolist() == [5, 6, 7, 8, 5, 6, 8]
    assert found.group.tolist() == [0, 1, 2, 1]
    assert found.target_ids.tolist() == [8, 9, 9, *[8] * 500]
    assert found.target_offsets.tolist() == [0, 2, 3, 503, 503]
    assert (found.target_ids.dtype, found.target_offsets.dtype) == (np.int32, np.int64)
    assert found.manifest["num_target_tokens"] == 503
    assert (found.choice_ids, found.answer) == (None, None)
    assert names_in(tmp_path, found) == TEXTS | TARGETS


def test_choices_are_tokenised_one_after_another(tmp_path, model):
    rows = [
        {"text": "what is this", "targets": ["b"], "choices": ["a", "b", "a b"], "answer": 1},
        {"text": "what", "targets": ["this is"], "choices": ["this is", "is"], "answer": 0},
    ]
    found = tokens.tokenise(rows_file(tmp_path / "t.jsonl", rows), model)
    assert found.target_ids.tolist() == [9, 7, 6]
    assert found.choice_ids.tolist() == [8, 9, 8, 9, 7, 6, 6]
    assert found.choice_offsets.tolist() == [0, 1, 2, 4, 6, 7]
    assert found.choice_text.tolist() == [0, 0, 0, 1, 1]
    assert found.answer.tolist() == [1, 0]
    assert (found.choice_ids.dtype, found.choice_offsets.dtype) == (np.int32, np.int64)
    assert (found.choice_text.dtype, found.answer.dtype) == (np.int32, np.int32)
    choices = {"choice_ids", "choice_offsets", "choice_text", "answer"}
    assert names_in(tmp_path, found) == TEXTS | TARGETS | choices


def names_in(folder, found):
    tokens.write(folder / "m.safetensors", found)
    return set(load_file(folder / "m.safetensors"))


def test_without_targets_the_file_has_texts_alone(tmp_path, model):
    found = tokens.tokenise(texts_file(tmp_path / "t.jsonl", ["a", "b"]), model)
    assert names_in(tmp_path, found) == TEXTS


def test_the_manifest_tells_other_targets_choices_and_answers_apart(tmp_path, model):
    """It is what a run knows of its tokens; that of texts alone stays what it was."""
    choices = {"targets": ["a"], "choices": ["a", "b"]}
    rows = [{}, {"targets": ["a"]}, {"targets": ["b"]}, {**choices, "answer": 0}, {**choices, "answer": 1}]
    found = [tokens.tokenise(rows_file(tmp_path / "t.jsonl", [{"text": "what", **row}]), model) for row in rows]
    assert len({one.manifest["sha256"] for one in found}) == len(rows)
    assert found[0].manifest["sha256"] == hashlib.sha256(found[0].ids.tobytes()).hexdigest()


def test_the_prompt_stands_around_the_text(tmp_path, model):
    path = rows_file(tmp_path / "t.jsonl", [{"text": "a", "targets": ["b"]}])
    found = tokens.tokenise(path, model, "what is {source} this: ")
    assert (found.manifest["prompt_before"], found.manifest["prompt_after"]) == ([5, 6], [7, 1])
    assert (found.ids.tolist(), found.target_ids.tolist()) == ([8], [9])


PROMPTS = ["{source}\n", "{source} TL;DR: ", "summarize: {source}\nTL;DR: ", "{source} TL;DR:", " {source}  "]


@pytest.fixture
def byte_level(tmp_path):
    """A byte-level BPE tokenizer, as causal models have them."""
    folder = tmp_path / "causal"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["summarize: what is this TL;DR: a word and another word"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "</s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def test_a_space_at_a_prompts_end_is_the_following_words(tmp_path, byte_level):
    rows = [{"text": "what is this", "targets": ["word"], "choices": ["a", "word"], "answer": 1}]
    found = tokens.tokenise(rows_file(tmp_path / "t.jsonl", rows), byte_level, "summarize: {source} TL;DR: ")
    decode = tokens.load_tokenizer(byte_level).decode
    assert decode(found.manifest["prompt_before"]) == "summarize:"
    assert decode(found.ids) == " what is this"
    assert decode(found.manifest["prompt_after"]) == " TL;DR:"
    assert decode(found.target_ids) == " word"
    assert [decode(found.choice_ids[start:end]) for start, end in pairwise(found.choice_offsets)] == [" a", " word"]
    assert len(found.target_ids) == 1
    assert (found.manifest["bos_id"], found.manifest["eos_id"]) == (0, 0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_parts_are_the_tokens_of_the_whole(tmp_path, byte_level, prompt):
    rows = [{"text": "what is this", "targets": ["another word"]}]
    found = tokens.tokenise(rows_file(tmp_path / "t.jsonl", rows), byte_level, prompt)
    whole = tokens.load_tokenizer(byte_level)(prompt.format(source="what is this") + "another word")["input_ids"]
    about = found.manifest
    assert [*about["prompt_before"], *found.ids, *about["prompt_after"], *found.target_ids] == whole


WRITES = tiny_run.spec(generate={"texts": 2, "beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0})


def test_references_are_the_targets(tmp_path):
    rows = [{"text": "a", "targets": ["b", "c\u2028d"]}, {"text": "a", "targets": ["b"]}]
    assert fetched.references(WRITES, rows_file(tmp_path / "t.jsonl", rows)) == [["b", "c\u2028d"], ["b"]]
    assert fetched.references(WRITES, texts_file(tmp_path / "t.jsonl", ["a", "b"])) == [[], []]
    assert fetched.references(tiny_run.spec(), tmp_path / "missing.jsonl") == []
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"targets": ["b"]}\n')
    with pytest.raises(UserError, match=r't\.jsonl:2: corrupt data set: expected \{"text": …\}; fetch it again$'):
        fetched.references(WRITES, tmp_path / "t.jsonl")


def test_references_that_are_missing_are_missed_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"texts\.jsonl: No such file or directory; expected a fetched data set"):
        fetched.references(WRITES, tmp_path / "texts.jsonl")


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
    assert (manifest["bos_id"], manifest["eos_id"]) == (None, 5)
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
        ('{"text": "a", "targets": 5}\n', 't.jsonl:1: corrupt data set: expected {"text": …}; fetch it again'),
        (
            '{"text": "a", "targets": ["b"], "choices": ["a", "b"]}\n',
            't.jsonl:1: corrupt data set: expected {"text": …}; fetch it again',
        ),
        (
            '{"text": "a"}\n{"text": "a", "targets": ["b"]}\n',
            "t.jsonl: corrupt data set: 1 of 2 texts have targets; fetch it again",
        ),
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


def script(folder, texts, **source):
    described = texts.with_suffix(".json")
    described.write_text(json.dumps({"source": source}))
    command = [sys.executable, "-m", "scripts.tokenise", "--texts", str(texts), "--texts-manifest", str(described)]
    command += ["--model-folder", str(folder / "model")]
    command += ["--output", str(folder / "out" / "m.safetensors"), "--manifest", str(folder / "out" / "m.json")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_script_writes_tokens_with_their_manifest(tmp_path, model):
    done = script(tmp_path, texts_file(tmp_path / "t.jsonl", ["what is this", "a b"]))
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"tokenising \S+ for \S+\n", done.stderr)
    written = load_file(tmp_path / "out" / "m.safetensors")
    assert written["ids"].tolist() == [5, 6, 7, 8, 9]
    manifest = json.loads((tmp_path / "out" / "m.json").read_text())
    with safe_open(tmp_path / "out" / "m.safetensors", "numpy") as opened:
        assert json.loads(opened.metadata()["manifest"]) == manifest


@pytest.mark.slow
def test_script_reads_the_prompt_from_the_manifest_of_the_texts(tmp_path, model):
    texts = rows_file(tmp_path / "t.jsonl", [{"text": "a", "targets": ["b"]}])
    done = script(tmp_path, texts, prompt="what is {source}")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"tokenising \S+ for \S+\n", done.stderr)
    manifest = json.loads((tmp_path / "out" / "m.json").read_text())
    assert (manifest["prompt_before"], manifest["prompt_after"]) == ([5, 6], [])
    assert load_file(tmp_path / "out" / "m.safetensors")["target_ids"].tolist() == [9]


def test_script_tells_a_mistake_in_one_line_and_writes_nothing(tmp_path, model):
    done = script(tmp_path, tmp_path / "t.jsonl")
    assert done.returncode == 2
    assert (
        done.stderr.partition("\n")[2]
        == f"error: {tmp_path}/t.jsonl: No such file or directory; expected a fetched data set\n"
    )
    assert not (tmp_path / "out").exists()


def small_tokenizer(folder, model, vocabulary):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(vocabulary[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict(zip(("pad_token", "cls_token", "sep_token", "mask_token"), vocabulary, strict=False))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("words", [["c", "d"], ["1", "2"], ["é", "ü"]])
@pytest.mark.parametrize("drops", [True, False])
def test_a_tokenizer_that_knows_neither_a_nor_b_is_asked_with_its_own_words(tmp_path, words, drops):
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *words]
    ids = {word: i for i, word in enumerate(vocabulary)}
    folder = small_tokenizer(tmp_path, models.BPE(ids, []) if drops else models.WordLevel(ids), vocabulary)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": " ".join(words)}) + "\n")
    manifest = tokens.tokenise(texts, folder).manifest
    assert (manifest["prefix"], manifest["suffix"], manifest["num_tokens"]) == ([1], [2], 2)
    texts.write_text(json.dumps({"text": f"{words[0]} zzz"}) + "\n")
    if drops:
        assert tokens.tokenise(texts, folder).manifest["num_tokens"] == 1
        return
    with pytest.raises(UserError, match=r"^the tokenizer fails on a text: .*\[UNK\]"):
        tokens.tokenise(texts, folder)
