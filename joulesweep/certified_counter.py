"""What raw readings say of a counter: how often it moves, what windows by it are off by, and how late it answers."""

from __future__ import annotations

import bisect
import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep import counter, verdict
from joulesweep.readings import Block, Channel, Readings, Span
from joulesweep.replay import (
    FEW,
    SKIP_S,
    Counter,
    Found,
    Move,
    Replay,
    counted,
    every_s,
    inside,
    measured,
    power_of,
    why,
)

WINDOWS_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0)
NUM_WINDOWS = 60  # of each length, at random moments of one log
NUM_TRACES = 4  # as a run would have read it; the windows share them out
LATE_S = 0.02  # how long a load may take to start, where no power readings tell
CHANGED = 0.2  # a load that changes the power by less says nothing of steps


def ticks(found: Readings, device: Mapping[str, Any]) -> Found:
    """How often the counter moves: at rest, with the context up, and under load."""
    rows = {name: _ticks(counted(found.blocks.get(name), device)) for name in ("idle", "context", "steady")}
    reason = None if any(rows.values()) else why(found, "idle", device) or "the counter moved fewer than three times"
    known = [line["tick_s"] for line in (rows["idle"], rows["context"], rows["steady"]) if line]
    return {"tick_s": known[0] if known else None, "reason": reason, **rows}


def _ticks(one: Counter | None) -> Found | None:
    if one is None or one.reset:
        return None
    found = one.moves()
    steps = counter.steps(one.times_s, one.joules, one.took_s, one.times_s[0], one.times_s[-1])
    if len(found) < FEW:
        return None
    gaps_s = [after.at_s - before.at_s for before, after in itertools.pairwise(found)]
    steps_j = [after.joules - before.joules for before, after in itertools.pairwise(found)]
    apart_s = statistics.median(after - before for before, after in itertools.pairwise(one.times_s))
    return {
        "tick_s": statistics.median(gaps_s),
        "still_s": steps.still_s,
        "num_moves": len(found),
        "step_j": statistics.median(steps_j),
        "read_every_s": apart_s,
    }


def windows(found: Readings, device: Mapping[str, Any], tick: Found) -> Found:
    """Error of windows of many lengths, all from the log under steady load, at random moments."""
    block = found.blocks.get("steady")
    one, reason = counted(block, device), why(found, "steady", device)
    if one is None or block is None or reason is not None or tick["tick_s"] is None:
        return {"reason": reason or tick["reason"], "rows": []}
    begin_s, end_s = inside(block.spans[0])
    moves = one.moves()
    traces = [
        Replay(one, one.device, power_of(block, found.header), found.header["identity"]["instant"], seed)
        for seed in range(NUM_TRACES)
    ]
    log = _Log(one, moves, traces, tick["tick_s"])
    rows = [log.windows(length_s, begin_s, end_s) for length_s in WINDOWS_S]
    known = [line for line in rows if line is not None]
    reason = None if known else f"the log of {end_s - begin_s:.3g} s has no window in it"
    return {"reason": reason, "log_s": end_s - begin_s, "rows": known}


