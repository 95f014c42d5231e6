"""One rule for a run's joules: all that computed, of one status, in a scope that is named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import synthetic
from outcomes import epoch

from joulesweep.core.outcome import DeviceEnergy, EpochEnergy
from joulesweep.runs.headline import EpochJoules, by_epoch, headline, headline_rows


def energy_row(*given, **changes):
    return DeviceEnergy(**synthetic.energy_row(*given, **changes))


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
    ],
)
def test_the_sum_and_its_scope(accelerator, rows, joules, scope, status):
    found = headline(rows, accelerator, "node")
    assert found.energy_j == pytest.approx(joules)
    assert (found.energy_scope, found.energy_status, found.energy_reason) == (scope, status, None)
    assert sum(row.energy_j for row in headline_rows(rows, accelerator, "node")) == pytest.approx(joules)


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
    assert found.energy_j is None and headline_rows(rows, accelerator, "node") == []
    assert (found.energy_status, found.energy_reason) == (status, reason)


@pytest.mark.parametrize("exclusive", ["gpu", "none"])
def test_cpu_and_memory_of_a_run_with_neighbours_are_in_no_total(exclusive):
    rows = [*GPUS, CPU, DRAM]
    found = headline(rows, "cuda", exclusive)
    assert (found.energy_j, found.energy_scope) == (pytest.approx(120.0), "gpu")
    for meters in ([CPU], rows):
        found = headline(meters, "cpu", exclusive)
        assert found.energy_j is None and found.energy_scope is None and headline_rows(meters, "cpu", exclusive) == []
        assert found.energy_status == "unavailable"
        assert found.energy_reason.startswith(f"measure.exclusive is {exclusive}: joules of the CPU may be those of")
    assert headline(rows, "cpu", "node").energy_j == pytest.approx(123.5)


@pytest.mark.parametrize("exclusive", ["gpu", "none"])
def test_a_cpu_that_was_not_read_says_so_first(exclusive):
    found = headline([lacking("cpu:0", "unavailable", "no RAPL")], "cpu", exclusive)
    assert found.energy_reason == "cpu:0: no RAPL"


def by_device(**joules):
    """An epoch of a record, with joules by device ("gpu0"); those without are below resolution."""
    lacks = {"status": "below_resolution", "reason": "too short"}
    has = {"status": "integrated", "reason": None}
    rows = [
        EpochEnergy(device=f"{name[:-1]}:{name[-1]}", energy_j=energy_j, **(lacks if energy_j is None else has))
        for name, energy_j in joules.items()
    ]
    return epoch(1, 3.0, energy=rows)


@pytest.mark.parametrize(
    ("ended", "devices", "joules", "status", "reason"),
    [
        (by_device(gpu0=5.0, gpu1=2.0, cpu0=9.0), ["gpu:0", "gpu:1"], 7.0, "integrated", None),
        (by_device(gpu0=5.0, cpu0=9.0), ["gpu:0", "cpu:0"], 14.0, "integrated", None),
        (by_device(gpu0=5.0, gpu1=None), ["gpu:0", "gpu:1"], None, "below_resolution", "too short"),
        (by_device(gpu0=5.0, cpu0=None), ["gpu:0"], 5.0, "integrated", None),
        (by_device(gpu0=None, gpu1=None), ["gpu:0", "gpu:1"], None, "below_resolution", "too short"),
        (by_device(gpu0=5.0), [], None, "unavailable", "the run has no joules"),
        (by_device(gpu0=5.0), ["gpu:0", "gpu:1"], None, "unavailable", "not every device was read after each epoch"),
        (by_device(), ["cpu:0"], None, "unavailable", "not every device was read after each epoch"),
    ],
)
def test_the_joules_of_an_epoch_are_those_of_the_headlines_devices(ended, devices, joules, status, reason):
    found = by_epoch(ended, devices)
    assert found == EpochJoules(energy_j=joules, energy_status=status, energy_reason=reason)


def test_what_one_device_lacks_the_sum_lacks():
    whole = {"idle_w": 90.0, "net_energy_j": 50.0, "tick_s": 0.1, "power_ratio": 1.02}
    rows = [energy_row("gpu:0", 100.0, 3, **whole), energy_row("gpu:1", 20.0, 3, **{**whole, "tick_s": 0.02})]
    found = headline(rows, "cuda", "node")
    assert (found.idle_w, found.net_energy_j, found.total_energy_j) == (180.0, 100.0, 360.0)
    assert found.energy_tick_s == 0.1
    poor = {"idle_w": None, "net_energy_j": None, "tick_s": None, "power_ratio": 0.8}
    found = headline([rows[0], energy_row("gpu:1", 20.0, **poor)], "cuda", "node")
    assert (found.idle_w, found.net_energy_j, found.energy_tick_s) == (None, None, 0.1)
    assert found.power_ratio == 0.8  # the one furthest from 1


def test_only_the_standard_library():
    code = "import sys, joulesweep.runs.headline; print({'polars', 'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
