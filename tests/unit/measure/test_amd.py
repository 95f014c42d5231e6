"""AMD's boards through the real Zeus and a fake AMD SMI of known watts: no such board was at hand."""

from __future__ import annotations

import gc
import sys
import threading
import types
from types import SimpleNamespace

import pytest
import zeus.device.gpu
from zeus.device.gpu import amd as zeus_amd

from joulesweep.cli import doctor
from joulesweep.core.errors import UserError
from joulesweep.measure import conditions, devices, machine, meters, sensors
from joulesweep.measure.meters import amd, nvidia
from joulesweep.measure.trace import BoardState, Trace
from joulesweep.measure.window import Meter

UUIDS = ("GPU-00a1b2c3d4e5f601", "GPU-00a1b2c3d4e5f602")


class SmiError(Exception):
    """As amdsmi's own."""

    def get_error_code(self):
        return 2

    def get_error_info(self):
        return "not supported"


class Smi(types.ModuleType):
    """AMD SMI with boards in the order of the bus, which is not HIP's. Time is what `sleep` has slept."""

    AmdSmiInitFlags = SimpleNamespace(INIT_AMD_GPUS=1)
    AmdSmiMemoryType = SimpleNamespace(VRAM=0)
    AmdSmiTemperatureType = SimpleNamespace(HOTSPOT=1)
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
    AmdSmiException = AmdSmiLibraryException = SmiError

    def __init__(self, *boards):
        super().__init__("amdsmi")
        self.boards, self.now_s, self.broken, self.started = [*boards], 1000.0, False, False

    def sleep(self, seconds):
        self.now_s += seconds

    def amdsmi_init(self, flags):
        if self.broken:
            raise SmiError
        self.started = True

    def amdsmi_shut_down(self):
        self.started = False

    def __getattribute__(self, name):
        """Refuse every question before the start and after the shutdown, as the library does."""
        if name.startswith("amdsmi_get_") and not self.started:
            raise SmiError
        return super().__getattribute__(name)

    def amdsmi_get_processor_handles(self):
        return list(range(len(self.boards)))

    def amdsmi_get_gpu_enumeration_info(self, handle):
        board = self.boards[handle]
        return {"hip_id": board["hip"], "hip_uuid": board.get("uuid", UUIDS[board["hip"]])}

    def amdsmi_get_gpu_device_uuid(self, handle):
        return f"74a1-0000-{handle}"

    def amdsmi_get_gpu_asic_info(self, handle):
        return {"market_name": self.boards[handle].get("name", "AMD Instinct MI300X")}

    def amdsmi_get_power_info(self, handle):
        watts = self.boards[handle]["watts"]
        instant = self.boards[handle].get("instant", True)
        return {"current_socket_power": watts if instant else "N/A", "average_socket_power": watts}

    def amdsmi_get_energy_count(self, handle):
        board = self.boards[handle]
        joules = board["watts"] * board.get("counter", 1.0) * self.now_s
        return {"energy_accumulator": joules * 1e6 / 15.3, "counter_resolution": 15.3}

    def amdsmi_get_temp_metric(self, handle, kind, metric):
        return 47000

    def amdsmi_get_power_cap_info(self, handle):
        raise SmiError

    def amdsmi_get_gpu_memory_total(self, handle, kind):
        return 192 * 2**30

    def amdsmi_get_gpu_driver_info(self, handle):
        return {"driver_version": "6.10.5"}


@pytest.fixture
def boards_of(monkeypatch, tmp_path):
    """A machine with AMD's driver and some boards; no NVIDIA's."""
    for name in (*amd.VISIBLE, amd.ROCR):
        monkeypatch.delenv(name, raising=False)

    caches = (amd._started, zeus_amd._hip_to_amdsmi_handle, zeus_amd.amdsmi_is_available)

    def cleared():
        for cached in caches:
            cached.cache_clear()
        zeus.device.gpu._gpus = None

    def made(*boards):
        smi = Smi(*boards)
        cleared()
        monkeypatch.setitem(sys.modules, "amdsmi", smi)
        monkeypatch.setattr(zeus_amd, "amdsmi", smi)
        monkeypatch.setattr(zeus_amd, "time", SimpleNamespace(sleep=smi.sleep, time=lambda: smi.now_s))
        monkeypatch.setattr(amd, "PLACES", (tmp_path,))
        monkeypatch.setattr(amd, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=str)))
        monkeypatch.setattr(nvidia, "nvml", lambda: None)
        return smi

    yield made
    cleared()
    gc.collect()  # Zeus shuts AMD SMI down as its objects go, which must be while the fake is there


