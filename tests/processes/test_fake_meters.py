"""The fakes tell the truth that they promise, to the real pynvml and the real Zeus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_meters
import pynvml
import pytest
from fake_meters import EPOCH_S, Boards, rapl_tree
from patience import PATIENCE_S
from zeus.device import get_cpus, get_gpus
from zeus.device.cpu.rapl import RAPLCPUs
from zeus.device.gpu.common import ZeusGPUNotSupportedError

NOBODY = 65534
ZONES = [{"name": "package-0", "watts": 50, "dram_watts": 25}]

#: Reads a board's counter until a file appears: the clock before, the counter, the clock after.
READ_COUNTER = """
import json, pathlib, sys, time, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
readings = []
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path(sys.argv[2]).exists():
    readings.append((time.time(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.time()))
    time.sleep(0.002)
print(json.dumps(readings))
"""

#: Measures a window with Zeus; when it began and ended lies between two readings of the clock each.
ZEUS_WINDOW = """
import json, sys, time
from zeus.monitor import ZeusMonitor

def window(monitor, seconds):
    clock = [time.time()]
    monitor.begin_window("window", sync_execution=False)
    clock.append(time.time())
    time.sleep(seconds)
    clock.append(time.time())
    measured = monitor.end_window("window", sync_execution=False)
    clock.append(time.time())
    return {"clock": clock, "gpu": measured.gpu_energy, "cpu": measured.cpu_energy, "dram": measured.dram_energy}
"""

ZEUS_GPUS = f"""{ZEUS_WINDOW}
print(json.dumps(window(ZeusMonitor(cpu_indices=[]), 0.55)))
"""

#: Waits until Zeus's helpers count wraps, then for a window that no wrap begins or ends too near for them to see.
ZEUS_RAPL = f"""{ZEUS_WINDOW}
monitor = ZeusMonitor(gpu_indices=[], cpu_indices=[0])
window(monitor, 0)
cpu = monitor.cpus.cpus[0]
trackers = [cpu.rapl_file.wraparound_tracker, cpu.dram.wraparound_tracker]
clear = lambda t: all(0.5 < (t - {EPOCH_S}) % float(wrap_s) < float(wrap_s) - 0.1 for wrap_s in sys.argv[1:])
while not all(tracker.get_num_wraparounds() for tracker in trackers):
    time.sleep(0.01)
while not (clear(time.time()) and clear(time.time() + 1)):
    time.sleep(0.01)
before = [tracker.get_num_wraparounds() for tracker in trackers]
result = window(monitor, 1)
print(json.dumps(result | {{"wraps": [t.get_num_wraparounds() - n for t, n in zip(trackers, before)]}}))
"""


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def output(command: list[str], environment: dict[str, str] | None = None) -> str:
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def window_s(clock: list[float]) -> tuple[float, float]:
    """The shortest and the longest that a window can have been."""
    return clock[2] - clock[1], clock[3] - clock[0]


@pytest.fixture
def boards(tmp_path, monkeypatch):
    """Make boards that this process sees, with NVML initialised."""

    def make(*given: dict) -> Boards:
        made = Boards(tmp_path, given)
        made.install(monkeypatch)
        pynvml.nvmlInit()
        return made

    return make


def handle(index: int = 0):
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def refusal(function, *args) -> int:
    with pytest.raises(pynvml.NVMLError) as caught:
        function(*args)
    return caught.value.value


def test_every_subprocess_sees_the_boards(tmp_path):
    made = Boards(tmp_path, [{"name": "A100 SXM"}, {"watts": 70, "power_error": 1.2}])
    code = """
import json, pynvml as nvml
nvml.nvmlInit()
boards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
asked = nvml.nvmlDeviceGetName, nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetPowerUsage
print(json.dumps([nvml.nvmlSystemGetDriverVersion(), [[ask(board) for ask in asked] for board in boards]]))
"""
    driver, seen = json.loads(output(python(code), made.environment()))
    assert driver == "999.01"
    assert seen == [["A100 SXM", made.boards[0]["uuid"], 300_000], ["Fake GPU", made.boards[1]["uuid"], 84_000]]


def test_two_processes_read_one_counter_that_moves_in_ticks(tmp_path):
    made, stop = Boards(tmp_path, [{"watts": 250, "tick_ms": 50}]), tmp_path / "stop"
    started = [tmp_path / "a", tmp_path / "b"]
    readers = [
        subprocess.Popen(python(READ_COUNTER, path, stop), env=made.environment(), stdout=subprocess.PIPE)
        for path in started
    ]
    while not all(path.exists() for path in started) and all(reader.poll() is None for reader in readers):
        time.sleep(0.01)
    time.sleep(0.3)
    stop.touch()
    values = []
    for reader in readers:
        readings = json.loads(reader.communicate()[0])
        for before_s, value, after_s in readings:
            assert made.counter_mj(0, before_s) <= value <= made.counter_mj(0, after_s)
        values.append({value for _, value, _ in readings})
    assert len(values[0] & values[1]) >= 2
    assert {value % 12_500 for value in values[0] | values[1]} == {0}  # 250 W for 50 ms


def test_zeus_measures_the_true_joules(tmp_path):
    made = Boards(tmp_path, [{"watts": 300}, {"watts": "100:200:0.3"}])
    measured = json.loads(output(python(ZEUS_GPUS), made.environment()))
    clock = measured["clock"]
    for i, most_w in enumerate((300, 200)):
        tick_j = most_w * 0.1
        least = made.joules(i, clock[2] - clock[1], clock[1]) - tick_j
        assert least <= measured["gpu"][str(i)] <= made.joules(i, clock[3] - clock[0], clock[0]) + tick_j


def test_cuda_visible_devices_hides_boards_from_zeus(tmp_path):
    made = Boards(tmp_path, [{}, {"name": "second"}])
    code = "from zeus.device import get_gpus; print([gpu.get_name() for gpu in get_gpus().gpus])"
    assert output(python(code), made.environment(CUDA_VISIBLE_DEVICES="1")) == "['second']\n"


def test_what_a_board_says_of_itself(boards):
    made = boards({"throttle": "0x48", "limit_w": 350, "arch": 9, "memory_mib": 1024}, {})
    gpu = handle()
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == 0x48
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) == 0x48
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 350_000
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu) == [100_000, 350_000]
    assert pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM) == 1410
    assert pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_MEM) == 1215
    assert pynvml.nvmlDeviceGetCudaComputeCapability(gpu) == (9, 0)
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu).total == 2**30
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2).total == 2**30
    assert pynvml.nvmlDeviceGetPersistenceMode(gpu) == 1
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 100
    second = pynvml.nvmlDeviceGetHandleByUUID(made.boards[1]["uuid"])
    assert pynvml.nvmlDeviceGetIndex(second) == 1
    assert pynvml.nvmlDeviceGetPciInfo(second).busId == "00000000:02:00.0"
    assert refusal(pynvml.nvmlDeviceGetHandleByUUID, "GPU-nobody") == pynvml.NVML_ERROR_NOT_FOUND
    assert refusal(handle, 2) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert refusal(pynvml.nvmlDeviceGetC2cModeInfoV, gpu) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_processes_are_listed_with_the_one_that_asks_as_0(boards):
    made = boards({"pids": "0,77,78"}, {})
    pids = [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle())]
    assert pids == [os.getpid(), 77, 78]
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle(1)) == []
    made.set(0, pids=None)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle()) == []


def test_boards_without_a_counter(boards):
    boards({"arch": pynvml.NVML_DEVICE_ARCH_PASCAL}, {"counter": 0})
    gpus = get_gpus()
    assert [gpus.supports_get_total_energy_consumption(i) for i in range(2)] == [False, True]  # as far as Zeus knows
    for i in range(2):
        with pytest.raises(ZeusGPUNotSupportedError):
            gpus.get_total_energy_consumption(i)
        assert gpus.get_instant_power_usage(i) == 300_000
    assert gpus.get_average_power_usage(1) == 300_000
    with pytest.raises(ZeusGPUNotSupportedError):
        gpus.get_average_power_usage(0)
    with pytest.raises(ZeusGPUNotSupportedError):
        gpus.get_average_memory_power_usage(1)


def test_mig_is_on_off_or_unknown_to_the_product(boards):
    boards({"mig": 1}, {"mig": 0}, {})
    assert pynvml.nvmlDeviceGetMigMode(handle(0)) == [1, 1]
    assert pynvml.nvmlDeviceGetMigMode(handle(1)) == [0, 0]
    assert refusal(pynvml.nvmlDeviceGetMigMode, handle(2)) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert refusal(pynvml.nvmlDeviceGetUtilizationRates, handle(0)) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_a_board_can_be_lost_under_a_process(boards):
    made = boards({}, {})
    gpu = handle()
    made.set(0, lost=1)
    for function in (pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetPowerUsage):
        assert refusal(function, gpu) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert refusal(handle) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert pynvml.nvmlDeviceGetPowerUsage(handle(1)) == 300_000
    assert pynvml.nvmlDeviceGetCount() == 2


def test_no_driver_without_boards_to_show(boards, monkeypatch):
    boards({})
    monkeypatch.delenv("FAKE_NVML")
    assert refusal(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_the_temperature_falls_from_the_last_change_on(boards):
    made = boards({"temp_c": "80:40:600"})
    assert 75 <= pynvml.nvmlDeviceGetTemperature(handle(), pynvml.NVML_TEMPERATURE_GPU) <= 80
    made.set(0, temp_c="80:40:0.05")
    time.sleep(0.05)
    assert pynvml.nvmlDeviceGetTemperatureV(handle(), pynvml.NVML_TEMPERATURE_GPU) == 40
    made.set(0, temp_c=55)
    assert get_gpus().get_gpu_temperature(0) == 55


def test_the_counter_goes_on_when_the_draw_changes(boards):
    made = boards({"watts": 300, "tick_ms": 20})
    clock, counter_j = [], []
    for watts in (100, 300):
        clock.append(time.time())
        counter_j.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()) / 1000)
        clock.append(time.time())
        time.sleep(0.1)
        made.set(0, watts=watts)
        time.sleep(0.1)
    tick_j = 300 * 0.02
    least_j = made.joules(0, clock[2] - clock[1], clock[1]) - tick_j
    assert least_j <= counter_j[1] - counter_j[0] <= made.joules(0, clock[3] - clock[0], clock[0]) + tick_j
    assert made.joules(0, clock[2] - clock[1], clock[1]) < 0.9 * 300 * (clock[2] - clock[1])
    with pytest.raises(ValueError, match="say when"):
        made.joules(0, 1)


@pytest.mark.parametrize("draw", ["saw:100:700:0.3", "sine:400:300:0.2", "90:690:0.25", 120])
def test_the_library_and_the_truth_agree_on_every_draw(boards, draw):
    made = boards({"watts": draw, "tick_ms": 0})
    for _ in range(20):
        time.sleep(0.013)
        before_s = time.time()
        counter_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()) / 1000
        after_s = time.time()
        low_j, high_j = (made.joules(0, at_s - EPOCH_S, EPOCH_S) for at_s in (before_s, after_s))
        assert low_j - 0.01 <= counter_j <= high_j + 0.01


def test_what_will_happen_happens_at_its_time(boards):
    made = boards({"watts": 100, "tick_ms": 0})
    began_s = time.time()
    made.happen(0, began_s + 0.1, 300)
    made.happen(0, began_s + 0.2, "reset")
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) == 100_000
    while time.time() < began_s + 0.25:
        time.sleep(0.01)
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) == 300_000
    low_s = time.time() - began_s - 0.2
    assert 300 * low_s - 0.1 <= pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()) / 1000
    assert made.joules(0, 0.2, began_s) == pytest.approx(10 + 30, abs=0.01)


def test_reported_power_may_be_a_mean_of_the_last_seconds(boards):
    made = boards({"watts": 100, "average_s": 1e6}, {"instant": 0})
    made.set(0, watts=700)
    gpus = get_gpus()
    assert gpus.get_instant_power_usage(0) == 700_000
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) < 110_000
    assert gpus.get_average_power_usage(0) < 110_000
    with pytest.raises(ZeusGPUNotSupportedError):
        gpus.get_instant_power_usage(1)


def test_functions_fail_or_answer_late_one_by_one(boards):
    made = boards({"fail": "GetTotalEnergyConsumption:999,GetTemperature:3", "delay": "GetPowerUsage:0.05"})
    assert refusal(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle()) == pynvml.NVML_ERROR_UNKNOWN
    assert refusal(pynvml.nvmlDeviceGetTemperature, handle(), 0) == pynvml.NVML_ERROR_NOT_SUPPORTED
    began_s = time.monotonic()
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) == 300_000
    assert time.monotonic() - began_s >= 0.05
    made.set(0, fail=None, delay="*:600")
    thread = threading.Thread(target=pynvml.nvmlDeviceGetPowerUsage, args=[handle()])
    thread.start()
    made.set(0, delay=None)
    thread.join(60)
    assert not thread.is_alive(), "a delay ends when the file no longer asks for it"
    assert pynvml.nvmlDeviceGetTemperature(handle(), 0) == 40


def test_nvml_may_refuse_to_start(boards, monkeypatch):
    boards({})
    monkeypatch.setenv("FAKE_NVML_INIT", str(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    assert refusal(pynvml.nvmlInit) == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


def test_a_stepped_wall_clock_moves_no_counter(tmp_path):
    made, clock = Boards(tmp_path, [{"watts": 1000, "tick_ms": 0}]), fake_meters.WallClock(tmp_path)
    code = """
import json, pathlib, sys, time, pynvml
pynvml.nvmlInit()
look = lambda: [time.time(), time.monotonic(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e6]
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
first = look()
pathlib.Path(sys.argv[1]).write_text("500")
print(json.dumps([after - before for before, after in zip(first, look())]))
"""
    command = python(code, clock.path)
    wall_s, monotonic_s, counter_s = json.loads(output(command, made.environment(**clock.environment())))
    assert wall_s - monotonic_s == pytest.approx(500, abs=1e-3)
    assert counter_s == pytest.approx(monotonic_s, abs=0.1)


def test_a_counter_of_a_package_may_begin_at_0_again(tmp_path):
    zones = [{"name": "package-0", "watts": 50, "offset_j": 100}, {"name": "package-1", "watts": 50}]
    with rapl_tree(tmp_path / "powercap", zones) as rapl:
        paths = [tmp_path / f"powercap/intel-rapl/intel-rapl:{i}/energy_uj" for i in (0, 1)]
        ahead_uj = [int(path.read_text()) for path in paths]
        assert (ahead_uj[0] - ahead_uj[1]) % rapl.max_range_uj == pytest.approx(100e6, abs=20e6)
        rapl.reset("cpu:0")
        while int(paths[0].read_text()) > 50e6:
            time.sleep(0.002)
        assert int(paths[1].read_text()) > 50e6 or ahead_uj[1] > rapl.max_range_uj - 60e6


def test_a_misspelt_key_is_refused(tmp_path):
    with pytest.raises(KeyError, match="wats"):
        Boards(tmp_path, [{"wats": 5}])


@pytest.mark.parametrize(("t_s", "true_j"), [(0.5, 50), (1, 100), (1.5, 200), (2, 300), (2.5, 350)])
def test_a_square_wave_has_the_integral_that_it_should(t_s, true_j):
    assert fake_meters.joules_until("100:200:2", t_s) == true_j
    assert fake_meters.watts_at("100:200:2", t_s) == (200 if 1 <= t_s < 2 else 100)


def test_gpus_inside_zeus_follow_a_clock_of_the_test(monkeypatch):
    from zeus.monitor import ZeusMonitor

    now = [100.0]
    fake = fake_meters.gpus(monkeypatch, [300, "100:200:2", 50], tick_s=0.1, clock=lambda: now[0], without_counter=[2])
    assert get_gpus() is fake
    monitor = ZeusMonitor(gpu_indices=[0, 1], cpu_indices=[])
    monitor.begin_window("window", sync_execution=False)
    now[0] = 101.58
    measured = monitor.end_window("window", sync_execution=False)
    assert measured.gpu_energy == {0: 450.0, 1: 200.0}  # 1.5 s: up to the last tick
    assert [fake.get_instant_power_usage(i) for i in range(3)] == [300_000, 200_000, 50_000]
    assert not fake.supports_get_total_energy_consumption(2)
    with pytest.raises(ZeusGPUNotSupportedError):
        fake.get_power_management_limit(0)


def test_zeus_in_this_process_reads_rapl(tmp_path, monkeypatch):
    with rapl_tree(tmp_path / "powercap", ZONES) as rapl:
        rapl.install(monkeypatch)
        began_s = time.time()
        first = RAPLCPUs().cpus[0]
        time.sleep(0.2)
        last = RAPLCPUs().cpus[0]
        passed_s = time.time() - began_s
    assert (first.rapl_file.name, first.dram.name) == ("package-0", "dram")
    for device, one, two in (("cpu:0", first.rapl_file, last.rapl_file), ("dram:0", first.dram, last.dram)):
        grown_j = (two.last_energy - one.last_energy) / 1e6
        assert rapl.joules(device, 0.2 - rapl.lag_s) <= grown_j <= rapl.joules(device, passed_s + rapl.lag_s)
    assert get_cpus().supports_get_dram_energy_consumption(0)


@pytest.mark.slow
def test_zeus_measures_true_rapl_joules_over_a_wrap(tmp_path):
    with rapl_tree(tmp_path / "powercap", ZONES, max_range_uj=50_000_000) as rapl:
        wraps_s = [rapl.wrap_s(device) for device in ("cpu:0", "dram:0")]
        measured = json.loads(output(rapl.command(python(ZEUS_RAPL, *wraps_s))))
    shortest_s, longest_s = window_s(measured["clock"])
    for kind in ("cpu", "dram"):
        least_j = rapl.joules(f"{kind}:0", shortest_s - rapl.lag_s)
        assert least_j <= measured[kind]["0"] <= rapl.joules(f"{kind}:0", longest_s + rapl.lag_s)
    assert measured["wraps"][0] == 1


@pytest.mark.parametrize("location", ["/sys/class/powercap", "/zeus_sys/class/powercap"])
def test_rapl_is_where_linux_and_containers_have_it(tmp_path, location):
    code = "from zeus.device import get_cpus; print(get_cpus().cpus[0].rapl_file.path)"
    with rapl_tree(tmp_path / "powercap", ZONES) as rapl:
        assert output(rapl.command(python(code), location=location)) == f"{location}/intel-rapl/intel-rapl:0\n"
    assert not Path("/zeus_sys").exists()


def test_only_root_may_read_rapl(tmp_path):
    code = """
import os, zeus.device
try:
    zeus.device.get_cpus()
except Exception as error:
    print(os.geteuid(), type(error).__name__)
"""
    with rapl_tree(tmp_path / "powercap", ZONES) as rapl:
        assert output(rapl.command(python(code), uid=NOBODY)) == f"{NOBODY} ZeusCPUNoPermissionError\n"
