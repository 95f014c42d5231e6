"""What raw readings say of the promises that a run's joules come with: a certificate, as a pure function of them.

Each promise gets a verdict with the number that it is judged by, that number's own error, and the bound: it holds where
the number with its error is within the bound, fails where it is beyond without it, and else is not tried, with the
reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from joulesweep import certified_counter, certified_power, settling, verdict
from joulesweep.certificate import FAILS, FORMAT, HOLDS, NOT_TRIED, VERSION
from joulesweep.certified_power import IDLE_S
from joulesweep.readings import Block, Readings
from joulesweep.replay import Found

COST = 0.005  # share of a window of HEADLINE_S that metering may take
HEADLINE_S, HEADLINE_TICKS = 30.0, 100
DIGITS = 6  # of a number in a certificate
RULES = {"anchor": "temperature before the load", "slope": "slope", "power": "power"}  # by which a board settles


#: What is promised, by name: a sentence. The order is that of the certificate.
PROMISES: dict[str, str] = {
    "tick": "The counter moves as often under load as at rest, where a run's tick is measured; it stands still for no "
    "more than 1.25 ticks and 5 ms.",
    "window": "A window of T seconds, by the bare counter, is off by at most 2·tick/T + 0.2 %.",
    "bound": "Joules of a run are within their own error_j, by the counter and the trace's readings around the edges.",
    "lag": "Between its moves the counter lags behind by up to a tick, and not by more.",
    "steps": "Joules of a window that begins at rest and ends under load are within their own error_j.",
    "cross-check": "Mean power × time is within 10 % of the counter's joules, under loads that stay or come and go.",
    "integrated": "Joules of integrated power, for want of a counter, are within their own error_j of all readings.",
    "idle": "5 s of rest with the context up tell the idle power to 5 %.",
    "settling": "A board that counts as settled after a load is within 3 °C of its temperature before it.",
    "cost": "Metering takes less than 0.5 % of a window of 30 s: the meter's calls and the CPU time of the trace.",
    "slowdown": "Metering slows the work by less than 0.5 %.",
}


def certificate(found: Readings) -> Found:
    """The certificate of a device.

    Args:
        found: what was measured.

    Returns:
        {format, version, made, host, device, name, identity, budget_s, took_s, readings, promises, counters, power,
        latency, blocks, advice}; see `PROMISES` for the verdicts.
    """
    header = found.header
    counters = {device["device"]: _counter(found, device) for device in header["devices"]}
    power = {
        "idle": certified_power.idle(found),
        "settling": certified_power.cooling(found),
        "cost": certified_power.cost(found),
    }
    promises = [judged for device in header["devices"] for judged in _of_counter(device, counters[device["device"]])]
    promises += _of_power(header, counters, power, found)
    order = list(PROMISES)
    promises.sort(key=lambda judged: (judged["device"] != header["device"], order.index(judged["promise"])))
    made = {
        "format": FORMAT,
        "version": VERSION,
        **{key: header[key] for key in ("made", "host", "device", "name", "identity", "budget_s")},
        "took_s": max((block.end_s for block in found.blocks.values()), default=0.0),
        "readings": {"file": found.file, "digest": found.digest},
        "load": found.blocks["context"].more if "context" in found.blocks else {},
        "promises": promises,
        "advice": _advice(header, counters),
        "counters": counters,
        **power,
        "latency": _latency(found),
        "blocks": [_described(block) for block in found.blocks.values()],
    }
    return dict(_rounded(made))


def lines(made: Mapping[str, Any]) -> list[str]:
    """A certificate's verdicts as text; promises of which the same is said share a line."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for judged in made["promises"]:
        names.setdefault((judged["device"], judged["verdict"], told(judged)), []).append(judged["promise"])
    return [f"{device} {', '.join(some)}: {verdict}, {text}" for (device, verdict, text), some in names.items()]


