"""From ranks and readings to joules: each number with its status, none where there is no measurement."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from outcomes import COUNTS, phase, rank
from outcomes import epoch as at_epoch

from joulesweep.core.outcome import (
    BadInput,
    ChosenPhase,
    Conditions,
    CounterReads,
    Overhead,
    PeakMemory,
    Span,
    Stopped,
    Summary,
    TensorChoice,
    as_json,
    read_rank,
)
from joulesweep.measure.devices import Board
from joulesweep.measure.measurement import finalise_energy, flags, measured, merge_ranks
from joulesweep.measure.meters import GPU, Traits
from joulesweep.measure.meters.rapl import Zone
from joulesweep.measure.trace import Series, Trace
from joulesweep.measure.verdict import INTEGRATED, MIN_TICKS, RESET, TICK
from joulesweep.measure.window import MIG, NO_COUNTER
from joulesweep.measure.window import reading as row

ROW = {
    "device", "kind", "uuid", "energy_j", "total_energy_j", "status", "method", "reason", "tick_s", "idle_w",
    "net_energy_j", "mean_power_w", "power_ratio", "error_j", "doubt", "power_method", "idle_reason", "net_reason",
    "ratio_reason",
}  # fmt: skip
EPOCH_ROW = {"device", "energy_j", "status", "method", "reason"}
RANGE_J = 262143.32885
SPAN = {
    "begin_s": 100.0,
    "end_s": 120.0,
    "idle_begin_s": 90.0,
    "idle_end_s": 95.0,
    "meter_s": 0.01,
    "clock_step_s": 0.0,
    "weights_s": 0.0,
}


def test_ranks_are_merged_without_losing_or_doubling_anything():
    first = rank(energy=[row("gpu:0", "gpu", "GPU-0", 40.0)])
    other = rank(
        total_window_s=5.0,
        cpu_s=2.0,
        startup_s=2.0,
        energy=[row("gpu:1", "gpu", "GPU-1", 50.0)],
        span=Span(
            begin_s=9.5,
            end_s=14.5,
            idle_begin_s=6.0,
            idle_end_s=8.5,
            meter_s=0.2,
            clock_step_s=-2.0,  # the largest step, whichever way
            weights_s=0.3,
        ),
        peak_memory=PeakMemory(host_rss_bytes=50, gpu_allocated_bytes=9, gpu_reserved_bytes=10),
        epochs=[at_epoch(0, 0.0), at_epoch(1, 6.0, cpu_s=2.5)],
        summaries=[Summary(text=1, summary="a")],
    )
    found = merge_ranks([replace(first, summaries=[Summary(text=2, summary="b")]), other])
    assert found == rank(
        total_window_s=5.0,
        cpu_s=5.0,
        startup_s=2.0,
        energy=[row("gpu:0", "gpu", "GPU-0", 40.0), row("gpu:1", "gpu", "GPU-1", 50.0)],
        span=Span(
            begin_s=9.5, end_s=14.5, idle_begin_s=6.0, idle_end_s=8.0, meter_s=0.2, clock_step_s=-2.0, weights_s=0.3
        ),
        peak_memory=PeakMemory(host_rss_bytes=150, gpu_allocated_bytes=9, gpu_reserved_bytes=10),
        phases=[phase(**{name: 2 * count for name, count in COUNTS.items()})],
        num_compilations_in_window=2,
        epochs=[at_epoch(0, 0.0), at_epoch(1, 6.0, cpu_s=5.0)],
        summaries=[Summary(text=1, summary="a"), Summary(text=2, summary="b")],
    )


def test_one_rank_is_its_own_run():
    assert merge_ranks([rank()]) == rank()


CONDITIONS = Conditions(
    boards=[], cooldown_s=None, settled=None, idle_s=0.0, exclusive="node", window_begin="", window_end=""
)
OVERHEAD = Overhead(meter_s=0.0, trace_cpu_s=None, num_samples=0, whole_run_s=None, whole_run_energy=[])


def measurement(result):
    return measured(result, [], [], CONDITIONS, OVERHEAD)


def test_counts_are_those_of_the_training_phases_and_rates_per_pass():
    rating = phase(kind="rating", num_steps=1)
    found = measurement(rank(phases=[rating, phase(num_skipped_steps=1), phase(num_skipped_steps=1)]))
    assert found.counts() == {name: 2 * count for name, count in COUNTS.items()}
    assert (found.num_steps, found.num_skipped_steps) == (4, 2)
    assert (found.samples_per_s, found.epochs_per_minute) == (20.0, 15.0)
    assert (found.tokens_per_s, found.padded_tokens_per_s) == (300.0, 450.0)


def test_of_a_training_that_was_repeated_one_pass_is_told():
    """The texts and tokens are those of one pass, and so is the time that they are divided by."""
    found = measurement(rank(total_window_s=40.0, num_passes=8))
    assert (found.window_s, found.num_passes, found.total_window_s) == (5.0, 8, 40.0)
    assert (found.samples_per_s, found.tokens_per_s, found.epochs_per_minute) == (8.0, 120.0, 6.0)


def test_memory_that_no_rank_has_is_null():
    without = PeakMemory(host_rss_bytes=100, gpu_allocated_bytes=None, gpu_reserved_bytes=None)
    found = merge_ranks([rank(peak_memory=without), rank(peak_memory=without)]).peak_memory
    assert found == replace(without, host_rss_bytes=200)


def test_what_a_rank_left_reads_back_as_it_was():
    reads = CounterReads(begin_j=1.5, begin_s=(9.9, 10.0), end_s=(14.0, 14.1))
    chosen = ChosenPhase(**{**vars(phase()), **vars(CHOICE), "facts": {"num_frozen_layers": 1}})
    result = rank(
        energy=[row("gpu:0", "gpu", "GPU-0", 40.0, reads=reads), row("cpu:0", "cpu", None, reason="none")],
        phases=[phase(kind="rating"), chosen],
        summaries=[Summary(text=3, summary="c")],
    )
    found = read_rank(json.loads(json.dumps(as_json(result))))
    assert found == result
    assert [one.facts for one in found.phases] == [{}, {"num_frozen_layers": 1}]


@pytest.mark.parametrize("left", [Stopped(status="oom", reason="big", oom_bytes=3), BadInput(reason="no such text")])
def test_why_a_rank_stopped_reads_back_as_it_was(left):
    assert read_rank(json.loads(json.dumps(as_json(left)))) == left


CHOICE = TensorChoice(
    chosen=["a"],
    candidates=["a", "b"],
    num_candidates=2,
    trained_share=0.5,
    importance_share=None,
    objective="flops",
    rho=0.5,
    predicted_cost=0.4,
    floor=0.3,
    gap=None,
    rates=None,
)


def board(index=0, **changes):
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return Board(**{"index": index, "uuid": f"GPU-{index}", **described, **changes})


def trace(**watts):
    """Readings each half second from 85 to 125: watts of the idle part and of the window (from 100 to 120).

    A device gets (idle watts, watts, "counter", "power") with what it says; gpu_0 stands for gpu:0. What is no board is
    a RAPL zone.
    """
    made = Trace([], [])
    board = Traits(kind=GPU, source="NVML", power="instant")
    made.traits = {name.replace("_", ":"): board for name in watts if name.startswith("gpu")}
    made.times_s = [85 + i / 2 for i in range(81)]

    def draw(idle_w, busy_w, at_s):
        return busy_w if 100 <= at_s <= 120 else idle_w

    for name, (idle_w, busy_w, *says) in watts.items():
        counter = [idle_w * (t - 85) + (busy_w - idle_w) * min(max(t - 100, 0), 20) for t in made.times_s]
        powers = [draw(idle_w, busy_w, t) for t in made.times_s]
        series = Series(
            energy_j=counter if "counter" in says else [None] * 81, power_w=powers if "power" in says else [None] * 81
        )
        device = name.replace("_", ":")
        made.series[device] = series
        if not device.startswith("gpu"):
            made.traits[device] = Zone(device=device, path=Path(), range_j=RANGE_J).traits
    return made


BOTH = ("counter", "power")
POWERS = f"NVML {INTEGRATED}"


def judged(energy, readings=None, boards=(), ticks=None, elapsed_s=(0.0, 5.0, 20.0), total_window_s=20.0, **span):
    """The rows of a run with 2 passes in a window of 20 s, as a record has them."""
    epochs = [at_epoch(i, at_s) for i, at_s in enumerate(elapsed_s)]
    times = Span(**{**SPAN, **span})
    result = rank(total_window_s=total_window_s, num_passes=2, energy=energy, span=times, epochs=epochs)
    before = copy.deepcopy(result)
    rows, epochs = finalise_energy(result, readings or Trace([], []), boards, ticks or {})
    assert result == before, "nothing is changed in place"
    outcome = {"measurement": {"energy": as_json(rows)}, "epochs": as_json(epochs)}
    outcome["flags"] = [(one.flag, one.text) for one in flags(result, rows)]
    for found in outcome["measurement"]["energy"]:
        assert set(found) == ROW
        assert (found["energy_j"] is None) == (found["reason"] is not None) == (found["total_energy_j"] is None)
        assert (found["energy_j"] is not None) == (found["status"] in ("measured", "integrated"))
        assert (found["error_j"] is not None) == (found["energy_j"] is not None and TICK not in (found["doubt"] or ""))
        assert (found["idle_w"] is None) == (found["idle_reason"] is not None)
        assert (found["net_energy_j"] is None) == (found["net_reason"] is not None)
        assert (found["power_ratio"] is None) == (found["ratio_reason"] is not None)
        assert found["net_energy_j"] is None or 0 <= found["net_energy_j"] <= found["energy_j"]
        assert found["energy_j"] != 0
    for epoch in outcome["epochs"]:
        read = [found["device"] for found in outcome["measurement"]["energy"] if found["energy_j"] is not None]
        assert [found["device"] for found in epoch["energy"]] == read
        for found in epoch["energy"]:
            assert set(found) == EPOCH_ROW
            assert (found["energy_j"] is None) == (found["reason"] is not None)
            assert (found["energy_j"] is not None) == (found["status"] in ("measured", "integrated"))
            assert (found["energy_j"] is not None) == (found["method"] is not None)
    json.dumps(outcome, allow_nan=False)
    return outcome


def test_measured_joules_are_per_pass_and_net_of_idle_beside():
    readings = trace(gpu_0=(90.0, 300.0, *BOTH))
    outcome = judged([row("gpu:0", "gpu", "GPU-0", 6000.0, "Zeus")], readings, [board()], {"gpu:0": 0.1})
    (found,) = outcome["measurement"]["energy"]
    assert found == {
        "device": "gpu:0",
        "kind": "gpu",
        "uuid": "GPU-0",
        "total_energy_j": 6000.0,
        "energy_j": 3000.0,
        "status": "measured",
        "method": "Zeus",
        "reason": None,
        "tick_s": 0.1,
        "idle_w": pytest.approx(90.0),
        "net_energy_j": pytest.approx(3000.0 - 90.0 * 10.0),
        "mean_power_w": pytest.approx(300.0),
        "power_method": "instant",
        "power_ratio": pytest.approx(1.0),
        "error_j": pytest.approx((1.1 * 1.1 * 0.1 * 300.0 + 0.002 * 6000.0) / 2),  # a tick at no more than 330 W
        "idle_reason": None,
        "net_reason": None,
        "ratio_reason": None,
        "doubt": None,
    }


def test_the_cross_check_is_watts_times_seconds_over_the_counters_joules():
    readings = trace(gpu_0=(90.0, 330.0, *BOTH))
    (found,) = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()])["measurement"]["energy"]
    assert found["power_ratio"] == pytest.approx(1.1)


@pytest.mark.parametrize(("total_s", "ticks", "measured"), [(20.0, 2.0, True), (19.9, 2.0, False)])
def test_a_window_of_fewer_than_ten_ticks_has_no_joules(total_s, ticks, measured):
    energy = [row("gpu:0", "gpu", "GPU-0", 6000.0, "Zeus")]
    readings = trace(gpu_0=(90.0, 300.0, *BOTH))
    outcome = judged(energy, readings, [board()], {"gpu:0": ticks}, total_window_s=total_s)
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"] == "measured") == measured
    assert found["tick_s"] == ticks
    if not measured:
        assert found["status"] == "below_resolution"
        assert found["reason"] == "the window of 19.9 s is shorter than 10 updates of the counter (2 s each)"
        assert (found["net_energy_j"], found["power_ratio"]) == (None, None)
        assert found["mean_power_w"] == pytest.approx(300.0)  # what was read stays


@pytest.mark.parametrize("device", ["gpu:0", "cpu:0"])
def test_a_counter_that_stood_still_has_no_joules(device):
    energy = [row(device, device[:3], None, 0.0, "Zeus")]
    (found,) = judged(energy, trace(gpu_0=(0.0, 0.0, "counter")))["measurement"]["energy"]
    assert (found["status"], found["energy_j"]) == ("below_resolution", None)
    assert found["reason"] == "the counter did not advance in the window"


def test_a_board_without_counter_has_its_power_integrated():
    energy = [row("gpu:0", "gpu", "GPU-0", reason=NO_COUNTER)]
    readings = trace(gpu_0=(90.0, 300.0, "power"))
    outcome = judged(energy, readings, [board(has_counter=False)])
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["method"], found["reason"]) == ("integrated", POWERS, None)
    assert found["total_energy_j"] == pytest.approx(6000.0)
    assert found["energy_j"] == pytest.approx(3000.0)
    assert found["net_energy_j"] == pytest.approx(3000.0 - 90.0 * 10.0)
    assert found["power_ratio"] is None  # watts against themselves are no check
    assert [j for j, _, _ in joules(outcome)] == [None, pytest.approx(1500.0), pytest.approx(6000.0)]


@pytest.mark.parametrize("watts", [(90.0, 300.0), (0.0, 0.0, "power")])
def test_a_board_without_counter_whose_power_was_not_read_is_unavailable(watts):
    """A board that says 0 W does not know its power."""
    energy = [row("gpu:0", "gpu", "GPU-0", reason=NO_COUNTER)]
    (found,) = judged(energy, trace(gpu_0=watts), [board(has_counter=False)])["measurement"]["energy"]
    assert found["status"] == "unavailable"
    assert found["reason"] == f"{NO_COUNTER}, and its power could not be read"


def test_a_board_without_counter_of_which_many_power_readings_failed_is_unavailable():
    energy = [row("gpu:0", "gpu", "GPU-0", reason=NO_COUNTER)]
    readings = trace(gpu_0=(90.0, 300.0, "power"))
    readings.series["gpu:0"].power_w[40] = None  # one of 41 in the window
    (found,) = judged(energy, readings, [board(has_counter=False)])["measurement"]["energy"]
    assert (found["status"], found["mean_power_w"]) == ("unavailable", None)
    assert found["idle_w"] == pytest.approx(90.0)


@pytest.mark.parametrize("device", ["gpu:0", "cpu:0"])
def test_a_counter_that_went_backwards_has_no_joules(device):
    energy = [row(device, device[:3], None, -1.0, "Zeus")]
    (found,) = judged(energy, trace(gpu_0=(0.0, 0.0, "counter")))["measurement"]["energy"]
    assert (found["status"], found["energy_j"], found["reason"]) == ("unavailable", None, RESET)


def reset(readings, device, at_s):
    """Let a counter begin at 0 again at a time."""
    counter = readings.series[device].energy_j
    first = next(i for i, t in enumerate(readings.times_s) if t >= at_s)
    counter[first:] = [value - counter[first] for value in counter[first:]]


@pytest.mark.parametrize("total_j", [-2500.0, 4.0, 3000.0])
def test_a_board_whose_counter_was_reset_has_its_power_integrated_and_a_flag(total_j):
    """Whether or not the counter overtakes what it was at the window's begin."""
    readings = trace(gpu_0=(90.0, 300.0, *BOTH))
    reset(readings, "gpu:0", 110)
    outcome = judged([row("gpu:0", "gpu", "GPU-0", total_j)], readings, [board()], {"gpu:0": 0.1})
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["method"], found["reason"]) == ("integrated", f"{POWERS}: {RESET}", None)
    assert found["total_energy_j"] == pytest.approx(6000.0)
    assert found["net_energy_j"] == pytest.approx(3000.0 - 90.0 * 10.0)
    assert outcome["flags"] == [("counter_reset", f"gpu:0: {RESET} in the window")]
    assert {(status, reason) for _, status, reason in joules(outcome)[1:]} == {("integrated", None)}


