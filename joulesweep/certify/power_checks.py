"""Analyse raw power readings: against the counter, at rest and after a load; and the cost of metering."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from joulesweep.certify.blocks import PERIODS_S
from joulesweep.certify.readings import Block, Channel, Readings
from joulesweep.certify.replay import Found, Replay, counted, inside, mean_error_w, mean_w, power_of, update_s, why
from joulesweep.core.outcome import Span
from joulesweep.core.student import mean_interval
from joulesweep.measure import counter, settling, verdict
from joulesweep.measure.trace import AVERAGE_S, PERIOD_S
from joulesweep.measure.window import reading

LOADS = ("steady", *PERIODS_S)
IDLE_S = 5.0  # measure.idle_s on a GPU
COOLDOWN_S = 60.0  # measure.cooldown_s on a GPU
WARMED_C, FLAT_C = 3 * settling.NEAR_C, 1.0  # least warming by a load to judge cooling; most drift at rest


def cross_checks(readings: Readings, device: Mapping[str, Any], no_counter: str | None, late_s: float) -> Found:
    """Compare power readings with the counter under every load, and integrate power as a run would.

    Args:
        readings: the raw readings.
        device: a row of the header's `devices`.
        no_counter: why it has no counter, or None.
        late_s: how late its counter may be in seconds, infinite if unknown.
    """
    if device["kind"] != "gpu":
        reason = no_counter or "RAPL reports no power"
        return {"cross_check": {"reason": reason, "rows": []}, "integrated": {"reason": reason, "rows": []}}
    checks: list[Found] = []
    integrals: list[Found] = []
    reasons: list[str] = []
    for name in LOADS:
        block, lacks = readings.blocks.get(name), why(readings, name)
        if block is None or lacks is not None or not block.spans:
            reasons.append(lacks or "the measuring ended before")
            continue
        checks += _checks(readings, block, device, late_s)
        integral = _integral(block, readings.header)
        integrals += [] if integral is None else [integral]
    unread = not any(block.channels for block in readings.blocks.values())
    lacks = (
        no_counter
        if no_counter and unread
        else reasons[0]
        if reasons
        else "the counter or the power changed too seldom"
    )
    return {
        "cross_check": {"reason": None if checks else no_counter or lacks, "rows": checks},
        "integrated": {"reason": None if integrals else lacks, "rows": integrals},
    }


def _checks(readings: Readings, block: Block, device: Mapping[str, Any], late_s: float) -> list[Found]:
    """Ratios of instant and average power to the counter, between its moves, with their errors."""
    rows, log, span = [], counted(block, device), block.spans[0]
    begin_s, end_s = inside(span)
    for kind, mean_s in (
        ("instant", 0.0),
        ("average", AVERAGE_S),
    ):  # the first second averages over earlier power
        every_s = update_s(readings, kind)
        slope = None if log is None or log.reset else log.slope(max(begin_s, span.began_s + mean_s), end_s)
        if slope is None or every_s is None or slope[0] <= 0:
            continue
        counter_w, counter_error_w, first, last = slope
        points, length_s = block.channels.get(kind, Channel()).numbers(first.at_s, last.at_s), last.at_s - first.at_s
        power_w, error_w = mean_w(points), mean_error_w(points, max(every_s, mean_s))
        if power_w is None or error_w is None:
            continue
        if span.period_s is not None:  # at a turn that the span cuts, a late sensor sees another part
            shift_s = min(late_s + every_s + mean_s, span.period_s / 2)
            error_w += 2 * counter_w * shift_s / length_s
        ratio, error = power_w / counter_w, (error_w + counter_error_w) / counter_w
        sizes = {"counter_w": counter_w, "power_w": power_w, "ratio": ratio, "error": error}
        about = {"seconds": length_s, "num_readings": len(points), "worked": _worked(readings, block)}
        judged = {"value": ratio - 1, "bound": verdict.CROSS_CHECK}
        rows.append({"load": block.name, "power": kind, **about, **sizes, **judged})
    return rows


def _worked(readings: Readings, block: Block) -> float | None:
    """Share of the time in which the load worked, from its rate relative to the steady load."""
    steady = readings.blocks.get("steady")
    rates = [
        tried.spans[0].num_products / (tried.spans[0].ended_s - tried.spans[0].began_s)
        for tried in (block, steady)
        if tried is not None and tried.spans
    ]
    return rates[0] / rates[1] if len(rates) == 2 and rates[1] else None


def _integral(block: Block, header: Mapping[str, Any]) -> Found | None:
    """Joules from ten power readings a second, as for a board without a counter, against those from all readings.

    Both come from the same sensor, so the comparison does not show the sensor's own errors; the cross-check does.
    """
    power, (begin_s, end_s) = power_of(block, header), inside(block.spans[0])
    points = power.numbers(begin_s, end_s)
    true_w = mean_w(points)
    if true_w is None or end_s - begin_s < 3 * PERIOD_S:
        return None
    trace = Replay(None, header["device"], power, header["identity"]["instant"], 0)
    read = reading(header["device"], "gpu", None, reason="no counter")
    window = verdict.Window(trace, Span(begin_s=begin_s, end_s=end_s), end_s - begin_s, 1)
    judged = verdict.finalise_energy(read, window, None, integrable=True)
    if judged.energy_j is None:
        return None
    true_error_w = counter.sampling_error_w([w for _, w in points])
    return {
        "load": block.name,
        "window_s": end_s - begin_s,
        "energy_j": judged.energy_j,
        "error_j": judged.error_j,
        "true_j": true_w * (end_s - begin_s),
        "true_error_j": true_error_w * (end_s - begin_s),
    }


def idle(readings: Readings) -> Found:
    """Power at rest before the load starts, with its context up and after it; and the time that power took to fall."""
    rows: dict[str, Found | None] = {}
    device = readings.header["devices"][0]
    for name in ("idle", "context", "rest"):
        block = readings.blocks.get(name)
        if block is None or block.reason is not None:
            rows[name] = None
            continue
        begin_s = max(block.begin_s, block.end_s - IDLE_S) if name == "rest" else block.begin_s
        rows[name] = _rest_w(readings, block, device, begin_s, block.end_s)
    context, (rest_w, rest_error_w) = readings.blocks.get("context"), _lowest(rows["context"], rows["rest"])
    first = None
    if context is not None and context.reason is None and context.end_s - context.begin_s >= IDLE_S:
        first = _rest_w(readings, context, device, context.begin_s, context.begin_s + IDLE_S)
    after_s = _until_rest_s(readings, rest_w)
    reason = next(filter(None, (why(readings, "idle"), why(readings, "context"))), None)
    if reason is None and first is None:
        reason = f"the context was at rest for less than {IDLE_S:g} s"
    return {
        "reason": reason,
        **rows,
        "first": first,
        "rest_w": rest_w,
        "rest_error_w": rest_error_w,
        "fell_after_s": after_s,
    }


def _lowest(*rows: Found | None) -> tuple[float | None, float | None]:
    """The lowest mean power of some spans, with its error."""
    return min(filter(None, (told_w(row) for row in rows if row)), default=(None, None))


def told_w(rest: Found) -> tuple[float, float] | None:
    """Mean power of a span with its error, from power readings, else from the counter; None if neither has both."""
    known = ((rest[f"{key}_w"], rest[f"{key}_error_w"]) for key in ("power", "counter"))
    return next((both for both in known if None not in both), None)


def _rest_w(readings: Readings, block: Block, device: Mapping[str, Any], begin_s: float, end_s: float) -> Found:
    """Mean power of a span at rest, from power readings and from the counter."""
    log, instant = counted(block, device), readings.header["identity"]["instant"]
    slope = None if log is None or log.reset else log.slope(begin_s, end_s)
    kind, mean_s = ("instant", 0.0) if instant else ("average", AVERAGE_S)
    # The first second of an average is skipped, as in `verdict`: it averages over earlier power.
    points = power_of(block, readings.header).numbers(
        begin_s + (mean_s if end_s - begin_s > 2 * mean_s else 0.0), end_s
    )
    every_s = update_s(readings, kind)
    return {
        "seconds": end_s - begin_s,
        "power_w": mean_w(points),
        "power_error_w": mean_error_w(points, every_s and max(every_s, mean_s)),
        "counter_w": slope[0] if slope else None,
        "counter_error_w": slope[1] if slope else None,
    }


def _until_rest_s(readings: Readings, rest_w: float | None) -> float | None:
    """Seconds after the load until the mean power of a second stays within 5 % of rest; None if it never does."""
    block, steady = readings.blocks.get("rest"), readings.blocks.get("steady")
    if block is None or steady is None or not steady.spans or rest_w is None:
        return None
    points = power_of(block, readings.header).numbers()
    ended_s, calm_s = steady.spans[0].ended_s, None
    for begin_s in (ended_s + 0.5 * i for i in range(int(2 * (block.end_s - ended_s - 1)))):
        power_w = mean_w([(at_s, w) for at_s, w in points if begin_s <= at_s <= begin_s + 1])
        near = power_w is not None and power_w <= (1 + verdict.IDLE_ERROR) * rest_w
        calm_s = (begin_s - ended_s if calm_s is None else calm_s) if near else None
    return calm_s


def cooling(readings: Readings) -> Found:
    """How the board cools after the load, when the rule of runs calls it settled, and its temperature then."""
    idle, rest, steady = (readings.blocks.get(name) for name in ("idle", "rest", "steady"))
    reason = why(readings, "idle") or why(readings, "steady") or why(readings, "rest")
    if idle is None or rest is None or steady is None or reason is not None:
        return {"reason": reason}
    before = [c for _, c in idle.channels.get("temperature", Channel()).numbers()]
    points = _points(rest, steady.spans[0].ended_s, power_of(rest, readings.header))
    degrees = [(at_s, c) for at_s, c, _ in points if c is not None]
    if not before or not degrees:
        return {"reason": "the board reports no temperature"}
    before_c, loaded_c, ended_c = statistics.fmean(before), degrees[0][1], degrees[-1][1]
    if max(before) - min(before) > FLAT_C:
        reason = f"it was not at rest before the load: {min(before):g} to {max(before):g} °C"
    elif loaded_c - before_c < WARMED_C:
        reason = f"the load warmed it by {loaded_c - before_c:.2g} °C only"
    rules = [{"anchor_c": anchor_c, **_settled(points, anchor_c)} for anchor_c in (before_c, None)]
    return {
        "reason": reason,
        "before_c": before_c,
        "loaded_c": loaded_c,
        "ended_c": ended_c,
        "seconds": degrees[-1][0],
        "tau_s": _tau_s(degrees, before_c),
        "rules": rules,
    }


def _points(rest: Block, ended_s: float, power: Channel) -> list[settling.Point]:
    """Readings of the block `rest` in the form that the wait for a board to settle takes: (seconds, °C, W)."""
    degrees = rest.channels.get("temperature", Channel()).numbers()
    watts = power.numbers()
    times_s = [at_s for at_s, _ in watts]
    points: list[settling.Point] = []
    for at_s, c in degrees:
        i = bisect.bisect_right(times_s, at_s) - 1
        points.append((at_s - ended_s, c, watts[i][1] if i >= 0 else None))
    return points


def _settled(points: Sequence[settling.Point], anchor_c: float | None) -> Found:
    """When a wait that began with the rest would have ended, and the temperature then; None if it would not."""
    begin_s = points[0][0]
    moved = [(at_s - begin_s, c, w) for at_s, c, w in points]
    for i in range(1, len(moved) + 1):
        settled_by = settling.rested(moved[:i], anchor_c, COOLDOWN_S).settled_by
        if settled_by is not None:
            return {"settled_by": settled_by, "settled_s": points[i - 1][0], "settled_c": points[i - 1][1]}
    return {"settled_by": None, "settled_s": None, "settled_c": None}


def _tau_s(degrees: Sequence[tuple[float, float]], before_c: float) -> float | None:
    """Time constant of the board's cooling, in seconds; None if it was too little warmer than at rest."""
    logs = [(at_s, math.log(c - before_c)) for at_s, c in degrees if c - before_c >= 2]
    if len(logs) < 5 or logs[0][1] - logs[-1][1] < 0.5:
        return None
    slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
    return -1 / slope if slope < 0 else None


