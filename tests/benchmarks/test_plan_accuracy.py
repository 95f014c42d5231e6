"""Sweeps are replayed as they would have been planned, and how near that was is printed."""

from __future__ import annotations

import synthetic

from benchmarks import plan_accuracy
from joulesweep.core import files


def sweep(folder, change=lambda row: row):
    grid, _ = synthetic.write_sweep(folder, synthetic.raw_config(), change)
    files.write_json(folder / "grid.json", grid)
    return str(folder)


def test_each_quantity_is_told_before_and_after(tmp_path, capsys):
    assert plan_accuracy.main([sweep(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("24 runs, 0 of which waited for cores that others used")
    told = [line.split("  ")[1] for line in lines[1:7]]
    assert told == [words for words in plan_accuracy.QUANTITIES.values() for _ in range(2)]
    assert all("7 runs" in line or "16 runs" in line for line in lines[1:7])
    assert sum("planned for the rest" in line for line in lines) == 2


def test_a_sweep_without_finished_runs_is_an_error(tmp_path, capsys):
    folder = sweep(tmp_path, lambda row: synthetic.failed(row, "oom", "no memory"))
    assert plan_accuracy.main([folder]) == 1
    assert "no run ended after another" in capsys.readouterr().err
