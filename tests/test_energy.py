"""One rule for a run's joules: all that computed, of one status, in a scope that is named."""

from __future__ import annotations

import subprocess
import sys

import pytest
from synthetic import energy_row

from joulesweep.energy import headline, scoped


def lacking(device, status, reason="because"):
    return energy_row(device, None, status=status, reason=reason)


def integrated(device, joules):
    return energy_row(device, joules, status="integrated", method="power readings")


GPUS = [energy_row("gpu:0", 100.0), energy_row("gpu:1", 20.0)]
CPU, DRAM = energy_row("cpu:0", 3.0), energy_row("dram:0", 0.5)


@pytest.mark.parametrize(
    ("accelerator", "rows", "joules", "scope", "status"),
    [
        ("cuda", GPUS, 120.0, "gpu", "measured"),
        ("cuda", [CPU, *GPUS, DRAM], 123.5, "gpu+cpu+dram", "measured"),
        ("cuda", [*GPUS, lacking("cpu:0", "unavailable"), DRAM], 120.5, "gpu+dram", "measured"),
        ("cuda", [*GPUS, CPU, lacking("cpu:1", "below_resolution")], 120.0, "gpu", "measured"),  # half a CPU is none
        ("cuda", [*GPUS, integrated("cpu:0", 3.0)], 120.0, "gpu", "measured"),
        ("cuda", [integrated("gpu:0", 100.0), integrated("gpu:1", 20.0), CPU], 120.0, "gpu", "integrated"),
        ("cpu", [CPU], 3.0, "cpu", "measured"),
        ("cpu", [CPU, DRAM, energy_row("cpu:1", 4.0)], 7.5, "cpu+dram", "measured"),
        ("cpu", [CPU, GPUS[0]], 103.0, "gpu+cpu", "measured"),  # boards that the config lists
        ("cpu", [CPU, lacking("gpu:0", "unavailable")], 3.0, "cpu", "measured"),
        ("cpu", [energy_row("soc:0", 9.0)], 9.0, "soc", "measured"),
    ],
)
def test_the_sum_and_its_scope(accelerator, rows, joules, scope, status):
    found = headline(rows, accelerator, "node")
    assert found["energy_j"] == pytest.approx(joules)
    assert (found["energy_scope"], found["energy_status"], found["energy_reason"]) == (scope, status, None)
    assert sum(row["energy_j"] for row in scoped(rows, accelerator, "node")) == pytest.approx(joules)


@pytest.mark.parametrize(
    ("accelerator", "rows", "status", "reason"),
    [
        ("cuda", [GPUS[0], lacking("gpu:1", "below_resolution", "10 ticks")], "below_resolution", "gpu:1: 10 ticks"),
        ("cuda", [lacking("gpu:0", "unavailable", "MIG"), CPU], "unavailable", "gpu:0: MIG"),
        (
            "cuda",
            [lacking("gpu:0", "unavailable", "MIG"), lacking("gpu:1", "below_resolution", "short")],
            "unavailable, below_resolution",
            "gpu:0: MIG; gpu:1: short",
        ),
        (
            "cuda",
            [GPUS[0], integrated("gpu:1", 1.0)],
            "unavailable",
            "a total is of one status only: gpu:0 is measured, gpu:1 is integrated",
        ),
        ("cuda", [CPU], "unavailable", "the record names no energy meter"),
        ("cuda", [], "unavailable", "the record names no energy meter"),
        ("cpu", GPUS, "unavailable", "the record names no energy meter"),
        ("cpu", [lacking("cpu:0", "unavailable", "no RAPL"), *GPUS], "unavailable", "cpu:0: no RAPL"),
        ("cuda", [energy_row("gpu:0", None, reason="lost")], "unavailable", "gpu:0: lost"),  # "measured", but no number
        ("cpu", [energy_row("cpu:0", 5.0, status="estimated", reason="a guess")], "estimated", "cpu:0: a guess"),
    ],
)
def test_no_sum_and_why(accelerator, rows, status, reason):
    found = headline(rows, accelerator, "node")
    assert "energy_j" not in found and scoped(rows, accelerator, "node") == []
    assert (found["energy_status"], found["energy_reason"]) == (status, reason)


@pytest.mark.parametrize("exclusive", ["gpu", "none"])
def test_cpu_and_memory_of_a_gpu_run_with_neighbours_are_left_out(exclusive):
    rows = [*GPUS, CPU, DRAM]
    assert headline(rows, "cuda", exclusive)["energy_scope"] == "gpu"
    assert headline(rows, "cpu", exclusive)["energy_scope"] == "gpu+cpu+dram"  # there it is what computed


def test_what_one_device_lacks_the_sum_lacks():
    whole = {"idle_w": 90.0, "net_energy_j": 50.0, "tick_s": 0.1, "power_ratio": 1.02}
    rows = [energy_row("gpu:0", 100.0, 3, **whole), energy_row("gpu:1", 20.0, 3, **{**whole, "tick_s": 0.02})]
    found = headline(rows, "cuda", "node")
    assert (found["idle_w"], found["net_energy_j"], found["total_energy_j"]) == (180.0, 100.0, 360.0)
    assert found["energy_tick_s"] == 0.1
    poor = {"idle_w": None, "net_energy_j": None, "tick_s": None, "power_ratio": 0.8}
    found = headline([rows[0], energy_row("gpu:1", 20.0, **poor)], "cuda", "node")
    assert (found["idle_w"], found["net_energy_j"], found["energy_tick_s"]) == (None, None, 0.1)
    assert found["power_ratio"] == 0.8  # the one furthest from 1


def test_only_the_standard_library():
    code = "import sys, joulesweep.energy; print({'polars', 'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