@dataclass(frozen=True)
class _Log:
    """A counter's log, and what a run would have seen of it."""

    one: Counter
    moves: list[Move]
    traces: list[Replay]
    tick_s: float

    def windows(self, length_s: float, begin_s: float, end_s: float) -> Found | None:
        """Errors of windows of one length; None where the log is too short for them."""
        low_s, high_s = max(begin_s, self.moves[0].high_s), min(end_s, self.moves[-1].low_s) - length_s
        if high_s - low_s < min(self.tick_s, length_s):
            return None
        chance = random.Random(f"{length_s}")
        found = [self.window(low_s + chance.random() * (high_s - low_s), length_s, i) for i in range(NUM_WINDOWS)]
        bare = [(one["bare_j"] - one["true_j"]) / one["true_j"] for one in found]
        own = [one for one in found if one["own_j"] is not None]
        errors = [(one["own_j"] - one["true_j"]) / one["true_j"] for one in own]
        use = [abs(one["own_j"] - one["true_j"]) / one["error_j"] for one in own if one["error_j"]]
        beyond = [
            one for one in own if abs(one["own_j"] - one["true_j"]) > (one["error_j"] or 0.0) + one["true_error_j"]
        ]
        return {
            "window_s": length_s,
            "num": len(found),
            "bound": 2 * self.tick_s / length_s + verdict.CLOCKS,
            "true_error": max(one["true_error_j"] / one["true_j"] for one in found),
            "bare": _spread(bare),
            "own": {
                **(_spread(errors) if errors else {}),
                "num": len(own),
                "bound": statistics.fmean(one["error_j"] / one["true_j"] for one in own if one["error_j"])
                if use
                else None,
                "use_of_bound": max(use, default=None),
                "num_beyond": len(beyond),
                "reason": None if own else "a run has no joules of a window of fewer than ten ticks",
            },
        }

    def window(self, at_s: float, length_s: float, number: int) -> Found:
        """A window that begins at about a time: joules by the bare counter, by a run's own way, and in truth."""
        first = bisect.bisect_left(self.one.times_s, at_s)
        last = min(len(self.one.times_s) - 1, bisect.bisect_left(self.one.times_s, self.one.times_s[first] + length_s))
        return measured(self.one, self.moves, self.traces[number % NUM_TRACES], first, last, self.tick_s)


def _spread(errors: Sequence[float]) -> Found:
    """Mean, standard deviation and the worst of relative errors."""
    deviation = statistics.stdev(errors) if len(errors) > 1 else None
    return {"bias": statistics.fmean(errors), "sd": deviation, "worst": max(errors, key=abs)}


def bursts(found: Readings, device: Mapping[str, Any], tick: Found) -> Found:
    """How late the counter answers load steps, and what joules of a window between two of them are off by."""
    block = found.blocks.get("bursts")
    one, reason = counted(block, device), why(found, "bursts", device)
    if one is None or block is None or reason is not None or tick["tick_s"] is None:
        return {"reason": reason or tick["reason"], "rows": []}
    power = power_of(block, found.header)
    ramp_s = _ramp_s(block, power)
    instant = found.header["identity"]["instant"]
    trace, moves = Replay(one, one.device, power, instant, 0), one.moves()
    rows, rest_s = [], block.begin_s
    for span in block.spans:
        rows.append(_burst(one, moves, trace, span, rest_s, ramp_s, tick["tick_s"]))
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
    one: Counter, moves: Sequence[Move], trace: Replay, span: Span, rest_s: float, ramp_s: float, tick_s: float
) -> Found | None:
    """One burst: the counter's lines at rest and under load meet when it answered; the latter's slope is the power."""
    at_rest = one.slope(rest_s + (span.began_s - rest_s) / 2, span.began_s)
    loaded = one.slope((span.began_s + span.ended_s) / 2, span.ended_s)
    first = bisect.bisect_right(one.times_s, span.began_s) - 1
    last = bisect.bisect_left(one.times_s, span.ended_s)
    if at_rest is None or loaded is None or first < 0 or last >= len(one.times_s):
        return None
    rest_w, rest_error_w, _, before = at_rest
    power_w, power_error_w, _, after = loaded
    window = measured(one, moves, trace, first, last, tick_s)
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


def _ramp_s(block: Block, power: Channel) -> float:
    """How long the power takes from a tenth to nine tenths of a step, by its readings; `LATE_S` where none tell."""
    found = []
    for span in block.spans:
        known = power.numbers(span.began_s - SKIP_S, span.ended_s)
        low = statistics.median([w for at_s, w in known if at_s < span.began_s] or [0.0])
        high = statistics.median([w for at_s, w in known if at_s > (span.began_s + span.ended_s) / 2] or [0.0])
        crossed = [
            next((at_s for at_s, w in known if at_s >= span.began_s and w >= low + share * (high - low)), None)
            for share in (0.1, 0.9)
        ]
        if high > (1 + CHANGED) * low and None not in crossed:
            found.append(crossed[1] - crossed[0])  # type: ignore[operator]
    return statistics.median(found) + 2 * every_s(power) if found else LATE_S