TWO = ({"hip": 1, "watts": 300}, {"hip": 0, "watts": 100})


def test_boards_are_numbered_as_hip_numbers_them(boards_of):
    boards_of(*TWO)
    first, second = devices.boards()
    assert (first.device, first.uuid, second.device, second.uuid) == ("gpu:0", UUIDS[0], "gpu:1", UUIDS[1])
    assert (first.name, first.memory_bytes, first.meter) == ("AMD Instinct MI300X", 192 * 2**30, "amd")
    assert first.counts and second.counts and devices.driver() == "6.10.5"


def test_the_trace_reads_a_board_and_what_zeus_lacks_is_none(boards_of):
    smi = boards_of(*TWO)
    trace = Trace(devices.boards(), [])
    trace.sample()
    smi.now_s += 10
    trace.sample(last=True)
    for device, watts in (("gpu:0", 100.0), ("gpu:1", 300.0)):
        counted = trace.series[device].energy_j
        assert counted[1] - counted[0] == pytest.approx(10 * watts, abs=0.01)
        assert trace.series[device].power_w == [watts, watts]
        assert (trace.power_method(device), trace.traits[device].source) == ("instant", "AMD SMI")
    (_, _, state), *_ = trace.states
    assert state == BoardState(temperature_c=47.0, sm_clock_mhz=None, throttles=None)
    sensor = meters.sensor(devices.boards()[0])
    assert (sensor.process_ids(), sensor.power_limit_w()) == (None, None)


def test_who_else_computes_there_is_unknown_not_nobody(boards_of):
    boards_of(*TWO)
    looks, silent = conditions.look_after(devices.boards())
    assert [look.others for look in looks.values()] == [None, None] and silent == {}


def test_the_window_of_an_amd_board_is_zeuss(boards_of, monkeypatch):
    smi = boards_of(*TWO)
    monkeypatch.setattr(zeus.device.gpu, "nvml_is_available", lambda: False)
    found = Meter(dict(enumerate(devices.boards())), host=False, synchronize=lambda: None)
    with found.window():
        smi.now_s += 5
    readings = {reading.device: reading for reading in found.readings()}
    assert {reading.method for reading in readings.values()} == {"Zeus: AMD SMI energy counter"}
    assert readings["gpu:0"].total_energy_j == pytest.approx(500.0, abs=0.01)
    assert readings["gpu:1"].total_energy_j == pytest.approx(1500.0, abs=0.01)


def test_a_counter_that_zeus_finds_wrong_is_none_with_the_reason(boards_of):
    boards_of({"hip": 0, "watts": 100, "counter": 100.0})
    (board,) = devices.boards()
    assert not board.counts and "does not agree with its power" in board.no_counter
    assert meters.sensor(board).energy_j() is None and meters.sensor(board).power_w() == 100.0
    (reading,) = Meter({0: board}, host=False, synchronize=lambda: None).readings()
    assert (reading.status, reading.reason) == ("unavailable", board.no_counter)


def test_the_second_die_of_a_board_says_who_counts_it(boards_of):
    boards_of(*({"hip": hip, "watts": watts, "name": "AMD Instinct MI250X"} for hip, watts in ((0, 400), (1, 0))))
    first, second = devices.boards()
    assert first.counts and not second.counts
    assert second.no_counter == "it is one of two dies of a board: gpu:0 counts the joules of both"


def test_a_board_that_averages_its_power_says_so(boards_of):
    boards_of({"hip": 0, "watts": 250, "instant": False})
    sensor = meters.sensor(devices.boards()[0])
    assert (sensor.traits.power, sensor.power_w()) == ("as the driver averages it", 250.0)


def test_boards_without_a_uuid_of_their_own_are_told_apart(boards_of):
    boards_of(*({**board, "uuid": "GPU-XX"} for board in TWO))
    assert len({board.uuid for board in devices.boards()}) == 2


