"""Joules against a known truth: the fake NVML under the real pynvml, Zeus, torchrun and Snakemake.

Where the boards draw constant watts, the truth of a window is watts × seconds, whatever the CPU is doing. The counter
moves once per tick; a window's two ends may miss one tick between them each: 2 · tick / T, and 0.2 % for the clocks.
Where their draw changes, or counter, clock or driver misbehave, a number is within its own `error_j`, or is none.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_meters
import lock_files
import polars as pl
import pytest
import tiers
import tiny_run
from checkout import Checkout, prepared
from patience import PATIENCE_S, wait_for

from joulesweep.analyse import run_rows as record_rows
from joulesweep.core.spec import strip
from joulesweep.reference.cpu_estimate import Asked
from joulesweep.runs.identity import run_id

WATTS = (310.0, 170.0)
TICKS_MS = (20, 100)
OF_THE_MACHINE = {"short_window", "contended"}  # flags that tell how long and how busy it was
pytestmark = pytest.mark.slow


def bound(tick_s: float, window_s: float) -> float:
    """Largest relative error that a counter of this tick may have in this window."""
    return 2 * tick_s / window_s + 0.002


class Machine:
    """A machine with fake boards, on which single runs are launched as Snakemake's job would."""

    def __init__(self, folder: Path, tick_ms: int, watts: tuple[float | str, ...] = WATTS) -> None:
        self.folder, self.tick_s = folder, tick_ms / 1000
        self.boards = fake_meters.Boards(folder, [{"watts": w, "tick_ms": tick_ms} for w in watts])
        self.assets = tiny_run.assets(folder)
        self.environ = self.boards.environment(
            JOULESWEEP_LOCKS=str(folder / "locks"), XDG_CACHE_HOME=str(folder / "cache"), OMP_NUM_THREADS="1"
        )
        paths = [str(tiny_run.SUPPORT / "load"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ |= {"LOAD": "{}", "PYTHONPATH": os.pathsep.join(paths)}

    def start(self, exclusive: str, **changes: Any) -> tuple[subprocess.Popen[str], Path]:
        """A run in the background; returns its process and its folder."""
        command, folder = self.command(exclusive, **changes)
        child = subprocess.Popen(command, cwd=tiny_run.REPOSITORY, env=self.environ, stderr=subprocess.PIPE, text=True)
        return child, folder

    def command(self, exclusive: str, **changes: Any) -> tuple[list[str], Path]:
        """What Snakemake's job would call, and the run's folder."""
        spec = tiny_run.spec(**changes)
        folder = self.folder / "runs" / run_id(spec)
        grid = {
            "runs": {},
            "config": {
                "measure": {"exclusive": exclusive, "gpus": "auto", "pin_boards": False},
                "energy": {"estimate": False},
            },
        }
        (self.folder / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
        given = {
            "--job": json.dumps({"spec": strip(spec), "code": "c0de"}),
            "--model-folder": self.assets.model_folder,
            "--tokens": self.assets.tokens,
            "--texts": self.folder / "texts.jsonl",
            "--grid": self.folder / "grid.json",
            "--folder": folder,
            "--log": folder / "run.log",
            "--gpus": 8,
        }
        return [sys.executable, "-m", "scripts.train", *(str(word) for pair in given.items() for word in pair)], folder

    def run(self, exclusive: str, **changes: Any) -> dict[str, Any]:
        """A run's record."""
        child, folder = self.start(exclusive, **changes)
        _, errors = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, errors
        return read(folder)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return found


def gpu_rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A record's rows of boards, by device."""
    return {row["device"]: row for row in record["measurement"]["energy"] if row["kind"] == "gpu"}


def errors(record: dict[str, Any], watts: dict[str, float]) -> list[float]:
    """Each board's joules over the truth, less 1; watts by UUID."""
    window_s = record["measurement"]["total_window_s"]
    return [row["total_energy_j"] / (watts[row["uuid"]] * window_s) - 1 for row in gpu_rows(record).values()]


SHAPES = {
    "single": {"gpus": [0]},
    "one process with two boards": {"gpus": [0, 1]},
    "ddp": {"gpus": [0, 1], "strategy": "ddp", "devices": 2},
}


#: Both meter two boards, so that one of them is enough but for once.
OF_TWO = ["one process with two boards", pytest.param("ddp", marks=pytest.mark.long)]
#: Each tick and each shape; all of both with --long.
OFTEN = {(20, "single"), (100, "one process with two boards"), (100, "ddp")}


@pytest.mark.parametrize(
    ("tick_ms", "shape"),
    tiers.among(OFTEN, itertools.product(TICKS_MS, SHAPES), mark=pytest.mark.long),
)
def test_every_board_is_counted_once_and_right(tmp_path: Path, tick_ms: int, shape: str) -> None:
    machine = Machine(tmp_path, tick_ms)
    min_seconds = 0.73 if machine.tick_s < 0.1 else 1.37  # no multiples of the tick: those flatter
    record = machine.run("node", **SHAPES[shape], max_steps=20, min_seconds=min_seconds, idle_s=1.1)
    measurement, rows = record["measurement"], gpu_rows(record)
    assert list(rows) == [f"gpu:{i}" for i in SHAPES[shape]["gpus"]]
    assert measurement["total_window_s"] >= min_seconds
    truth = {board["uuid"]: watts for board, watts in zip(machine.boards.boards, WATTS, strict=True)}
    allowed = bound(machine.tick_s, measurement["total_window_s"])
    assert all(abs(error) <= allowed for error in errors(record, truth))
    for row in rows.values():
        assert row["status"] == "measured"
        assert row["tick_s"] == pytest.approx(machine.tick_s, rel=0.25)
        assert row["energy_j"] == pytest.approx(row["total_energy_j"] / measurement["num_passes"])
        assert row["idle_w"] == pytest.approx(truth[row["uuid"]], rel=bound(machine.tick_s, 1.0))
        assert row["power_ratio"] == pytest.approx(1, abs=allowed)
    untrained = record["epochs"][0]["energy"]
    assert [row["device"] for row in untrained] == list(rows)
    assert {(row["energy_j"], row["reason"]) for row in untrained} == {(None, "nothing trained yet")}
    assert {flag["flag"] for flag in measurement["flags"]} <= OF_THE_MACHINE


LOW_W, LOAD_W = 100, 700
STEPS = {"begin": [[0, LOAD_W]], "end": [[0, LOW_W]]}
MISTIMED_S = 0.003  # the load steps when the process says so, not when its window's clock is read


def loaded(folder: Path, load: dict[str, Any], tick_ms: int = 100, **board: Any) -> Machine:
    """A machine with one board to which things happen when a run's window begins and ends."""
    machine = Machine(folder, tick_ms, watts=(LOW_W,))
    machine.boards.set(0, **board)
    machine.environ["LOAD"] = json.dumps(load)
    return machine


def only_row(record: dict[str, Any], *flags: str) -> dict[str, Any]:
    """The row of a run's one board, after checking its flags."""
    (row,) = gpu_rows(record).values()
    assert {flag["flag"] for flag in record["measurement"]["flags"]} - OF_THE_MACHINE == set(flags), row
    return row


def error(record: dict[str, Any], watts: float = LOAD_W) -> float:
    """A board's joules over the truth, less 1, after checking that they are within their own bound."""
    (row,) = gpu_rows(record).values()
    truth_j = watts * record["measurement"]["total_window_s"]
    error_j = record["measurement"]["num_passes"] * row["error_j"]
    assert abs(row["total_energy_j"] - truth_j) <= error_j + 2 * MISTIMED_S * watts, row
    print(f"{row['status']}: {row['total_energy_j'] / truth_j - 1:+.3%}, bound {error_j / truth_j:.3%}")
    return float(row["total_energy_j"] / truth_j - 1)


@pytest.mark.parametrize("tick_ms", [100, 250])
def test_a_load_that_steps_with_the_window_biases_no_joules(tmp_path: Path, tick_ms: int) -> None:
    record = loaded(tmp_path, STEPS, tick_ms).run("node", gpus=[0], max_steps=20, min_seconds=3.13, idle_s=1.1)
    row = only_row(record)
    assert (row["status"], row["doubt"], row["power_method"]) == ("measured", None, "instant")
    assert abs(error(record)) < 0.5 * bound(tick_ms / 1000, record["measurement"]["total_window_s"])
    assert row["idle_w"] == pytest.approx(LOW_W, rel=0.01)
    assert 0 < row["net_energy_j"] < row["energy_j"]


def test_power_that_the_board_averages_over_a_second_is_no_false_alarm(tmp_path: Path) -> None:
    machine = loaded(tmp_path, STEPS, average_s=1, instant=0)
    record = machine.run("node", gpus=[0], max_steps=20, min_seconds=3.13, idle_s=1.1)
    row = only_row(record)
    assert (row["status"], row["doubt"]) == ("measured", None)
    assert row["power_method"] == "as the driver averages it"
    lag_s = (1 - row["power_ratio"]) * record["measurement"]["total_window_s"]
    assert 0.2 < lag_s < 0.8, "the average lags behind by half a second of the step"
    error(record)


@pytest.mark.parametrize("after_s", [0.2, 1.7])
def test_a_counter_that_is_reset_in_the_window_is_never_a_measurement(tmp_path: Path, after_s: float) -> None:
    """Early, it overtakes what it said at the begin; late, it does not: the board's counter began long ago."""
    load = {"begin": [[0, LOAD_W], [after_s, "reset"]], "end": [[0, LOW_W]]}
    machine = loaded(tmp_path, load)
    machine.boards.happen(0, time.time() - 0.5, "reset")
    record = machine.run("node", gpus=[0], max_steps=20, min_seconds=2.2, idle_s=0.5)
    row = only_row(record, "counter_reset")
    assert (row["status"], row["method"]) == ("integrated", "NVML power readings, integrated: the counter was reset")
    error(record)
    assert row["net_energy_j"] is None or 0 <= row["net_energy_j"] <= row["energy_j"]


def test_a_wall_clock_that_steps_in_the_window_changes_no_seconds_and_is_flagged(tmp_path: Path) -> None:
    load = {"begin": [[0, LOAD_W], [0, "clock 500"]], "end": [[0, LOW_W]]}
    machine = loaded(tmp_path, load)
    machine.environ |= fake_meters.WallClock(tmp_path).environment()
    record = machine.run("node", gpus=[0], max_steps=20, min_seconds=2.13, idle_s=0.5)
    only_row(record, "clock_stepped")
    measurement = record["measurement"]
    assert 2.13 <= measurement["total_window_s"] < 400
    assert measurement["samples_per_s"] == pytest.approx(measurement["num_texts"] / measurement["window_s"])
    error(record)


@pytest.mark.parametrize("shape", OF_TWO)
def test_one_boards_failing_counter_costs_that_board_only(tmp_path: Path, shape: str) -> None:
    machine = Machine(tmp_path, 20)
    child, folder = machine.start("node", **SHAPES[shape], max_steps=20, min_seconds=4.0)
    assert wait_for(lambda: (folder / "run.log").exists() and "step" in (folder / "run.log").read_text())
    machine.boards.set(1, fail="GetTotalEnergyConsumption:999")
    _, told = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, told
    rows = gpu_rows(read(folder))
    assert (rows["gpu:0"]["status"], rows["gpu:1"]["status"]) == ("measured", "integrated")
    assert "Zeus: ZeusGPUUnknownError" in rows["gpu:1"]["method"]
    truth = {board["uuid"]: watts for board, watts in zip(machine.boards.boards, WATTS, strict=True)}
    assert all(abs(error) <= 0.02 for error in errors(read(folder), truth))


def test_a_tick_that_was_kept_and_no_longer_holds_is_found_out(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20, watts=(LOW_W,))
    machine.run("node", gpus=[0], max_steps=5)
    machine.boards.set(0, tick_ms=2000)
    row = only_row(machine.run("node", gpus=[0], max_steps=20, min_seconds=5.2))
    assert row["status"] == "below_resolution"
    assert row["tick_s"] == pytest.approx(2.0, rel=0.25)


def test_a_counter_of_which_nobody_knows_how_often_it_moves_is_no_measurement(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 6000, watts=(LOW_W,))  # its tick cannot be measured in 10 s
    row = only_row(machine.run("node", gpus=[0], max_steps=20, min_seconds=1.5))
    assert (row["status"], row["energy_j"], row["error_j"]) == ("below_resolution", None, None)


#: What a board may draw while the run goes on; each with the tick of its counter, in ms.
DRAWS = {
    "saw": ("saw:100:700:7.3", (37, 100, 500)),
    "square": ("90:690:2.9", (37, 100, 500)),
    "fast square": ("90:690:0.2013", (100,)),
    "square as often as readings": ("90:690:0.1", (100,)),
    "sine": ("sine:400:300:1.3", (37, 100, 500)),
    "slow sine": ("sine:400:300:11", (100, 730)),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "tick_ms", "board"),
    [
        *((name, tick_ms, {}) for name, (_, ticks_ms) in DRAWS.items() for tick_ms in ticks_ms),
        *(("slow sine", tick_ms, {"average_s": 1, "instant": 0}) for tick_ms in (100, 500)),
        *((name, 100, {"counter": 0}) for name in DRAWS),
    ],
)
def test_joules_are_within_their_own_bound_whatever_the_board_draws(
    tmp_path: Path, name: str, tick_ms: int, board: dict[str, Any]
) -> None:
    machine = Machine(tmp_path, tick_ms, watts=(DRAWS[name][0],))
    machine.boards.set(0, **board)
    record = machine.run("node", gpus=[0], max_steps=20, min_seconds=8.2, idle_s=1.1)
    (row,), measurement = gpu_rows(record).values(), record["measurement"]
    begin_s = datetime.datetime.fromisoformat(measurement["conditions"]["window_begin"]).timestamp()
    truth_j = machine.boards.joules(0, measurement["total_window_s"], begin_s)
    error_j = row["error_j"] * measurement["num_passes"]
    print(f"{name}, tick {tick_ms} ms, {row['status']}: {row['total_energy_j'] / truth_j - 1:+.2%}, ", end="")
    print(f"bound {error_j / truth_j:.2%}, cross-check {row['power_ratio']}")
    assert (row["status"], row["doubt"]) == ("integrated" if board.get("counter") == 0 else "measured", None)
    assert abs(row["total_energy_j"] - truth_j) <= error_j + SLACK_S * 700
    assert row["net_energy_j"] is None or 0 <= row["net_energy_j"] <= row["energy_j"]


@pytest.mark.long
@pytest.mark.parametrize(("tick_ms", "min_seconds"), [(100, 15.1), (500, 15.1)])
def test_the_mean_of_twenty_runs_with_load_steps_is_right(tmp_path: Path, tick_ms: int, min_seconds: float) -> None:
    machine = loaded(tmp_path, STEPS, tick_ms)
    found = []
    for seed in range(20):
        record = machine.run("node", gpus=[0], repeat=seed, max_steps=20, min_seconds=min_seconds, idle_s=0.5)
        assert only_row(record)["status"] == "measured"
        found.append(error(record))
    print(f"load steps, tick {tick_ms} ms: mean {statistics.fmean(found):+.3%}, worst {max(map(abs, found)):.3%}")
    assert abs(statistics.fmean(found)) <= 0.003


HIGH_W = 400
SLACK_S = 0.005  # the record's times are whole milliseconds, and a meter's call takes one or two
SHIFT_S = 0.5


def test_the_window_is_where_the_record_says(tmp_path: Path) -> None:
    """Constant watts cannot tell a window from its neighbours: these boards draw square waves.

    Half a second off, and a board's joules would have been out of bound: unless it draws the same at both ends. Of
    these four one does not, for most lengths of the window and most phases; else another run is looked at.
    """
    machine = Machine(tmp_path, 20, watts=tuple(f"{HIGH_W}:100:{period_s}" for period_s in (3, 5, 6, 7)))
    for repeat in range(20):
        if shifts_told(machine, repeat) == {-SHIFT_S, SHIFT_S}:
            return
    raise AssertionError("no window could be told from its neighbours")


def shifts_told(machine: Machine, repeat: int) -> set[float]:
    """Run once, look whether all joules are right, and which shifts of the window they would have told."""
    record = machine.run("node", gpus=[0, 1, 2, 3], repeat=repeat, max_steps=20, min_seconds=2.3, idle_s=0.5)
    conditions, rows = record["measurement"]["conditions"], gpu_rows(record)
    begin_s, end_s = (
        datetime.datetime.fromisoformat(conditions[key]).timestamp() for key in ("window_begin", "window_end")
    )
    window_s = end_s - begin_s
    assert window_s == pytest.approx(record["measurement"]["total_window_s"], abs=SLACK_S)
    told = set()
    for index in range(4):
        truth_j = machine.boards.joules(index, window_s, begin_s)
        allowed = (2 * machine.tick_s + SLACK_S) * HIGH_W / truth_j + 0.002
        assert rows[f"gpu:{index}"]["total_energy_j"] == pytest.approx(truth_j, rel=allowed)
        for shift_s in (-SHIFT_S, SHIFT_S):
            shifted_j = machine.boards.joules(index, window_s, begin_s + shift_s)
            if abs(shifted_j - truth_j) > 2 * allowed * truth_j:
                told.add(shift_s)
    return told


def test_a_window_of_less_than_ten_ticks_has_no_joules(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 60_000)  # ten of these last longer than the slowest machine trains
    keep = f"from joulesweep.measure import sensors; sensors.keep_tick({machine.boards.boards[0]['uuid']!r}, 60.0)"
    subprocess.run([sys.executable, "-c", keep], cwd=tiny_run.REPOSITORY, env=machine.environ, check=True)
    (row,) = gpu_rows(machine.run("node", gpus=[0], max_steps=20)).values()
    assert (row["energy_j"], row["total_energy_j"], row["status"]) == (None, None, "below_resolution")
    assert "shorter than 10 updates of the counter (60 s each)" in row["reason"]


def test_a_board_without_counter_is_integrated_and_labelled(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20)
    machine.boards.set(0, counter=0)
    record = machine.run("node", gpus=[0], max_steps=20, min_seconds=1.0)
    (row,) = gpu_rows(record).values()
    assert (row["status"], row["tick_s"]) == ("integrated", None)
    assert row["total_energy_j"] == pytest.approx(WATTS[0] * record["measurement"]["total_window_s"], rel=0.002)


def test_a_split_board_has_no_joules_and_says_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20)
    machine.boards.set(0, mig=1)
    (row,) = gpu_rows(machine.run("node", gpus=[0], max_steps=5)).values()
    assert (row["energy_j"], row["status"]) == (None, "unavailable")
    assert row["reason"].startswith("MIG")


def test_power_that_disagrees_with_the_counter_and_other_processes_are_flagged(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20)
    machine.boards.set(0, power_error=1.3, pids="4242", throttle="0x40")
    seconds = 1.3  # what holds the clocks down is read once a second
    measurement = machine.run("node", gpus=[0], max_steps=20, min_seconds=seconds)["measurement"]
    assert {flag["flag"] for flag in measurement["flags"]} | OF_THE_MACHINE == {
        *OF_THE_MACHINE,
        "power_disagrees",
        "other_processes",
        "throttled",
    }


@pytest.mark.parametrize(
    ("setting", "order"),
    [("1,0", [1, 0]), *(pytest.param(*case, marks=pytest.mark.long) for case in [("0,-1,1", [0]), ("UUID of 1", [1])])],
)
def test_what_a_batch_system_hands_out_is_what_is_metered(tmp_path: Path, setting: str, order: list[int]) -> None:
    machine = Machine(tmp_path, 20)
    uuids = [board["uuid"] for board in machine.boards.boards]
    machine.environ["CUDA_VISIBLE_DEVICES"] = setting.replace("UUID of 1", uuids[1])
    record = machine.run("node", gpus=order, max_steps=20, min_seconds=0.5)
    assert [row["uuid"] for row in gpu_rows(record).values()] == [uuids[i] for i in order]
    assert all(abs(e) <= bound(0.02, 0.5) for e in errors(record, dict(zip(uuids, WATTS, strict=True))))


@pytest.mark.parametrize("setting", ["", "-1", "7"])
def test_a_board_that_was_not_handed_out_is_refused_in_one_line(tmp_path: Path, setting: str) -> None:
    machine = Machine(tmp_path, 20)
    machine.environ["CUDA_VISIBLE_DEVICES"] = setting
    child, folder = machine.start("node", gpus=[0])
    _, told = child.communicate(timeout=PATIENCE_S)
    assert child.returncode != 0
    assert f"measure.gpus: 0 is not among the GPUs that CUDA_VISIBLE_DEVICES={setting} leaves" in told
    assert {path.name for path in folder.rglob("*")} <= {"attempts.jsonl"}, (
        "an attempt is noted, and nothing else is left"
    )


@pytest.mark.parametrize(
    "location", ["/sys/class/powercap", pytest.param("/zeus_sys/class/powercap", marks=pytest.mark.long)]
)
def test_joules_of_cpu_and_memory_by_rapl_are_right(tmp_path: Path, location: str) -> None:
    machine = Machine(tmp_path, 20)
    command, folder = machine.command("node", gpus=[0, 1], max_steps=20, min_seconds=1.0, idle_s=0.5)
    with fake_meters.rapl_tree(tmp_path / "rapl", [{"name": "package-0", "watts": 50, "dram_watts": 25}]) as rapl:
        wrapped = rapl.command(command, location=location)
        subprocess.run(wrapped, cwd=tiny_run.REPOSITORY, env=machine.environ, check=True, timeout=PATIENCE_S)
    measurement = read(folder)["measurement"]
    rows = {row["device"]: row for row in measurement["energy"]}
    window_s = measurement["total_window_s"]
    allowed = 2 * rapl.lag_s / window_s + 0.005
    for device in ("cpu:0", "dram:0"):
        assert (rows[device]["status"], rows[device]["method"]) == ("measured", "Zeus: RAPL counter")
        assert rows[device]["total_energy_j"] == pytest.approx(rapl.joules(device, window_s), rel=allowed)
        if rapl.lag_s < 0.004:  # else these counters moved too seldom for 0.5 s
            assert rows[device]["idle_w"] == pytest.approx(rapl.joules(device, 1.0), rel=2 * rapl.lag_s / 0.5 + 0.005)
        assert (rows[device]["idle_w"] is None) == (rows[device]["idle_reason"] is not None)
    powers = [json.loads(line) for line in (folder / "power.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["device"] for row in powers} == {"gpu:0", "gpu:1", "cpu:0", "dram:0"}
    row, *_ = record_rows.read(folder / "record.json", Asked(estimate=False), None)  # as the tables have it
    assert (row["energy_status"], row["energy_scope"]) == ("measured", "gpu+cpu+dram")
    truth_w = sum(WATTS) + rapl.joules("cpu:0", 1.0) + rapl.joules("dram:0", 1.0)
    allowed += bound(machine.tick_s, window_s)
    assert row["energy_j"] == pytest.approx(truth_w * measurement["window_s"], rel=allowed)


def test_a_rapl_counter_that_is_reset_in_the_window_gives_no_joules(tmp_path: Path) -> None:
    """Zeus takes each fall for a wrap and adds a range of 262,143 J: once for one counter, twice for another."""
    machine = Machine(tmp_path, 20, watts=())
    command, folder = machine.command("node", max_steps=20, min_seconds=6.0)
    zones = [{"name": "package-0", "watts": 50, "dram_watts": 25, "offset_j": offset_j} for offset_j in (0, 1000, 2000)]
    with fake_meters.rapl_tree(tmp_path / "rapl", zones) as rapl:
        child = subprocess.Popen(rapl.command(command), cwd=tiny_run.REPOSITORY, env=machine.environ)
        assert wait_for(lambda: (folder / "run.log").exists() and "step" in (folder / "run.log").read_text())
        for reset in (["cpu:0", "cpu:1"], ["cpu:1"]):
            time.sleep(1)
            for device in reset:
                rapl.reset(device)
        assert child.wait(PATIENCE_S) == 0
    measurement = read(folder)["measurement"]
    rows = {row["device"]: row for row in measurement["energy"]}
    for device in ("cpu:0", "cpu:1"):
        assert (rows[device]["status"], rows[device]["reason"]) == ("unavailable", "the counter was reset")
    assert "counter_reset" in {flag["flag"] for flag in measurement["flags"]}
    for device, watts in (("dram:0", 25), ("dram:1", 25), ("cpu:2", 50), ("dram:2", 25)):
        assert rows[device]["status"] == "measured"
        truth_j = watts * measurement["total_window_s"]
        assert rows[device]["total_energy_j"] == pytest.approx(truth_j, abs=2 * rapl.lag_s * watts + 0.005 * truth_j)


def test_a_rapl_counter_that_two_dies_show_is_counted_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20, watts=())
    command, folder = machine.command("node", max_steps=20, min_seconds=2.0)
    zones = [{"name": f"package-0-die-{i}", "watts": 68} for i in (0, 1)]
    with fake_meters.rapl_tree(tmp_path / "rapl", zones) as rapl:
        subprocess.run(
            rapl.command(command), cwd=tiny_run.REPOSITORY, env=machine.environ, check=True, timeout=PATIENCE_S
        )
    measurement = read(folder)["measurement"]
    (row,) = [row for row in measurement["energy"] if row["kind"] == "cpu"]
    truth_j = 68 * measurement["total_window_s"]
    assert row["total_energy_j"] == pytest.approx(truth_j, abs=2 * rapl.lag_s * 68 + 0.005 * truth_j)


def test_no_helper_of_a_counter_outlives_a_killed_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20, watts=())
    command, folder = machine.command("node", strategy="ddp", devices=2, max_steps=10**7)
    with fake_meters.rapl_tree(tmp_path / "rapl", [{"name": "package-0", "watts": 50}]) as rapl:
        child = subprocess.Popen(rapl.command(command), cwd=tiny_run.REPOSITORY, env=machine.environ)
        assert wait_for(lambda: (folder / "run.log").exists() and "step" in (folder / "run.log").read_text())
        helpers = [pid for pid, line in processes(str(tmp_path)) if "multiprocessing" in line]
        (torchrun,) = [pid for pid, line in processes(str(tmp_path)) if "torch.distributed.run" in line]
        assert helpers
        os.kill(torchrun, signal.SIGKILL)  # its ranks lead sessions of their own
        assert child.wait(PATIENCE_S) != 0
        assert wait_for(lambda: not [pid for pid, _ in processes(str(tmp_path)) if pid in helpers])


def processes(folder: str) -> list[tuple[int, str]]:
    """Living processes, with their command lines, in whose environment a folder is."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.encode() in (path / "environ").read_bytes():
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(path.name), line))
    return found


def test_counters_that_only_root_may_read_are_told_with_what_to_do(tmp_path: Path) -> None:
    code = (
        "from joulesweep.cli import doctor; from joulesweep.measure import window as meter\n"
        "found = meter.Meter({}, host=True, synchronize=lambda: None)\n"
        "with found.window(): pass\n"
        "print(*(row.reason for row in found.readings()), sep='\\n')\n"
        "print(doctor.screen(doctor.examine()))"
    )
    environ = {
        **os.environ,
        "JOULESWEEP_LOCKS": "/tmp/joulesweep-test-locks",
        "XDG_CACHE_HOME": "/nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with fake_meters.rapl_tree(tmp_path / "rapl", [{"name": "package-0", "watts": 50}]) as rapl:
        command = rapl.command([sys.executable, "-c", code], uid=65534)
        done = subprocess.run(command, cwd=tiny_run.REPOSITORY, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    refused = "no permission to read /sys/class/powercap/intel-rapl/intel-rapl:0/energy_uj: run as root"
    assert told.count(refused) == 4  # two rows of the meter, and two lines of the doctor: CPU energy, meter rapl
    assert "chmod a+r /sys/class/powercap/intel-rapl/*/energy_uj" in told


def test_a_rank_killed_in_the_middle_leaves_no_record_and_no_locked_board(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 20)
    child, folder = machine.start("gpu", gpus=[0, 1], strategy="ddp", devices=2, max_steps=10**7)
    rank = wait_for(lambda: ranks_of(child.pid))[-1]
    assert wait_for(lambda: "step" in (folder / "run.log").read_text(encoding="utf-8"))
    uuids = [board["uuid"] for board in machine.boards.boards]
    assert set(uuids) <= set(lock_files.held(machine.folder / "locks"))
    os.kill(rank, signal.SIGKILL)
    child.communicate(timeout=PATIENCE_S)
    assert child.returncode not in (0, None)
    assert not (folder / "record.json").exists()
    assert wait_for(lambda: lock_files.held(machine.folder / "locks") == [])


def preempted(child: subprocess.Popen[str], folder: Path, num_ranks: int = 1) -> str:
    """Half a second after all ranks began to train, send SIGTERM. Returns what the run said."""
    wait_for(lambda: len(list(folder.glob(".work/listens*"))) == num_ranks or child.poll() is not None)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    return child.communicate(timeout=PATIENCE_S)[1]


@pytest.mark.parametrize("shape", OF_TWO)
def test_joules_of_a_preempted_run_are_the_sum_over_its_attempts(tmp_path: Path, shape: str) -> None:
    machine = Machine(tmp_path, 20)
    changes = {**SHAPES[shape], "max_steps": 100}
    for _ in range(2):
        child, folder = machine.start("node", **changes)
        said = preempted(child, folder, num_ranks=SHAPES[shape].get("devices", 1))
        assert child.returncode == 128 + signal.SIGTERM, said
    record = machine.run("node", **changes)
    measured, truth = record["measurement"], dict(zip((b["uuid"] for b in machine.boards.boards), WATTS, strict=True))
    assert len(measured["segments"]) == 3
    assert [segment["hostname"] for segment in measured["segments"]] == [record["environment"]["hostname"]] * 3
    assert measured["total_window_s"] == pytest.approx(sum(part["window_s"] for part in measured["segments"]))
    assert all(abs(error) <= bound(0.06, measured["total_window_s"]) for error in errors(record, truth))
    for device, row in gpu_rows(record).items():
        parts = [next(one for one in part["energy"] if one["device"] == device) for part in measured["segments"]]
        assert row["status"] == "measured"
        assert row["total_energy_j"] == pytest.approx(sum(part["total_energy_j"] for part in parts))
        assert row["error_j"] == pytest.approx(sum(part["error_j"] for part in parts))
        assert abs(row["total_energy_j"] - truth[row["uuid"]] * measured["total_window_s"]) <= row["error_j"]
    last = {row["device"]: row["energy_j"] for row in record["epochs"][-1]["energy"]}
    for device, row in gpu_rows(record).items():
        assert last[device] == pytest.approx(row["energy_j"], rel=0.1)
    notes = [json.loads(line) for line in (folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [note for note in notes if "status" in note]
    assert [note["status"] for note in ends] == ["preempted", "preempted", "ok"]
    for note, part in zip(ends, measured["segments"], strict=True):
        assert note["attempt"] == part["attempt"]
        assert {row["device"]: row["energy_j"] for row in note["window"]} == {
            row["device"]: row["total_energy_j"] for row in part["energy"]
        }


def test_an_attempt_that_its_counter_cannot_resolve_is_not_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 1000)
    child, folder = machine.start("node", gpus=[0], max_steps=10**7)
    assert "too few to be measured" in preempted(child, folder)
    assert child.returncode not in (0, None)
    assert not (folder / ".checkpoint").exists()


def ranks_of(pid: int) -> list[int]:
    """The two training processes of a launched run."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in lines.splitlines()[1:]]
    torchruns = [row[0] for row in rows if row[1] == str(pid)]
    found = [int(row[0]) for row in rows if row[1] in torchruns and "joulesweep.train.worker" in row[2]]
    return found if len(found) == 2 else []


def sweep(
    folder: Path, complete: Path, tick_ms: int, repeats: int, min_seconds: float
) -> tuple[fake_meters.Boards, Checkout]:
    """A checkout whose runs take one of two boards each, two at a time."""
    boards = fake_meters.Boards(folder, [{"watts": watts, "tick_ms": tick_ms} for watts in WATTS])
    checkout = prepared(folder / "checkout", complete, boards.environment())
    checkout.config["grid"]["repeats"] = repeats
    checkout.config["measure"] = {
        "gpus": [0, 1],
        "exclusive": "gpu",
        "min_seconds": min_seconds,
        "cooldown_s": 0.5,
        "idle_s": 0.3,
    }
    checkout.write_config()
    return boards, checkout


def judged(boards: fake_meters.Boards, checkout: Checkout, tick_s: float) -> list[float]:
    """Every run's error, after checking its bound and that no board was in two windows at once."""
    truth = {board["uuid"]: watts for board, watts in zip(boards.boards, WATTS, strict=True)}
    found, windows = [], []
    for run in checkout.records():
        record = read(checkout.runs / run)
        (row,) = gpu_rows(record).values()
        (error,) = errors(record, truth)
        assert abs(error) <= bound(tick_s, record["measurement"]["total_window_s"])
        conditions = record["measurement"]["conditions"]
        windows.append((row["uuid"], conditions["window_begin"], conditions["window_end"]))
        found.append(error)
    for (uuid, begin, end), (other, other_begin, other_end) in itertools.combinations(windows, 2):
        assert uuid != other or end <= other_begin or other_end <= begin
    assert {uuid for uuid, _, _ in windows} == set(truth)
    return found


def test_a_sweep_of_two_concurrent_runs_counts_right_and_shares_no_board(tmp_path: Path, complete: Path) -> None:
    boards, checkout = sweep(tmp_path, complete, 20, repeats=4, min_seconds=0.83)
    checkout.run("--resources", "gpu=2", "--until", "aggregate")
    assert len(judged(boards, checkout, 0.02)) == 4
    tables = checkout.runs.parent / "tables"
    runs = pl.read_parquet(tables / "runs.parquet")
    assert runs["energy_j"].null_count() == 4  # the CPU trained, and it has no meter
    assert all("RAPL" in reason for reason in runs["energy_reason"])
    assert set(pl.read_parquet(tables / "power.parquet")["device"]) == {"gpu:0", "gpu:1"}


@pytest.mark.long
@pytest.mark.parametrize(("tick_ms", "min_seconds"), [(20, 3.1), (100, 15.1)])
def test_the_mean_of_twenty_runs_is_right(tmp_path: Path, complete: Path, tick_ms: int, min_seconds: float) -> None:
    boards, checkout = sweep(tmp_path, complete, tick_ms, repeats=20, min_seconds=min_seconds)
    checkout.run("--resources", "gpu=2", "--until", "train")
    found = judged(boards, checkout, tick_ms / 1000)
    assert len(found) == 20
    print(f"tick {tick_ms} ms: mean {statistics.fmean(found):+.4%}, worst {max(map(abs, found)):.4%}")
    assert abs(statistics.fmean(found)) <= 0.003


def test_snakemakes_silent_cap_is_refused(tmp_path: Path, complete: Path) -> None:
    _, checkout = sweep(tmp_path, complete, 20, repeats=1, min_seconds=0.0)
    checkout.config["grid"] |= {"strategy": ["ddp"], "devices": [2]}
    checkout.write_config()
    done = checkout.snakemake("--resources", "gpu=1")
    assert done.returncode != 0
    assert "needs 2 GPUs, Snakemake grants 1: use --resources gpu=2" in done.stdout + done.stderr
    assert not checkout.records()
