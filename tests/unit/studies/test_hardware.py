"""Scaling is told where joules rise and where they do not; sensors, estimates and single repeats claim nothing."""

from __future__ import annotations

import pytest
import studied
import synthetic

AXES = {"strategy": ["single", "ddp"], "devices": [2, 4], "precision": ["bf16-mixed"], "batch_size": [32]}


def raw(**axes):
    return synthetic.raw_config({**AXES, **axes}, **synthetic.GPU_CONFIG)


def planted(total=None, watts=350.0):
    """A sweep on boards: joules by number of devices as factors of those of one device."""

    def change(row):
        number = row["spec"]["devices"]
        speed = 1.7 if number > 1 else 1.0
        return synthetic.on_gpus(row, watts * speed * (total or {}).get(number, 1.0) / number)

    return change


def two_boards(factor):
    """Odd seeds ran on one kind of board, the others on another with so many times the joules, which hardly vary."""

    def change(row):
        number, window_s = row["spec"]["devices"], row["measurement"]["window_s"]
        if row["spec"]["repeat"] % 2:
            return synthetic.on_gpus(row, 7000.0 / window_s / number)
        made = synthetic.on_gpus(row, 7000.0 / window_s / number * factor)
        gpus = [{**one, "name": "NVIDIA A100"} for one in made["environment"]["gpus"]]
        return {**made, "environment": {**made["environment"], "gpus": gpus}}

    return change


def test_joules_that_rise_are_told_from_where_on(tmp_path):
    made = studied.answer(tmp_path, "hardware", raw(), planted({2: 0.8, 4: 1.5}))
    assert made.answered
    assert made.sentence.startswith("On NVIDIA H200 ddp takes over 1 % more joules from 4 devices on (measured joules")
    assert [row[3] for row in made.tables[0].rows] == ["", "no more", "more"]
    joules = [float(row[2][0]) for row in made.tables[0].rows[1:]]
    assert joules == pytest.approx([1 / 0.8, 1 / 1.5], rel=0.03)
    seconds = [float(row[1][0]) for row in made.tables[0].rows[1:]]
    assert seconds == pytest.approx([1.7 / 2, 1.7 / 4], rel=0.03)


def test_joules_that_fall_scale_to_the_last_number(tmp_path):
    made = studied.answer(tmp_path, "hardware", raw(), planted({2: 0.9, 4: 0.8}))
    assert made.answered and made.sentence.startswith(
        "On NVIDIA H200 ddp scales to 4 devices without taking over 1 % more joules (measured joules on 4 devices"
    )


def test_a_saving_that_sensors_may_make_is_told_with_that(tmp_path):
    made = studied.answer(tmp_path, "hardware", raw(repeats=5), planted({2: 0.9, 4: 0.96}))
    assert "without taking over 1 % more joules, if the boards' sensors agree (" in made.sentence
    assert made.tables[0].rows[2][3] == "no more, if sensors agree"


def test_a_rise_that_sensors_may_explain_is_not_claimed(tmp_path):
    made = studied.answer(tmp_path, "hardware", raw(repeats=5), planted({2: 0.9, 4: 1.07}))
    assert "is not shown to take more joules up to 4 devices, as the boards' sensors may explain it" in made.sentence


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (2.0, ": fewer measured joules than NVIDIA A100 at "),
        (1.07, ": the boards' sensors may explain the difference to NVIDIA A100 at "),
        (1.0, " are not shown (× "),
    ],
)
def test_machines_are_compared_as_far_as_shown(tmp_path, factor, words):
    made = studied.answer(tmp_path, "hardware", raw(repeats=8), two_boards(factor))
    assert words in made.sentence.split("; ")[-1]


@pytest.mark.parametrize(
    ("config", "change", "why"),
    [
        (synthetic.raw_config(AXES), None, "energy was not measured"),
        (raw(repeats=1), planted(), "one repeat tells no noise"),
        (raw(strategy=["ddp"]), planted(), "it takes finished runs on one device and on more"),
        (raw(), lambda row: None, "no run has finished"),
        (raw(), lambda row: synthetic.on_gpus(row, doubt="off by 20 %"), "are doubtful"),
        (raw(), lambda row: synthetic.on_gpus(row, status="integrated"), "integrated from power readings"),
    ],
)
def test_what_cannot_be_told_says_why(tmp_path, config, change, why):
    made = studied.answer(tmp_path, "hardware", config, change)
    assert not made.answered
    assert made.sentence.startswith("How far joules scale cannot be told: ") and why in made.sentence


def test_without_joules_seconds_are_told(tmp_path):
    made = studied.answer(tmp_path, "hardware", synthetic.raw_config(AXES))
    assert "efficiency in seconds 0.8" in made.findings[0]
    assert {row[2] for row in made.tables[0].rows} == {"–"}
