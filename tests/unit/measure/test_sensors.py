"""What is read of the machine is what it says, and what it does not say is None."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_meters import Boards, rapl_tree
from synthetic import energy_row

from joulesweep.core import processes
from joulesweep.core.outcome import DeviceEnergy
from joulesweep.measure import devices, sensors
from joulesweep.measure.meters import nvidia
from joulesweep.measure.meters import rapl as rapl_meter
from joulesweep.measure.meters.nvidia import BoardSensor
from joulesweep.measure.meters.rapl import Zone

NOBODY = 65534


class Clock:
    """Time that passes only when slept through, and 50 µs at each look, so that busy loops end."""

    def __init__(self):
        self.now_s = 1000.0

    def monotonic(self):
        self.now_s += 50e-6
        return self.now_s

    def sleep(self, duration_s):
        self.now_s += duration_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    return clock


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A driver with one board, for the real pynvml in this process: the fake and the board's sensor."""

    def made(**board):
        nvidia.nvml.cache_clear()
        fake = Boards(tmp_path, [board])
        fake.install(monkeypatch)
        return fake, BoardSensor(devices.boards()[0])

    yield made
    nvidia.nvml.cache_clear()


def test_a_boards_readings_are_in_plain_units(machine):
    fake, sensor = machine(watts=250.5, temp_c=61, sm_mhz=1980, limit_w=350, pids="12,34")
    assert sensor.power_w() == 250.5
    assert (sensor.temperature_c(), sensor.sm_clock_mhz(), sensor.power_limit_w()) == (61.0, 1980.0, 350.0)
    assert sensor.process_ids() == [12, 34]
    before = sensor.energy_j()
    fake.set(0, offset_mj=20_000_000)
    assert sensor.energy_j() - before == pytest.approx(20_000, abs=3000)


def test_readings_that_a_board_does_not_have_are_none(machine):
    fake, old = machine(counter=0, watts=100)
    assert (old.energy_j(), old.power_w(), old.process_ids()) == (None, 100.0, [])
    fake.set(0, lost=1)
    readings = (old.power_w(), old.temperature_c(), old.sm_clock_mhz(), old.power_limit_w())
    assert readings == (None, None, None, None)
    assert (old.throttles(), old.process_ids()) == (None, None), "unknown is not none"


def test_of_a_split_board_joules_and_watts_are_not_read(machine):
    _, sensor = machine(mig=1, temp_c=50)
    assert (sensor.energy_j(), sensor.power_w(), sensor.temperature_c()) == (None, None, 50.0)


def test_of_a_slice_nothing_is_read():
    board = devices.Board(index=None, uuid="MIG-1", name="MIG", memory_bytes=None, has_counter=False, mig=True)
    sensor = BoardSensor(board)
    assert (sensor.energy_j(), sensor.power_w(), sensor.temperature_c(), sensor.throttles()) == (None, None, None, None)


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, []),
        (0x1, []),  # idle,
        (0x4, []),  # the power cap
        (0x2 | 0x10 | 0x100, []),  # and clocks set by the user are normal
        (0x8, ["hardware slowdown"]),
        (0x20, ["software thermal"]),
        (0x40 | 0x8, ["hardware slowdown", "hardware thermal"]),
        (0x80 | 0x4, ["power brake"]),
    ],
)
def test_what_holds_clocks_down_abnormally_is_named(machine, bits, reasons):
    _, sensor = machine(throttle=hex(bits))
    assert sensor.throttles() == reasons


def test_the_bits_are_those_of_nvml():
    import pynvml

    names = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert list(nvidia.THROTTLES) == [getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in names]


def counter(clock, tick_s, watts=300.0):
    """A counter that moves at multiples of its tick; a reading takes 100 µs."""

    def read():
        clock.now_s += 100e-6
        return watts * tick_s * math.floor(clock.now_s / tick_s + 1e-9)

    return read


