"""A person who watches reads which run, how it went and what it cost."""

from __future__ import annotations

import json
import re

import pytest
import synthetic
import tiny_run

from joulesweep.launch import progress
from joulesweep.runs.record import RunRecord

RUNS = [f"run{i}" for i in range(12)]


def grid(estimate=False, cpu_watts=None):
    energy = {"estimate": estimate, "cpu_watts": cpu_watts}
    runs = {run: {"label": f"ddp2 fp32 bs{i}", "repeat": 1 + i % 3} for i, run in enumerate(RUNS)}
    return {"runs": runs, "config": {"energy": energy}}


def record(*energy, accelerator="cpu", **changes):
    """A record with an energy row for each (device, joules, status)."""
    reasons = {"measured": None, "integrated": None}
    rows = [
        synthetic.energy_row(device, energy_j, status=status, reason=reasons.get(status, "because"))
        for device, energy_j, status in energy
    ]
    row = synthetic.ok_record("run4", tiny_run.spec(accelerator=accelerator))
    row["measurement"] |= {"window_s": 2.94, "cpu_s": 2.0, "energy": rows}
    row["quality"]["validation_loss"] = 3.896
    row["environment"] |= {"cpu_model": "some processor", "cpu_cores": 2}
    return synthetic.typed(RunRecord, {**row, **changes})


@pytest.fixture
def folder(tmp_path):
    """A runs folder in which four runs of the grid, and one of another, have finished."""
    for run in ("run0", "run1", "run4", "run7", "elsewhere"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "record.json").write_text("{}")
    (tmp_path / "run2").mkdir()
    return tmp_path


def test_a_start_is_the_next_of_all(folder):
    assert progress.start_line("run2", grid(), folder) == "[ 5/12] ddp2 fp32 bs2 r3 starts"


NO_METER = ("cpu:0", None, "unavailable")


def test_an_end_says_seconds_joules_and_loss(folder):
    line = progress.end_line(record(("cpu:0", 41.26, "measured")), grid(), folder)
    assert line == "[ 4/12] ddp2 fp32 bs4 r2 · 2.9 s · 41.3 J · loss 3.90"


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([("gpu:0", 40.0, "measured"), ("gpu:1", 2.0, "measured"), NO_METER], " · 42.0 J · "),
        ([("gpu:0", 40.0, "measured"), ("cpu:0", 2.0, "measured")], " · 42.0 J · "),
        ([("gpu:0", 40.0, "measured"), ("cpu:0", 2.0, "integrated")], " · 40.0 J · "),
        ([("gpu:0", 40.0, "integrated"), ("gpu:1", 2.0, "integrated")], " · 42.0 J int. · "),
        ([("gpu:0", 40.0, "measured"), ("gpu:1", 2.0, "integrated")], " s · loss"),
        ([("gpu:0", 40.0, "measured"), ("gpu:1", None, "below_resolution")], " s · loss"),
        ([("gpu:0", None, "unavailable"), ("cpu:0", 2.0, "measured")], " s · loss"),
        ([], " s · loss"),
        ([("gpu:0", 41234.0, "measured")], " · 41.2 kJ · "),
        ([("gpu:0", 4123400.0, "measured")], " · 4.12 MJ · "),
    ],
)
def test_the_joules_are_those_of_the_tables(folder, rows, shown):
    """A sum of one status over all that computed; nothing is estimated of a GPU."""
    line = progress.end_line(record(*rows, accelerator="cuda"), grid(estimate=True), folder)
    assert shown in line


def test_without_a_meter_there_are_no_joules(folder):
    line = progress.end_line(record(NO_METER), grid(), folder)
    assert line == "[ 4/12] ddp2 fp32 bs4 r2 · 2.9 s · loss 3.90"


def test_estimated_joules_say_so(folder):
    watts = {"min_w": 10.0, "max_w": 30.0}
    line = progress.end_line(record(NO_METER), grid(estimate=True, cpu_watts=watts), folder)
    joules = 10 * 2.94 + 2.0 * (30 - 10) / 2  # idle watts all along, and one of two cores busy for two seconds
    assert f" · {joules:#.3g} J est. · " in line


def test_measured_joules_are_never_replaced_by_estimated_ones(folder):
    assert "est." not in progress.end_line(record(("cpu:0", 1.0, "measured")), grid(estimate=True), folder)


@pytest.mark.parametrize("status", ["oom", "diverged", "unsupported", "timeout"])
def test_a_run_that_stopped_says_why(folder, status):
    stopped = record(status=status, reason="because", measurement=None, quality=None)
    assert progress.end_line(stopped, grid(), folder) == f"[ 4/12] ddp2 fp32 bs4 r2 · {status}: because"


def test_what_pytorch_says_when_memory_runs_out_is_told_in_short(folder):
    said = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB of which 1.20 GiB is free. Process 1 has"
    )
    line = progress.end_line(record(status="oom", reason=said, measurement=None, quality=None), grid(), folder)
    assert line.endswith("· oom: " + said.removesuffix(" Process 1 has"))


def test_an_end_says_how_long_the_rest_will_take(folder):
    """Ten seconds a run, one after the other, so 80 s for the eight that are left."""
    for i, run in enumerate(("run0", "run1", "run4", "run7")):
        times = [f"2026-01-02T03:{4 + i // 6:02}:{10 * i % 60:02}+00:00", f"2026-01-02T03:04:{10 * i + 10:02}+00:00"]
        (folder / run / "record.json").write_text(json.dumps({"started": times[0], "finished": times[1]}))
    line = progress.end_line(record(NO_METER), grid(), folder)
    assert re.fullmatch(r".* · loss 3.90 · about 80 s left, done at (\d{4}-\d\d-\d\d )?\d\d:\d\d", line)
    stopped = record(status="oom", reason="because", measurement=None, quality=None)
    assert " · oom: because · about 80 s left, done at " in progress.end_line(stopped, grid(), folder)


def test_the_last_end_and_an_anchor_say_nothing_of_the_rest(folder):
    times = {"started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T03:04:15+00:00"}
    for run in RUNS:
        (folder / run).mkdir(exist_ok=True)
        (folder / run / "record.json").write_text(json.dumps(times))
    assert "left" not in progress.end_line(record(NO_METER), grid(), folder)
    (folder / "run0" / "record.json").unlink()
    assert "left" in progress.end_line(record(NO_METER), grid(), folder)
    anchors = folder / "anchors" / "2026-01-02"
    assert "left" not in progress.end_line(record(NO_METER), grid(), anchors)


def test_a_run_outside_the_grid_is_named_by_its_id(folder):
    assert progress.start_line("elsewhere", grid(), folder) == "[by hand] elsewhere starts"


def test_an_anchor_is_no_run_of_the_sweep(tmp_path):
    assert progress.start_line("run0", grid(), tmp_path / "anchors" / "2026-01-02").startswith("[anchor] ")