def test_a_cpu_whose_counter_was_reset_has_no_joules_and_a_flag():
    readings = trace(cpu_0=CPU)
    reset(readings, "cpu:0", 110)
    outcome = judged(
        [row("cpu:0", "cpu", None, 500.0 + RANGE_J, "Zeus: RAPL counter")], readings, ticks={"cpu:0": 0.001}
    )
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["reason"], found["total_energy_j"]) == ("unavailable", RESET, None)
    assert outcome["flags"] == [("counter_reset", f"cpu:0: {RESET} in the window")]


@pytest.mark.parametrize(("jump_j", "jumps"), [(150.0, False), (900.0, False), (1200.0, True), (20_000.0, True)])
def test_a_cpu_whose_counter_jumps_ahead_has_no_joules(jump_j, jumps):
    """Faster than any CPU draws; over the window's 20 s even 20 kJ are no more than a kilowatt."""
    readings = trace(cpu_0=CPU)
    counter = readings.series["cpu:0"].energy_j
    first = next(i for i, t in enumerate(readings.times_s) if t >= 110)
    counter[first:] = [value + jump_j for value in counter[first:]]
    found = judged_cpu(500.0 + jump_j, readings)
    said = ("unavailable", RESET, None) if jumps else ("measured", None, 500.0 + jump_j)
    assert (found["status"], found["reason"], found["total_energy_j"]) == said