@pytest.mark.parametrize("tick_s", [0.001, 0.0033, 0.01, 0.02, 0.1, 0.33, 0.5, 0.9, 1.5, 2.9])
def test_the_tick_of_a_counter_is_measured_within_a_quarter(clock, tick_s):
    """A look takes 0.65 ms here, the tick of RAPL is 1 ms: hence a quarter. It is exact for slow counters."""
    began_s = clock.now_s
    assert sensors.measure_tick(counter(clock, tick_s)) == pytest.approx(tick_s, rel=0.25 if tick_s < 0.01 else 0.05)
    assert clock.now_s - began_s <= sensors.TICK_LIMIT_S + 0.01
    assert clock.now_s - began_s < 12 * tick_s + 0.01  # ten steps are enough


def test_one_late_step_does_not_change_the_tick(clock):
    read, late = counter(clock, 0.1), iter([0.0] * 300 + [0.25])

    def disturbed():
        clock.now_s += next(late, 0.0)  # the machine was busy
        return read()

    assert sensors.measure_tick(disturbed) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("tick_s", [4.2, 6.0, 100.0])  # two changes, one, none
def test_a_counter_that_moves_too_seldom_has_no_tick(clock, tick_s):
    assert sensors.measure_tick(counter(clock, tick_s)) is None
    assert clock.now_s - 1000 == pytest.approx(sensors.TICK_LIMIT_S, abs=0.01)


def test_slow_calls_do_not_shorten_the_tick(clock):
    read = counter(clock, 0.1)

    def slow():
        value = read()
        clock.now_s += 0.04
        return value

    assert sensors.measure_tick(slow) == pytest.approx(0.1, rel=0.05)


def test_a_counter_that_cannot_be_read_has_no_tick(clock):
    assert sensors.measure_tick(lambda: None) is None
    assert clock.now_s - 1000 < 0.01


