"""Analyse raw readings of a counter: how often it moves, how wrong windows are, and how far it lags."""

from __future__ import annotations

import bisect
import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep.certify.readings import Block, Channel, Readings, Span
from joulesweep.certify.replay import (
    FEW,
    SKIP_S,
    Counter,
    Found,
    Move,
    Replay,
    counted,
    inside,
    joined,
    measured,
    power_of,
    update_s,
    why,
)
from joulesweep.measure import counter, verdict
from joulesweep.measure.certificate import FAILS, NOT_TRIED, judge, worst
from joulesweep.measure.sensors import TICK_LIMIT_S

WINDOWS_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0)
NUM_WINDOWS = 60  # windows of each length, at random moments of one log
NUM_TRACES = 4  # replayed traces, which the windows use in turn
LATE_S = 0.02  # how long a load may take to start, if no power readings show it
CHANGED = 0.2  # a load that changes the power by less is steady, and shows no steps
FINE = 0.25  # a window is judged only if the error of its truth is at most this share of the bound
RESOLVED = 3  # least number of readings per tick; with fewer, the tick may be shorter


def ticks(readings: Readings, device: Mapping[str, Any]) -> Found:
    """How often the counter moves: at rest, with the context up, and under load."""
    rows: Found = {}
    tick_s = None
    for name in ("idle", "context", "steady"):
        rows[name] = _ticks(counted(readings.blocks.get(name), device), tick_s)
        tick_s = tick_s or (rows[name] and rows[name]["tick_s"])
    lacks = why(readings, "idle", device) or why(readings, "steady", device)
    reason = lacks or (None if tick_s else "the counter moved fewer than three times")
    return {"tick_s": tick_s, "reason": reason, "most_s": most_s(tick_s), **rows}


def most_s(tick_s: float | None) -> float:
    """How long a counter may stand still, in seconds; if its tick is unknown, as long as a run watches for one."""
    return TICK_LIMIT_S if tick_s is None else verdict.TICK_OFF * tick_s + verdict.TICK_OFF_S