@pytest.mark.parametrize(("says", "idle_w"), [(BOTH, 90.0), (("counter",), None)])
def test_a_reset_in_the_idle_span_leaves_no_negative_idle_power(says, idle_w):
    readings = trace(gpu_0=(90.0, 300.0, *says))
    reset(readings, "gpu:0", 93)
    (found,) = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()], {"gpu:0": 0.1})["measurement"][
        "energy"
    ]
    assert (found["status"], found["idle_w"]) == ("measured", idle_w)
    assert found["idle_reason"] == (None if idle_w else f"{RESET} in the idle span")


def test_idle_power_above_the_runs_leaves_no_net_joules():
    readings = trace(gpu_0=(320.0, 300.0, *BOTH))
    (found,) = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()], {"gpu:0": 0.1})["measurement"][
        "energy"
    ]
    assert (found["net_energy_j"], found["doubt"]) == (None, None)
    assert found["net_reason"] == "idle power took 3200 J of the 3000 J: nothing is left"


def test_a_board_that_idles_at_four_times_the_runs_power_is_doubtful():
    readings = trace(gpu_0=(1200.0, 300.0, *BOTH))
    (found,) = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()], {"gpu:0": 0.1})["measurement"][
        "energy"
    ]
    assert found["doubt"] == "idle power is 4 × the run's"


