"""A flag says what a reader should know before comparing a number, and is not there without its cause."""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
import time
from types import SimpleNamespace

import pytest
import synthetic
import tiny_run
from outcomes import phase, rank

from joulesweep.axes.strategy import on_one_device
from joulesweep.core import bounded, processes
from joulesweep.core.outcome import DeviceEnergy, Span, as_json
from joulesweep.measure import conditions, contention, meters, sensors, settling
from joulesweep.measure.conditions import Before
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import nvidia
from joulesweep.measure.trace import BoardState, Series, Trace
from joulesweep.measure.watch import BoardLook, Looks


def board(index=0, **changes):
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return Board(**{"index": index, "uuid": f"GPU-{index}", **described, **changes})


BOARD = board()


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Boards in place of this machine's: who computes on each of them, by device."""
    pids: dict[str, list[list[int]]] = {}

    class Sensor:
        def __init__(self, board):
            self.board = board

        def process_ids(self):
            answers = pids.get(self.board.device, [[]])
            return answers.pop(0) if len(answers) > 1 else answers[0]

        def temperature_c(self):
            return 40.0

        def power_w(self):
            return 70.0

        def power_limit_w(self):
            return 400.0

        def energy_j(self):
            return 1.0

    monkeypatch.setattr(nvidia, "BoardSensor", Sensor)
    return pids


def row(device="gpu:0", **changes):
    """A measured row without a flag."""
    return DeviceEnergy(**{**synthetic.energy_row(device, 9000.0, power_ratio=1.0), **changes})


def state(at_s, device="gpu:0", temperature_c=50.0, sm_clock_mhz=1400.0, throttles=()):
    throttles = None if throttles is None else list(throttles)
    return at_s, device, BoardState(temperature_c=temperature_c, sm_clock_mhz=sm_clock_mhz, throttles=throttles)


def describe(
    *rows,
    states=(),
    boards=(BOARD,),
    before=None,
    total_s=30.0,
    exclusive="gpu",
    shared=False,
    idle_s=5.0,
    skipped=0,
    cpu_s=None,
    cpu=(),
    looks=(),
    stopped=None,
    **spec,
):
    """Conditions and flags of a window from 100 on."""
    trace = Trace([], [])
    trace.states = list(states)
    seen = SimpleNamespace(looks=Looks(cpu=list(cpu), boards=list(looks)), stopped=stopped)
    result = rank(
        span=Span(begin_s=100.0, end_s=100.0 + total_s, idle_begin_s=90.0, idle_end_s=90.0 + idle_s),
        total_window_s=total_s,
        phases=[phase(num_steps=500, num_skipped_steps=skipped)],
        num_steps=500,
        cpu_s=total_s if cpu_s is None else cpu_s,
    )
    run = tiny_run.spec(**spec)
    one_device = on_one_device(run.strategy, run.devices)
    hold = conditions.Hold(boards=boards, exclusive=exclusive, shared_host=shared, one_device=one_device)
    before = before or Before(ticks={}, cooldown_s=None, settled=None)
    conditions_, flags = conditions.describe(result, rows, run, before, trace, hold, seen)
    found = as_json(conditions_)
    found |= {"cpu": {name: found.pop(name) for name in CPU}}
    json.dumps(found, allow_nan=False)
    return found, [(flag.flag, flag.text) for flag in flags]


CPU = ("cpu_share", "cpu_pressure_share", "cpu_wait_share", "foreign_cpu_s", "cpu_steal_s", "cpu_unknown")


def flags(*given, **more):
    return describe(*given, **more)[1]


@pytest.mark.parametrize(("skipped", "text"), [(0, None), (5, None), (6, "loss scaling skipped 6 of 500 steps")])
def test_many_skipped_steps_are_told(skipped, text):
    assert flags(row(), skipped=skipped) == ([("skipped_steps", text)] if text else [])


def test_a_quiet_run_has_no_flag():
    before = Before(ticks={}, cooldown_s=3.0, settled=True)
    assert flags(row(), row("cpu:0"), states=[state(110.0)], before=before) == []