def _ticks(log: Counter | None, known_s: float | None) -> Found | None:
    """How a counter moved in a block; its tick is null if it moved too seldom."""
    if log is None or log.reset or len(log.times_s) < FEW:
        return None
    moves = log.moves()
    steps = counter.steps(log.times_s, log.joules, log.took_s, log.times_s[0], log.times_s[-1])
    pairs = list(itertools.pairwise(moves)) if len(moves) >= FEW else []
    tick_s = statistics.median(after.at_s - before.at_s for before, after in pairs) if pairs else None
    apart_s = sorted(after - before for before, after in itertools.pairwise(log.times_s))
    every_s = apart_s[len(apart_s) // 2]
    long_s = [low_s for before, after in pairs if (low_s := after.low_s - before.high_s) > most_s(known_s or tick_s)]
    return {
        "tick_s": tick_s,
        "resolved": tick_s is not None and tick_s >= RESOLVED * every_s,
        "still_s": steps.still_s,
        "num_moves": len(moves),
        "num_long": len(long_s),
        "long_share": sum(long_s) / (log.times_s[-1] - log.times_s[0]),
        "step_j": statistics.median(after.joules - before.joules for before, after in pairs) if pairs else None,
        "read_every_s": every_s,
        "read_late_s": apart_s[int(0.99 * (len(apart_s) - 1))],
    }


def falls(readings: Readings, device: Mapping[str, Any]) -> Found:
    """How often a counter fell, within blocks and between them, and the number of its readings."""
    log = counted(joined(readings, device["device"]), device)
    reason = why(readings, "idle", device) if log is None else None
    return {"reason": reason, "num": None if log is None else log.falls, "num_readings": log and len(log.times_s)}


def windows(readings: Readings, device: Mapping[str, Any], tick: Found) -> Found:
    """Errors of windows of several lengths, at random moments of the log under steady load.

    A long standstill counts as a window with an error of -100 %, because the counter misses all of its energy.
    """
    block = readings.blocks.get("steady")
    log, reason = counted(block, device), why(readings, "steady", device)
    if log is None or block is None or reason is not None or tick["tick_s"] is None or tick["steady"] is None:
        return {"reason": reason or tick["reason"] or "too few readings under load", "rows": []}
    begin_s, end_s = inside(block.spans[0])
    moves = log.moves()
    still_s = tick["steady"]["still_s"]
    bound = _bound(tick["tick_s"], max(still_s, WINDOWS_S[0]))
    if still_s >= WINDOWS_S[0] and judge(1.0, 0.0, bound) == FAILS:
        reason = f"the counter stood still for {still_s:.3g} s under load"
        return {"reason": reason, "still_s": still_s, "bound": bound, "rows": []}
    if len(moves) < FEW:
        return {"reason": "the counter moved fewer than three times", "rows": []}
    traces = [
        Replay(log, log.device, power_of(block, readings.header), readings.header["identity"]["instant"], seed)
        for seed in range(NUM_TRACES)
    ]
    window_log = _Log(log, moves, traces, tick["tick_s"])
    rows = [window_log.windows(length_s, begin_s, end_s) for length_s in WINDOWS_S]
    known = [line for line in rows if line is not None]
    reason = None if known else f"the log of {end_s - begin_s:.3g} s has no window in it"
    return {"reason": reason, "log_s": end_s - begin_s, "varied": _varied(log, begin_s, end_s), "rows": known}


def _bound(tick_s: float, length_s: float) -> float:
    """Largest relative error that a window of the bare counter may have."""
    return 2 * tick_s / length_s + verdict.CLOCKS


def _varied(log: Counter, begin_s: float, end_s: float) -> str | None:
    """Reason why a load was not steady, second by second; None if it was. The bounds hold for steady loads only."""
    powers_w = [
        slope[0] for i in range(int(end_s - begin_s)) if (slope := log.slope(begin_s + i, begin_s + i + 1)) is not None
    ]
    if len(powers_w) < 2 or max(powers_w) - min(powers_w) <= CHANGED * statistics.median(powers_w):
        return None
    return f"the power went from {min(powers_w):.3g} to {max(powers_w):.3g} W under what should be a steady load"


@dataclass(frozen=True)
class _Log:
    """A counter's log, and the traces that a run would have recorded of it."""

    log: Counter
    moves: list[Move]
    traces: list[Replay]
    tick_s: float

    def windows(self, length_s: float, begin_s: float, end_s: float) -> Found | None:
        """Errors of windows of one length; None if the log is too short for them."""
        least_s, most_s = max(begin_s, self.moves[0].high_s), min(end_s, self.moves[-1].low_s)
        room_s = most_s - least_s - length_s - self.tick_s
        if room_s < min(self.tick_s, length_s):
            return None
        chance = random.Random(f"{length_s}")
        all_windows = []
        for i in range(NUM_WINDOWS):  # with whole ticks, both ends would have the same distance from a move
            at_s, longer_s = least_s + chance.random() * room_s, chance.random() * self.tick_s
            all_windows.append(self.window(at_s, length_s + longer_s, i))
        with_joules = [window for window in all_windows if window["own_j"] is not None and window["error_j"]]
        reason = None if with_joules else "a run has no joules of a window of fewer than ten ticks"
        return {
            "window_s": length_s,
            "num": len(all_windows),
            "num_apart": int((most_s - least_s) / length_s),
            "bound": _bound(self.tick_s, length_s),
            "bare": _judged(
                [_off(window, "bare_j", _bound(self.tick_s, window["window_s"])) for window in all_windows]
            ),
            "own": {
                **_judged([_off(window, "own_j", window["error_j"] / window["true_j"]) for window in with_joules]),
                "reason": reason,
            },
        }

    def window(self, at_s: float, length_s: float, number: int) -> Found:
        """A window that begins near a time: joules of the bare counter, of a run, and in truth."""
        first = bisect.bisect_left(self.log.times_s, at_s)
        last = min(len(self.log.times_s) - 1, bisect.bisect_left(self.log.times_s, self.log.times_s[first] + length_s))
        return measured(self.log, self.moves, self.traces[number % NUM_TRACES], first, last, self.tick_s)


def _off(window: Found, key: str, bound: float) -> Found:
    """Error of a window's joules, relative to the true ones."""
    off_j, true_j = window[key] - window["true_j"], window["true_j"]
    return {"value": off_j / true_j, "error": window["true_error_j"] / true_j, "bound": bound}


def _judged(offs: Sequence[Found]) -> Found:
    """Summary of windows of one length: their errors, and the worst window whose truth is known well enough."""
    values = [off["value"] for off in offs]
    known = [off for off in offs if off["error"] <= FINE * off["bound"]]
    verdicts = [judge(**off) for off in known]
    return {
        "num": len(offs),
        "bias": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "worst": max(values, key=abs, default=None),
        "bound": statistics.fmean(off["bound"] for off in offs) if offs else None,
        "num_told": len(known),
        "num_beyond": verdicts.count(FAILS),
        "num_undecided": verdicts.count(NOT_TRIED),
        "judged": worst(known) if known else None,
    }


def bursts(readings: Readings, device: Mapping[str, Any], tick: Found) -> Found:
    """How late the counter follows load steps, and the errors of windows between two of them."""
    block = readings.blocks.get("bursts")
    log, reason = counted(block, device), why(readings, "bursts", device)
    if log is None or block is None or reason is not None or tick["tick_s"] is None:
        return {"reason": reason or tick["reason"], "rows": []}
    instant = readings.header["identity"]["instant"]
    power, moves = power_of(block, readings.header), log.moves()
    trace = Replay(log, log.device, power, instant, 0)
    ramp_s = min(_shown_s(block, power, update_s(readings, "instant" if instant else "average")),
                 _counted_s(block, moves, tick["tick_s"]))  # fmt: skip
    rows, rest_s = [], block.begin_s
    for span in block.spans:
        rows.append(_burst(log, moves, trace, span, rest_s, ramp_s, tick["tick_s"]))
        rest_s = span.ended_s
    known = [line for line in rows if line is not None]
    few = f"bursts of {block.spans[0].ended_s - block.spans[0].began_s:.3g} s have too few moves of the counter"
    changed = [line for line in known if line["power_w"] - line["rest_w"] > CHANGED * line["power_w"]]
    if not changed:
        reason = "the load changed the power too little" if known else few
    return {"reason": reason, "ramp_s": ramp_s, **(_lags(changed) if changed else {}), "rows": changed}


def _lags(rows: Sequence[Found]) -> Found:
    lags_s = [line["lag_s"] for line in rows]
    deviation = statistics.stdev(lags_s) if len(rows) > 1 else 0.0
    error_s = 2 * deviation / len(rows) ** 0.5 + statistics.fmean(line["lag_error_s"] for line in rows)
    return {"lag_s": statistics.fmean(lags_s), "lag_error_s": error_s}


def _burst(
    log: Counter, moves: Sequence[Move], trace: Replay, span: Span, rest_s: float, ramp_s: float, tick_s: float
) -> Found | None:
    """One burst: the counter's lines at rest and under load cross when it responds; the second's slope is the power."""
    at_rest = log.slope(rest_s + (span.began_s - rest_s) / 2, span.began_s)
    loaded = log.slope((span.began_s + span.ended_s) / 2, span.ended_s)
    first = bisect.bisect_right(log.times_s, span.began_s) - 1
    last = bisect.bisect_left(log.times_s, span.ended_s)
    if at_rest is None or loaded is None or first < 0 or last >= len(log.times_s):
        return None
    rest_w, rest_error_w, _, before = at_rest
    power_w, power_error_w, _, after = loaded
    window = measured(log, moves, trace, first, last, tick_s)
    apart_w, length_s = power_w - rest_w, span.ended_s - span.began_s
    if window["own_j"] is None or apart_w <= 0:
        return None
    met_s = (before.joules - after.joules + power_w * after.at_s - rest_w * before.at_s) / apart_w
    lag_error_s = after.error_s + before.error_s + (power_error_w + rest_error_w) * length_s / 2 / apart_w
    true_j = power_w * length_s - apart_w * ramp_s / 2 + rest_w * (window["window_s"] - length_s)
    true_error_j = apart_w * ramp_s / 2 + power_error_w * length_s
    return {
        "window_s": window["window_s"],
        "rest_w": rest_w,
        "power_w": power_w,
        "lag_s": met_s - span.began_s,
        "lag_error_s": lag_error_s + ramp_s,
        "energy_j": window["own_j"],
        "error_j": window["error_j"],
        "true_j": true_j,
        "true_error_j": true_error_j,
    }


def _shown_s(block: Block, power: Channel, every_s: float | None) -> float:
    """Time that power takes from a tenth to nine tenths of a step, from its readings; infinite if none show it."""
    rises_s = []
    for span in block.spans:
        known = power.numbers(span.began_s - SKIP_S, span.ended_s)
        low = statistics.median([w for at_s, w in known if at_s < span.began_s] or [0.0])
        high = statistics.median([w for at_s, w in known if at_s > (span.began_s + span.ended_s) / 2] or [0.0])
        crossed = [
            next((at_s for at_s, w in known if at_s >= span.began_s and w >= low + share * (high - low)), None)
            for share in (0.1, 0.9)
        ]
        if high > (1 + CHANGED) * low and None not in crossed:
            rises_s.append(crossed[1] - crossed[0])  # type: ignore[operator]
    return statistics.median(rises_s) + 2 * every_s if rises_s and every_s is not None else float("inf")


def _counted_s(block: Block, moves: Sequence[Move], tick_s: float) -> float:
    """The same time from the number of the counter's moves that are neither at rest nor at full power.

    Averages over a second are too slow to show it, but moves show it.
    """
    nums = []
    for span in block.spans:
        before_s = max(SKIP_S, (FEW + 1) * tick_s)
        near = [move for move in moves if span.began_s - before_s <= move.at_s <= span.ended_s]
        powers_w = [(b.joules - a.joules) / (b.at_s - a.at_s) for a, b in itertools.pairwise(near)]
        if len(powers_w) < 2 * FEW:
            continue
        low_w, high_w = statistics.median(powers_w[:FEW]), statistics.median(powers_w[-FEW:])
        shares = [(watts - low_w) / (high_w - low_w) if high_w > low_w else 1.0 for watts in powers_w]
        full = next(i for i, share in enumerate([*shares, 1.0]) if share >= 0.9)
        nums.append(full - 1 - max((i for i, share in enumerate(shares[:full]) if share <= 0.1), default=-1))
    return max(LATE_S, (statistics.fmean(nums) - 0.5) * tick_s) if nums else LATE_S