def test_a_number_that_the_cross_check_contradicts_is_doubtful():
    for watts, doubt in ((325.0, None), (345.0, "mean power × time is 1.15 × the counter's joules")):
        (found,) = judged(
            [row("gpu:0", "gpu", "GPU-0", 6000.0)], trace(gpu_0=(90.0, watts, *BOTH)), [board()], {"gpu:0": 0.1}
        )["measurement"]["energy"]
        assert found["doubt"] == doubt


def test_a_counter_of_unknown_tick_is_doubtful_where_the_trace_cannot_tell_it_either():
    outcome = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], trace(gpu_0=(90.0, 300.0, "power")), [board()])
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["tick_s"], found["error_j"], found["doubt"]) == ("measured", None, None, TICK)
    told = [("tick_unknown", f"gpu:0: {TICK}, and so is the error of its joules")]
    assert outcome["flags"] == told


@pytest.mark.parametrize(("known_s", "tick_s"), [(None, 2.0), (0.1, 2.0), (2.0, 2.0), (2.5, 2.5)])
def test_a_counter_that_stood_still_for_longer_than_its_tick_has_a_longer_one(known_s, tick_s):
    readings = trace(gpu_0=(90.0, 300.0, *BOTH))
    counter = readings.series["gpu:0"].energy_j
    readings.series["gpu:0"].energy_j = [counter[i // 4 * 4] for i in range(81)]  # it moves every 2 s
    (found,) = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()], {"gpu:0": known_s})["measurement"][
        "energy"
    ]
    assert found["tick_s"] == pytest.approx(tick_s, abs=0.26)
    assert found["status"] == ("measured" if found["tick_s"] <= 2.0 else "below_resolution")