def cost(readings: Readings) -> Found:
    """Cost of metering: CPU time of the trace, time of the meter's calls, and slowdown of the work."""
    block, reason = readings.blocks.get("cost"), why(readings, "cost")
    if block is None or reason is not None:
        return {"reason": reason}
    metered = [span for span in block.spans if span.metered is not None and span.metered["trace_cpu_s"] is not None]
    trace = [span.metered["trace_cpu_s"] / (span.ended_s - span.began_s) for span in metered]  # type: ignore[index]
    calls_s = block.more["calls_s"]
    rates: dict[int, dict[bool, float]] = {}
    for span in block.spans:
        rate = span.num_products / (span.ended_s - span.began_s)
        rates.setdefault(span.pair or 0, {})[span.metered is not None] = rate
    slower = [1 - pair[True] / pair[False] for pair in rates.values() if len(pair) == 2 and pair[False]]
    between = mean_interval(slower) if slower else None
    return {
        "reason": None,
        "trace_share": statistics.fmean(trace) if trace else None,
        "calls_s": statistics.median(calls_s) if calls_s else None,
        "calls_reason": block.more["calls_reason"],
        "num_pairs": len(slower),
        "slower": between and between.mean,
        "slower_low": between and between.low,
        "slower_high": between and between.high,
        "pairs": slower,
    }


def disturbances(readings: Readings) -> list[Found]:
    """Other processes on a board, and reasons for lowered clocks, by block: {block, says}."""
    pids = {name: set().union(*_lists(block, "processes")) for name, block in readings.blocks.items()}
    # Do not compare with the load's own process id: in a container it differs from the driver's.
    came = pids.get("context", set()) - pids.get("idle", set())
    load = set(sorted(came & pids.get("steady", came))[:1])
    rows = []
    for name, block in readings.blocks.items():
        others, looks = sorted(pids[name] - load), _lists(block, "throttles")
        held = sorted(set().union(*looks))
        texts = [f"another process on the board ({', '.join(map(str, others))})"] if others else []
        if held:
            texts.append(f"clocks held down ({', '.join(held)}) in {sum(map(bool, looks))} of {len(looks)} looks")
        rows += [{"block": name, "says": "; ".join(texts)}] if texts else []
    return rows


def _lists(block: Block, name: str) -> list[list[Any]]:
    return [value for value in block.channels.get(name, Channel()).values if isinstance(value, list)]
