"""Judge the promises about a run's joules by raw readings: the certificate, as a pure function of the readings.

Each promise gets a verdict with a number, its error, and a bound: it holds if the number plus its error is within the
bound, fails if the number minus its error is beyond it, and is otherwise "not tried", with the reason. A promise about
several windows or loads fails if one of them fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from joulesweep import __version__
from joulesweep.certify import counter_checks, power_checks
from joulesweep.certify.blocks import BLOCKS
from joulesweep.certify.power_checks import IDLE_S, told_w
from joulesweep.certify.readings import Block, Channel, Readings
from joulesweep.certify.replay import Found, joined, update_s
from joulesweep.measure import settling, verdict
from joulesweep.measure.certificate import FAILS, FORMAT, HOLDS, NOT_TRIED, VERSION, judge, worst
from joulesweep.measure.trace import MAX_LOST
from joulesweep.plan import staleness

COST = 0.005  # share of a window of HEADLINE_S that metering may take
HEADLINE_S, HEADLINE_TICKS = 30.0, 100
DIGITS = 6  # significant digits of a number in a certificate
#: Promises that cannot be judged if other processes use the board or its clocks are lowered in these blocks.
ALONE = {
    "lag": ("bursts",),
    "steps": ("bursts",),
    "idle": ("idle", "context", "rest"),
    "settling": ("idle", "steady", "rest"),
    "slowdown": tuple(BLOCKS),  # the block `cost` itself does not read processes or clocks
}
RULES = {"anchor": "temperature before the load", "slope": "slope", "power": "power"}  # rules of `settling`


#: The promises as sentences, by name, in the order of the certificate.
PROMISES: dict[str, str] = {
    "answers": "At most 1 % of the counter's readings, and of power readings, fail.",
    "falls": "The counter never falls, except at the end of its range.",
    "tick": "The counter moves as often under load as at rest, where a run's tick is measured; it stands still for no "
    "more than 1.25 ticks and 5 ms.",
    "window": "A window of T seconds, by the bare counter, is off by at most 2·tick/T + 0.2 %.",
    "bound": "Joules of a run are within their own error_j, by the counter and the trace's readings around the edges.",
    "lag": "Between its moves the counter lags by at most a tick.",
    "steps": "Joules of a window that begins at rest and ends under load are within their own error_j.",
    "cross-check": "Mean power × time is within 10 % of the counter's joules, under steady and square loads.",
    "integrated": "Without a counter, joules of a run's power readings are within their own error_j of all readings.",
    "idle": "5 s of rest with the context up give the idle power to 5 %.",
    "settling": "A board that counts as settled after a load is within 3 °C of its temperature before it.",
    "cost": "Metering takes less than 0.5 % of a window of 30 s: the meter's calls and the CPU time of the trace.",
    "slowdown": "Metering slows the work by less than 0.5 %.",
}


def certificate(readings: Readings) -> Found:
    """Make the certificate of a device.

    Args:
        readings: the raw readings.

    Returns:
        {format, version, code, made, host, device, name, identity, budget_s, took_s, complete, readings, load,
        promises, disturbed, advice, counters, sensors, idle, settling, cost, latency, blocks}; see `PROMISES` for the
        verdicts.
    """
    header = readings.header
    counters = {device["device"]: _counter(readings, device) for device in header["devices"]}
    power = {
        "idle": power_checks.idle(readings),
        "settling": power_checks.cooling(readings),
        "cost": power_checks.cost(readings),
    }
    promises = [judged for device in header["devices"] for judged in _of_counter(device, counters[device["device"]])]
    promises += _of_power(header, counters, power, readings)
    disturbed = power_checks.disturbances(readings)
    promises = [_alone(judged, disturbed) for judged in promises]
    order = list(PROMISES)
    promises.sort(key=lambda judged: (judged["device"] != header["device"], order.index(judged["promise"])))
    made = {
        "format": FORMAT,
        "version": VERSION,
        "code": {"joulesweep": __version__, "digest": staleness.code_digest(__name__, "certificate")},
        **{key: header[key] for key in ("made", "host", "device", "name", "identity", "budget_s")},
        "took_s": max((block.end_s for block in readings.blocks.values()), default=0.0),
        "complete": list(readings.blocks) == list(BLOCKS),
        "readings": {"file": readings.file, "digest": readings.digest},
        "load": readings.blocks["context"].more if "context" in readings.blocks else {},
        "promises": promises,
        "disturbed": disturbed,
        "advice": _advice(header, counters),
        "counters": counters,
        "sensors": {kind: update_s(readings, kind) for kind in ("instant", "average")},
        **power,
        "latency": _latency(readings),
        "blocks": [_described(block) for block in readings.blocks.values()],
    }
    return dict(_rounded(made))


def lines(made: Mapping[str, Any]) -> list[str]:
    """A certificate's verdicts as lines of text; promises with the same verdict and number share a line."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for judged in made["promises"]:
        names.setdefault((judged["device"], judged["verdict"], told(judged)), []).append(judged["promise"])
    verdict_lines = [
        f"{device} {', '.join(some)}: {verdict}, {text}" for (device, verdict, text), some in names.items()
    ]
    return verdict_lines + [f"{made['device']} in {row['block']}: {row['says']}" for row in made["disturbed"]]


