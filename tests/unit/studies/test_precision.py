"""The cheapest number format is named with what it saves, or that none saves; doubtful and estimated joules are not."""

from __future__ import annotations

import json

import pytest
import studied
import synthetic

from joulesweep import studies
from joulesweep.analyse import collect
from joulesweep.core import files

AXES = {"strategy": ["single"], "precision": ["fp32", "bf16-mixed", "bf16-true"], "batch_size": [32, 64]}


def raw(**axes):
    return synthetic.raw_config({**AXES, **axes}, **synthetic.GPU_CONFIG)


def planted(watts=None, loss=None):
    """A sweep on boards: watts and factors of the validation loss by format, of trainings that take equally long."""

    def change(row):
        name = row["spec"]["precision"]
        made = synthetic.on_gpus(row, (watts or {}).get(name, 350.0) / (1.15 if name == "fp32" else 1.0))
        factor = (loss or {}).get(name, 1.0)
        quality = {**made["quality"], "validation_loss": factor * made["quality"]["validation_loss"]}
        return {**made, "quality": quality}

    return change


def test_the_cheapest_format_is_named_with_what_it_saves(tmp_path):
    made = studied.answer(tmp_path, "precision", raw(), planted({"bf16-true": 250.0}))
    assert made.answered
    # A training in 16 bits takes 1 / 1.3 of the time, and of 350 W bf16-true needs 250: 1 - 250 / 350 / 1.3 = 45 %.
    assert made.sentence.startswith("bf16-true costs the fewest joules: 45 % fewer joules than fp32 [")
    assert "(measured joules, n = 3)" in made.sentence
    assert "its validation loss is not shown to differ from that of fp32: " in made.sentence


def test_a_format_whose_loss_is_worse_is_left_out(tmp_path):
    made = studied.answer(tmp_path, "precision", raw(), planted({"bf16-true": 250.0}, {"bf16-true": 1.05}))
    assert made.sentence.startswith("bf16-mixed costs the fewest joules: 23 % fewer joules than fp32 [")
    assert made.sentence.endswith(" (bf16-true left out: worse or diverged).")
    assert any(text.startswith("bf16-true: its validation loss is shown to be higher") for text in made.findings)


def test_where_no_format_saves_that_is_the_answer(tmp_path):
    slow = {"bf16-mixed": 1.3 * 350, "bf16-true": 1.3 * 350}
    made = studied.answer(tmp_path, "precision", raw(), planted(slow))
    assert made.answered and made.sentence.startswith(
        "No format is shown to cost fewer joules than fp32: the nearest, "
    )


def test_where_every_format_costs_more_it_is_fp32(tmp_path):
    slow = {"bf16-mixed": 2 * 350, "bf16-true": 3 * 350}
    made = studied.answer(tmp_path, "precision", raw(), planted(slow))
    assert made.sentence.startswith("fp32 costs the fewest joules: the nearest, bf16-mixed, takes +5")


def test_a_format_that_diverged_is_left_out(tmp_path):
    def change(row):
        if (row["spec"]["precision"], row["spec"]["repeat"]) == ("bf16-true", 2):
            return synthetic.failed(row, "diverged", "the loss was not finite by step 3")
        return planted({"bf16-true": 250.0})(row)

    made = studied.answer(tmp_path, "precision", raw(), change)
    assert made.sentence.startswith("bf16-mixed costs the fewest joules: ")
    assert "bf16-true: 2 of 6 runs diverged." in made.findings
    assert made.tables[0].rows[2][-1] == "2"


def test_where_all_are_worse_fp32_is_what_is_left(tmp_path):
    made = studied.answer(tmp_path, "precision", raw(), planted(None, {"bf16-true": 1.1, "bf16-mixed": 1.1}))
    assert made.sentence.startswith("fp32 it is: every other format diverged or is shown to be worse")


def test_skipped_steps_spikes_and_what_cannot_run_are_told(tmp_path):
    def change(row):
        name = row["spec"]["precision"]
        if name == "tf32":
            return synthetic.failed(row, "unsupported", "tf32 exists on NVIDIA GPUs only")
        measurement = {**row["measurement"], "num_skipped_steps": 4 if name == "fp16-mixed" else 0}
        return planted()({**row, "measurement": measurement})

    config = raw(precision=["fp32", "tf32", "fp16-mixed"], batch_size=[32])
    manifest, runs = synthetic.write_sweep(tmp_path, config, change)
    for run, entry in manifest["runs"].items():
        losses = [2 + 0.01 * (i % 3) + 5 * (i == 70 and entry["precision"] == "fp16-mixed") for i in range(120)]
        if entry["precision"] != "tf32":
            rows = [{"step": i, "train_loss": loss} for i, loss in enumerate(losses, 1)]
            files.write_lines(runs / run / "steps.jsonl", rows)
    made = studies.load("precision").answer(collect.aggregate(manifest, runs), manifest["config"])
    assert "fp16-mixed: loss scaling skipped 12 of 360 steps." in made.findings
    assert "fp16-mixed: 3 loss spikes in 3 runs of 360 steps." in made.findings
    assert "tf32 could not run: tf32 exists on NVIDIA GPUs only." in made.findings
    assert made.findings[-1].startswith("Published: 2.1× of bf16 over fp32 on an A100")
    assert [row[0] for row in made.tables[0].rows] == ["fp32", "fp16-mixed"]
    assert made.tables[0].rows[1][-3:] == ["12", "3", "0"]


@pytest.mark.parametrize(
    ("config", "change", "why"),
    [
        (synthetic.raw_config(AXES), None, "energy was not measured, and joules estimated from seconds would only"),
        (raw(repeats=1), planted(), "one repeat tells no noise"),
        (raw(precision=["bf16-mixed", "bf16-true"]), planted(), "it takes finished runs in fp32 and in another format"),
        (raw(), lambda row: None, "yet: no run has finished"),
        (raw(), lambda row: synthetic.on_gpus(row, status="integrated"), "energy was integrated from power readings"),
        (raw(), lambda row: synthetic.on_gpus(row, doubt="off by 20 %"), "the joules of every configuration are doubt"),
    ],
)
def test_what_cannot_be_told_says_why(tmp_path, config, change, why):
    made = studied.answer(tmp_path, "precision", config, change)
    assert not made.answered
    assert made.sentence.startswith("Which format costs the fewest joules cannot be told") and why in made.sentence
    assert json.dumps(made.sentence)


def test_each_model_has_its_own_answer(tmp_path):
    def change(row):
        return planted({"bf16-mixed": 350.0 if row["spec"]["model"] == "tiny" else 2 * 350.0})(row)

    config = raw(model=["tiny", "other"], precision=["fp32", "bf16-mixed"])
    made = studied.answer(tmp_path, "precision", config, change)
    first, second = made.sentence.split("; other: ")
    assert first.startswith("tiny: bf16-mixed costs the fewest joules: 23 %")
    assert second.startswith("fp32 costs the fewest joules: the nearest, bf16-mixed, takes +5")
    assert [table.title for table in made.tables] == ["Formats over fp32: tiny", "Formats over fp32: other"]