@pytest.mark.parametrize(("step_s", "told"), [(0.0, False), (0.09, False), (0.11, True), (-3600.0, True)])
def test_a_step_of_the_wall_clock_is_flagged(step_s, told):
    readings = trace(gpu_0=(90.0, 300.0, *BOTH))
    outcome = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()], clock_step_s=step_s)
    assert [flag for flag, _ in outcome["flags"]] == (["clock_stepped"] if told else [])


CPU = (10.0, 25.0, "counter")  # 500 J in the window


def judged_cpu(total_j, readings=None):
    """The row of a CPU whose joules are Zeus's."""
    energy = [row("cpu:0", "cpu", None, total_j, "Zeus: RAPL counter")]
    (found,) = judged(energy, readings or trace(cpu_0=CPU), ticks={"cpu:0": 0.001})["measurement"]["energy"]
    return found


@pytest.mark.parametrize(
    ("ranges", "told"),
    [
        (0, ""),
        (-1, ", +1 range of 262143 J that it missed"),
        (-2, ", +2 range of 262143 J that it missed"),
        (1, ", -1 range of 262143 J that it missed"),
    ],
)
def test_ranges_of_rapl_that_zeus_missed_are_added_and_told(ranges, told):
    found = judged_cpu(510.0 + ranges * RANGE_J)
    assert (found["status"], found["method"]) == ("measured", f"Zeus: RAPL counter{told}")
    assert (found["total_energy_j"], found["energy_j"]) == (pytest.approx(510.0), pytest.approx(255.0)), "Zeus's own"
    assert found["net_energy_j"] == pytest.approx(255.0 - 10.0 * 10.0)
    assert found["power_ratio"] == pytest.approx(500.0 / 510.0)


