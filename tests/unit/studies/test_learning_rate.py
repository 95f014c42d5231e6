"""The study of the learning rate recovers planted losses and joules, both ways, and says where it cannot."""

from __future__ import annotations

import pytest
import studied
import synthetic

#: By how much the loss is worse than the base batch's, by (batch, rate over the base's rate).
KEEPS = {(16, 1): 0.0, (64, 1): 0.08, (64, 2): 0.001, (64, 4): 0.05, (32, 1): 0.03, (32, 1.41421): 0.0, (32, 2): 0.02}
LOSES = {(16, 1): 0.0} | {at: 0.09 for at in KEEPS if at[0] > 16}
RAW = synthetic.raw_config(
    {
        "strategy": ["single"],
        "precision": ["fp32"],
        "batch_size": [16, 32, 64],
        "lr": [1e-3],
        "lr_rule": ["constant", "sqrt", "linear"],
        "lr_base_batch_size": 16,
        "repeats": 5,
    }
)


def planted(worse, watts=50.0):
    def change(row):
        spec = row["spec"]
        own = synthetic.random.Random(row["run"]).gauss(0, 0.001)
        seed = synthetic.random.Random(spec["repeat"]).gauss(0, 0.02)
        loss = 3.0 * (1 + worse[spec["batch_size"], round(spec["lr"] / 1e-3, 5)]) * (1 + own + seed)
        row = {**row, "quality": {**row["quality"], "validation_loss": loss}}
        return synthetic.measured(row, watts) if watts else row

    return change


def answer(folder, worse=KEEPS, watts=50.0, raw=RAW):
    return studied.answer(folder, "learning-rate", raw, planted(worse, watts))


def test_the_rule_that_keeps_quality_is_named_with_its_joules(tmp_path):
    told = answer(tmp_path)
    assert told.answered
    assert told.sentence.startswith(
        "Sqrt at batch 32 and 64 keeps the validation loss within 1 % of batch 16's, constant and linear at no other "
        "batch; sqrt at batch 64 takes 0.5"  # (16 / 64) ** 0.4 = 0.574 of the time, at the same watts
    )
    assert "times (95 % 0.5" in told.sentence and told.sentence.endswith(", n = 5) the measured joules of batch 16.")
    (table,) = told.tables
    verdicts = {(row[0], row[1]): row[4] for row in table.rows}
    assert verdicts["sqrt", "64"] == "within" and verdicts["constant", "64"] == "beyond"


def test_without_an_equal_no_joules_are_said_to_be_saved(tmp_path):
    told = answer(tmp_path, LOSES)
    assert told.answered
    assert told.sentence.startswith("No rule keeps the validation loss within 1 % of batch 16's at any other batch")
    assert "takes" not in told.sentence


def test_more_accuracy_is_better(tmp_path):
    def change(row):
        row = planted(KEEPS)(row)
        accuracy = 0.4 if row["spec"]["batch_size"] == 16 else 0.5 if row["spec"]["lr"] == 1e-3 else 0.3
        noise = synthetic.random.Random(row["run"]).gauss(0, 0.0005)
        return {**row, "quality": {**row["quality"], "masked_accuracy": accuracy + noise}}

    told = studied.answer(tmp_path, "learning-rate", {**RAW, "answer": {"quality": "masked_accuracy"}}, change)
    assert told.sentence.startswith("Constant at batch 32 and 64 keeps the masked accuracy within 1 %")


def test_estimated_joules_tell_quality_and_say_what_is_missing(tmp_path):
    told = answer(tmp_path, watts=None)
    assert not told.answered
    assert told.sentence.startswith("Sqrt at batch 32 and 64 keeps")
    assert told.sentence.endswith("it takes measured joules, and they are only estimated here.")


@pytest.mark.parametrize(
    ("raw", "change", "words"),
    [
        (synthetic.raw_config(), lambda row: row, "the grid has no rule but constant"),
        (RAW, lambda row: None, "no run at the base batch of 16 has finished"),
        (RAW, lambda row: planted(KEEPS)(row) if row["spec"]["repeat"] == 1 else None, "no rule is shown yet to keep"),
        (
            RAW,
            lambda row: (
                planted(KEEPS)(row) if row["spec"]["batch_size"] == 16 else synthetic.failed(row, "oom", "full")
            ),
            "none has a finished pair",
        ),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path, raw, change, words):
    told = studied.answer(tmp_path, "learning-rate", raw, change)
    assert not told.answered and words in told.sentence[0].lower() + told.sentence[1:]


def test_a_rate_that_diverges_does_not_keep_quality(tmp_path):
    def change(row):
        row = planted(KEEPS)(row)
        return synthetic.failed(row, "diverged", "nan") if row["spec"]["lr"] == 4e-3 else row

    told = studied.answer(tmp_path, "learning-rate", RAW, change)
    assert told.answered and "linear at batch 64 has no finished pair: 5 diverged." in told.findings