def told(judged: Mapping[str, Any]) -> str:
    """The number and bound of a verdict as text, or the reason why there is none."""
    value, error, bound, unit = (judged[key] for key in ("value", "error", "bound", "unit"))
    if value is None:
        return str(judged["reason"])
    short = unit == "s" and max(abs(value), bound) < 1
    scale, name = (100, " %") if unit == "share" else (1000, " ms") if short else (1, f" {unit}".rstrip())
    least = 0.001 * bound  # show smaller numbers as 0
    size, error = (0.0 if abs(number or 0.0) < least else number for number in (value, error))
    number = f"{scale * size:.3g}" + (f" ± {scale * error:.2g}" if error else "") + name
    return f"{number}, bound {scale * bound:.3g}{name}" + (f" ({judged['reason']})" if judged["reason"] else "")


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a part of a certificate
    """Round all numbers to `DIGITS`: further digits are noise, and differ between machines."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def _described(block: Block) -> Found:
    numbers = {name: len(channel.times_s) for name, channel in block.channels.items()}
    failed = {name: number for name, channel in block.channels.items() if (number := channel.values.count(None))}
    whole = {
        "block": block.name,
        "seconds": block.end_s - block.begin_s,
        "reason": block.reason,
        "silent": block.silent,
    }
    return {**whole, "num_readings": numbers, "num_failed": failed}


def _latency(readings: Readings) -> list[Found]:
    """Duration of readings at rest and under load: median, 99th percentile and longest, in seconds."""
    rows = []
    for block in filter(None, (readings.blocks.get("idle"), readings.blocks.get("steady"))):
        for name, channel in block.channels.items():
            took_s = sorted(channel.took_s)
            if took_s:
                ends = {"median_s": took_s[len(took_s) // 2], "p99_s": took_s[int(0.99 * (len(took_s) - 1))]}
                rows.append({"reading": name, "block": block.name, "num": len(took_s), **ends, "longest_s": took_s[-1]})
    return rows


def _counter(readings: Readings, device: Mapping[str, Any]) -> Found:
    """All numbers of one device's counter by group; a group without numbers has a `reason`."""
    if device["no_counter"] is not None:
        lacking: Found = {"reason": device["no_counter"], "rows": []}
        power = power_checks.cross_checks(readings, device, lacking["reason"], math.inf)
        return {"falls": lacking, "tick": lacking, "windows": lacking, "lag": lacking, **power}
    tick = counter_checks.ticks(readings, device)
    lag = counter_checks.bursts(readings, device, tick)
    late_s = abs(lag["lag_s"]) + lag["lag_error_s"] if "lag_s" in lag else math.inf
    return {
        "falls": counter_checks.falls(readings, device),
        "tick": tick,
        "windows": counter_checks.windows(readings, device, tick),
        "lag": lag,
        **power_checks.cross_checks(readings, device, None, late_s),
    }


def judged(
    promise: str, device: str, value: float | None, error: float, bound: float, unit: str = "share", reason: str = ""
) -> Found:
    """Judge a promise.

    Args:
        promise: its name.
        device: the device's name.
        value: the number that it is judged by, whose absolute value counts; None: not tried.
        error: error of the number.
        bound: largest allowed absolute value.
        unit: unit of all three: "share", "s", "°C", or "" for a count.
        reason: why it was not tried, or a remark.
    """
    judgement = NOT_TRIED if value is None else judge(value, error, bound)
    if value is not None and judgement == NOT_TRIED:
        reason = "; ".join(filter(None, [reason, "the error is too large to tell"]))
    row = {"promise": promise, "device": device, "says": PROMISES[promise], "verdict": judgement, "value": value}
    return {**row, "error": None if value is None else error, "bound": bound, "unit": unit, "reason": reason or None}


