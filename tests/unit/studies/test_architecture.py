"""In how many architectures a gain holds: planted gains are told, and so is their absence."""

from __future__ import annotations

import re

import pytest
import studied
import synthetic
from planted import planted

MODELS = ["bert", "roberta", "opt", "t5"]
AXES = {
    "model": MODELS,
    "strategy": ["dp", "ddp"],
    "precision": ["fp32", "fp16-mixed"],
    "batch_size": [32],
    "repeats": 3,
}


def told(folder, gain, loss=None, axes=None, boards=True, change=lambda row: row, **sections):
    """What the study says of models whose last way takes so much of the first one's joules and seconds."""

    def changed(row):
        spec = row["spec"]
        steps = (spec["strategy"] == "ddp") + (spec["precision"] == "fp16-mixed")
        factor = gain.get(spec["model"], 0.4) ** (steps / 2)
        worse = (loss or {}).get(spec["model"], 1.0) if steps == 2 else 1.0
        return change(planted(row, 1e5 * factor, 600 * factor, 2.0 * worse, boards=boards))

    raw = synthetic.raw_config({**AXES, **(axes or {})}, **{**synthetic.GPU_CONFIG, **sections})
    raw["models"] = {name: {"source": synthetic.LOCAL} for name in (axes or AXES).get("model", MODELS)}
    return studied.answer(folder, "architecture", raw, changed)


def test_one_gain_in_all_holds_in_each_and_does_not_differ(tmp_path):
    answer = told(tmp_path, {})
    assert answer.answered
    assert answer.sentence.startswith(
        "ddp with fp16-mixed takes fewer measured joules than dp with fp32 in each of 4 architectures ("
    )
    span = re.findall(r"× ([\d.]+), [\d.]+ to [\d.]+, n = 3", answer.sentence)
    assert [float(ratio) for ratio in span] == pytest.approx([0.4, 0.4], rel=0.01)
    assert "validation loss is no worse by more than 1 % in all" in answer.sentence
    assert "the ratio of joules is not shown to differ between architectures (p = " in answer.sentence


def test_a_gain_that_one_lacks_does_not_hold_there_and_differs(tmp_path):
    answer = told(tmp_path, {"t5": 1.0, "opt": 1.2}, loss={"roberta": 1.05})
    assert "in 2 of 4 architectures (" in answer.sentence
    assert (
        "it takes more in 1 (opt × 1.20, " in answer.sentence
        and "no difference is shown in 1 (t5 × 0.99" in answer.sentence
    )
    assert "no worse by more than 1 % in bert, opt, t5, worse by more in roberta" in answer.sentence
    assert "the ratio of joules differs between architectures (p < 0.001, Welch's test of 4" in answer.sentence
    (table,) = answer.tables
    assert [(row[0], row[-1]) for row in table.rows] == [
        *(("bert", "within"), ("roberta", "beyond"), ("opt", "within"), ("t5", "within"))
    ]


def test_what_strategy_and_precision_do_alone_is_a_finding(tmp_path):
    findings = told(tmp_path, {}).findings
    assert any(text.startswith("Alone, ddp with fp32 takes × 0.6") for text in findings)
    assert any(text.startswith("Alone, dp with fp16-mixed takes × 0.6") for text in findings)
    assert any(text.startswith("the ratio of seconds is not shown to differ") for text in findings)


def test_an_architecture_that_diverges_is_named_with_what_became_of_it(tmp_path):
    def diverging(row):
        narrow = row["spec"]["model"] == "t5" and row["spec"]["precision"] == "fp16-mixed"
        return synthetic.failed(row, "diverged", "the loss is not finite") if narrow else row

    answer = told(tmp_path, {}, change=diverging)
    assert answer.answered and "in 3 of 4 architectures" in answer.sentence
    assert "not compared: t5 ddp2 fp16-mixed bs32: 3 diverged" in answer.sentence


def test_without_joules_the_seconds_answer_and_say_so(tmp_path):
    answer = told(
        tmp_path, {"t5": 1.0}, boards=False, hardware={"accelerator": "cpu"}, axes={"strategy": ["single", "ddp"]}
    )
    assert not answer.answered
    assert answer.sentence.startswith(
        "Whether the gain in joules holds in each architecture cannot be told: cpu:0: no RAPL"
    )
    assert "ddp with fp16-mixed takes fewer seconds than single with fp32 in 3 of 4 architectures" in answer.sentence


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"repeats": 1}, "one seed has no interval"),
        ({"model": ["bert"]}, "one architecture"),
        ({"strategy": ["ddp"], "precision": ["fp32"]}, "one strategy and one precision"),
    ],
)
def test_a_sweep_that_cannot_answer_says_what_it_lacks(tmp_path, axes, words):
    answer = told(tmp_path, {}, axes=axes)
    assert not answer.answered and words in answer.sentence


def test_a_sweep_that_has_not_begun_has_no_answer(tmp_path):
    answer = told(tmp_path, {}, change=lambda row: None)
    assert not answer.answered and "cannot be told" in answer.sentence and "missing" in answer.sentence


def test_two_machines_are_told_apart(tmp_path):
    def moved(row):
        if row["spec"]["model"] in ("opt", "t5"):
            return row
        boards = [{**board, "name": "NVIDIA A30"} for board in row["environment"]["gpus"]]
        return {**row, "environment": {**row["environment"], "gpus": boards}}

    answer = told(tmp_path, {}, change=moved)
    assert "in each of 2 architectures" in answer.sentence and len(answer.tables) == 2
    assert any(text.startswith("On another machine: ddp with fp16-mixed takes fewer") for text in answer.findings)