def told(judged: Mapping[str, Any]) -> str:
    """What a promise was judged by, or why it was not, in words."""
    value, error, bound, unit = (judged[key] for key in ("value", "error", "bound", "unit"))
    if value is None:
        return str(judged["reason"])
    scale, name = (100, " %") if unit == "share" else (1000, " ms") if unit == "s" else (1, f" {unit}")
    least = 0.001 * bound  # less than that of a bound says nothing
    size, error = (0.0 if abs(number or 0.0) < least else number for number in (value, error))
    number = f"{scale * size:.3g}" + (f" ± {scale * error:.2g}" if error else "") + name
    return f"{number}, bound {scale * bound:.3g}{name}" + (f" ({judged['reason']})" if judged["reason"] else "")


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a part of a certificate
    """Numbers to some digits: more say nothing, and differ between machines."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def _described(block: Block) -> Found:
    numbers = {name: len(channel.times_s) for name, channel in block.channels.items()}
    whole = {
        "block": block.name,
        "seconds": block.end_s - block.begin_s,
        "reason": block.reason,
        "silent": block.silent,
    }
    return {**whole, "num_readings": numbers}


def _latency(found: Readings) -> list[Found]:
    """How long each reading took, at rest and under load: median, 99th percentile and longest, in seconds."""
    rows = []
    for block in filter(None, (found.blocks.get("idle"), found.blocks.get("steady"))):
        for name, channel in block.channels.items():
            took_s = sorted(channel.took_s)
            if took_s:
                ends = {"median_s": took_s[len(took_s) // 2], "p99_s": took_s[int(0.99 * (len(took_s) - 1))]}
                rows.append({"reading": name, "block": block.name, "num": len(took_s), **ends, "longest_s": took_s[-1]})
    return rows


def _counter(found: Readings, device: Mapping[str, Any]) -> Found:
    """All numbers of one device's counter, each group a mapping, or with a `reason` why there are none."""
    if device["no_counter"] is not None:
        lacking: Found = {"reason": device["no_counter"], "rows": []}
        power = certified_power.cross_checks(found, device, lacking["reason"])
        return {"tick": lacking, "windows": lacking, "lag": lacking, **power}
    tick = certified_counter.ticks(found, device)
    return {
        "tick": tick,
        "windows": certified_counter.windows(found, device, tick),
        "lag": certified_counter.bursts(found, device, tick),
        **certified_power.cross_checks(found, device, None),
    }


def judged(
    promise: str,
    device: str,
    value: float | None,
    error: float,
    bound: float,
    unit: str = "share",
    reason: str | None = None,
    verdict_of: str | None = None,
) -> Found:
    """A promise's verdict.

    Args:
        promise: its name.
        device: of which.
        value: the number that it is judged by, of which the size counts; None: it was not tried.
        error: of that number.
        bound: what it must be within.
        unit: of all three: "share", "s", "°C".
        reason: why it was not tried, or a remark.
        verdict_of: where it is known otherwise.
    """
    found, size = verdict_of, 0.0 if value is None else abs(value)
    if value is None:
        found = NOT_TRIED
    elif found is None and size + error <= bound:
        found = HOLDS
    elif found is None and size - error > bound:
        found = FAILS
    elif found is None:
        found, reason = NOT_TRIED, "; ".join(filter(None, [reason, "the error is too large to tell"]))
    row = {"promise": promise, "device": device, "says": PROMISES[promise], "verdict": found, "value": value}
    return {**row, "error": error if value is not None else None, "bound": bound, "unit": unit, "reason": reason}


def _of_counter(device: Mapping[str, Any], numbers: Found) -> Iterable[Found]:
    """The verdicts of one counter."""
    name = device["device"]
    yield _judged_tick(name, numbers["tick"])
    yield from _judged_windows(name, numbers["windows"])
    yield from _judged_steps(name, numbers["lag"], numbers["tick"])
    checks = numbers["cross_check"]
    worst = max(_used(checks["rows"]), key=lambda line: abs(line["ratio"] - 1) - line["error"], default=None)
    value = None if worst is None else worst["ratio"] - 1
    remark = checks["reason"] if worst is None else f"{worst['power']} power, {worst['load']}"
    error = 0.0 if worst is None else worst["error"]
    yield judged("cross-check", name, value, error, verdict.CROSS_CHECK, reason=remark)
    yield _judged_joules("integrated", name, numbers["integrated"])