def _untried(promise: str, device: str, reason: str, bound: float = 0.0, unit: str = "share") -> Found:
    """The verdict "not tried" with its reason."""
    return judged(promise, device, None, 0.0, bound, unit, reason)


def _of_rows(promise: str, device: str, rows: Sequence[Found], shown: Found | None = None) -> Found:
    """The verdict on several windows or loads: that of the worst one (failed, then undecided, then nearest the bound).

    Args:
        promise: its name.
        device: the device's name.
        rows: at least one {value, error, bound, remark}.
        shown: the row whose numbers are shown if all hold; None: the worst.
    """
    row = worst(rows)
    if shown is not None and judge(row["value"], row["error"], row["bound"]) == HOLDS:
        row = shown
    return judged(promise, device, row["value"], row["error"], row["bound"], reason=row["remark"])


def _alone(row: Found, disturbed: Sequence[Mapping[str, str]]) -> Found:
    """A verdict, replaced by "not tried" if a disturbance of the board invalidates it."""
    by = [
        disturbance
        for disturbance in disturbed
        if disturbance["block"] in ALONE.get(row["promise"], ()) and row["value"] is not None
    ]
    if not by:
        return row
    reason = "; ".join(filter(None, [f"in {by[0]['block']}: {by[0]['says']}", row["reason"]]))
    return {**row, "verdict": NOT_TRIED, "reason": reason}


def _of_counter(device: Mapping[str, Any], numbers: Found) -> Iterable[Found]:
    """The verdicts of one counter."""
    name = device["device"]
    fallen = numbers["falls"]
    remark = fallen["reason"] or f"{fallen['num_readings']:,} readings, in the blocks and between them"
    yield judged("falls", name, fallen.get("num"), 0.0, 0.0, "", remark)
    yield _judged_tick(name, numbers["tick"])
    yield from _judged_windows(name, numbers["windows"])
    yield from _judged_steps(name, numbers["lag"], numbers["tick"])
    yield _judged_checks(name, numbers["cross_check"])
    yield _judged_joules("integrated", name, numbers["integrated"])


def _judged_checks(name: str, checks: Found) -> Found:
    """Verdict on power against the counter, with the power that runs use: instant power if the board reports it."""
    instant = [line for line in checks["rows"] if line["power"] == "instant"]
    rows = [{**line, "remark": f"{line['power']} power, {line['load']}"} for line in instant or checks["rows"]]
    if not rows:
        return _untried("cross-check", name, checks["reason"], verdict.CROSS_CHECK)
    decided = [line for line in rows if judge(line["value"], line["error"], line["bound"]) != NOT_TRIED]
    row = _of_rows("cross-check", name, decided or rows)
    steady, loads = any(line["load"] == "steady" for line in decided), [line["load"] for line in decided]
    if row["verdict"] == HOLDS and not (steady and len(loads) > 1):
        lacks = "no square load" if steady else "no steady load"
        return {**row, "verdict": NOT_TRIED, "reason": f"{row['reason']}; {lacks} could be judged"}
    others = [line["load"] for line in rows if line["load"] not in loads]
    return {**row, "reason": f"{row['reason']}{'; undecided: ' + ', '.join(others) if others and decided else ''}"}


