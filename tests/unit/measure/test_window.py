"""What a meter could not read is null with its reason, and never 0; a meter that fails stops no training."""

from __future__ import annotations

import sys
from pathlib import Path

import fake_meters
import pytest
import zeus.monitor
from zeus.device.gpu.common import ZeusGPUUnknownError
from zeus.monitor.energy import Measurement

from joulesweep.core.outcome import as_json
from joulesweep.measure import window
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import rapl
from joulesweep.measure.meters.rapl import Zone
from joulesweep.measure.window import MIG, NO_COUNTER, WINDOW, Meter

KEYS = {"device", "kind", "uuid", "total_energy_j", "status", "method", "reason"}
COUNTER = "Zeus: NVML energy counter"


class Monitor:
    """In place of Zeus's, one for all devices: what it measures, where it fails, and what was asked of it."""

    def __init__(self, **measured):
        self.measured = Measurement(**{"time": 2.0, "gpu_energy": {}, **measured})
        self.fails_at = self.error = None
        self.events: list[object] = []
        self.given = []
        self.cpus = self
        self.measurement_states = {}

    def __call__(self, **given):
        self.given.append((given["gpu_indices"], given["cpu_indices"]))
        return self._event("start", self)

    def get_total_energy_consumption(self, index):
        return self._event(f"first reading of cpu:{index}", None)

    def begin_window(self, name, sync_execution):
        return self._event(("begin", name, sync_execution), None)

    def end_window(self, name, sync_execution):
        return self._event(("end", name, sync_execution), self.measured)

    def _event(self, event, answer):
        self.events.append(event)
        if self.fails_at == (event if isinstance(event, str) else event[0]):
            raise self.error
        return answer


@pytest.fixture
def zeus_of(monkeypatch):
    """Put a monitor in place of Zeus's; the host's counters can be read unless it says why not."""

    def put(no_host=None, **measured):
        monitor = Monitor(**measured)
        monkeypatch.setattr(zeus.monitor, "ZeusMonitor", monitor)
        monkeypatch.setattr(rapl, "problem", lambda: no_host)
        monkeypatch.setattr(rapl, "packages", lambda: [0, 1])
        shown = [f"{kind}:{i}" for kind in ("cpu", "dram") for i in (0, 1)]
        monkeypatch.setattr(rapl, "devices", lambda: [Zone(device=d, path=Path(), range_j=1.0) for d in shown])
        return monitor

    return put


def board(position, **changes):
    """A board at a position; at first neither its number nor its name follows it."""
    index = changes.pop("index", position + 4)
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return position, Board(**{"index": index, "uuid": f"GPU-{index}", **described, **changes})


def measure(boards, host=False, work=lambda: None, synchronize=lambda: None):
    found = Meter(dict(boards), host, synchronize)
    with found.window():
        work()
    return found


def said(measured):
    """What was measured, as JSON has it."""
    return as_json(measured.readings())


def row(device, **given):
    kind = device.partition(":")[0]
    return {
        "device": device,
        "kind": kind,
        "uuid": None,
        "total_energy_j": None,
        "method": None,
        "reason": None,
    } | given


def unavailable(device, reason, uuid=None):
    return row(device, status="unavailable", reason=reason, uuid=uuid)


def test_boards_are_asked_for_by_position_and_named_by_nvmls_number(zeus_of):
    monitor = zeus_of(gpu_energy={0: 41.5, 1: 3.0})
    rows = said(measure([board(0), board(1, index=2)]))
    assert rows == [
        row("gpu:4", uuid="GPU-4", total_energy_j=41.5, status="measured", method=COUNTER),
        row("gpu:2", uuid="GPU-2", total_energy_j=3.0, status="measured", method=COUNTER),
    ]
    assert monitor.given == [([0], []), ([1], [])]


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"mig": True}, "gpu:5", MIG),
        ({"mig": True, "index": None, "uuid": "MIG-5", "has_counter": False}, "gpu:MIG-5", MIG),
        ({"has_counter": False}, "gpu:5", NO_COUNTER),
    ],
)
def test_a_board_without_joules_of_its_own_is_not_asked_and_says_why(zeus_of, changes, device, reason):
    monitor = zeus_of(gpu_energy={0: 41.5, 1: 3.0})
    other = board(1, **changes)
    first, second = said(measure([board(0), other]))
    assert first["status"] == "measured"
    assert second == unavailable(device, reason, other[1].uuid)
    assert monitor.given == [([0], [])]


def test_a_board_that_zeus_gives_nothing_for_is_unavailable(zeus_of):
    zeus_of(gpu_energy={1: 3.0})
    first, second = said(measure([board(0), board(1)]))
    assert first == unavailable("gpu:4", "Zeus gave no energy for this board", "GPU-4")
    assert second["total_energy_j"] == 3.0


