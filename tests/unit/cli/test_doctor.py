"""The doctor says what can be measured here, what not, and what to do; it never fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_meters
import pytest

from joulesweep.cli import doctor, main
from joulesweep.launch import lease
from joulesweep.measure import devices, sensors
from joulesweep.measure.meters import nvidia, rapl


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """Locks and ticks of this test alone."""
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def boards(monkeypatch, tmp_path):
    """Put boards into this machine."""

    def put(*given: dict[str, Any]) -> fake_meters.Boards:
        made = fake_meters.Boards(tmp_path, [{"tick_ms": 20, **board} for board in given])
        made.install(monkeypatch)
        nvidia.nvml.cache_clear()
        return made

    yield put
    nvidia.nvml.cache_clear()


def findings() -> dict[str, dict[str, str]]:
    return {row["subject"]: row for row in doctor.examine()["findings"]}


def test_a_machine_with_nothing_is_told_so_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(devices, "boards", list)
    monkeypatch.setattr(nvidia, "nvml", lambda: None)
    monkeypatch.setattr(rapl, "RAPL", (Path("/nowhere"), Path("/nowhere")))
    assert main.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "no joules can be measured; they will be null" in told
    assert "no NVIDIA driver" in told and "RAPL" in told and "energy.estimate: true" in told
    assert all(len(line) <= 100 for line in told.splitlines())
    assert len(told.splitlines()) <= 24  # one screen


def test_a_board_is_described_with_its_tick_and_nothing_to_do(boards):
    boards({"watts": 123, "name": "Fake A100"})
    report = doctor.examine()
    (row,) = [row for row in report["findings"] if row["subject"] == "gpu:0"]
    assert (row["status"], row["advice"]) == ("ok", "")
    assert "Fake A100, 123 W now" in row["found"]
    assert report["boards"][0]["tick_s"] == pytest.approx(0.02, rel=0.25)
    assert "gpu:0" in report["measured"]


@pytest.mark.parametrize(
    ("board", "status", "advice"),
    [
        ({"mig": 1}, "missing", "MIG"),
        ({"counter": 0}, "note", "answers no energy counter; boards before Volta and many virtual ones have none"),
        ({"counter": 0}, "note", "integrated"),
        ({"throttle": "0x40"}, "note", "hardware thermal"),
        ({"fail": "GetComputeRunningProcesses:3,GetCurrentClocksThrottleReasons:3"}, "ok", ""),
        ({"pids": "77"}, "note", "other processes compute on it (77)"),
        ({"tick_ms": 60000}, "note", "moved less than three times"),
    ],
)
def test_what_is_wrong_with_a_board_comes_with_advice(boards, board, status, advice, monkeypatch):
    monkeypatch.setattr(sensors, "TICK_LIMIT_S", 0.1)
    boards(board)
    row = findings()["gpu:0"]
    assert row["status"] == status
    assert advice in row["advice"]


@pytest.mark.parametrize(
    ("error", "told", "advice"),
    [
        (9, "no NVIDIA driver is loaded", "runs go to the CPU"),
        (12, "no NVIDIA driver: its library NVML is not installed", "runs go to the CPU"),
        (18, "NVML does not start: ", "put that right first"),
        (4, "NVML does not start: ", "put that right first"),
    ],
)
def test_a_driver_that_does_not_answer_is_told_from_one_that_is_not_there(boards, monkeypatch, error, told, advice):
    monkeypatch.setenv("FAKE_NVML_INIT", str(error))
    boards({})
    row = findings()["GPU"]
    assert told in row["found"]
    assert row["advice"].startswith(advice)


def test_a_board_and_a_machine_in_use_by_a_run_are_named(boards):
    boards({})
    with lease.Lease(devices.boards(), 1, "gpu", lambda: None):
        found = findings()
    assert "a measured run has it now" in found["gpu:0"]["advice"]
    assert found["runs"]["status"] == "note"


@pytest.mark.parametrize(("setting", "left"), [("1", "gpu:1"), ("-1", "no board"), ("", "no board")])
def test_the_boards_that_cuda_visible_devices_leaves_are_named(boards, monkeypatch, setting, left):
    boards({}, {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    row = findings()["visible"]
    assert f"leaves {left}" in row["found"]
    assert (row["status"] == "ok") == (left != "no board")


def test_a_full_disk_is_noticed(monkeypatch):
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert findings()["disk"]["status"] == "note"


def test_json_says_the_same(capsys, boards):
    boards({}, {"mig": 1})
    assert main.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"host", "measured", "findings", "boards"}
    assert [board["mig"] for board in report["boards"]] == [False, True]
    assert {row["status"] for row in report["findings"]} <= set(doctor.SIGNS)


def test_it_imports_no_torch():
    code = "import sys; from joulesweep.cli import main as cli; cli.main(['doctor']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
