"""Joules of simulated counters stay within the bound that they come with, whatever the board draws."""

from __future__ import annotations

import random
import statistics

import fake_meters
import pytest
import tiers

from joulesweep.core.outcome import CounterReads, Span, as_json
from joulesweep.measure import trace as trace_module
from joulesweep.measure import verdict
from joulesweep.measure.meters import GPU, Traits
from joulesweep.measure.trace import Series, Trace
from joulesweep.measure.window import NO_COUNTER, reading

IDLE_S, GAP_S, AFTER_S = 5.0, 2.0, 3.0


def traits(instant):
    return Traits(kind=GPU, source="NVML", power="instant" if instant else "as the driver averages it")


class Simulated:
    """A board, its trace and its window: idle, a gap, the window under load, and what comes after.

    Args:
        seed: of the phases of counter, load and readings.
        draw: of the window, as in fake_meters.BOARD.
        before_w: what it draws before and after the window; None: the same as in it.
        tick_s: of the counter.
        window_s: its length.
        average_s: power is reported as the mean of so many seconds; 0: it is instant.
        reset_s: when the counter is reset, in seconds from the window's begin.
        num_passes: of the window.
    """

    def __init__(self, seed, draw, before_w, tick_s, window_s, *, average_s=0.0, reset_s=None, counted=True):
        chance = random.Random(seed)
        self.draw, self.before_w, self.window_s, self.average_s = draw, before_w, window_s, average_s
        self.begin_s = 1000 + chance.random() * 50
        self.end_s = self.begin_s + window_s
        self.tick_s, self.phase_s = tick_s, chance.random() * tick_s
        self.reset_s = None if reset_s is None else self.begin_s + reset_s
        self.trace = Trace([], [])
        self.trace.traits = {"gpu:0": traits(not average_s)}
        slot_s, series = self.begin_s - GAP_S - IDLE_S - 1 + chance.random(), Series()
        while slot_s < self.end_s + AFTER_S:
            at_s = slot_s + chance.random() * trace_module.PERIOD_S
            self.trace.times_s.append(at_s)
            series.energy_j.append(self.counter_j(at_s) if counted else None)
            series.power_w.append(self.power_w(at_s))
            slot_s += trace_module.PERIOD_S
        self.trace.series = {"gpu:0": series}

    def joules(self, at_s):
        """True joules up to a moment."""
        if self.before_w is None:
            return fake_meters.joules_until(self.draw, at_s)
        inside_s = min(max(at_s, self.begin_s), self.end_s)
        drawn_j = fake_meters.joules_until(self.draw, inside_s) - fake_meters.joules_until(self.draw, self.begin_s)
        return self.before_w * (at_s - inside_s + self.begin_s) + drawn_j

    def counter_j(self, at_s):
        moved_s = (at_s - self.phase_s) // self.tick_s * self.tick_s + self.phase_s
        gone_j = self.joules(self.reset_s) if self.reset_s is not None and moved_s >= self.reset_s else 0.0
        return round(1000 * (self.joules(moved_s) - gone_j)) / 1000

    def power_w(self, at_s):
        if self.average_s:
            return (self.joules(at_s) - self.joules(at_s - self.average_s)) / self.average_s
        inside = self.before_w is None or self.begin_s <= at_s < self.end_s
        return fake_meters.watts_at(self.draw, at_s) if inside else self.before_w

    def judged(self, known_tick_s="true", reason=None):
        """The board's row."""
        begin_j = self.counter_j(self.begin_s)
        if reason is None:
            edges = {edge: (at_s, at_s) for edge, at_s in (("begin_s", self.begin_s), ("end_s", self.end_s))}
            reads = CounterReads(begin_j=begin_j, **edges)
            total_j = self.counter_j(self.end_s) - begin_j
            read = reading("gpu:0", "gpu", "GPU-0", total_j, "Zeus: NVML energy counter", reads=reads)
        else:
            read = reading("gpu:0", "gpu", "GPU-0", reason=reason)
        idle_begin_s = self.begin_s - GAP_S - IDLE_S
        span = Span(begin_s=self.begin_s, end_s=self.end_s, idle_begin_s=idle_begin_s, idle_end_s=idle_begin_s + IDLE_S)
        window = verdict.Window(self.trace, span, self.window_s, 2)
        tick_s = self.tick_s if known_tick_s == "true" else known_tick_s
        return as_json(verdict.finalise_energy(read, window, tick_s, integrable=True))

    def error_j(self, found):
        return 2 * found["energy_j"] - (self.joules(self.end_s) - self.joules(self.begin_s))