@pytest.mark.parametrize(
    ("device", "tick_s", "total_s", "needed"),
    [
        ("gpu:0", 0.1, 29.9, "30"),
        ("gpu:0", None, 29.9, "30"),
        ("gpu:0", 0.5, 49.9, "50"),
        ("cpu:0", 0.5, 49.9, "50"),
        ("gpu:0", 0.5, 50.0, None),
        ("gpu:0", 0.1, 30.0, None),
        ("cpu:0", 0.001, 0.1, None),
        ("cpu:0", None, 0.1, None),
    ],
)
def test_a_window_too_short_for_a_headline_says_what_would_be_long_enough(device, tick_s, total_s, needed):
    said = f"{device}: window of {total_s:.3g} s; a headline needs measure.min_seconds of {needed}"
    assert flags(row(device, tick_s=tick_s), total_s=total_s) == ([("short_window", said)] if needed else [])


def test_what_has_no_joules_has_no_headline_to_be_short_for():
    assert flags(row(energy_j=None, power_ratio=None), total_s=1.0) == []


@pytest.mark.parametrize("doubt", [None, "mean power × time is 1.2 × the counter's joules", "something else"])
def test_watts_and_joules_that_contradict_each_other_are_flagged(doubt):
    found = flags(row(power_ratio=1.2, doubt=doubt), row("gpu:1"))
    assert found == ([("power_disagrees", f"gpu:0: {doubt}")] if doubt and doubt.startswith("mean") else [])


def test_clocks_held_down_count_inside_the_window_alone():
    outside = [state(99.9, throttles=["power brake"]), state(130.1, throttles=["hardware thermal"])]
    other = [state(110.0, "gpu:1", throttles=["hardware slowdown"])]
    found, none = describe(row(), states=[*outside, *other, state(110.0)])
    assert (none, found["boards"][0]["throttle_reasons"]) == ([], [])
    inside = [state(at_s, throttles=["software thermal", "power brake"]) for at_s in (100.0, 115.0, 130.0)]
    found, flagged = describe(row(), states=[*outside, *inside])
    assert found["boards"][0]["throttle_reasons"] == ["power brake", "software thermal"]
    assert flagged == [("throttled", "gpu:0: clocks held down by power brake, software thermal")]


def look(*others, own=False, limit_w=400.0):
    """A look at a board on which processes of others compute; None: it does not say."""
    if None in others:
        return BoardLook(own=None, others=None, power_limit_w=limit_w)
    return BoardLook(own=own, others=list(others), power_limit_w=limit_w)


@pytest.fixture(autouse=True)
def whole_machine(monkeypatch):
    """Whether this process sees the machine's processes: it does, unless a test says otherwise."""
    sees = [True]
    monkeypatch.setattr(processes, "sees_whole_machine", lambda: sees[0])
    return sees


@pytest.mark.parametrize(
    ("before", "during", "after", "when"),
    [
        ([7], [], [], "gpu:0 before"),
        ([], [7], [], "gpu:0 during"),
        ([], [], [7], "gpu:0 after"),
        ([7], [7], [8], "gpu:0 before and gpu:0 during and gpu:0 after"),
        ([], [], [], None),
    ],
)
def test_others_that_compute_on_the_boards_are_flagged(machine, monkeypatch, before, during, after, when):
    monkeypatch.setattr(conditions, "PROCESS_END_S", 0.0)
    machine["gpu:0"] = [after]
    found, told = describe(
        row(),
        before=Before(ticks={}, looks={"gpu:0": look(*before)}),
        looks=[(105.0, "gpu:0", look()), (115.0, "gpu:0", look(*during)), (140.0, "gpu:0", look(99))],
    )
    said = f"other processes computed on {when} the run: its joules hold their share too"
    assert told == ([("other_processes", said)] if when else [])
    assert found["boards"][0]["other_processes"] == [word for word in ("before", "during", "after") if word in said]


@pytest.mark.parametrize(
    ("before", "during", "after", "whole", "accelerator", "known"),
    [
        ([None], [[]], [[]], True, "cpu", None),
        ([[]], [None], [[]], True, "cpu", None),
        ([[]], [[]], [None], True, "cpu", None),
        ([[]], [[]], [[]], True, "cpu", []),
        ([[]], [[]], [[]], False, "cpu", None),  # a container is shown its own processes, or none
        ([[]], [[7]], [[]], False, "cpu", ["during"]),
        ([[]], [[7]], [[]], False, "cuda", None),  # the run's own, under another number?
        ([[]], [[7]], [[]], True, "cuda", ["during"]),
        ([], [[]], [[]], True, "cpu", None),  # not looked at
        ([[]], [], [[]], True, "cpu", None),
    ],
)
def test_what_a_board_does_not_say_is_unknown_and_not_nobody(
    machine, monkeypatch, whole_machine, before, during, after, whole, accelerator, known
):
    monkeypatch.setattr(conditions, "PROCESS_END_S", 0.0)
    whole_machine[0] = whole
    machine["gpu:0"] = after

    def seen(pids):
        return look(*([None] if pids is None else pids))

    found, told = describe(
        row(),
        before=Before(ticks={}, looks=dict(zip(["gpu:0"], map(seen, before), strict=False))),
        looks=[(110.0, "gpu:0", seen(pids)) for pids in during],
        accelerator=accelerator,
    )
    assert found["boards"][0]["other_processes"] == known
    assert [flag for flag, _ in told] == (["other_processes"] if known else [])


