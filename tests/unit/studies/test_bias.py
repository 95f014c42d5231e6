"""The study of bias finds a planted change of scores, item by item, and does not find one that is not there."""

from __future__ import annotations

import json
import random

import pytest
import studied
import synthetic

from joulesweep.studies import bias

CATEGORIES = ("age", "gender", "religion")
NUM_ITEMS = 300


def scored(folder, moved, evaluation="crows-pairs", lost=False):
    """A change of records: `moved(run's spec, item)` is the chance that an item preferred before is not any more."""
    score = bias.SCORES[evaluation][0]

    def change(row):
        items, own = random.Random(0), random.Random(row["run"])
        before = [100.0 * (items.random() < 0.6) for _ in range(NUM_ITEMS)]
        noise = [own.random() for _ in before]
        after = [
            0.0 if value and chance < moved(row["spec"], i) else value
            for i, (value, chance) in enumerate(zip(before, noise, strict=True))
        ]
        # As many change for no reason in each direction.
        after = [100.0 - value if own.random() < 0.02 else value for value in after]
        categories = [CATEGORIES[i % 3] for i in range(NUM_ITEMS)]
        scores = [{"score": score, "before": before, "after": after}]
        path = folder / "runs" / row["run"] / "evaluations.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not lost:
            line = json.dumps({"evaluation": evaluation, "categories": categories, "scores": scores})
            path.write_text(line + "\n", encoding="utf-8")
        metric = {"evaluation": evaluation, "category": "all", "metric": "metric_score", "n": NUM_ITEMS}
        return {**row, "evaluations": [{**metric, "before": 60.0, "after": 50.0}]}

    return change


ONE = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32]}


def answer(folder, moved, axes=None, **options):
    raw = synthetic.raw_config({**ONE, **(axes or {})})
    return studied.answer(folder, "bias", raw, scored(folder, moved, **options))


def test_a_planted_change_is_found_and_told_with_its_interval(tmp_path):
    told = answer(tmp_path, lambda spec, item: 0.25)
    assert told.answered
    assert told.sentence.startswith("Adaptation changes the CrowS-Pairs score of single fp32 bs32: from 59.3 % to")
    assert "300 items × 3 seeds." in told.sentence and "(95 % interval −" in told.sentence
    number, interval = (text.replace("−", "-") for text in told.tables[0].rows[0][3])
    low, high = map(float, interval.strip("[]").split(", "))
    assert low < float(number) < high < 0 and -20 < float(number) < -10
    assert any("nearer to 50 %" in finding for finding in told.findings)


def test_no_change_is_not_shown(tmp_path):
    told = answer(tmp_path, lambda spec, item: 0.0)
    assert told.answered and "is not shown to change the CrowS-Pairs score" in told.sentence
    assert told.findings == [
        "No category's CrowS-Pairs score is shown to change, corrected for the 3 that were looked at."
    ]


def test_a_change_of_one_category_is_told_of_it_alone(tmp_path):
    told = answer(tmp_path, lambda spec, item: 0.5 * (item % 3 == 1))
    (finding,) = [finding for finding in told.findings if "categories" in finding]
    assert "of 1 of 3 categories" in finding and "gender in single fp32 bs32" in finding and "age" not in finding
    assert [row[0] for row in told.tables[1].rows] == ["all", *CATEGORIES]


def test_of_several_configurations_those_that_change_are_counted(tmp_path):
    told = answer(tmp_path, lambda spec, item: 0.3 * (spec["batch_size"] == 64), {"batch_size": [32, 64]})
    assert "in 1 of 2 configurations, most in single fp32 bs64: from" in told.sentence
    assert "corrected for 2)" in told.sentence


def test_stereoset_alone_answers_too(tmp_path):
    told = answer(tmp_path, lambda spec, item: 0.3, evaluation="stereoset")
    assert told.sentence.startswith("Adaptation changes the StereoSet preference of")


@pytest.mark.parametrize(
    ("axes", "options", "reason"),
    [
        ({"repeats": 1}, {}, "one seed tells nothing of others"),
        ({}, {"lost": True}, "the runs have no scores of items"),
    ],
)
def test_what_cannot_be_told_says_why(tmp_path, axes, options, reason):
    told = answer(tmp_path, lambda spec, item: 0.3, axes, **options)
    assert not told.answered and reason in told.sentence


def test_runs_without_evaluations_or_without_records_say_what_it_takes(tmp_path):
    told = studied.answer(tmp_path / "plain", "bias", synthetic.raw_config(ONE))
    assert not told.answered and "name crows-pairs or stereoset under evaluate" in told.sentence
    told = studied.answer(tmp_path / "none", "bias", synthetic.raw_config(ONE), lambda row: None)
    assert (told.answered, told.sentence) == (False, "It cannot be told: no run is finished.")