SHAPES = {
    "constant": ("300", None),
    "load step": ("700", 100.0),
    "load step down": ("100", 700.0),
    "saw": ("saw:100:700:7.3", None),
    "square": ("90:690:2.9", None),
    "fast square": ("90:690:0.2013", None),
    "square as often as readings": ("90:690:0.1", None),
    "sine": ("sine:400:300:1.3", None),
    "slow sine": ("sine:400:300:11", 90.0),
    "pulse train": ("0:1000:0.9", 50.0),
}


@pytest.mark.parametrize("known", ["true", None], ids=["known tick", "unknown tick"])
@pytest.mark.parametrize("tick_s", tiers.first(3, [0.037, 0.1, 0.73, 0.02, 0.5]))
@pytest.mark.parametrize("shape", SHAPES)
def test_measured_joules_are_within_their_bound(shape, tick_s, known):
    draw, before_w = SHAPES[shape]
    num_measured = 0
    for seed in range(40):
        window_s = (5.2, 9.4, 15.1, 30.3)[seed % 4]
        board = Simulated(seed, draw, before_w, tick_s, window_s)
        found = board.judged(known)
        if found["status"] == "measured":
            num_measured += 1
            assert abs(board.error_j(found)) <= 2 * found["error_j"], (seed, window_s, found)
            assert (found["doubt"] is not None) == (shape == "load step down"), (
                seed,
                found,
            )  # it idles at 7 times that
        else:
            assert found["status"] == "below_resolution"
            assert window_s < 11 * (tick_s + 0.1)
    assert num_measured >= 20


@pytest.mark.parametrize(("tick_s", "window_s"), [(1.1, 4.38), (1.5, 4.14), (2.9, 31.3)])
def test_a_slow_counter_of_unknown_tick_is_measured_by_the_moves_of_the_run_or_not_at_all(tick_s, window_s):
    for seed in range(40):
        board = Simulated(seed, "300", None, tick_s, window_s)
        found = board.judged(None)
        assert found["idle_w"] == pytest.approx(300.0)
        assert found["tick_s"] in (None, pytest.approx(tick_s, abs=0.3)), "it may move less than three times"
        if found["tick_s"] is None or window_s < 10 * tick_s:
            assert (found["status"], found["energy_j"]) == ("below_resolution", None)
        if found["status"] == "measured":
            assert abs(board.error_j(found)) <= 2 * found["error_j"]


@pytest.mark.parametrize("tick_s", [0.1, 0.5])
def test_load_that_comes_and_goes_with_the_window_does_not_lower_the_mean_of_many_runs(tick_s):
    """A counter alone misses half of the last tick of the load, and has half a tick of the rest before it instead."""
    corrected, alone = [], []
    for seed in range(300):
        board = Simulated(seed, "700", 100.0, tick_s, 15.1)
        truth_j = board.joules(board.end_s) - board.joules(board.begin_s)
        corrected.append(board.error_j(board.judged()) / truth_j)
        alone.append((board.counter_j(board.end_s) - board.counter_j(board.begin_s)) / truth_j - 1)
    lost = tick_s / 2 * (1 - 100 / 700) / 15.1
    assert statistics.fmean(alone) == pytest.approx(-lost, rel=0.3)
    assert abs(statistics.fmean(corrected)) < lost / 4


@pytest.mark.parametrize("shape", SHAPES)
def test_integrated_power_is_within_its_bound(shape):
    """Also where a load keeps time with readings that come ten times a second."""
    draw, before_w = SHAPES[shape]
    for seed in range(40):
        window_s = (5.2, 9.4, 15.1, 30.3)[seed % 4]
        board = Simulated(seed, draw, before_w, 0.1, window_s, counted=False)
        found = board.judged(reason=NO_COUNTER)
        assert found["status"] == "integrated"
        assert abs(board.error_j(found)) <= 2 * found["error_j"], (seed, window_s, found)


@pytest.mark.parametrize("shape", ["load step", "slow sine", "constant"])
def test_power_that_the_board_averages_over_a_second_refutes_no_counter_that_is_right(shape):
    draw, before_w = SHAPES[shape]
    ratios = []
    for seed in range(80):
        board = Simulated(seed, draw, before_w, 0.1, 3.1 if shape == "load step" else 5.1, average_s=1.0)
        found = board.judged()
        assert (found["status"], found["doubt"]) == ("measured", None), (seed, found)
        assert abs(board.error_j(found)) <= 2 * found["error_j"]
        ratios.append(abs(found["power_ratio"] - 1))
    assert (max(ratios) > 0.1) == (shape != "constant"), "some are further apart than power of now may be"
