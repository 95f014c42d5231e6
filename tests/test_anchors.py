"""Runs measured again on a later day show drift, and are never averaged in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import synthetic

from joulesweep.analyse import tables
from joulesweep.analyse.collect import aggregate
from joulesweep.core import files


@pytest.fixture
def sweep(tmp_path):
    raw = synthetic.raw_config(**synthetic.GPU_CONFIG)
    return synthetic.write_sweep(tmp_path, raw, synthetic.on_gpus)


def drift(sweep, tmp_path):
    return aggregate(*sweep, anchors_folder=tmp_path / "anchors").anchors


def test_ratios_by_day(sweep, tmp_path):
    runs = sweep[1]
    for day, factor in (("2026-02-03", 1.1), ("2026-01-09", 0.9)):
        synthetic.write_anchors(sweep, tmp_path, day, 2, factor)
    found = drift(sweep, tmp_path)
    assert found["day"].to_list() == ["2026-01-09"] * 2 + ["2026-02-03"] * 2
    assert found["energy_ratio"].to_list() == pytest.approx([0.9, 0.9, 1.1, 1.1])
    assert found["window_ratio"].to_list() == pytest.approx([0.9, 0.9, 1.1, 1.1])
    first = found.row(0, named=True)
    original = files.read_json(runs / first["run"] / "record.json", "record")["measurement"]
    assert first["window_s"] == original["window_s"]
    assert first["anchor_window_s"] == pytest.approx(0.9 * original["window_s"])
    assert (first["same_environment"], first["same_scope"], first["status"]) == (True, True, "ok")


def test_the_runs_table_knows_nothing_of_anchors(sweep, tmp_path):
    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 3, 2.0)
    with_anchors = aggregate(*sweep, anchors_folder=tmp_path / "anchors")
    without = aggregate(*sweep)
    assert without.anchors.is_empty() and without.anchors.schema == with_anchors.anchors.schema
    for name in ("runs", "cells", "epochs", "selections", "power"):
        assert getattr(with_anchors, name).equals(getattr(without, name))


def test_another_environment_has_no_ratio(sweep, tmp_path):
    def newer(row):
        return {**row, "environment": {**row["environment"], "driver": "999.1"}}

    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 1, 1.0, newer)
    row = drift(sweep, tmp_path).row(0, named=True)
    assert row["same_environment"] is False
    assert row["window_ratio"] is None and row["energy_ratio"] is None
    assert row["anchor_window_s"] is not None


def test_other_code_has_no_ratio(sweep, tmp_path):
    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 1, 1.0, lambda row: {**row, "code_digest": "f00d"})
    row = drift(sweep, tmp_path).row(0, named=True)
    assert (row["same_environment"], row["same_code"]) == (True, False)
    assert row["window_ratio"] is None and row["energy_ratio"] is None


def test_code_that_a_run_was_accepted_for_is_the_same(sweep, tmp_path):
    def accepted(row):
        kept = [{"code_digest": row["code_digest"], "reason": "a move", "accepted": row["finished"]}]
        return {**row, "code_digest": "f00d", "accepted": kept}

    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 1, 1.0, accepted)
    row = drift(sweep, tmp_path).row(0, named=True)
    assert row["same_code"] is True
    assert row["window_ratio"] is not None


@pytest.mark.parametrize(("joules", "same_scope"), [(7.0, False), (None, None)])
def test_another_scope_has_times_but_no_joules(sweep, tmp_path, joules, same_scope):
    def change(row):
        boards = [one for one in row["measurement"]["energy"] if one["kind"] == "gpu"]
        if joules is None:
            lost = {"energy_j": None, "status": "below_resolution", "reason": "short"}
            return synthetic.with_energy(row, *({**one, **lost} for one in boards))
        changed = synthetic.with_energy(row, *boards, synthetic.energy_row("cpu:0", joules))
        changed["measurement"]["conditions"]["exclusive"] = "node"
        return changed

    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 1, 1.0, change)
    row = drift(sweep, tmp_path).row(0, named=True)
    assert row["same_scope"] is same_scope
    assert row["window_ratio"] == pytest.approx(1.0) and row["energy_ratio"] is None


def test_an_anchor_that_failed_is_a_row_without_numbers(sweep, tmp_path):
    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 1, 1.0, lambda row: synthetic.failed(row, "oom", "full"))
    row = drift(sweep, tmp_path).row(0, named=True)
    assert row["status"] == "oom" and row["anchor_window_s"] is None and row["window_ratio"] is None


def test_an_anchor_whose_original_is_missing_has_no_ratio(sweep, tmp_path):
    grid, runs = sweep
    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 1, 1.0)
    (runs / next(iter(grid["runs"])) / "record.json").unlink()
    found = aggregate(grid, runs, anchors_folder=tmp_path / "anchors").anchors.row(0, named=True)
    assert found["window_s"] is None and found["window_ratio"] is None and found["same_environment"] is None


def test_runs_of_another_grid_are_ignored(sweep, tmp_path):
    (tmp_path / "anchors" / "2026-02-03" / "old-run").mkdir(parents=True)
    (tmp_path / "anchors" / "2026-02-03" / "old-run" / "record.json").write_text("{")
    assert drift(sweep, tmp_path).is_empty()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: text.replace('"version": 3', '"version": 2'),
        lambda text: text.replace('"exclusive"', '"inclusive"'),
        lambda text: text.replace('"window_s": ', '"window_s": "fast", "was": '),
    ],
)
def test_an_anchor_that_cannot_be_read_stops_nothing(sweep, tmp_path, damage):
    bad, _ = synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 2, 1.0)
    assert damage(bad.read_text()) != bad.read_text()
    bad.write_text(damage(bad.read_text()))
    rows = {row["run"]: row for row in drift(sweep, tmp_path).to_dicts()}
    row = rows.pop(bad.parent.name)
    (good,) = rows.values()
    assert (row["status"], row["day"], good["status"]) == ("unreadable", "2026-02-03", "ok")
    assert good["window_ratio"] == pytest.approx(1.0)
    told = ("day", "run", "name", "panel", "status", "window_s", "energy_j")
    assert all(row[key] is not None for key in told)
    assert {value for key, value in row.items() if key not in told} == {None}


def test_the_script_takes_their_folder(sweep, tmp_path):
    synthetic.write_anchors(sweep, tmp_path, "2026-02-03", 2, 1.02)
    paths = {"grid": "grid.json", "runs": "runs", "anchors": "anchors", "output": "tables"}
    arguments = [word for key, path in paths.items() for word in (f"--{key}", str(tmp_path / path))]
    subprocess.run([sys.executable, "-m", "scripts.aggregate", *arguments], check=True)
    assert tables.read(tmp_path / "tables").anchors.height == 2