@pytest.mark.parametrize("total_j", [450.0, 499.0, 600.0])
def test_where_no_range_was_missed_the_joules_of_the_cpu_stay_zeuss(total_j):
    """The trace's own counter is a cross-check, as a board's power is."""
    found = judged_cpu(total_j)
    assert (found["total_energy_j"], found["method"]) == (total_j, "Zeus: RAPL counter")
    assert (found["mean_power_w"], found["idle_w"]) == (pytest.approx(25.0), pytest.approx(10.0))
    assert found["power_ratio"] == pytest.approx(500.0 / total_j)


def test_without_a_trace_of_its_counter_a_cpu_that_wrapped_has_no_joules():
    found = judged_cpu(500.0 - RANGE_J, trace(cpu_0=(10.0, 25.0)))
    assert (found["status"], found["energy_j"], found["reason"]) == ("unavailable", None, RESET)
    found = judged_cpu(500.0 + RANGE_J, trace(cpu_0=(10.0, 25.0)))
    assert (found["status"], found["energy_j"], found["reason"]) == ("unavailable", None, RESET), "13 kW of a CPU"
    found = judged_cpu(500.0, trace(cpu_0=(10.0, 25.0)))
    assert (found["total_energy_j"], found["mean_power_w"], found["power_ratio"]) == (500.0, None, None)


def test_a_boards_counter_is_given_no_range():
    readings = trace(gpu_0=(90.0, 300.0, *BOTH), cpu_0=CPU)
    energy = [row("gpu:0", "gpu", "GPU-0", 6000.0 + RANGE_J, "Zeus")]
    (found,) = judged(energy, readings, [board()])["measurement"]["energy"]
    assert (found["total_energy_j"], found["method"]) == (6000.0 + RANGE_J, "Zeus")


@pytest.mark.parametrize(
    ("device", "boards", "reason"),
    [
        ("gpu:0", [board(mig=True, has_counter=False)], MIG),
        ("gpu:MIG-1", [board(None, uuid="MIG-1", mig=True, has_counter=False)], MIG),
        ("cpu:0", [], "no permission"),
    ],
)
def test_what_could_not_be_measured_stays_so(device, boards, reason):
    """A slice's board has watts, and they do not become the run's joules."""
    readings = trace(gpu_0=(90.0, 300.0, *BOTH), cpu_0=CPU)
    outcome = judged([row(device, device[:3], None, reason=reason)], readings, boards)
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["reason"], found["energy_j"]) == ("unavailable", reason, None)
    assert found["net_energy_j"] is found["power_ratio"] is None
    assert [epoch["energy"] for epoch in outcome["epochs"]] == [[]] * 3


