"""The study of domain shift finds planted forgetting, and the cheapest configuration that does not forget."""

from __future__ import annotations

import random

import pytest
import studied
import synthetic

AXES = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32], "method": ["full", "lora"]}


def forgets(by_method, gain=1.2, watts=50.0, texts="general"):
    """A change of records: nats that each method forgets on other texts, with some noise of the seed."""

    def change(row):
        noise = random.Random(row["run"]).gauss(0, 0.01)
        lost = by_method[row["spec"]["method"]] + noise
        score = {"evaluation": f"held-out({texts})", "category": texts, "metric": "loss", "n": 500}
        loss = row["quality"]["validation_loss"]
        epochs = [{**row["epochs"][0], "validation_loss": loss + gain + noise}, *row["epochs"][1:]]
        row = {**row, "epochs": epochs, "evaluations": [{**score, "before": 3.0, "after": 3.0 + lost}]}
        slower = 1.5 if row["spec"]["method"] == "full" else 1.0
        return synthetic.measured(row, watts * slower) if watts else row

    return change


def answer(folder, change, axes=None):
    return studied.answer(folder, "domain-shift", synthetic.raw_config({**AXES, **(axes or {})}), change)


def test_what_forgets_is_counted_and_the_cheapest_that_does_not_is_told(tmp_path):
    told = answer(tmp_path, forgets({"full": 0.3, "lora": 0.0}))
    assert told.answered
    assert told.sentence.startswith(
        "Adaptation is shown to forget in 1 of 2 configurations: the cheapest that learns its domain without it is lora"
    )
    assert (
        "J measured" in told.sentence
        and "nats per token (95 % interval" in told.sentence
        and "3 seeds" in told.sentence
    )
    assert told.findings[0].startswith("Most is forgotten by single") and "perplexity × 1.3" in told.findings[0]


def test_without_forgetting_the_cheapest_of_all_is_told(tmp_path):
    told = answer(tmp_path, forgets({"full": 0.0, "lora": 0.0}))
    assert told.sentence.startswith("Adaptation is shown to forget in none of 2 configurations: the cheapest")
    assert " is lora" in told.sentence
    assert not [finding for finding in told.findings if finding.startswith("Most")]


def test_where_all_forget_the_least_is_told(tmp_path):
    told = answer(tmp_path, forgets({"full": 0.5, "lora": 0.2}))
    assert told.sentence.startswith("Adaptation forgets in every one of 2 configurations: least in lora")


def test_what_does_not_learn_is_no_choice(tmp_path):
    told = answer(tmp_path, forgets({"full": 0.0, "lora": 0.0}, gain=-0.5))
    assert told.sentence.endswith("and none of those that do not forget is shown to learn its domain.")


def test_without_measured_joules_time_decides_and_says_so(tmp_path):
    told = answer(tmp_path, forgets({"full": 0.0, "lora": 0.0}, watts=None))
    assert "by time, not by joules: energy was not measured" in told.sentence and "J measured" not in told.sentence
    assert all(row[5] == "–" for row in told.tables[0].rows)


@pytest.mark.parametrize(
    ("change", "axes", "reason"),
    [
        (forgets({"full": 0.3, "lora": 0.0}), {"repeats": 1}, "one seed has no interval"),
        (lambda row: row, {}, "name held-out and a data set under evaluate"),
        (lambda row: None, {}, "no run is finished"),
        (forgets({"full": 0.3, "lora": 0.0}, texts="questions"), {}, "on no other texts than those"),
    ],
)
def test_what_cannot_be_told_says_why(tmp_path, change, axes, reason):
    told = answer(tmp_path, change, axes)
    assert not told.answered and reason in told.sentence
