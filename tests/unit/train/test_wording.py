"""Words and characters of a training are those of its texts, whatever the tokenizer, and as much as was kept."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from tiny import bert_tokenizer

from joulesweep.prepare import tokens
from joulesweep.train import corpus as corpora
from joulesweep.train import wording

TEXTS = [("what is this", "a b"), ("is  a", "this"), ("whats", "b b"), ("a b a b a b", "is what")]
HELD_OUT = 1


def counted(folder, task="mlm", with_targets=False, max_length=24, num_steps=3, batch=1):
    model, path = bert_tokenizer(folder / "model", mask_token="[MASK]"), folder / "t.safetensors"
    rows = [{"text": text, **({"targets": [target]} if with_targets else {})} for text, target in TEXTS]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tokens.tokenise(folder / "texts.jsonl", model)
    tokens.write(path, made)
    path.with_suffix(".json").write_text(json.dumps(made.manifest))
    corpus = corpora.load(path, max_length, task)
    kept = [i for i in range(len(TEXTS)) if i != HELD_OUT]
    trainer = SimpleNamespace(
        corpus=corpus,
        spec=SimpleNamespace(task=task, repeat=1, global_batch_size=batch),
        train_texts=corpora.torch.tensor(kept),
        validation_texts=corpora.torch.tensor([HELD_OUT]),
        num_steps=num_steps,
        steps_per_epoch=math.ceil(len(kept) / batch),
    )
    return wording.count(trainer, path, num_predicted=7)


def test_two_epochs_count_every_training_text_twice(tmp_path):
    texts = counted(tmp_path, num_steps=6)
    assert texts.num_words == 2 * (3 + 1 + 6)
    assert texts.num_characters == 2 * (12 + 5 + 11)
    assert texts.num_pieces == 2 * (3 + 2 + 6)  # whats is two pieces
    assert (texts.num_validation_characters, texts.num_validation_pieces) == (5, 2)


def test_a_text_that_is_cut_counts_by_the_share_that_is_kept(tmp_path):
    texts = counted(tmp_path, max_length=5)  # three of the six pieces of the last text
    assert (texts.num_words, texts.num_characters, texts.num_pieces) == (3 + 1 + 3, round(12 + 5 + 5.5), 3 + 2 + 3)


def test_part_of_an_epoch_counts_the_texts_that_it_reads(tmp_path):
    every = {3: 3, 1: 2, 6: 6}  # words and pieces of the training texts
    texts = counted(tmp_path, num_steps=4)
    assert (texts.num_words - 10, texts.num_pieces - 11) in every.items()


@pytest.mark.parametrize(("task", "pieces"), [("seq2seq", 7), ("clm", 7)])
def test_targets_count_with_their_texts_and_are_what_is_predicted(tmp_path, task, pieces):
    texts = counted(tmp_path, task, with_targets=True)
    assert texts.num_words == (3 + 1 + 6) + (2 + 2 + 2)
    assert texts.num_characters == (12 + 5 + 11) + (3 + 3 + 7)
    assert texts.num_pieces == (3 + 2 + 6) + (2 + 2 + 2)
    assert (texts.num_validation_characters, texts.num_validation_pieces) == (len("this"), pieces)


def test_a_plain_decoder_reads_whole_texts(tmp_path):
    texts = counted(tmp_path, "clm")
    assert (texts.num_words, texts.num_pieces, texts.num_validation_characters) == (10, 11, 5)


def test_tokens_that_are_older_have_no_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "sizes", lambda kind, texts: dict.fromkeys((f"{kind}words", f"{kind}characters")))
    assert counted(tmp_path) is None