@pytest.mark.parametrize("reason", ["Zeus: RuntimeError: lost", NO_COUNTER])
def test_a_board_whose_counter_failed_has_its_power_integrated_and_says_why(reason):
    outcome = judged([row("gpu:0", "gpu", "GPU-0", reason=reason)], trace(gpu_0=(90.0, 300.0, *BOTH)), [board()])
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["reason"], found["total_energy_j"]) == ("integrated", None, pytest.approx(6000.0))
    assert found["method"] == (POWERS if reason == NO_COUNTER else f"{POWERS}: {reason}")
    assert found["error_j"] >= 0.01 * found["energy_j"]


@pytest.mark.parametrize(
    ("says", "tick_s", "idle_w"),
    [
        (BOTH, 0.1, 90.0),  # by the power,
        (("power",), 0.1, 90.0),
        (("counter",), 0.05, 60.0),  # by the counter, which is fast enough for the baseline's 5 s,
        (("counter",), 0.6, None),  # or not, and its moves are seen too badly by readings 0.5 s apart
        ((), None, None),
    ],
)
def test_idle_watts_are_the_power_readings_where_there_are_any(says, tick_s, idle_w):
    readings = trace(gpu_0=(60.0, 300.0, *says))
    readings.series["gpu:0"].power_w = [value and value * 1.5 for value in readings.series["gpu:0"].power_w]
    energy = [row("gpu:0", "gpu", "GPU-0", 6000.0)]
    (found,) = judged(energy, readings, [board()], {"gpu:0": tick_s})["measurement"]["energy"]
    assert found["idle_w"] == (None if idle_w is None else pytest.approx(idle_w))
    assert found["net_energy_j"] == (None if idle_w is None else pytest.approx(3000.0 - idle_w * 10.0))


def test_without_an_idle_baseline_there_are_no_net_joules(monkeypatch):
    monkeypatch.setitem(SPAN, "idle_end_s", SPAN["idle_begin_s"])
    energy = [row("gpu:0", "gpu", "GPU-0", 6000.0)]
    (found,) = judged(energy, trace(gpu_0=(90.0, 300.0, *BOTH)), [board()])["measurement"]["energy"]
    assert (found["idle_w"], found["net_energy_j"], found["energy_j"]) == (None, None, 3000.0)


def joules(outcome, device="gpu:0"):
    """A device's (joules, status, reason) at each epoch."""
    rows = [found for epoch in outcome["epochs"] for found in epoch["energy"] if found["device"] == device]
    return [(found["energy_j"], found["status"], found["reason"]) for found in rows]


def test_joules_of_an_epoch_count_from_the_windows_begin():
    readings = trace(gpu_0=(90.0, 300.0, *BOTH), gpu_1=(90.0, 200.0, *BOTH))
    energy = [row("gpu:0", "gpu", "GPU-0", 6000.0), row("gpu:1", "gpu", "GPU-1", 4000.0)]
    outcome = judged(energy, readings, [board(0), board(1)], {"gpu:0": 0.1, "gpu:1": 0.2}, elapsed_s=(0.0, 5.0, 10.2))
    assert joules(outcome) == [
        (None, "unavailable", "nothing trained yet"),
        (pytest.approx(1500.0), "measured", None),
        (pytest.approx(3060.0), "measured", None),
    ]
    assert joules(outcome, "gpu:1") == [
        (None, "unavailable", "nothing trained yet"),
        (pytest.approx(1000.0), "measured", None),
        (pytest.approx(2040.0), "measured", None),
    ]


def test_an_epoch_shorter_than_ten_ticks_of_a_counter_has_no_joules_by_it():
    readings = trace(gpu_0=(90.0, 300.0, *BOTH), gpu_1=(90.0, 200.0, *BOTH))
    energy = [row("gpu:0", "gpu", "GPU-0", 6000.0), row("gpu:1", "gpu", "GPU-1", 4000.0)]
    ticks = {"gpu:0": 0.1, "gpu:1": 0.6}
    outcome = judged(energy, readings, [board(0), board(1)], ticks, elapsed_s=(0.0, MIN_TICKS * 0.6 - 0.1, 6.1))
    slow = joules(outcome, "gpu:1")
    assert slow[1] == (None, "below_resolution", "shorter than 10 updates of the counter (0.6 s each)")
    assert slow[2] == (pytest.approx(1220.0), "measured", None)
    assert [j for j, _, _ in joules(outcome)[1:]] == pytest.approx([1770.0, 1830.0])