@pytest.fixture
def ticks(tmp_path, monkeypatch):
    """Where ticks are kept in this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "joulesweep" / "ticks.json"


def never():
    raise AssertionError("it was read again")


def test_a_tick_is_measured_once_per_host_and_then_known(clock, ticks):
    first = sensors.cached_tick("GPU-1", counter(clock, 0.1))
    assert first == pytest.approx(0.1, rel=0.05)
    assert sensors.cached_tick("GPU-1", never) == first
    (key,) = kept = json.loads(ticks.read_text())
    assert kept[key]["tick_s"] == first
    assert kept[key]["measured"].endswith("+00:00")


def test_each_counter_host_and_driver_has_its_own_tick(clock, ticks, monkeypatch):
    assert sensors.cached_tick("GPU-1", counter(clock, 0.1)) == pytest.approx(0.1, rel=0.05)
    assert sensors.cached_tick("cpu:0", counter(clock, 0.02)) == pytest.approx(0.02, rel=0.05)
    monkeypatch.setattr(sensors.socket, "gethostname", lambda: "elsewhere")
    assert sensors.cached_tick("GPU-1", counter(clock, 0.05)) == pytest.approx(0.05, rel=0.05)
    monkeypatch.setattr(nvidia, "driver", lambda: "600.1")
    assert sensors.cached_tick("GPU-1", counter(clock, 0.025)) == pytest.approx(0.025, rel=0.05)
    assert len(json.loads(ticks.read_text())) == 4


def test_a_tick_that_could_not_be_measured_is_not_kept(clock, ticks):
    assert sensors.cached_tick("GPU-1", lambda: None) is None
    assert not ticks.exists()
    assert sensors.cached_tick("GPU-1", counter(clock, 0.1)) is not None


def test_a_tick_that_was_measured_while_the_machine_was_busy_is_not_kept(clock, ticks):
    read, late = counter(clock, 0.003), iter([0.0] * 10 + [0.02, 0.03] * 50)

    def disturbed():
        clock.now_s += next(late, 0.0)
        return read()

    assert sensors.cached_tick("cpu:0", disturbed) > 0.01
    assert not ticks.exists()


def test_what_a_run_found_of_its_counters_is_kept_for_the_next(clock, ticks):
    known = {"gpu:0": 0.1, "gpu:1": None, "cpu:0": 0.001}
    found = (("gpu:0", "GPU-0", 0.5), ("cpu:0", None, 0.001), ("gpu:1", "GPU-1", 1.5), ("gpu:2", None, None))
    rows = [DeviceEnergy(**energy_row(device, 1.0, uuid=uuid, tick_s=tick_s)) for device, uuid, tick_s in found]
    sensors.keep_ticks(rows, known)
    assert sensors.cached_tick("GPU-0", never) == 0.5
    assert sensors.cached_tick("GPU-1", never) == 1.5
    assert len(json.loads(ticks.read_text())) == 2


def test_a_board_says_its_power_of_now_where_it_has_it(machine):
    _, sensor = machine(watts=100, average_s=1e6, power_error=2)
    assert (sensor.instant, sensor.power_w()) == (True, 200.0)
    nvidia.nvml.cache_clear()


def test_a_board_without_power_of_now_says_its_average(machine):
    fake, sensor = machine(watts=100, average_s=1e6, instant=0)
    fake.set(0, watts=700)
    assert not sensor.instant
    assert sensor.power_w() < 110


@pytest.mark.parametrize(
    ("zones", "devices_seen"),
    [
        ([{"name": "package-0-die-0", "watts": 68}, {"name": "package-0-die-1", "watts": 68}], ["cpu:0"]),
        ([{"name": "package-0", "watts": 68}, {"name": "package-1", "watts": 68, "offset_j": 20}], ["cpu:0", "cpu:1"]),
        ([{"name": "package-0", "watts": 68}, {"name": "package-1", "watts": 67.99}], ["cpu:0", "cpu:1"]),
        ([{"name": "package-0", "watts": 50, "dram_watts": 5}] * 2, ["cpu:0", "dram:0"]),
    ],
)
def test_one_counter_that_several_zones_show_is_one_and_two_are_two(tmp_path, monkeypatch, zones, devices_seen):
    with rapl_tree(tmp_path / "rapl", zones) as tree:
        monkeypatch.setattr(rapl_meter, "RAPL", (tree.folder / "intel-rapl",) * 2)
        assert [zone.device for zone in rapl_meter.devices()] == devices_seen


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_a_damaged_file_of_ticks_is_written_anew(clock, ticks, text):
    ticks.parent.mkdir(parents=True)
    ticks.write_text(text)
    assert sensors.cached_tick("GPU-1", counter(clock, 0.1)) == pytest.approx(0.1, rel=0.05)
    assert sensors.cached_tick("GPU-1", never) == pytest.approx(0.1, rel=0.05)


def test_where_nothing_can_be_kept_the_tick_is_measured_each_time(clock, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder, so nothing can be written below it
    for tick_s in (0.1, 0.05):
        assert sensors.cached_tick("GPU-1", counter(clock, tick_s)) == pytest.approx(tick_s, rel=0.05)


def test_without_a_cache_folder_set_ticks_are_kept_in_the_home_folder(clock, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    sensors.cached_tick("GPU-1", counter(clock, 0.1))
    assert (tmp_path / ".cache" / "joulesweep" / "ticks.json").exists()


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """The two places of RAPL, not there yet."""
    places = tmp_path / "sys" / "intel-rapl", tmp_path / "zeus_sys" / "intel-rapl"
    monkeypatch.setattr(rapl_meter, "RAPL", places)
    return places


def zone(path, name, energy_uj=5_000_000, range_uj=262_143_328_850):
    path.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        if value is not None:
            (path / file).write_text(f"{value}\n")
    return path


def test_packages_and_their_dram_are_zones_and_their_parts_are_not(rapl):
    for i in (0, 1):
        package = zone(rapl[0] / f"intel-rapl:{i}", f"package-{i}", energy_uj=(i + 1) * 1_500_000)
        zone(package / f"intel-rapl:{i}:0", "core")
        zone(package / f"intel-rapl:{i}:1", "dram", energy_uj=250_000, range_uj=65_712_999_613)
    found = rapl_meter.devices()
    assert [zone.device for zone in found] == ["cpu:0", "dram:0", "cpu:1", "dram:1"]
    assert [zone.energy_j() for zone in found] == [1.5, 0.25, 3.0, 0.25]
    assert [zone.range_j for zone in found] == [262143.32885, 65712.999613] * 2
    assert rapl_meter.problem() is None


def test_a_counter_that_has_gone_is_none(rapl):
    path = zone(rapl[0] / "intel-rapl:0", "package-0")
    (found,) = rapl_meter.devices()
    for text in ("", "no number"):
        (path / "energy_uj").write_text(text)
        assert found.energy_j() is None
    (path / "energy_uj").unlink()
    assert found.energy_j() is None
    assert Zone(device="cpu:0", path=path / "none", range_j=1.0).energy_j() is None


def test_the_kernels_place_comes_before_the_containers(rapl):
    zone(rapl[1] / "intel-rapl:0", "package-0", energy_uj=2_000_000)
    assert rapl_meter.folder() == rapl[1]
    assert [zone.energy_j() for zone in rapl_meter.devices()] == [2.0]
    zone(rapl[0] / "intel-rapl:0", "package-0", energy_uj=3_000_000)
    assert rapl_meter.folder() == rapl[0]
    assert [zone.energy_j() for zone in rapl_meter.devices()] == [3.0]


def test_a_machine_without_rapl_says_so(rapl):
    assert rapl_meter.devices() == []
    assert rapl_meter.folder() is None
    assert rapl_meter.problem().startswith("no CPU energy counter (RAPL) on this machine")


def test_in_a_container_without_rapl_it_is_said_where_to_mount_it(rapl, monkeypatch):
    for inside in (True, False):
        monkeypatch.setattr(processes, "in_container", lambda inside=inside: inside)
        assert (f"mount /sys/class/powercap at {rapl[1].parent}" in rapl_meter.problem()) is inside


def test_rapl_without_a_package_or_a_readable_counter_says_so(rapl):
    rapl[0].mkdir(parents=True)
    assert rapl_meter.problem() == f"{rapl[0]} names no CPU package"
    zone(rapl[0] / "intel-rapl:0", "package-0", energy_uj="")
    assert rapl_meter.devices() == []
    assert rapl_meter.problem() == f"{rapl[0]}: the counters could not be read"


def test_the_zone_of_a_whole_laptop_is_no_package(rapl):
    zone(rapl[0] / "intel-rapl:0", "package-0")
    zone(rapl[0] / "intel-rapl:1", "psys")
    assert rapl_meter.packages() == [0]
    assert [found.device for found in rapl_meter.devices()] == ["cpu:0"]


LOOK = """
import json
from joulesweep.measure.meters import rapl
zones = [[zone.device, str(zone.path), zone.energy_j() is not None] for zone in rapl.devices()]
print(json.dumps([zones, rapl.problem()]))
"""


@pytest.mark.parametrize(
    ("location", "uid"),
    [("/sys/class/powercap", None), ("/zeus_sys/class/powercap", None), ("/sys/class/powercap", NOBODY)],
)
def test_a_process_finds_rapl_where_linux_or_a_container_has_it(tmp_path, location, uid):
    with rapl_tree(tmp_path / "rapl", [{"name": "package-0", "watts": 50, "dram_watts": 5}]) as tree:
        command = tree.command([sys.executable, "-c", LOOK], location=location, uid=uid)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    zones, problem = json.loads(done.stdout)
    package = f"{location}/intel-rapl/intel-rapl:0"
    if uid is None:
        assert zones == [["cpu:0", package, True], ["dram:0", f"{package}/intel-rapl:0:0", True]]
        assert problem is None
    else:
        assert zones == []
        assert problem == (
            f"no permission to read {package}/energy_uj: run as root, or as root once: "
            f"chmod a+r {location}/intel-rapl/*/energy_uj {location}/intel-rapl/*/*/energy_uj"
        )


@pytest.mark.parametrize(
    ("there", "variable", "inside"), [(True, None, True), (False, "podman", True), (False, None, False)]
)
def test_a_container_is_known_by_its_mark(monkeypatch, there, variable, inside):
    monkeypatch.setattr(processes, "Path", lambda path: SimpleNamespace(exists=lambda: there and path == "/.dockerenv"))
    monkeypatch.delenv("container", raising=False)
    if variable:
        monkeypatch.setenv("container", variable)
    assert processes.in_container() is inside