@pytest.mark.parametrize(
    ("variables", "left", "hiding"),
    [
        ({}, [0, 1], None),
        ({"HIP_VISIBLE_DEVICES": "1"}, [1], "HIP_VISIBLE_DEVICES=1"),
        ({"HIP_VISIBLE_DEVICES": "1,0", "CUDA_VISIBLE_DEVICES": "1,0"}, [1, 0], "HIP_VISIBLE_DEVICES=1,0"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0], "CUDA_VISIBLE_DEVICES=0"),
        ({"ROCR_VISIBLE_DEVICES": UUIDS[1]}, [1], f"ROCR_VISIBLE_DEVICES={UUIDS[1]}"),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [1], "ROCR_VISIBLE_DEVICES=1"),
    ],
)
def test_boards_that_rocm_hides_are_in_no_pool(boards_of, monkeypatch, variables, left, hiding):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    boards_of(*TWO)
    assert [board.index for board in devices.pool("auto")] == left
    assert devices.left()[1] == hiding


def test_variables_that_count_within_each_other_are_refused(boards_of):
    boards_of(*TWO)
    both = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    with pytest.raises(UserError, match=r"^ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES are both set.*unset one$"):
        devices.pool("auto", both)


def test_processes_see_the_leased_boards_alone(boards_of):
    boards_of(*TWO)
    assert devices.exposing(devices.boards()[1:]) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
        "HIP_VISIBLE_DEVICES": "1",
        "ROCR_VISIBLE_DEVICES": None,
    }
    assert {name: devices.exposing([])[name] for name in amd.VISIBLE} == dict.fromkeys(amd.VISIBLE, "")


def test_without_a_driver_nothing_is_set_or_imported(boards_of, monkeypatch):
    boards_of(*TWO)
    monkeypatch.setattr(amd, "PLACES", ())
    monkeypatch.setattr(amd, "_started", lambda: pytest.fail("AMD SMI was asked"))
    assert (devices.boards(), devices.driver()) == ([], None)
    assert set(devices.exposing([])) == {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"}
    assert amd.problem().startswith("no AMD driver")


@pytest.mark.parametrize(("build", "accelerator"), [("hip", "cuda"), ("cuda", "cpu"), (None, "cpu")])
def test_the_boards_are_for_a_build_of_torch_with_rocm(boards_of, monkeypatch, build, accelerator):
    boards_of(*TWO)
    monkeypatch.setattr(machine, "torch_build", lambda: build)
    monkeypatch.setattr(nvidia, "start_problem", lambda: ("no NVIDIA driver", True))
    assert machine.probe_accelerator.__wrapped__() == accelerator


def test_a_library_that_does_not_start_is_said_not_the_cpu_used(boards_of, monkeypatch):
    boards_of(*TWO).broken = True
    monkeypatch.setattr(machine, "torch_build", lambda: "hip")
    assert devices.boards() == []
    with pytest.raises(UserError, match="cannot tell whether there is a GPU \\(AMD SMI does not start"):
        machine.probe_accelerator.__wrapped__()
    assert "AMD SMI does not start" in amd.problem()


def test_an_amd_driver_that_hangs_is_one_line(boards_of, monkeypatch):
    smi = boards_of(*TWO)
    gate, before = threading.Event(), set(threading.enumerate())
    monkeypatch.setattr(amd, "START_S", 0.05)
    monkeypatch.setattr(smi, "amdsmi_init", lambda flags: gate.wait(), raising=False)
    with pytest.raises(UserError, match=r"^the AMD driver does not tell its boards: no answer within 0.05 s$"):
        amd.devices()
    assert amd.start_problem() == ("no answer within 0.05 s", False)
    gate.set()
    for asking in set(threading.enumerate()) - before:
        asking.join()  # what it learns late must not meet the next test's driver


def test_pytorchs_uuid_is_known_in_both_ways_of_writing_it():
    letters = UUIDS[0].removeprefix("GPU-").encode().hex()
    as_bytes = f"{letters[:8]}-{letters[8:12]}-{letters[12:16]}-{letters[16:20]}-{letters[20:]}"
    assert devices.is_board(as_bytes, UUIDS[0]) and not devices.is_board(as_bytes, UUIDS[1])
    own = "1f6b8e4c-0d2a-4c53-9f70-3f0d3c0b7a11"
    assert devices.is_board(own, f"GPU-{own}") and not devices.is_board(own, UUIDS[0])


def test_the_doctor_describes_an_amd_board(boards_of, monkeypatch):
    boards_of(*TWO)
    monkeypatch.setattr(sensors, "TICK_LIMIT_S", 0.05)
    rows = {row["subject"]: row for row in doctor.examine()["findings"]}
    assert rows["driver"]["found"] == "AMD 6.10.5, 2 boards"
    assert rows["meter amd"]["found"] == "AMD's GPUs, through Zeus and AMD SMI: gpu:0, gpu:1"
    assert "no list of its processes" in rows["gpu:0"]["found"]