@pytest.mark.parametrize("tick_s", [None, 0.1])
def test_a_counter_that_stood_still_for_half_of_the_window_is_below_its_resolution(tick_s):
    readings = trace(gpu_0=(90.0, 300.0, *BOTH))
    counter = readings.series["gpu:0"].energy_j
    readings.series["gpu:0"].energy_j = [counter[30] if 100 <= t <= 110 else value
                                         for t, value in zip(readings.times_s, counter, strict=True)]  # fmt: skip
    outcome = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()], {"gpu:0": tick_s})
    (found,) = outcome["measurement"]["energy"]
    assert (found["status"], found["tick_s"]) == ("below_resolution", pytest.approx(10, abs=0.6))


def test_an_epoch_after_the_last_reading_has_no_joules():
    readings = trace(gpu_0=(90.0, 300.0, "counter"))
    del readings.times_s[60:], readings.series["gpu:0"].energy_j[60:], readings.series["gpu:0"].power_w[60:]
    outcome = judged([row("gpu:0", "gpu", "GPU-0", 6000.0)], readings, [board()])
    assert joules(outcome)[1][1] == "measured"
    assert joules(outcome)[2] == (None, "unavailable", "the trace has no reading on both sides")


def test_epochs_have_a_row_of_each_device_that_was_read():
    """Which of them make a run's headline is for the analysis to say."""
    readings = trace(gpu_0=(90.0, 300.0, *BOTH), gpu_1=(90.0, 200.0, *BOTH), cpu_0=(20.0, 50.0, "counter"))
    energy = [
        row("gpu:0", "gpu", "GPU-0", 6000.0),
        row("gpu:1", "gpu", "GPU-1", reason=MIG),
        row("cpu:0", "cpu", None, 1000.0 - RANGE_J, "Zeus: RAPL counter"),
        row("dram:0", "dram", None, reason="none"),
    ]
    outcome = judged(energy, readings, [board(0), board(1, mig=True)])
    for epoch in outcome["epochs"]:
        assert [found["device"] for found in epoch["energy"]] == ["gpu:0", "cpu:0"]
    assert joules(outcome)[1:] == [
        (pytest.approx(1500.0), "measured", None),
        (pytest.approx(6000.0), "measured", None),
    ]
    assert [j for j, _, _ in joules(outcome, "cpu:0")] == [None, pytest.approx(250.0), pytest.approx(1000.0)]


def test_a_board_that_was_not_read_in_an_epoch_has_no_joules_of_it():
    readings = trace(gpu_0=(90.0, 300.0, *BOTH), gpu_1=(90.0, 200.0, *BOTH))
    lost = readings.series["gpu:1"]
    lost.energy_j[50:], lost.power_w[50:] = [None] * 31, [None] * 31  # from 110 on
    two = [row("gpu:0", "gpu", "GPU-0", 6000.0), row("gpu:1", "gpu", "GPU-1", 4000.0)]
    outcome = judged(two, readings, [board(0), board(1)])
    assert [j for j, _, _ in joules(outcome)[1:]] == pytest.approx([1500.0, 6000.0])
    assert joules(outcome, "gpu:1")[1:] == [
        (pytest.approx(1000.0), "measured", None),
        (None, "unavailable", "the trace has no reading on both sides"),
    ]


def test_devices_that_the_trace_does_not_have_do_no_harm():
    rows = [row("gpu:0", "gpu", "GPU-0", 6000.0), row("cpu:0", "cpu", None, reason="none"),
            row("gpu:MIG-1", "gpu", "MIG-1", reason=MIG)]  # fmt: skip
    found = judged(rows, trace(gpu_0=(90.0, 300.0, *BOTH)), [board()])["measurement"]["energy"]
    assert [(r["idle_w"], r["mean_power_w"]) for r in found[1:]] == [(None, None)] * 2