@pytest.mark.parametrize("fails_at", ["start", "begin", "end"])
@pytest.mark.parametrize(
    "error",
    [
        *(ZeusGPUUnknownError("lost"), RuntimeError("lost"), ValueError("lost"), OSError("lost"), KeyError("lost")),
        *(ImportError("no httpx"), AssertionError("lost"), TypeError("lost"), Exception("lost")),
    ],
)
def test_a_meter_that_fails_is_unavailable_with_the_reason_and_the_training_goes_on(zeus_of, fails_at, error):
    monitor = zeus_of(gpu_energy={0: 41.5}, cpu_energy={0: 5.0})
    monitor.fails_at, monitor.error = fails_at, error
    trained = []
    found = measure([board(0)], host=True, work=lambda: trained.append(1))
    reason = f"Zeus: {type(error).__name__}: {error}"
    assert said(found) == [
        unavailable("gpu:4", reason, "GPU-4"),
        *(unavailable(f"{kind}:{i}", reason) for kind in ("cpu", "dram") for i in (0, 1)),
    ]
    assert trained == [1]
    assert 0 <= found.window_s == found.end_s - found.begin_s  # this process's own clock, not Zeus's 2 s
    if fails_at == "begin":
        assert "end" not in [event[0] for event in monitor.events]


def test_what_a_board_lacks_is_said_rather_than_that_zeus_failed(zeus_of):
    monitor = zeus_of()
    monitor.fails_at, monitor.error = "start", RuntimeError("lost")
    (found,) = said(measure([board(0, mig=True)]))
    assert found["reason"] == MIG


def test_a_bug_in_training_is_not_taken_for_the_meters(zeus_of):
    zeus_of(gpu_energy={0: 1.0})

    def broken():
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        measure([board(0)], work=broken)


def test_one_devices_failure_costs_that_device_only(zeus_of, monkeypatch):
    monitor = zeus_of(gpu_energy={0: 1.0, 1: 2.0}, cpu_energy={0: 5.0, 1: 6.0})
    monkeypatch.setattr(monitor, "fails_at", "first reading of cpu:1")
    monitor.error = OSError("gone")
    rows = {found["device"]: found for found in said(measure([board(0), board(1)], host=True))}
    assert {device: found["total_energy_j"] for device, found in rows.items()} == {
        **{"gpu:4": 1.0, "gpu:5": 2.0, "cpu:0": 5.0, "cpu:1": None, "dram:1": None},
    }
    assert rows["cpu:1"]["reason"] == "Zeus: OSError: gone"


def test_a_zeus_that_cannot_be_imported_costs_the_joules_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    monkeypatch.setattr(rapl, "problem", lambda: "none")
    found, *_ = said(measure([board(0)], host=True))
    assert found["reason"].startswith("Zeus: ModuleNotFoundError") or found["reason"].startswith("Zeus: ImportError")


def test_with_a_daemon_zeus_is_asked_whatever_this_user_may_read_and_its_failure_names_the_daemon(zeus_of, monkeypatch):
    monitor = zeus_of(no_host="no permission", cpu_energy={0: 5.0, 1: 6.0})
    monkeypatch.setenv("ZEUSD_SOCK_PATH", "/run/zeusd.sock")
    assert [found["total_energy_j"] for found in said(measure([], host=True))][:2] == [5.0, 6.0]
    monitor.fails_at, monitor.error = "start", ValueError("No GPUs available.")
    (found,) = said(measure([board(0)]))
    assert found["reason"] == "Zeus: ValueError: No GPUs available. (ZEUSD_SOCK_PATH is set: Zeus asks its daemon)"


@pytest.mark.parametrize("boards", [[], [board(0)], [board(0, mig=True)]])
def test_pending_work_is_waited_for_at_both_ends_and_never_by_zeus(zeus_of, boards):
    """The device that trains is waited for also where none is metered."""
    monitor = zeus_of(gpu_energy={0: 1.0})
    log = monitor.events
    measure(boards, work=lambda: log.append("work"), synchronize=lambda: log.append("wait"))
    asked = bool(boards) and not boards[0][1].mig
    begun, ended = ([(word, WINDOW, False)] * asked for word in ("begin", "end"))
    assert log == [*["start"] * asked, "wait", *begun, "work", "wait", *ended]


