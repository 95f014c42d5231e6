"""Meters are files found by name; a kind that contains others is in no sum; an AMD board is read through Zeus."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tiny_run
from outcomes import rank
from patience import wait_for
from synthetic import energy_row
from tiny_run import REPOSITORY

from joulesweep.core import bounded, spec
from joulesweep.core.outcome import DeviceEnergy, Span
from joulesweep.launch import launcher
from joulesweep.measure import devices, meters
from joulesweep.measure.measurement import finalise_energy
from joulesweep.measure.meters import wall
from joulesweep.measure.trace import Trace
from joulesweep.measure.window import reading
from joulesweep.plan import staleness
from joulesweep.runs import headline, identity

PLUG = {"unit": "W", "every_s": 0.05, "deadline_s": 2.0}


def test_every_file_of_the_folder_is_a_meter():
    assert {"nvidia", "rapl", "wall"} <= set(meters.names())
    for name in meters.names():
        meter = meters.load(name)
        assert meter.__doc__ and meter.KINDS
        assert all(meters.kinds()[kind.name] == kind for kind in meter.KINDS), "two kinds of one name"


def test_no_meter_file_imports_its_library_before_it_is_asked():
    libraries = {"pynvml", "amdsmi", "zeus", "torch"}
    code = f"import sys; from joulesweep.measure import meters; meters.kinds(); print(*{libraries} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_a_kind_is_contained_by_kinds_that_there_are():
    kinds = meters.kinds()
    assert list(kinds)[:4] == ["gpu", "cpu", "dram", "wall"]
    assert {inner for kind in kinds.values() for inner in kind.contains} <= set(kinds)
    assert not any(kind.accelerator and kind.contains for kind in kinds.values())


def plug(command, **changes):
    return wall.Wall(command, **{**PLUG, **changes})


def newest(sensor, read):
    """What the sensor says, once its thread has read something."""
    wait_for(lambda: read() is not None or sensor.failure, every_s=0.01)
    return read()


@pytest.mark.parametrize(
    ("unit", "joules", "watts"),
    [("W", None, 12.5), ("J", 12.5, None), ("Wh", 45000.0, None), ("kWh", 4.5e7, None)],
)
def test_the_number_of_the_command_is_read_in_its_unit(unit, joules, watts):
    sensor = plug("echo of plug 3; echo 12.5", unit=unit)
    assert (newest(sensor, sensor.energy_j if watts is None else sensor.power_w)) == (
        joules if watts is None else watts
    )
    assert (sensor.energy_j(), sensor.power_w()) == (joules, watts)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo offline", "the command printed 'offline', not a number"),
        ("echo nan", "the command printed 'nan', not a number"),
        ("true", "the command printed '', not a number"),
        ("echo -1", "the command printed -1: neither power nor a counter is less than 0 or infinite"),
        ("echo 1e999", "the command printed inf: neither power nor a counter is less than 0 or infinite"),
        ("echo no route >&2; exit 7", "the command ended with exit code 7: no route"),
        ("no-such-program", "the command ended with exit code 127: "),
        ("sleep 60 & sleep 60", "the command took longer than 0.2 s"),
    ],
)
def test_a_command_that_fails_is_no_number_and_says_why(command, why):
    deadline_s = 0.2 if "sleep" in command else 20.0  # nothing else is to exceed it, however busy the machine
    sensor = plug(command, deadline_s=deadline_s)
    assert newest(sensor, sensor.power_w) is None
    assert sensor.failure.startswith(why)
    problem = wall.problem({"command": command, **PLUG, "deadline_s": deadline_s})
    assert problem.startswith(why) and "\n" not in problem


def test_a_reading_that_is_too_old_is_none(tmp_path):
    (tmp_path / "watts").write_text("5")
    sensor = plug(f"cat {tmp_path}/watts", deadline_s=0.3)
    wait_for(lambda: sensor.power_w() == 5.0, every_s=0.01)  # under load a command may take longer than its deadline
    (tmp_path / "watts").unlink()
    wait_for(lambda: sensor.power_w() is None and "exit code 1" in (sensor.failure or ""), every_s=0.01)


def test_a_plug_that_nobody_asks_any_more_is_not_read(monkeypatch):
    monkeypatch.setattr(wall, "UNASKED_S", 0.1)
    sensor = plug("echo 5")
    assert newest(sensor, sensor.power_w) == 5.0
    thread = sensor._thread
    thread.join(60)
    assert not thread.is_alive()
    assert sensor.power_w() in (5.0, None) and sensor._thread is not thread


def test_without_a_command_there_is_no_plug_and_why_is_said():
    assert wall.devices(None) == []
    assert "hardware.wall" in wall.problem(None)
    assert wall.problem({"command": "echo 3", **PLUG}) is None


def traced(sensor, joules=None, watts=None, until_s=120.0):
    """A trace of a device without asking it: readings each tenth of a second from 85 on."""
    trace = Trace([], [sensor])
    trace.times_s = [85 + i / 10 for i in range(round((until_s - 85) * 10) + 60)]
    series = trace.series[sensor.device]
    series.energy_j = [None if joules is None else joules(at_s) for at_s in trace.times_s]
    series.power_w = [None if watts is None else watts(at_s) for at_s in trace.times_s]
    return trace


def judged(trace, *readings):
    span = Span(begin_s=100.0, end_s=120.0, idle_begin_s=86.0, idle_end_s=99.0)
    result = rank(num_passes=2, total_window_s=20.0, energy=list(readings), span=span, epochs=[])
    rows, _ = finalise_energy(result, trace, [], {})
    return {row.device: row for row in rows}


def test_the_power_of_a_plug_is_integrated_with_its_error():
    row = judged(traced(plug(""), watts=lambda at_s: 300.0 if 100 <= at_s <= 120 else 100.0))["wall:0"]
    assert (row.status, row.kind, row.reason) == ("integrated", "wall", None)
    assert row.method == "meter at the wall power readings, integrated"
    assert row.energy_j == pytest.approx(3000.0, abs=row.error_j)
    assert 200.0 * plug("").traits.late_s / 2 <= row.error_j < 600.0  # as old a reading as there may be
    assert row.idle_w == pytest.approx(100.0)


@pytest.mark.parametrize("tick_s", [0.5, 1.0])
def test_the_counter_of_a_plug_is_read_by_the_trace(tick_s):
    row = judged(traced(plug("", unit="J"), joules=lambda at_s: at_s // tick_s * tick_s * 300.0))["wall:0"]
    assert (row.status, row.method) == ("measured", "meter at the wall: counter in J")
    assert row.energy_j == pytest.approx(3000.0, abs=row.error_j)
    assert row.tick_s == pytest.approx(tick_s, abs=0.11)


def test_a_counter_too_slow_for_the_window_is_below_resolution():
    row = judged(traced(plug("", unit="Wh"), joules=lambda at_s: at_s // 6 * 6 * 300.0))["wall:0"]
    assert (row.status, row.energy_j) == ("below_resolution", None)


@pytest.mark.parametrize("unit", ["W", "J"])
def test_a_plug_that_never_answers_is_unavailable_and_says_why(unit):
    sensor = plug("", unit=unit)
    sensor.failure = "the command took longer than 2 s"
    row = judged(traced(sensor))["wall:0"]
    assert (row.status, row.energy_j) == ("unavailable", None)
    assert row.reason.endswith(": the command took longer than 2 s")


def test_a_plug_that_reads_less_than_its_contents_is_doubtful():
    cpu = reading("cpu:0", "cpu", None, 9000.0, "Zeus: RAPL counter")
    trace = traced(plug(""), watts=lambda at_s: 100.0)
    row = judged(trace, cpu)["wall:0"]
    assert row.doubt == "less than the joules of cpu:0, which it contains"
    assert judged(trace, replace(cpu, total_energy_j=900.0))["wall:0"].doubt is None


@pytest.mark.parametrize("exclusive", ["node", "gpu"])
def test_the_joules_of_a_plug_are_in_no_sum_and_beside_it(exclusive):
    inside = [DeviceEnergy(**energy_row(device, joules)) for device, joules in (("gpu:0", 100.0), ("cpu:0", 10.0))]
    method = "meter at the wall power readings, integrated"
    around = DeviceEnergy(**energy_row("wall:0", 150.0, status="integrated", method=method))
    alone, both = (headline.headline(rows, "cuda", exclusive) for rows in (inside, [*inside, around]))
    assert both == alone
    assert headline.beside([*inside, around]) == headline.AtThePlug(wall_j=150.0, wall_error_j=1.5, wall_method=method)
    assert headline.beside(inside) == headline.AtThePlug()


def test_a_meter_that_hangs_costs_its_own_devices_alone(monkeypatch):
    monkeypatch.setattr(bounded, "LIMIT_S", 0.2)
    monkeypatch.setattr(meters.load("rapl"), "devices", lambda settings: time.sleep(2))
    sensors, silent = meters.of_host({"wall": {"command": "echo 3", **PLUG}})
    assert [sensor.device for sensor in sensors] == ["wall:0"]
    assert silent == {"rapl": "no answer within 0.2 s"}


STRANGER = """
import json, sys
from types import SimpleNamespace
from joulesweep.cli import doctor
from joulesweep.core import spec
from joulesweep.measure import meters
from joulesweep.measure.trace import Trace
from joulesweep.plan import staleness
from joulesweep.runs import headline
sensors, silent = meters.of_host({})
(one,) = [sensor for sensor in sensors if sensor.device == "server:0"]
trace = Trace([], sensors)
trace.sample()
rows = [SimpleNamespace(kind=kind, energy_j=1.0, status="measured") for kind in ("cpu", "server")]
print(json.dumps({
    "read": trace.series["server:0"].power_w,
    "kinds": list(meters.kinds()),
    "sum": [row.kind for row in headline.headline_rows(rows, "cpu", "node")],
    "doctor": [row["found"] for row in doctor.examine()["findings"] if row["subject"] == "meter acpi"],
    "digest": staleness.run_digest(spec.from_mapping(json.loads(sys.argv[1]))),
}))
"""


def test_a_strangers_meter_is_one_file(tmp_path):
    guide = (REPOSITORY / "docs" / "how-to" / "extend" / "meter.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)[1]
    for folder in ("joulesweep", "scripts", "resources"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shown = tmp_path / "hwmon" / "hwmon3"
    shown.mkdir(parents=True)
    (shown / "power1_average").write_text("250000000\n")
    place = tmp_path / "joulesweep" / "measure" / "meters" / "acpi.py"
    place.write_text(code.replace("/sys/class/hwmon", str(shown.parent)), encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    asked = [sys.executable, "-c", STRANGER, json.dumps(spec.full(tiny_run.spec()))]
    found = json.loads(subprocess.run(asked, cwd=tmp_path, env=environ, capture_output=True, check=True).stdout)
    assert found["read"] == [250.0]
    assert found["kinds"] == [*meters.kinds(), "server"]
    assert found["sum"] == ["cpu"]
    assert found["doctor"] == ["The server's own power meter, which its firmware shows through ACPI: server:0"]
    assert found["digest"] == staleness.run_digest(tiny_run.spec()), "finished runs are stale"


@pytest.mark.slow
def test_a_run_with_a_plug_has_its_joules_beside_the_sum(tmp_path, monkeypatch, nothing_is_left):
    monkeypatch.setattr(devices, "boards", list)
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # what the launching parent does with its own
    assets = tiny_run.assets(tmp_path / "tiny")
    a_spec = tiny_run.spec(min_seconds=4.0, idle_s=1.0)
    plug_of_config = {"command": "echo 250", "unit": "W", "every_s": 0.5, "deadline_s": 1.0}
    made = launcher.launch(
        a_spec,
        "c0de",
        model_folder=assets.model_folder,
        tokens=assets.tokens,
        folder=tmp_path / "run",
        log=tmp_path / "run.log",
        exclusive="node",
        meter_settings=meters.settings_in({"wall": plug_of_config}),
        with_snakemake=False,
    )
    measured = made.measurement
    (row,) = [row for row in measured.energy if row.kind == "wall"]
    assert (row.status, row.doubt) == ("integrated", None)
    assert row.energy_j == pytest.approx(250 * measured.window_s, rel=1e-6)
    assert row.net_energy_j == pytest.approx(0.0, abs=1e-6)  # it draws as much when it idles
    assert 0 < row.error_j < 0.5 * row.energy_j
    assert "wall" not in {one.kind for one in headline.headline_rows(measured.energy, "cpu", "node")}
    assert made.run == identity.run_id(a_spec), "a plug is no part of a run's identity"
    written = (tmp_path / "run" / "power.jsonl").read_text(encoding="utf-8").splitlines()
    assert any(json.loads(line)["power_w"] == 250 for line in written)