def test_a_container_in_which_the_run_sees_itself_and_others_knows_of_them(machine, whole_machine):
    whole_machine[0] = False
    looks = [(110.0, "gpu:0", look(7, own=True))]
    found, _ = describe(row(), before=Before(ticks={}), looks=looks, accelerator="cuda")
    assert found["boards"][0]["other_processes"] == ["during"]


def test_own_processes_that_a_driver_takes_a_moment_to_forget_are_no_strangers(machine, monkeypatch):
    monkeypatch.setattr(conditions, "PROCESS_END_S", 60.0)
    machine["gpu:0"] = [[7], [7], []]
    found, silent = conditions.look_after([BOARD])
    assert (found["gpu:0"].others, silent) == ([], {})


def test_strangers_that_stay_are_named_after_a_bounded_wait(machine, monkeypatch):
    monkeypatch.setattr(conditions, "PROCESS_END_S", 0.3)
    machine["gpu:1"] = [[7]]
    found, _ = conditions.look_after([BOARD, board(1)])
    assert {device: seen.others for device, seen in found.items()} == {"gpu:0": [], "gpu:1": [7]}


def test_without_boards_nobody_is_waited_for():
    assert conditions.look_after([]) == ({}, {})


@pytest.mark.parametrize("throttles", [None, ["power brake"]])
def test_clocks_of_which_a_board_does_not_always_tell_are_unknown(throttles):
    states = [state(105.0), state(110.0, throttles=throttles)]
    found, _ = describe(row(), states=states)
    assert found["boards"][0]["throttle_reasons"] == throttles


def test_the_power_limit_is_that_of_the_window():
    looks = [(110.0, "gpu:0", look(limit_w=350.0)), (140.0, "gpu:0", look(limit_w=700.0))]
    before = Before(ticks={}, looks={"gpu:0": look(limit_w=700.0)})
    assert describe(row(), looks=looks, before=before)[0]["boards"][0]["power_limit_w"] == 350.0
    assert describe(row(), before=before)[0]["boards"][0]["power_limit_w"] == 700.0
    assert describe(row())[0]["boards"][0]["power_limit_w"] is None


def test_readings_that_ended_early_are_flagged():
    ((flag, text),) = flags(row(), stopped="no answer within 10 s")
    assert (flag, text) == ("trace_stopped", "no answer within 10 s; the last reading is of 0 s of the window")
    before = Before(ticks={}, silent={"gpu:1": "no answer within 10 s"})
    assert flags(row(), before=before) == [
        ("trace_stopped", "gpu:1: no answer within 10 s before the run: it was not read")
    ]