@pytest.mark.parametrize("boards", [[], [board(0)]])
def test_the_windows_seconds_are_the_monotonic_clocks_and_a_step_of_the_other_is_told(zeus_of, monkeypatch, boards):
    zeus_of(gpu_energy={0: 1.0})  # whose time, 2 s, is the wall clock's
    begins, ends = ([10.5] * 2 * len(boards), [23.0] * len(boards))  # of Zeus's window
    clock = iter([10.0, *begins, 11.0, *[11.0] * 5, 21.0, *[21.0] * 5, *ends, 24.0])  # called, begun, ended, answered
    wall = iter([*[1000.0] * 5, *[1015.0] * 5])
    monkeypatch.setattr(window.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(window.time, "time", lambda: next(wall))
    found = measure(boards)
    assert (found.begin_s, found.end_s, found.calls_s) == (11.0, 21.0, 4.0)
    assert (found.window_s, found.clock_step_s) == (10.0, 5.0)


def test_what_a_boards_counter_said_at_the_windows_begin_is_handed_on(monkeypatch):
    seconds = iter([3.0, 7.0])
    fake_meters.gpus(monkeypatch, [200], tick_s=0, clock=lambda: next(seconds))
    found = measure([board(0)])
    (row,) = said(found)
    assert row["reads"]["begin_j"] == pytest.approx(600.0)
    called_s, answered_s = row["reads"]["begin_s"]
    assert called_s <= answered_s <= found.begin_s <= found.end_s <= row["reads"]["end_s"][0]


def test_a_counter_that_two_zones_show_is_counted_once(zeus_of, monkeypatch):
    zeus_of(cpu_energy={0: 5.0, 1: 5.0}, dram_energy={0: 1.0, 1: 2.0})
    shown = ("cpu:0", "dram:0", "dram:1")
    monkeypatch.setattr(rapl, "devices", lambda: [Zone(device=d, path=Path(), range_j=1.0) for d in shown])
    assert [found["device"] for found in said(measure([], host=True))] == list(shown)


def test_host_counters_are_measured_one_row_each(zeus_of):
    monitor = zeus_of(cpu_energy={0: 5.0, 1: 6.0}, dram_energy={1: 0.5})
    rows = said(measure([], host=True))
    assert [(r["device"], r["kind"], r["total_energy_j"], r["status"], r["method"]) for r in rows] == [
        ("cpu:0", "cpu", 5.0, "measured", "Zeus: RAPL counter"),
        ("cpu:1", "cpu", 6.0, "measured", "Zeus: RAPL counter"),
        ("dram:1", "dram", 0.5, "measured", "Zeus: RAPL counter"),
    ]
    assert monitor.given == [([], [0]), ([], [1])]
    assert monitor.events[:4] == [
        "start",
        "first reading of cpu:0",
        "start",
        "first reading of cpu:1",
    ]  # starts helpers


def test_a_host_whose_counters_cannot_be_read_says_what_to_do(zeus_of):
    monitor = zeus_of(no_host="no permission to read it: run as root")
    assert said(measure([], host=True)) == [
        unavailable("cpu:0", "no permission to read it: run as root"),
        unavailable("dram:0", "no permission to read it: run as root"),
    ]
    assert monitor.given == []  # Zeus would only be silent


@pytest.mark.parametrize("absent", [None, {}])
def test_a_host_that_counts_no_dram_says_so(zeus_of, absent):
    zeus_of(cpu_energy={0: 5.0}, dram_energy=absent)
    cpu, dram = said(measure([], host=True))
    assert cpu["total_energy_j"] == 5.0
    assert dram == unavailable("dram:0", "RAPL of this machine counts no DRAM energy")


def test_a_host_that_counts_no_dram_says_so_of_a_package_that_it_has(zeus_of, monkeypatch):
    zeus_of(cpu_energy={1: 5.0})
    monkeypatch.setattr(rapl, "packages", lambda: [1])
    assert [found["device"] for found in said(measure([], host=True))] == ["cpu:1", "dram:1"]


def test_the_host_is_counted_once_over_the_ranks(zeus_of):
    monitor = zeus_of(gpu_energy={0: 1.0, 1: 2.0}, cpu_energy={0: 5.0})
    rows, asked = [], []
    for rank in (0, 1):
        rows += said(measure([board(rank)], host=rank == 0))
        asked.append(monitor.given)
        monitor.given = []
    assert [found["device"] for found in rows] == ["gpu:4", "cpu:0", "dram:0", "gpu:5"]
    assert asked == [[([0], []), ([], [0]), ([], [1])], [([1], [])]]


def test_zeuss_total_is_never_used(zeus_of, monkeypatch):
    zeus_of(gpu_energy={0: 1.0}, cpu_energy={0: 5.0})
    monkeypatch.setattr(Measurement, "total_energy", property(lambda self: pytest.fail("it is 0 where nothing counts")))
    for found in said(measure([board(0), board(1, mig=True)], host=True)):
        assert set(found) == KEYS
        assert (found["total_energy_j"] is None) == (found["reason"] is not None) == (found["status"] == "unavailable")


def test_the_real_monitor_reads_counters(monkeypatch):
    clock = iter([0.0, 7.0, 1e9])  # seconds at which board 1 is read; 0 and 2 have nothing that Zeus may count
    boards = [board(0, mig=True), board(1), board(2, has_counter=False)]
    fake_meters.gpus(monkeypatch, [100, 200, 300], tick_s=0, clock=lambda: next(clock), without_counter=[2])
    monkeypatch.setattr(rapl, "problem", lambda: "no RAPL here")
    found = measure(boards, host=True)
    assert [r["total_energy_j"] for r in said(found)] == [None, pytest.approx(1400.0), None, None, None]
    assert found.window_s == found.end_s - found.begin_s > 0


def test_the_real_monitor_without_any_meter_says_why_and_gives_no_zero(monkeypatch, tmp_path):
    monkeypatch.setattr(rapl, "RAPL", (tmp_path / "none", tmp_path / "neither"))
    fake_meters.gpus(monkeypatch, [])
    found = measure([board(0)], host=True)
    assert [r["total_energy_j"] for r in said(found)] == [None] * 3
    assert all(r["reason"] for r in said(found))
    assert said(found)[1]["reason"] == rapl.problem()
    assert found.window_s > 0
