"""The study of low-resource languages recovers planted joules per word and bits per character, both ways."""

from __future__ import annotations

import pytest
import studied
import synthetic

LOCAL = {"source": synthetic.LOCAL}
MODELS = {"own": LOCAL, "mine": {**LOCAL, "tokenizer": {"trained_on": "questions", "vocab_size": 500}}}
AXES = {"model": ["own", "mine"], "strategy": ["single"], "precision": ["fp32"], "batch_size": [32], "repeats": 4}
RAW = synthetic.raw_config(AXES, models=MODELS)


def planted(joules=0.6, bits=0.9, watts=50.0):
    def change(row):
        is_mine, noise = row["spec"]["model"] == "mine", synthetic.random.Random(row["run"]).gauss(0, 0.005)
        window_s = 20.0 * (joules if is_mine else 1.0) * (1 + noise)
        measurement = {**row["measurement"], "texts": synthetic.TEXT_COUNTS, "window_s": window_s}
        loss = 3.0 * (bits if is_mine else 1.0) * (1 + noise)
        row = {**row, "measurement": measurement, "quality": {**row["quality"], "validation_loss": loss}}
        return synthetic.measured(row, watts) if watts else row

    return change


def test_joules_that_are_lowered_are_told_with_the_quality(tmp_path):
    told = studied.answer(tmp_path, "low-resource", RAW, planted())
    assert told.answered
    assert told.sentence.startswith("On questions, mlm, a tokenizer trained on the texts lowers joules per word: mine")
    assert "takes 0.6" in told.sentence.replace("0.59", "0.60") and "n = 4" in told.sentence
    assert "the held-out bits per character." in told.sentence


@pytest.mark.parametrize(("joules", "word"), [(1.4, "raises"), (1.0, "is not shown to change")])
def test_joules_that_are_not_lowered_are_not_said_to_be(tmp_path, joules, word):
    told = studied.answer(tmp_path, "low-resource", RAW, planted(joules))
    assert told.answered and f"the texts {word} joules per word" in told.sentence


@pytest.mark.parametrize(
    ("raw", "change", "words"),
    [
        (synthetic.raw_config(), lambda row: row, "no model has finished with its own tokenizer"),
        (RAW, lambda row: None, "no model has finished with its own tokenizer"),
        (RAW, planted(watts=None), "it takes measured joules, and these are estimated"),
        (RAW, lambda row: planted()(row) if row["spec"]["repeat"] == 1 else None, "it takes two seeds or more"),
        (RAW, synthetic.measured, "bits per character that are unknown"),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path, raw, change, words):
    told = studied.answer(tmp_path, "low-resource", raw, change)
    assert not told.answered and words in told.sentence