def cpu_reading(at_s, busy_s=0.0, own_s=0.0, waited_s=0.0, **changes):
    values = {"steal_s": 0.0, "pressure_s": 0.0, "ran_s": own_s, **changes}
    return contention.Reading(at_s=at_s, busy_s=busy_s, own_s=own_s, waited_s=waited_s, **values)


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("changes", "cpu_s", "text"),
    [
        ({}, 30.0, None),
        ({"busy_s": 42.0}, 30.0, "other processes used 10 CPU-seconds (it used 30)"),
        ({"busy_s": 33.0}, 30.0, None),
        ({"busy_s": None}, 30.0, None),
        ({"steal_s": 12.0}, 30.0, "the hypervisor took 10 CPU-seconds"),
        ({"waited_s": 10.0}, 30.0, "its threads waited for a core 25% of the time that they were ready"),
        ({"busy_s": 60.0, "own_s": 60.0, "ran_s": 60.0, "waited_s": 20.0}, 50.0, None),  # both cores are full of it
        ({"waited_s": 3.0, "pressure_s": 30.0}, 30.0, None),  # others waited, not the run
        ({"waited_s": None, "ran_s": None, "pressure_s": 18.0}, 30.0, "some process waited for a core 50% of the time"),
    ],
)
def test_a_run_that_did_not_have_the_cpu_to_itself_is_flagged(monkeypatch, accelerator, changes, cpu_s, text):
    """The readings are of 36 s, the window is of 30 s, on two cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    last = cpu_reading(132.0, **{"busy_s": 30.0, "own_s": 30.0, "ran_s": 30.0, **changes})
    given = {"cpu": [cpu_reading(96.0), last], "cpu_s": cpu_s, "accelerator": accelerator}
    assert flags(row(), **given) == ([("contended", text)] if text else [])
    said = "; CPU and DRAM joules hold the others' share" if "other" in (text or "") else ""
    assert flags(row("cpu:0"), **given) == ([("contended", text + said)] if text else [])


@pytest.mark.parametrize(("accelerator", "flagged"), [("cpu", True), ("cuda", False)])
def test_a_run_on_the_cpu_that_stood_still_is_flagged(accelerator, flagged):
    told = flags(row(), cpu_s=20.0, accelerator=accelerator)
    assert told == ([("contended", "its processes got 20 CPU-seconds in 30 s")] if flagged else [])


def test_what_the_machine_does_not_count_is_unknown_with_the_reason():
    nothing = {"busy_s": None, "steal_s": None, "own_s": None, "waited_s": None, "ran_s": None, "pressure_s": None}
    found, _ = describe(row(), cpu=[cpu_reading(99.0, **nothing), cpu_reading(131.0, **nothing)])
    assert found["cpu"] == {
        "cpu_share": 1.0,
        "cpu_pressure_share": None,
        "cpu_wait_share": None,
        "foreign_cpu_s": None,
        "cpu_steal_s": None,
        "cpu_unknown": {
            "cpu_pressure_share": "no /proc/pressure/cpu",
            "cpu_wait_share": "no /proc/PID/schedstat",
            "foreign_cpu_s": "no /proc/stat",
            "cpu_steal_s": "no /proc/stat",
        },
    }
    found, _ = describe(row(), cpu=[cpu_reading(99.0)])
    assert found["cpu"]["cpu_unknown"] == dict.fromkeys(CPU[1:5], contention.NOT_READ)


def test_a_count_that_is_not_of_this_machine_is_unknown():
    found, told = describe(row(), cpu=[cpu_reading(99.0), cpu_reading(131.0, busy_s=3.0, own_s=30.0)])
    assert found["cpu"]["cpu_unknown"] == {"foreign_cpu_s": "/proc/stat does not count what this run used"}
    assert told == []


def test_what_a_whole_run_cost_is_told_beside_its_window():
    trace = Trace([], [])
    trace.times_s = [10.0, 20.0, 40.0]
    trace.series = {
        "gpu:0": Series(energy_j=[0.0, None, 900.0], power_w=[None] * 3),
        "gpu:1": Series(energy_j=[0.0, 50.0, 10.0], power_w=[None] * 3),
        "cpu:0": Series(energy_j=[None] * 3, power_w=[None] * 3),
    }
    found = conditions.overhead(Span(begin_s=15.0, end_s=35.0), trace)
    assert (found.whole_run_s, found.num_samples, found.trace_cpu_s) == (30.0, 0, None)
    assert [(cost.device, cost.energy_j) for cost in found.whole_run_energy] == [
        ("gpu:0", 900.0), ("gpu:1", None), ("cpu:0", None),
    ]  # fmt: skip
    assert [cost.reason is None for cost in found.whole_run_energy] == [True, False, False]
    nothing = conditions.overhead(Span(begin_s=15.0, end_s=35.0), Trace([], []))
    assert (nothing.whole_run_s, nothing.whole_run_energy) == (None, [])


@pytest.mark.parametrize(
    ("rows", "shared", "flagged"),
    [
        ([row(), row("cpu:0")], True, True),
        ([row(), row("dram:0")], True, True),
        ([row(), row("cpu:0", energy_j=None)], True, False),  # the boards are the run's own
        ([row()], True, False),
        ([row(), row("cpu:0")], False, False),
    ],
)
def test_a_host_shared_with_other_runs_is_flagged_where_its_joules_are_counted(rows, shared, flagged):
    said = "other runs used the machine at the same time; CPU and DRAM joules hold their share too"
    assert flags(*rows, shared=shared) == ([("shared_host", said)] if flagged else [])


@pytest.mark.parametrize(("settled", "flagged"), [(False, True), (True, False), (None, False)])
def test_boards_that_did_not_settle_are_flagged(settled, flagged):
    before = Before(ticks={}, cooldown_s=60.0, settled=settled)
    said = "temperature or power still moved after the cool-down of 60 s"
    assert flags(row(), before=before, cooldown_s=60.0) == ([("not_settled", said)] if flagged else [])


@pytest.mark.parametrize(
    ("strategy", "devices", "flagged"),
    [("single", 1, False), ("ddp", 2, False), ("ddp", 1, True), ("fsdp", 1, True)],
)
def test_a_strategy_for_several_devices_on_one_is_labelled(strategy, devices, flagged):
    said = f"{strategy} on one device: what this shows is the overhead of its wrapper"
    assert flags(row(), strategy=strategy, devices=devices) == ([("one_device", said)] if flagged else [])


def test_several_flags_stand_side_by_side():
    short, disagrees = (row(f"gpu:{i}", power_ratio=r, doubt="mean power × time is") for i, r in ((0, 1.2), (1, 0.8)))
    names = [flag for flag, _ in flags(short, disagrees, total_s=1.0)]
    assert names == ["short_window", "short_window", "power_disagrees", "power_disagrees"]


def test_a_board_is_described_at_the_edges_of_the_window_and_inside_it():
    states = [
        state(85.0, temperature_c=30.0),
        state(99.8, temperature_c=41.0, sm_clock_mhz=200.0),
        state(101.0, temperature_c=45.0, sm_clock_mhz=1300.0),
        state(115.0, temperature_c=99.0, sm_clock_mhz=None),
        state(129.5, temperature_c=61.0, sm_clock_mhz=1400.0),
        state(133.0, temperature_c=50.0, sm_clock_mhz=100.0),
        state(100.0, "gpu:1", temperature_c=None, sm_clock_mhz=None),
    ]
    rests = {"gpu:0": settling.Rest(settled_by="slope", slope_c_per_min=-0.5, anchor_c=None)}
    before = Before(ticks={}, settled=True, rests=rests)
    found, _ = describe(row(), states=states, boards=[BOARD, board(1), board(2)], before=before)
    assert found["settled_by"] == "slope"
    first, second, third = found["boards"]
    assert first == {
        "device": "gpu:0",
        "uuid": "GPU-0",
        "temperature_start_c": 41.0,
        "temperature_end_c": 61.0,
        "sm_clock_mean_mhz": 1350.0,
        "sm_clock_min_mhz": 1300.0,
        "throttle_reasons": [],
        "settled_by": "slope",
        "slope_c_per_min": -0.5,
        "anchor_c": None,
        "power_limit_w": None,
        "other_processes": None,
    }
    nothing = ("temperature_start_c", "temperature_end_c", "sm_clock_mean_mhz", "sm_clock_min_mhz")
    assert [second[name] for name in nothing] == [third[name] for name in nothing] == [None] * 4
    assert third["throttle_reasons"] is None


def test_conditions_of_a_run_without_boards():
    found, none = describe(row("cpu:0"), boards=[], exclusive="node", idle_s=0.0)
    wanted = {"boards": [], "cooldown_s": None, "settled": None, "settled_by": None, "idle_s": 0.0}
    wanted |= {"exclusive": "node"}
    assert {key: found[key] for key in wanted} == wanted
    assert set(found) == {*wanted, "cpu", "window_begin", "window_end"}
    assert none == []


def test_the_window_is_told_in_utc_to_the_millisecond():
    now_s, before = time.monotonic(), datetime.datetime.now(datetime.UTC)
    said = conditions._utc(now_s - 60.0)
    late = datetime.datetime.now(datetime.UTC) - before + datetime.timedelta(milliseconds=2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", said)
    assert abs(before - datetime.timedelta(minutes=1) - datetime.datetime.fromisoformat(said)) <= late
    found, _ = describe(row(), total_s=12.5)
    begin, end = (datetime.datetime.fromisoformat(found[key]) for key in ("window_begin", "window_end"))
    assert (end - begin).total_seconds() == pytest.approx(12.5, abs=0.05)


@pytest.fixture
def prepared(monkeypatch):
    """What `prepare` finds: ticks are looked up by name, and boards settle when told so."""
    looked_up, waited = [], []

    def known_tick(name, read):
        looked_up.append((name, read()))
        return {"GPU-0": 0.1, "GPU-3": None, "cpu:0": 0.001}[name]

    def settle(readers, limit_s, wanted):
        wanted()
        waited.append(([reader.board.device for reader in readers], limit_s))
        rest = settling.Rest(settled_by=None, slope_c_per_min=-9.0, anchor_c=None)
        return settling.Settled(waited_s=2.5, settled=False, boards={"gpu:0": rest})

    monkeypatch.setattr(sensors, "cached_tick", known_tick)
    monkeypatch.setattr(settling, "settle", settle)
    return looked_up, waited


def test_ticks_are_looked_up_of_what_has_a_counter(prepared):
    boards = [BOARD, board(1, has_counter=False), board(2, mig=True), board(3)]
    zone = SimpleNamespace(device="cpu:0", energy_j=lambda: 2.0, traits=meters.Traits(kind=meters.CPU, source="RAPL"))
    found = conditions.prepare(tiny_run.spec(), boards, [zone], lambda: None)
    assert found.ticks == {"gpu:0": 0.1, "gpu:3": None, "cpu:0": 0.001}
    assert prepared[0] == [("GPU-0", 1.0), ("GPU-3", 1.0), ("cpu:0", 2.0)]


@pytest.mark.parametrize(
    ("boards", "cooldown_s", "found"),
    [([BOARD], 9.0, (2.5, False)), ([BOARD], 0.0, (None, None)), ([], 9.0, (None, None))],
)
def test_boards_cool_down_where_asked_for(prepared, boards, cooldown_s, found):
    asked = []
    before = conditions.prepare(tiny_run.spec(cooldown_s=cooldown_s), boards, [], lambda: asked.append(1))
    assert (before.cooldown_s, before.settled) == found
    assert prepared[1] == ([(["gpu:0"], 9.0)] if found[0] else [])
    assert len(asked) == len(boards) + len(prepared[1])  # for each tick, and while cooling down


def test_others_are_looked_for_before_the_run(prepared, machine):
    machine["gpu:0"] = [[4711]]
    assert conditions.prepare(tiny_run.spec(), [BOARD], [], lambda: None).looks["gpu:0"].others == [4711]
    machine["gpu:0"] = [[]]
    assert conditions.prepare(tiny_run.spec(), [BOARD], [], lambda: None).looks["gpu:0"].others == []


@pytest.mark.parametrize("call", ["cached_tick", "settle", "process_ids", "sensor"])
def test_a_board_that_does_not_answer_is_named_and_left_alone(prepared, monkeypatch, hanging, call):
    if call == "cached_tick":
        monkeypatch.setattr(sensors, "cached_tick", lambda name, read: hanging() if name == "GPU-1" else 0.1)
    elif call == "settle":
        rest = settling.Settled(waited_s=10.0, settled=None, boards={}, silent={"gpu:1": "no answer within 0.1 s"})
        monkeypatch.setattr(settling, "settle", lambda *given: rest)
        monkeypatch.setattr(sensors, "cached_tick", lambda name, read: 0.1)
    else:
        monkeypatch.setattr(sensors, "cached_tick", lambda name, read: 0.1)
        method = {"process_ids": "process_ids", "sensor": "__init__"}[call]
        usual = getattr(nvidia.BoardSensor, method)

        def slow(self, *given):
            board = given[0] if given else self.board
            return hanging() if board.device == "gpu:1" else usual(self, *given)

        monkeypatch.setattr(nvidia.BoardSensor, method, slow)
    found = conditions.prepare(tiny_run.spec(cooldown_s=1.0), [BOARD, board(1)], [], lambda: None)
    assert found.silent == {"gpu:1": "no answer within 0.1 s"}
    assert found.ticks["gpu:0"] == 0.1
    assert found.ticks.get("gpu:1") in (None, 0.1)
    assert list(found.looks) == ["gpu:0"]


@pytest.fixture
def hanging(monkeypatch):
    """A call that comes back only when the test ends."""
    gate = threading.Event()
    monkeypatch.setattr(bounded, "LIMIT_S", 0.1)
    monkeypatch.setattr(sensors, "TICK_LIMIT_S", 0.0)
    yield gate.wait
    gate.set()