def _used(rows: Sequence[Found]) -> list[Found]:
    """The cross-checks by the power that runs use: that of the moment where the board tells it."""
    instant = [line for line in rows if line["power"] == "instant"]
    return instant or list(rows)


def _judged_tick(name: str, tick: Found) -> Found:
    """The counter's longest standstill, against the tick that a run would know."""
    known, loaded = tick.get("idle") or tick.get("context"), tick.get("steady")
    if known is None or loaded is None:
        reason = tick["reason"] or f"it moved too seldom {'at rest' if known is None else 'under load'}"
        return judged("tick", name, None, 0.0, 0.0, "s", reason)
    bound_s = verdict.TICK_OFF * known["tick_s"] + verdict.TICK_OFF_S
    still_s = max(known["still_s"], loaded["still_s"])
    error_s = max(known["read_every_s"], loaded["read_every_s"])
    return judged("tick", name, still_s, min(error_s, 0.05 * bound_s), bound_s, "s", "longest standstill")


def _judged_windows(name: str, windows: Found) -> Iterable[Found]:
    """The bare counter's windows against 2·tick/T + 0.2 %, and a run's joules of them against their own bound."""
    rows = windows["rows"]
    worst = max(rows, key=lambda line: abs(line["bare"]["worst"]) / line["bound"], default=None)
    if worst is None:
        yield judged("window", name, None, 0.0, 0.0, reason=windows["reason"])
    else:
        remark = f"the worst of {worst['num']} windows of {worst['window_s']:g} s"
        beyond = abs(worst["bare"]["worst"]) - worst["true_error"] > worst["bound"]
        found = FAILS if beyond else HOLDS
        value, error = worst["bare"]["worst"], worst["true_error"]
        yield judged("window", name, value, error, worst["bound"], reason=remark, verdict_of=found)
    own = [line for line in rows if line["own"]["num"]]
    if not own:
        reason = windows["reason"] or "no window of the log is as long as ten ticks"
        yield judged("bound", name, None, 0.0, 0.0, reason=reason)
        return
    beyond_num, num = (sum(line["own"][key] for line in own) for key in ("num_beyond", "num"))
    tightest = max(own, key=lambda line: line["own"]["use_of_bound"] or 0.0)
    remark = f"{beyond_num} of {num} windows beyond; the worst, of {tightest['window_s']:g} s"
    value, bound = tightest["own"]["worst"], tightest["own"]["bound"]
    found = FAILS if beyond_num else HOLDS
    yield judged("bound", name, value, tightest["true_error"], bound or 0.0, reason=remark, verdict_of=found)


def _judged_steps(name: str, lag: Found, tick: Found) -> Iterable[Found]:
    """How late the counter is, and joules of bursts."""
    lag_s = lag.get("lag_s")
    bound_s = verdict.TICK_OFF * (tick.get("tick_s") or 0.0) + verdict.TICK_OFF_S
    yield judged("lag", name, lag_s, lag.get("lag_error_s", 0.0), bound_s, "s", lag["reason"])
    yield _judged_joules("steps", name, lag)


def _judged_joules(promise: str, name: str, numbers: Found) -> Found:
    """Joules of some windows, each against its own bound and the error of what is known of the truth."""
    rows = numbers.get("rows", [])
    if not rows:
        return judged(promise, name, None, 0.0, 0.0, reason=numbers["reason"])

    def excess(line: Found) -> float:
        return float(abs(line["energy_j"] - line["true_j"]) - line["error_j"] - line["true_error_j"])

    beyond = [line for line in rows if excess(line) > 0]
    worst = max(rows, key=lambda line: excess(line) / line["true_j"])
    value = (worst["energy_j"] - worst["true_j"]) / worst["true_j"]
    error, bound = (worst[key] / worst["true_j"] for key in ("true_error_j", "error_j"))
    remark = f"{len(beyond)} of {len(rows)} windows beyond; the worst, of {worst['window_s']:.3g} s"
    found = FAILS if beyond else HOLDS
    return judged(promise, name, value, error, bound, reason=remark, verdict_of=found)