def _judged_tick(name: str, tick: Found) -> Found:
    """Verdict on the counter's longest standstill, against the tick that a run would know."""
    rested, loaded = tick.get("idle") or tick.get("context"), tick.get("steady")
    if rested is None or loaded is None:
        return _untried("tick", name, tick["reason"] or "too few readings", unit="s")
    still_s, error_s = (max(row[key] for row in (rested, loaded)) for key in ("still_s", "read_late_s"))
    beyond = judge(still_s, error_s, tick["most_s"]) == FAILS
    seldom = "at rest" if rested["tick_s"] is None else "under load" if loaded["tick_s"] is None else None
    if not beyond and not (rested["resolved"] and loaded["resolved"]):
        every_s = max(row["read_every_s"] for row in (rested, loaded))
        most = f"the tick is at most {1000 * (tick['tick_s'] or 0.0):.3g} ms: read every {1000 * every_s:.2g} ms"
        return _untried("tick", name, f"it moved too seldom {seldom}" if seldom else most, tick["most_s"], "s")
    num, share = sum(row["num_long"] for row in (rested, loaded)), loaded["long_share"]
    long = f", {num} beyond the bound, {100 * share:.2g} % of the time under load" if num else ""
    moves = rested["num_moves"] + loaded["num_moves"]
    return judged("tick", name, still_s, error_s, tick["most_s"], "s", f"longest standstill of {moves:,} moves{long}")


def _judged_windows(name: str, windows: Found) -> Iterable[Found]:
    """Verdicts on windows: the bare counter against 2·tick/T + 0.2 %, and a run's joules against their own error."""
    lacks = windows["reason"] or windows.get("varied")
    if windows.get("still_s"):
        yield judged("window", name, -1.0, 0.0, windows["bound"], reason=lacks or "")
    elif lacks is not None:
        yield _untried("window", name, lacks)
    else:
        yield _of_windows("window", name, windows, "bare")
    judgeable = [line for line in windows["rows"] if line["own"]["num"]]
    if judgeable:
        yield _of_windows("bound", name, {**windows, "rows": judgeable}, "own")
    else:
        yield _untried("bound", name, windows["reason"] or "no window of the log is as long as ten ticks")


def _of_windows(promise: str, name: str, windows: Found, key: str) -> Found:
    """Verdict on windows of the lengths whose truth is mostly known well enough; if all hold, show the longest."""
    lines = [line for line in windows["rows"] if 2 * line[key]["num_told"] > line[key]["num"]]
    if not lines:
        return _untried(promise, name, "the counter's moves are known too coarsely to judge windows by")
    num, beyond = (sum(line[key][count] for line in lines) for count in ("num_told", "num_beyond"))
    every = f"{beyond} of {num} of {lines[0]['window_s']:g} s and more beyond"
    rows = [{**line[key]["judged"], "remark": f"{_windows(line)}; {every}"} for line in lines]
    return _of_rows(promise, name, rows, shown=rows[-1])


def _windows(line: Found) -> str:
    apart = line["num_apart"]
    return f"the worst of {line['num']} windows of {line['window_s']:g} s ({apart} fit side by side)"


def _judged_steps(name: str, lag: Found, tick: Found) -> Iterable[Found]:
    """Verdicts on the counter's lag, and on joules of bursts."""
    bound_s, num = counter_checks.most_s(tick.get("tick_s")), len(lag["rows"])
    remark = lag["reason"] or f"bursts: {num}; ± 2 standard errors of their mean, and how well each is known"
    yield judged("lag", name, lag.get("lag_s"), lag.get("lag_error_s", 0.0), bound_s, "s", remark)
    yield _judged_joules("steps", name, lag)


def _judged_joules(promise: str, name: str, numbers: Found) -> Found:
    """Verdict on joules of some windows, each against its own bound and the error of the truth."""
    rows = [_relative(line) for line in numbers.get("rows", [])]
    if not rows:
        return _untried(promise, name, numbers["reason"])
    beyond = sum(judge(row["value"], row["error"], row["bound"]) == FAILS for row in rows)
    remarks = [f"{beyond} of {len(rows)} windows beyond; the worst, of {row['window_s']:.3g} s" for row in rows]
    return _of_rows(promise, name, [{**row, "remark": remark} for row, remark in zip(rows, remarks, strict=True)])


def _relative(line: Found) -> Found:
    off_j, true_j = line["energy_j"] - line["true_j"], line["true_j"]
    return {**line, "value": off_j / true_j, "error": line["true_error_j"] / true_j, "bound": line["error_j"] / true_j}


def _of_power(
    header: Mapping[str, Any], counters: Mapping[str, Found], power: Found, readings: Readings
) -> Iterable[Found]:
    """The verdicts of a device as a whole."""
    name = header["device"]
    none = header["devices"][0]["no_counter"] if not readings.blocks or not any(_read(readings)) else None
    yield _judged_answers(readings, none)
    yield _judged_idle(name, power["idle"], none)
    yield _judged_settling(name, power["settling"], none, header["devices"][0]["kind"])
    yield from _judged_cost(name, power["cost"], none)


