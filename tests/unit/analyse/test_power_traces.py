"""Every run's power trace, in one table."""

from __future__ import annotations

import polars as pl
import pytest
import synthetic

from joulesweep.analyse import power_traces
from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.columns import POWER
from joulesweep.analyse.tables import frame
from joulesweep.core.errors import Corrupt


@pytest.fixture
def sweep(tmp_path):
    axes = {"strategy": ["ddp"], "precision": ["bf16-mixed"], "batch_size": [32], "repeats": 2}
    return synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **synthetic.GPU_CONFIG), synthetic.on_gpus)


def test_rows_are_those_of_the_files(sweep):
    grid, runs = sweep
    found = aggregate(grid, runs)
    run = found.runs.row(1, named=True)
    traced = found.power.filter(run=run["run"])
    lines = (runs / run["run"] / "power.jsonl").read_text().splitlines()
    assert traced.height == len(lines) > 150
    assert traced["device"].unique(maintain_order=True).to_list() == ["gpu:0", "gpu:1"]
    assert traced["window_s"].unique().to_list() == [run["total_window_s"]]
    assert traced["t_s"].min() == -5.0 and traced["repeat"].unique().to_list() == [2]
    assert traced["name"].unique().to_list() == [run["name"]]


def test_no_trace_no_rows(sweep):
    grid, runs = sweep
    first, second = grid["runs"]
    (runs / first / "power.jsonl").unlink()
    (runs / second / "power.jsonl").write_text("")
    found = aggregate(grid, runs).power
    assert found.is_empty() and found.schema == frame([], POWER).schema


def test_a_sample_without_reading_is_null(sweep):
    grid, runs = sweep
    path = runs / next(iter(grid["runs"])) / "power.jsonl"
    path.write_text('{"t_s": 0, "device": "gpu:0", "power_w": null, "energy_j": 1.5}\n')
    found = aggregate(grid, runs).power.filter(run=path.parent.name)
    assert found.select("t_s", "power_w").rows() == [(0.0, None)]


@pytest.mark.parametrize(
    "line",
    [
        '{"t_s": 1, "device": "gpu:0"',
        '{"t_s": 1, "device": "gpu:0", "power_w": NaN}',
        '{"t_s": 1, "device": "gpu:0", "power_w": "much"}',
        '{"device": "gpu:0", "power_w": 1}',
        "[1]",
    ],
)
def test_a_corrupt_trace_is_refused_by_name(sweep, line):
    grid, runs = sweep
    path = runs / next(iter(grid["runs"])) / "power.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(Corrupt, match="corrupt power trace") as caught:
        power_traces.read(path.parent)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_runs_that_failed_have_no_trace(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        return synthetic.failed(row, "oom", "full") if row["spec"]["repeat"] == 1 else row

    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(**synthetic.GPU_CONFIG), change)
    (runs / next(iter(grid["runs"])) / "power.jsonl").write_text("{}")  # left over from before
    found = aggregate(grid, runs)
    assert set(found.power["run"]) == set(found.runs.filter(pl.col("status") == "ok")["run"])


def test_a_trace_that_ends_in_no_newline_keeps_its_last_line(sweep):
    grid, runs = sweep
    first, second = (runs / run / "power.jsonl" for run in grid["runs"])
    first.write_text(first.read_text().rstrip("\n"))
    power = aggregate(grid, runs).power
    for path in (first, second):
        assert power.filter(run=path.parent.name).height == len(path.read_text().splitlines())


def test_one_corrupt_trace_leaves_the_others(sweep):
    grid, runs = sweep
    first, second = (runs / run / "power.jsonl" for run in grid["runs"])
    first.write_text('{"t_s": 1, "device": "gpu:0"\n')
    made = aggregate(grid, runs)
    assert set(made.power["run"]) == {second.parent.name}
    assert made.runs["flags"].str.contains("unreadable_file").to_list() == [True, None]