def _of_power(
    header: Mapping[str, Any], counters: Mapping[str, Found], power: Found, found: Readings
) -> Iterable[Found]:
    """The verdicts of a device as a whole."""
    name = header["device"]
    none = header["devices"][0]["no_counter"] if not found.blocks or not any(_read(found)) else None
    yield _judged_idle(name, power["idle"], none)
    yield _judged_settling(name, power["settling"], none, header["devices"][0]["kind"])
    yield from _judged_cost(name, power["cost"], none)


def _read(found: Readings) -> list[bool]:
    return [bool(block.channels) for block in found.blocks.values()]


def _judged_idle(name: str, idle: Found, none: str | None) -> Found:
    first, rest_w = idle["first"], idle["rest_w"]
    key = next((one for one in ("power", "counter") if first and first[f"{one}_w"] is not None), None)
    if first is None or key is None or not rest_w:
        return judged("idle", name, None, 0.0, verdict.IDLE_ERROR, reason=none or idle["reason"] or "no power was read")
    value, error = first[f"{key}_w"] / rest_w - 1, (first[f"{key}_error_w"] or 0.0) / rest_w
    remark = f"{first[f'{key}_w']:.4g} W in the first {IDLE_S:g} s, {rest_w:.4g} W at rest"
    return judged("idle", name, value, error, verdict.IDLE_ERROR, reason=remark)


def _judged_settling(name: str, cooled: Found, none: str | None, kind: str) -> Found:
    if kind != "gpu":
        return judged(
            "settling", name, None, 0.0, settling.NEAR_C, "°C", none or "runs wait for boards alone to settle"
        )
    met = [rule for rule in cooled.get("rules", []) if rule["settled_c"] is not None]
    if not met:
        reason = none or cooled["reason"] or f"it had not settled after {cooled['seconds']:.3g} s"
        return judged("settling", name, None, 0.0, settling.NEAR_C, "°C", reason)
    worst = max(met, key=lambda rule: rule["settled_c"])
    remark = f"by its {RULES[worst['settled_by']]} after {worst['settled_s']:.3g} s"
    return judged("settling", name, worst["settled_c"] - cooled["before_c"], 0.0, settling.NEAR_C, "°C", remark)


def _judged_cost(name: str, cost: Found, none: str | None) -> Iterable[Found]:
    if cost["reason"] is not None or none is not None:
        for promise in ("cost", "slowdown"):
            yield judged(promise, name, None, 0.0, COST, reason=none or cost["reason"])
        return
    parts = (cost["trace_share"], cost["calls_s"])
    if None in parts:
        reason = cost["calls_reason"] or "the trace was too short to tell its CPU time"
        yield judged("cost", name, None, 0.0, COST, reason=reason)
    else:
        share = cost["trace_share"] + cost["calls_s"] / HEADLINE_S
        yield judged("cost", name, share, 0.0, COST, reason=f"calls {1000 * cost['calls_s']:.2g} ms")
    error = None if cost["slower_high"] is None else (cost["slower_high"] - cost["slower_low"]) / 2
    if error is None:
        yield judged("slowdown", name, None, 0.0, COST, reason=f"{cost['num_pairs']} pairs have no interval")
    else:  # work that is faster with metering is not slowed
        value = max(0.0, cost["slower"])
        yield judged("slowdown", name, value, error, COST, reason=f"{cost['num_pairs']} pairs, 95 % interval")


def _advice(header: Mapping[str, Any], counters: Mapping[str, Found]) -> list[str]:
    """What follows for a config."""
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
