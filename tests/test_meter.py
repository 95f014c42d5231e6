"""What a meter could not read is null with its reason, and never 0."""

from __future__ import annotations

import pynvml
import pytest
import zeus.device
import zeus.monitor
from zeus.device.gpu.common import ZeusGPUInitError
from zeus.monitor.energy import Measurement

from joulesweep.meter import WINDOW, Meter

KEYS = {"device", "kind", "uuid", "energy_j", "status", "method", "reason"}


class Gpus:
    """As many GPUs as given; those in `old` have no energy counter."""

    def __init__(self, number: int, old: tuple[int, ...] = ()) -> None:
        self.gpus = [type("Gpu", (), {"handle": f"handle{i}"}) for i in range(number)]
        self.old = old

    def __len__(self) -> int:
        return len(self.gpus)

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return index not in self.old


@pytest.fixture
def machine(monkeypatch):
    """Put a machine in place of this one: its GPUs and what Zeus measures on it. Returns the calls made."""
    calls = []

    def build(measured: Measurement, gpus: Gpus) -> list:
        class Monitor:
            def __init__(self, **given):
                calls.append(given)
                self.gpus = gpus

            def begin_window(self, name, sync_execution):
                calls.append(("begin", name, sync_execution))

            def end_window(self, name, sync_execution):
                calls.append(("end", name, sync_execution))
                return measured

        monkeypatch.setattr(zeus.monitor, "ZeusMonitor", Monitor)
        monkeypatch.setattr(zeus.device, "get_gpus", lambda: gpus)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"uuid of {handle}")
        return calls

    return build


def measure(gpu_indices, host):
    meter = Meter(gpu_indices, host)
    meter.begin()
    return meter.end()


def row(**given):
    return {"uuid": None, "method": None, "reason": None, **given}


def test_a_gpu_with_a_counter_is_measured(machine):
    machine(Measurement(time=2.0, gpu_energy={0: 41.5}), Gpus(1))
    assert measure([0], host=False) == {
        "window_s": 2.0,
        "energy": [
            row(
                device="gpu:0",
                kind="gpu",
                uuid="uuid of handle0",
                energy_j=41.5,
                status="measured",
                method="Zeus: NVML energy counter",
            )
        ],
    }


def test_a_gpu_without_a_counter_is_integrated(machine):
    machine(Measurement(time=2.0, gpu_energy={0: 41.5}), Gpus(1, old=(0,)))
    (found,) = measure([0], host=False)["energy"]
    assert (found["energy_j"], found["status"]) == (41.5, "integrated")
    assert "power" in found["method"]


@pytest.mark.parametrize("old", [(), (0,)])
@pytest.mark.parametrize("energy_j", [0.0, -1.0])
def test_a_counter_that_did_not_advance_is_below_resolution(machine, energy_j, old):
    machine(Measurement(time=0.01, gpu_energy={0: energy_j}), Gpus(1, old=old))
    (found,) = measure([0], host=False)["energy"]
    assert (found["energy_j"], found["status"]) == (None, "below_resolution")
    assert found["reason"] == "the counter did not advance in the window"
    assert found["uuid"] == "uuid of handle0"


@pytest.mark.parametrize("gpus", [Gpus(0), Gpus(1)])
def test_a_gpu_that_zeus_does_not_see_is_unavailable_and_does_not_stop_the_run(machine, gpus):
    calls = machine(Measurement(time=1.0, gpu_energy={}), gpus)
    (found,) = measure([1], host=False)["energy"]
    assert found == row(
        device="gpu:1",
        kind="gpu",
        energy_j=None,
        status="unavailable",
        reason="NVML gives no energy for this device",
    )
    assert calls[0]["gpu_indices"] == []  # Zeus raises for an index that it does not have


def test_a_gpu_that_zeus_gives_no_energy_for_is_unavailable(machine):
    machine(Measurement(time=1.0, gpu_energy={1: 3.0}), Gpus(2))
    statuses = {found["device"]: found["status"] for found in measure([0, 1], host=False)["energy"]}
    assert statuses == {"gpu:0": "unavailable", "gpu:1": "measured"}


