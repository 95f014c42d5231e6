"""A flag says what a reader should know before comparing a number, and is not there without its cause."""

from __future__ import annotations

import datetime
import json
import re
import time
from types import SimpleNamespace

import pytest
import tiny_run

from joulesweep import conditions, sensors
from joulesweep.conditions import Before
from joulesweep.devices import Board
from joulesweep.trace import Trace


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

        def power_limit_w(self):
            return 400.0

        def energy_j(self):
            return 1.0

    monkeypatch.setattr(sensors, "BoardSensor", Sensor)
    return pids


def row(device="gpu:0", **changes):
    """A measured row without a flag."""
    found = {"device": device, "kind": device[:3], "energy_j": 9000.0, "tick_s": 0.1, "power_ratio": 1.0}
    found |= {"doubt": None, "reason": None, "method": "Zeus: NVML energy counter"}
    return {**found, **changes}


def state(at_s, device="gpu:0", temperature_c=50.0, sm_clock_mhz=1400.0, throttles=()):
    return at_s, device, {"temperature_c": temperature_c, "sm_clock_mhz": sm_clock_mhz, "throttles": list(throttles)}


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
    **spec,
):
    """Conditions and flags of a window from 100 on."""
    trace = Trace([], [])
    trace.states = list(states)
    span = {"begin_s": 100.0, "end_s": 100.0 + total_s, "idle_begin_s": 90.0, "idle_end_s": 90.0 + idle_s}
    span["clock_step_s"] = 0.0
    counts = {"num_steps": 500, "num_skipped_steps": skipped}
    outcome = {"span": span, "measurement": {"total_window_s": total_s, "energy": list(rows), **counts}}
    lease = SimpleNamespace(boards=list(boards), exclusive=exclusive, shared_host=lambda: shared)
    before = before or Before(ticks={}, cooldown_s=None, settled=None, strangers=[])
    found, flags = conditions.describe(outcome, tiny_run.spec(**spec), before, trace, lease)
    json.dumps([found, flags], allow_nan=False)
    return found, [(flag["flag"], flag["text"]) for flag in flags]


def flags(*given, **more):
    return describe(*given, **more)[1]


@pytest.mark.parametrize(("skipped", "text"), [(0, None), (5, None), (6, "loss scaling skipped 6 of 500 steps")])
def test_many_skipped_steps_are_told(skipped, text):
    assert flags(row(), skipped=skipped) == ([("skipped_steps", text)] if text else [])


def test_a_quiet_run_has_no_flag():
    before = Before(ticks={}, cooldown_s=3.0, settled=True, strangers=[])
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


@pytest.mark.parametrize(
    ("before", "after", "when"),
    [
        (["gpu:0"], [], "gpu:0 before"),
        ([], [7], "gpu:0 after"),
        (["gpu:0", "gpu:1"], [7], "gpu:0, gpu:1 before and gpu:0 after"),
    ],
)
def test_others_that_computed_on_the_boards_are_flagged(machine, monkeypatch, before, after, when):
    monkeypatch.setattr(conditions, "PROCESS_END_S", 0.0)
    machine["gpu:0"] = [after]
    found = flags(row(), before=Before(ticks={}, cooldown_s=None, settled=None, strangers=before))
    said = f"other processes computed on {when} the run: its joules hold their share too"
    assert found == [("other_processes", said)]


def test_own_processes_that_a_driver_takes_a_moment_to_forget_are_no_strangers(machine):
    machine["gpu:0"] = [[7], [7], []]
    began_s = time.monotonic()
    assert conditions.strangers_after([BOARD]) == []
    assert 0.1 < time.monotonic() - began_s < conditions.PROCESS_END_S


def test_strangers_that_stay_are_named_after_a_bounded_wait(machine, monkeypatch):
    monkeypatch.setattr(conditions, "PROCESS_END_S", 0.3)
    machine["gpu:1"] = [[7]]
    began_s = time.monotonic()
    assert conditions.strangers_after([BOARD, board(1)]) == ["gpu:1"]
    assert 0.3 <= time.monotonic() - began_s < 2


def test_without_boards_nobody_is_waited_for():
    assert conditions.strangers_after([]) == []


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
    before = Before(ticks={}, cooldown_s=60.0, settled=settled, strangers=[])
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
    found, _ = describe(row(), states=states, boards=[BOARD, board(1), board(2)])
    first, second, third = found["boards"]
    assert first == {
        "device": "gpu:0",
        "uuid": "GPU-0",
        "temperature_start_c": 41.0,
        "temperature_end_c": 61.0,
        "sm_clock_mean_mhz": 1350.0,
        "sm_clock_min_mhz": 1300.0,
        "power_limit_w": 400.0,
        "throttle_reasons": [],
    }
    nothing = ("temperature_start_c", "temperature_end_c", "sm_clock_mean_mhz", "sm_clock_min_mhz")
    assert [second[name] for name in nothing] == [third[name] for name in nothing] == [None] * 4


def test_conditions_of_a_run_without_boards():
    found, none = describe(row("cpu:0"), boards=[], exclusive="node", idle_s=0.0)
    wanted = {"boards": [], "cooldown_s": None, "settled": None, "idle_s": 0.0, "exclusive": "node"}
    assert {key: found[key] for key in wanted} == wanted
    assert set(found) == {*wanted, "window_begin", "window_end"}
    assert none == []


def test_the_window_is_told_in_utc_to_the_millisecond():
    now_s, now = time.monotonic(), datetime.datetime.now(datetime.UTC)
    said = conditions._utc(now_s - 60.0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", said)
    assert abs((now - datetime.datetime.fromisoformat(said)).total_seconds() - 60.0) < 0.5
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
        return 2.5, False

    monkeypatch.setattr(sensors, "known_tick", known_tick)
    monkeypatch.setattr(sensors, "settle", settle)
    return looked_up, waited


def test_ticks_are_looked_up_of_what_has_a_counter(prepared):
    boards = [BOARD, board(1, has_counter=False), board(2, mig=True), board(3)]
    zone = SimpleNamespace(device="cpu:0", energy_j=lambda: 2.0)
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
    assert len(asked) == len(prepared[1])


def test_others_are_looked_for_before_the_run(prepared, machine):
    machine["gpu:0"] = [[4711]]
    assert conditions.prepare(tiny_run.spec(), [BOARD], [], lambda: None).strangers == ["gpu:0"]
    machine["gpu:0"] = [[]]
    assert conditions.prepare(tiny_run.spec(), [BOARD], [], lambda: None).strangers == []