def _read(readings: Readings) -> list[bool]:
    return [bool(block.channels) for block in readings.blocks.values()]


def _judged_answers(readings: Readings, none: str | None) -> Found:
    """Verdict on failed readings of the counters and of the power that a run reads."""
    header, rows = readings.header, []
    power = "instant" if header["identity"]["instant"] else "average"
    for name in (*(device["device"] for device in header["devices"]), power):
        values = joined(readings, name).channels.get(name, Channel()).values
        if values:
            failed = values.count(None)
            remark = f"{failed:,} of {len(values):,} of {name}"
            rows.append({"value": failed / len(values), "error": 0.0, "bound": MAX_LOST, "remark": remark})
    if not rows:
        return _untried("answers", header["device"], none or "nothing was read", MAX_LOST)
    return _of_rows("answers", header["device"], rows)


def _judged_idle(name: str, idle: Found, none: str | None) -> Found:
    first, rest_w = idle["first"] and told_w(idle["first"]), idle["rest_w"]
    if first is None or not rest_w:
        return _untried("idle", name, none or idle["reason"] or "too little was read", verdict.IDLE_ERROR)
    first_w, error_w = first
    remark = f"{first_w:.4g} W in the first {IDLE_S:g} s, {rest_w:.4g} W at rest"
    error = (error_w + idle["rest_error_w"]) / rest_w
    return judged("idle", name, first_w / rest_w - 1, error, verdict.IDLE_ERROR, reason=remark)


def _judged_settling(name: str, cooled: Found, none: str | None, kind: str) -> Found:
    if kind != "gpu":
        return _untried("settling", name, none or "runs wait for boards alone to settle", settling.NEAR_C, "°C")
    met = [rule for rule in cooled.get("rules", []) if rule["settled_c"] is not None]
    if cooled["reason"] is not None or not met:
        reason = none or cooled["reason"] or f"it had not settled after {cooled['seconds']:.3g} s"
        return _untried("settling", name, reason, settling.NEAR_C, "°C")
    warmest = max(met, key=lambda rule: rule["settled_c"])
    remark = f"by its {RULES[warmest['settled_by']]} after {warmest['settled_s']:.3g} s"
    return judged("settling", name, warmest["settled_c"] - cooled["before_c"], 0.0, settling.NEAR_C, "°C", remark)


def _judged_cost(name: str, cost: Found, none: str | None) -> Iterable[Found]:
    if cost["reason"] is not None or none is not None:
        for promise in ("cost", "slowdown"):
            yield _untried(promise, name, none or cost["reason"], COST)
        return
    parts = (cost["trace_share"], cost["calls_s"])
    if None in parts:
        reason = cost["calls_reason"] or "the trace was too short to measure its CPU time"
        yield _untried("cost", name, reason, COST)
    else:
        share = cost["trace_share"] + cost["calls_s"] / HEADLINE_S
        yield judged("cost", name, share, 0.0, COST, reason=f"calls {1000 * cost['calls_s']:.2g} ms")
    error = None if cost["slower_high"] is None else (cost["slower_high"] - cost["slower_low"]) / 2
    if error is None:
        yield _untried("slowdown", name, f"{cost['num_pairs']} pairs have no interval", COST)
    else:  # work that is faster with metering is not slowed
        value = max(0.0, cost["slower"])
        yield judged("slowdown", name, value, error, COST, reason=f"{cost['num_pairs']} pairs, 95 % interval")


def _advice(header: Mapping[str, Any], counters: Mapping[str, Found]) -> list[str]:
    """Advice for the keys of a config."""
    ticks = [numbers["tick"]["tick_s"] for numbers in counters.values() if numbers["tick"].get("tick_s")]
    if not ticks:
        return []
    gpu, tick_s = header["devices"][0]["kind"] == "gpu", max(ticks)
    least_s = max(HEADLINE_TICKS * tick_s, HEADLINE_S if gpu else 0.0)
    error = 2 * tick_s / least_s + verdict.CLOCKS
    return [
        f"measure.min_seconds of {least_s:.3g} or more: {least_s / tick_s:.3g} ticks of {1000 * tick_s:.3g} ms, "
        f"and joules by the bare counter are off by at most {100 * error:.2g} %"
    ]
