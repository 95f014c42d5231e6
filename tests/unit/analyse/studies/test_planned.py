"""Plans are replayed from what had ended before, and compared with what runs took."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

import pages
import polars as pl
import pytest
import synthetic

from joulesweep.analyse import past_runs, planning
from joulesweep.analyse.estimator import Job, Range
from joulesweep.analyse.studies.planned import planned
from joulesweep.report.sections import Results, plan


def one_after_the_other(row):
    """Runs end in the grid's order, which has the repeats slowest."""
    begin = datetime.datetime.fromisoformat(row["started"])
    place = row["spec"]["repeat"] * 1000 + hash_of(row["run"])
    ended = begin + datetime.timedelta(seconds=60 + place)
    return {**row, "finished": ended.isoformat()}


def hash_of(text):
    return sum(map(ord, text)) % 900


def measured(row):
    return synthetic.measured(one_after_the_other(row))


def failing(row):
    return synthetic.failed(one_after_the_other(row), "oom", "no memory")


def slower(row):
    """The last repeat takes three times as long."""
    row = one_after_the_other(row)
    measurement = row["measurement"]
    factor = 3 if row["spec"]["repeat"] == 3 else 1
    longer = {key: factor * measurement[key] for key in ("window_s", "total_window_s")}
    return {**row, "measurement": {**measurement, **longer}}


def of(tmp_path, change, **sections):
    return planned(pages.build(tmp_path, change, **sections)[1].runs)


def test_first_runs_and_repeats_are_planned_apart(tmp_path):
    near = of(tmp_path, one_after_the_other)
    first, again = near.rows["window_s", False], near.rows["window_s", True]
    assert first.num + again.num == near.num_runs == 23  # of the first run nothing told
    assert again.num == 16
    assert again.median < 0.08  # seeds differ by 5 %
    assert first.median < 0.3
    assert again.covered >= 0.75
    assert near.planned_s == pytest.approx(near.took_s, rel=0.2)


def test_a_plan_that_was_wrong_is_told(tmp_path):
    near = of(tmp_path, slower)
    assert near.took_s > 1.3 * near.planned_s


def test_joules_are_of_one_status(tmp_path):
    assert of(tmp_path, measured).energy_status == "measured"
    assert of(tmp_path, one_after_the_other).energy_status == "estimated"
    without = of(tmp_path, one_after_the_other, energy={"estimate": False})
    assert without.energy_status is None
    assert {name for name, _ in without.rows} == {"window_s"}


def test_nothing_finished_is_nothing_planned(tmp_path):
    assert of(tmp_path, failing) is None


def test_a_single_run_was_planned_from_nothing(tmp_path):
    runs = pages.build(tmp_path, one_after_the_other)[1].runs
    assert planned(runs.head(1)) is None
    assert planned(runs.clear()) is None


def test_runs_of_another_environment_tell_nothing(tmp_path):
    runs = pages.build(tmp_path, one_after_the_other)[1].runs
    apart = runs.with_columns(environment=pl.col("run"))  # each on a machine of its own
    assert planned(apart) is None


def test_later_runs_change_no_earlier_plan(tmp_path):
    rows = pages.build(tmp_path, one_after_the_other)[1].runs.sort("finished").iter_rows(named=True)
    past = [past_runs.of_row(row) for row in rows]
    longer = [replace(row, window_s=10 * row.window_s) for row in past[12:]]
    assert planning.replay(past[:12] + longer)[:11] == planning.replay(past[:12])
    assert planning.replay(past[:11] + longer, growth=1.5)[:7] == planning.replay(past[:11], growth=1.5)[:7]


def test_the_section_says_how_near_the_plans_were(tmp_path):
    manifest, tables = pages.build(tmp_path, one_after_the_other)
    text = pages.words(plan.section(Results(manifest, tables)).html)
    assert "23 windows were planned to take" in text
    assert "Time, before its configuration had run" in text
    assert "Estimated energy, afterwards" in text


def test_the_section_says_what_the_sweep_itself_took(tmp_path):
    def with_notes(change):
        manifest, tables = pages.build(tmp_path, change)
        return pages.words(plan.section(Results(manifest, tables)).html)

    assert "in 24 attempts. Attempts without a meter took an estimated" in with_notes(one_after_the_other)
    assert "read from meters" in with_notes(measured)
    assert "Of 24 attempts only the window was read." in with_notes(measured)
    assert with_notes(failing).endswith("What 24 of them took is unknown.")


def test_before_anything_was_tried_there_is_no_section(tmp_path):
    manifest, tables = pages.build(tmp_path, lambda row: None)
    assert plan.section(Results(manifest, tables)) is None


def test_errors_are_relative_and_ranges_are_counted():
    job = Job(run="a", cell="a", label="a", axes={})

    def replayed(value, low, high, own=1):
        prediction = planning.Prediction(
            job=job,
            window_s=Range(10.0, low, high),
            seconds=None,
            energy_j=None,
            joules=None,
            energy_status=None,
            num_own=own,
            basis="",
            energy_basis="",
        )
        return planning.Replayed(planning.Past(job=job, status="ok", window_s=value), prediction)

    rows = [replayed(8.0, 7.0, 12.0), replayed(10.0, 9.0, 11.0), replayed(20.0, 9.0, 11.0), replayed(1.0, 1.0, 99.0, 0)]
    near = planning.accuracy(rows, "window_s", seen=True)
    assert near.num == 3
    assert math.isclose(near.median, 0.25)
    assert math.isclose(near.covered, 2 / 3)
    assert planning.accuracy(rows, "energy_j", seen=True) is None