def test_without_a_driver_every_gpu_is_unavailable(machine, monkeypatch):
    machine(Measurement(time=1.0, gpu_energy={}), Gpus(0))

    def absent():
        raise ZeusGPUInitError("no driver")

    monkeypatch.setattr(zeus.device, "get_gpus", absent)
    assert [found["status"] for found in measure([0], host=False)["energy"]] == ["unavailable"]


def test_a_gpu_whose_uuid_cannot_be_read_is_still_measured(machine, monkeypatch):
    machine(Measurement(time=1.0, gpu_energy={0: 3.0}), Gpus(1))

    def lost(handle):
        raise pynvml.NVMLError_GpuIsLost

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lost)
    (found,) = measure([0], host=False)["energy"]
    assert (found["uuid"], found["energy_j"]) == (None, 3.0)


def test_host_counters_are_measured_one_row_each(machine):
    measured = Measurement(time=1.0, gpu_energy={}, cpu_energy={0: 5.0, 1: 6.0}, dram_energy={0: 0.5})
    machine(measured, Gpus(0))
    found = measure([], host=True)["energy"]
    assert [(r["device"], r["kind"], r["energy_j"], r["status"], r["method"]) for r in found] == [
        ("cpu:0", "cpu", 5.0, "measured", "Zeus: RAPL counter"),
        ("cpu:1", "cpu", 6.0, "measured", "Zeus: RAPL counter"),
        ("dram:0", "dram", 0.5, "measured", "Zeus: RAPL counter"),
    ]


@pytest.mark.parametrize("absent", [None, {}])
def test_a_host_without_counters_is_unavailable_with_the_reason(machine, absent):
    machine(Measurement(time=1.0, gpu_energy={}, cpu_energy=absent, dram_energy=absent), Gpus(0))
    found = measure([], host=True)["energy"]
    assert [(r["device"], r["energy_j"], r["status"]) for r in found] == [
        ("cpu:0", None, "unavailable"),
        ("dram:0", None, "unavailable"),
    ]
    assert all("RAPL" in r["reason"] and "no readable" in r["reason"] for r in found)


def test_a_host_counter_that_did_not_advance_is_below_resolution(machine):
    machine(Measurement(time=0.0, gpu_energy={}, cpu_energy={0: 0.0}, dram_energy={0: 0.0}), Gpus(0))
    found = measure([], host=True)["energy"]
    assert [(r["energy_j"], r["status"]) for r in found] == [(None, "below_resolution")] * 2


def test_the_host_is_counted_once_over_the_ranks(machine):
    calls = machine(Measurement(time=1.0, gpu_energy={0: 1.0, 1: 2.0}, cpu_energy={0: 5.0}), Gpus(2))
    rows = [found for rank in (0, 1) for found in measure([rank], host=rank == 0)["energy"]]
    assert [found["device"] for found in rows] == ["gpu:0", "cpu:0", "dram:0", "gpu:1"]
    assert [call["cpu_indices"] for call in calls if isinstance(call, dict)] == [None, []]  # None: all of them


@pytest.mark.parametrize(("gpu_indices", "waits"), [([0], True), ([], False)])
def test_the_window_opens_and_closes_after_pending_work_of_the_gpus(machine, gpu_indices, waits):
    calls = machine(Measurement(time=1.0, gpu_energy={0: 1.0}), Gpus(1))
    measure(gpu_indices, host=False)
    assert calls[1:] == [("begin", WINDOW, waits), ("end", WINDOW, waits)]


def test_no_row_is_ever_zero_and_every_null_has_a_reason(machine):
    machine(Measurement(time=1.0, gpu_energy={0: 0.0, 1: 2.0}, cpu_energy={0: 0.0}), Gpus(2, old=(1,)))
    rows = measure([0, 1, 2], host=True)["energy"]
    assert len(rows) == 5
    for found in rows:
        assert set(found) == KEYS
        assert found["energy_j"] != 0
        assert (found["energy_j"] is None) == (found["reason"] is not None)
        assert (found["energy_j"] is not None) == (found["status"] in ("measured", "integrated"))


def test_the_real_monitor_measures_time_on_this_machine():
    found = measure([], host=True)
    assert found["window_s"] >= 0
    assert {r["kind"] for r in found["energy"]} >= {"cpu", "dram"}
    assert all(r["energy_j"] is None or r["energy_j"] > 0 for r in found["energy"])
