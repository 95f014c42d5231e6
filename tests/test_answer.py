"""What is ranked by energy, and what is not."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.studies.recommendation import answers, compare


def build(tmp_path, change, axes=None, **sections):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **sections), change)
    return aggregate(grid, runs)


def first_precision(row):
    return row["spec"]["precision"] == "fp32"


def with_dram(row):
    dram = [synthetic.energy_row("dram:0", 5.0)] if first_precision(row) else []
    return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0), *dram)


def partly_integrated(row):
    status = "integrated" if first_precision(row) else "measured"
    return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0, status=status))


def all_integrated(row):
    return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0, status="integrated"))


def partly_measured(row):
    return synthetic.measured(row) if first_precision(row) else row


def one_repeat_unmeasured(row):
    return row if row["spec"]["repeat"] == 2 and first_precision(row) else synthetic.measured(row)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda row: row, "energy was not measured"),
        (with_dram, "joules of different scopes are not ranked together: cpu+dram, cpu"),
        (partly_integrated, "joules of different statuses are not ranked together: integrated, measured"),
        (all_integrated, "energy was integrated from power readings, not counted"),
        (partly_measured, "joules are known of 4 of 8 configurations"),
        (one_repeat_unmeasured, "joules are known of 4 of 8 configurations"),
    ],
)
def test_joules_that_cannot_be_compared_leave_the_rank_to_time(tmp_path, change, why):
    (found,) = answers(build(tmp_path, change))
    assert (found.by, found.unranked) == ("window_s", why)


@pytest.mark.parametrize("change", [synthetic.measured, synthetic.on_gpus])
def test_measured_joules_of_one_scope_are_ranked(tmp_path, change):
    sections = synthetic.GPU_CONFIG if change is synthetic.on_gpus else {}
    (found,) = answers(build(tmp_path, change, **sections))
    assert (found.by, found.unranked) == ("energy_j", None)


def test_each_panel_is_ranked_by_itself(tmp_path):
    def change(row):
        return synthetic.measured(row) if row["spec"]["model"] == "tiny" else row

    found = answers(build(tmp_path, change, {"model": ["tiny", "other"]}))
    assert [(answer.panel, answer.by) for answer in found] == [("tiny", "energy_j"), ("other", "window_s")]


@pytest.mark.parametrize(
    ("change", "compared"),
    [(synthetic.measured, True), (with_dram, False), (all_integrated, False), (one_repeat_unmeasured, False)],
)
def test_energy_is_compared_only_where_measured_in_one_scope(tmp_path, change, compared):
    found = build(tmp_path, change)
    rows = {row["precision"]: row for row in found.cells.filter(strategy="single", batch_size=32).to_dicts()}
    said = [one.text for one in compare(found.runs, rows["bf16-mixed"], rows["fp32"])]
    assert any("measured energy" in text for text in said) is compared
    assert any("as fast" in text for text in said)
