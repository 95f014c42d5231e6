"""What a device's joules are worth: number, bound of the error, status, and what contradicts it.

Every number is judged by what the run's own trace saw, never by what a counter of its kind ought to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep.measure import counter, meters
from joulesweep.measure.trace import PERIOD_S, Trace
from joulesweep.measure.window import NO_COUNTER
from joulesweep.measure.window import row as row_of

MIN_TICKS = 10  # fewer updates of the counter in the window: no number
MANY_TICKS = 100  # so many in the idle span, and it needs no power readings
POWER_ALONE = "it reports power alone"
INTEGRATED = "power readings, integrated"
RESET = "the counter was reset"
POWER = "mean power × time"
TICK = "the counter's update period is unknown"
CROSS_CHECK = 0.1  # mean power times time and the counter's joules may be so far apart, beyond the errors of both
CLOCKS = 0.002  # share of the joules that clocks and calls may cost a counter's reading,
SAMPLES = 0.01  # and a load that keeps time with the readings the integrated power
TICK_OFF, TICK_OFF_S = 1.25, 0.005  # a counter that stood still for longer than its known tick: the tick has changed
NEAR_S = 2.0  # readings so near to the window tell what power is possible at its edges
HOLE_S = 0.5  # readings further apart leave room for anything between the lowest and the highest power
IDLE_DOUBT = 3.0  # a board that idles at more than so many times the run's power: one of the two is wrong
IDLE_ERROR = 0.05  # a counter whose error in the idle span is larger says nothing of the idle power


@dataclass(frozen=True)
class Window:
    """A run's window, and what the trace saw of it.

    Attributes:
        trace: the readings.
        span: begin_s, end_s, idle_begin_s, idle_end_s on the monotonic clock.
        total_s: its length.
        num_passes: over which joules are shared out.
    """

    trace: Trace
    span: Mapping[str, float]
    total_s: float
    num_passes: int

    @property
    def edges(self) -> tuple[float, float]:
        """When it began and ended."""
        return self.span["begin_s"], self.span["end_s"]

    @property
    def idle(self) -> tuple[float, float]:
        """When the idle baseline began and ended."""
        return self.span["idle_begin_s"], self.span["idle_end_s"]


def judge(row: dict[str, Any], window: Window, known_tick_s: float | None, integrable: bool) -> None:
    """Give a device's row its final numbers and status, in place.

    Args:
        row: of `Meter.rows`.
        window: the run's.
        known_tick_s: time between two moves of its counter, as measured before the run.
        integrable: whether its power readings are of nothing but the run: not of a board that is split.
    """
    readings, trace, device = row.pop("readings", None), window.trace, row["device"]
    seen = trace.steps(device, *window.edges)
    tick_s = tick_in_force(known_tick_s, seen)
    error_j = None
    if row["status"] == "measured":
        error_j = _count(row, readings, window, seen, tick_s)
    if row["status"] == "unavailable" and integrable:
        error_j = _integrate(row, window)
    total_j, power_w = row["total_energy_j"], _power_w(window, device)
    checked = power_w is not None and total_j is not None and row["status"] == "measured"
    row.update(
        energy_j=None if total_j is None else total_j / window.num_passes,
        error_j=None if error_j is None else error_j / window.num_passes,
        tick_s=None if row["status"] == "integrated" else tick_s,
        mean_power_w=power_w,
        power_method=trace.power_method(device),
        power_ratio=power_w * window.total_s / total_j if checked else None,  # type: ignore[operator]
        ratio_reason=None if checked else _unchecked(row),
    )
    _subtract_idle(row, window, tick_s)
    row["doubt"] = _doubt(row, window)


def tick_in_force(known_s: float | None, seen: counter.Steps) -> float | None:
    """The time between two moves of a counter: as known before the run, unless it stood still for longer in the run."""
    stale = known_s is not None and seen.still_s > TICK_OFF * known_s + TICK_OFF_S
    if known_s is not None and not stale:
        return known_s
    return seen.still_s if stale and seen.tick_s is None else seen.tick_s


def was_reset(row: Mapping[str, Any]) -> bool:
    """Whether a judged row's counter was reset in the window."""
    return RESET in (row["reason"] or "") or RESET in (row["method"] or "")


def _count(
    row: dict[str, Any], readings: Mapping[str, Any] | None, window: Window, seen: counter.Steps, tick_s: float | None
) -> float | None:
    """Make the counter's difference the joules of the window, or say why it is none. Returns the bound of the error."""
    trace, device, most_w = window.trace, row["device"], meters.kind(row["kind"]).most_w
    range_j = trace.traits[device].range_j if device in trace.traits else None
    if range_j is not None:
        _unwrap(row, window, range_j)
    impossible = most_w is not None and (
        row["total_energy_j"] > most_w * window.total_s or trace.jumped(device, *window.edges, tick_s or seen.still_s)
    )
    if trace.was_reset(device, *window.edges) or row["total_energy_j"] < 0 or impossible:
        row.update(status="unavailable", reason=RESET, total_energy_j=None, method=None)
        return None
    slow = _too_slow(row["total_energy_j"], window, device, seen, tick_s)
    if slow is not None:
        row.update(status="below_resolution", reason=slow, total_energy_j=None)
        return None
    if tick_s is None:
        return None
    most_w = _most_w(row, window, tick_s)
    if readings is None:  # late by a tick at most at the end, and at the begin the other way
        late_s = tick_s + (trace.traits[device].late_s if device in trace.traits else 0.0)
        return counter.SLACK * late_s * most_w + CLOCKS * float(row["total_energy_j"])
    return _count_between_moves(row, readings, window, tick_s, most_w)


def _unwrap(row: dict[str, Any], window: Window, range_j: float) -> None:
    """Add the ranges of a RAPL counter that Zeus missed: it looks once a second whether the counter began again."""
    traced_j = window.trace.energy_between(row["device"], *window.edges)
    missed = 0 if traced_j is None else round((traced_j - row["total_energy_j"]) / range_j)
    if missed:
        row["total_energy_j"] += missed * range_j
        row["method"] += f", {missed:+d} range of {range_j:g} J that it missed"


def _too_slow(total_j: float, window: Window, device: str, seen: counter.Steps, tick_s: float | None) -> str | None:
    """Why a counter's reading is no measurement of this window; None if it is one."""
    if tick_s is not None and window.total_s < MIN_TICKS * tick_s:
        return (
            f"the window of {window.total_s:.3g} s is shorter than {MIN_TICKS} updates of the counter "
            f"({tick_s:.3g} s each)"
        )
    if total_j == 0:
        return "the counter did not advance in the window"
    read = window.trace.slope_w(device, *window.edges) is not None
    if tick_s is None and read:
        return f"the counter was seen to move {seen.num_moves} times in the window, and its update period is unknown"
    return None


def _most_w(row: Mapping[str, Any], window: Window, tick_s: float) -> float:
    """The highest power that the device may have drawn in a tick about the window's edges."""
    trace, device, (begin_s, end_s) = window.trace, row["device"], window.edges
    near = begin_s - NEAR_S, end_s + NEAR_S
    powers_w = trace.powers_w(device, *near) if trace.is_instant(device) else []
    rises_w = [(later - value) / max(apart_s, tick_s) for apart_s, value, later in trace.rises(device, *near)]
    return counter.SLACK * float(max([row["total_energy_j"] / window.total_s, *powers_w, *rises_w]))


def _count_between_moves(
    row: dict[str, Any], readings: Mapping[str, Any], window: Window, tick_s: float, most_w: float
) -> float:
    """Correct a board's joules by what its counter lagged behind at both edges. Returns the bound of the error."""
    trace, device, total_j = window.trace, row["device"], row["total_energy_j"]
    lags = [
        counter.lag(
            trace.times_s,
            trace.series[device].energy_j if device in trace.series else [],
            at_s=at_s,
            read_s=readings[edge],
            reading_j=reading_j,
            tick_s=tick_s,
            power_w=_power_at(row, window, at_s, tick_s),
            most_w=most_w,
        )
        for edge, at_s, reading_j in zip(
            ("begin_s", "end_s"), window.edges, (readings["begin_j"], readings["begin_j"] + total_j), strict=True
        )
    ]
    row["total_energy_j"] = total_j + lags[1].energy_j - lags[0].energy_j
    return float(lags[0].error_j + lags[1].error_j + CLOCKS * row["total_energy_j"])


def _power_at(row: Mapping[str, Any], window: Window, at_s: float, tick_s: float) -> float:
    """Power just before a moment: as the board says, else by its counter, else the window's mean."""
    trace, device = window.trace, row["device"]
    powers_w = trace.powers_w(device, at_s - 3 * PERIOD_S, at_s) if trace.is_instant(device) else []
    if powers_w:
        return powers_w[-1]
    slope_w = trace.slope_w(device, at_s - max(3 * tick_s, 5 * PERIOD_S), at_s)
    return float(row["total_energy_j"] / window.total_s) if slope_w is None else slope_w


def _integrate(row: dict[str, Any], window: Window) -> float | None:
    """Make a board's power readings over the window its joules. Returns the bound of their error."""
    power_w, reason = window.trace.mean_power_w(row["device"], *window.edges), row["reason"]
    if not power_w:
        failure = window.trace.failure(row["device"])
        row["reason"] = f"{reason}, and its power could not be read{f': {failure}' if failure else ''}"
        return None
    method = integrated(window.trace, row["device"])
    method = method if reason in (NO_COUNTER, POWER_ALONE) else f"{method}: {reason}"
    row.update(total_energy_j=power_w * window.total_s, status="integrated", method=method, reason=None)
    return (_power_error_w(window, row["device"]) + SAMPLES * power_w) * window.total_s


def _power_error_w(window: Window, device: str) -> float:
    """Bound of the error of the mean of a board's power readings in the window, beside that of its sensor."""
    trace, (begin_s, end_s) = window.trace, window.edges
    powers_w = trace.powers_w(device, begin_s, end_s)
    near_w = trace.powers_w(device, begin_s - NEAR_S, end_s + NEAR_S) or [0.0]
    spread_w = max(near_w) - min(near_w)
    blind_s = trace.holes_s(begin_s, end_s, HOLE_S) + trace.averaged_s(device)
    return counter.sampling_error_w(powers_w) + spread_w * min(1.0, blind_s / window.total_s)


def _power_w(window: Window, device: str) -> float | None:
    """Mean power in the window: by the device's power readings, or by its counter where it has none."""
    if window.trace.power_method(device) is not None:
        return window.trace.mean_power_w(device, *window.edges)
    energy_j = window.trace.energy_between(device, *window.edges)
    return None if energy_j is None else energy_j / window.total_s


def _unchecked(row: Mapping[str, Any]) -> str:
    """Why a row's joules were not compared with its power."""
    if row["total_energy_j"] is None:
        return "there are no joules to check"
    return (
        "the trace has too few readings to check it"
        if row["status"] == "measured"
        else "the joules are its power's own"
    )


def integrated(trace: Trace, device: str) -> str:
    """How a device's power readings became joules."""
    source = f"{trace.traits[device].source} " if device in trace.traits else ""
    return f"{source}{INTEGRATED}"


def _subtract_idle(row: dict[str, Any], window: Window, tick_s: float | None) -> None:
    """Give a row the idle power, and the joules net of it, each with the reason where there is none."""
    idle_w, reason = _idle_w(window, row["device"], tick_s)
    energy_j, net_reason, net_j = row["energy_j"], reason, None
    if energy_j is None:
        net_reason = "there are no joules to subtract it from"
    elif idle_w is not None:
        idle_j = idle_w * window.total_s / window.num_passes
        net_j, net_reason = energy_j - idle_j, None
        if net_j < 0:
            net_j, net_reason = None, f"idle power took {idle_j:.4g} J of the {energy_j:.4g} J: nothing is left"
    row.update(idle_w=idle_w, idle_reason=reason, net_energy_j=net_j, net_reason=net_reason)


def _idle_w(window: Window, device: str, tick_s: float | None) -> tuple[float | None, str | None]:
    """Mean power of the idle baseline, or why there is none: by the power readings where the device has any."""
    trace, (begin_s, end_s) = window.trace, window.idle
    if end_s <= begin_s:
        return None, "no idle power was measured (measure.idle_s)"
    tail_s = trace.averaged_s(device) if end_s - begin_s > 2 * trace.averaged_s(device) else 0.0
    power_w = trace.mean_power_w(device, begin_s + tail_s, end_s)  # an average's first second is of what was before
    if power_w is not None:
        return power_w, None
    if trace.was_reset(device, begin_s, end_s):
        return None, f"{RESET} in the idle span"
    energy_j = trace.energy_between(device, begin_s, end_s)
    if energy_j is not None and tick_s is not None and end_s - begin_s >= MANY_TICKS * tick_s:
        return energy_j / (end_s - begin_s), None
    idle_w, error = trace.slope_between_moves(device, begin_s, end_s)
    if idle_w is None or error > IDLE_ERROR:
        return None, f"the idle span of {end_s - begin_s:.3g} s has too few readings"
    return idle_w, None


def _doubt(row: Mapping[str, Any], window: Window) -> str | None:
    """Why a row's number is contradicted and must not be ranked; None if nothing speaks against it."""
    if row["energy_j"] is None:
        return None
    total_j, doubts = row["total_energy_j"], []
    error_j = (row["error_j"] or 0.0) * window.num_passes
    if row["status"] == "measured" and row["tick_s"] is None:
        doubts.append(TICK)
    if row["power_ratio"] is not None:
        apart_j = abs(row["power_ratio"] - 1) * total_j
        power_error_j = _power_error_w(window, row["device"]) * window.total_s
        if apart_j > CROSS_CHECK * total_j + error_j + power_error_j:
            doubts.append(f"{POWER} is {row['power_ratio']:.3g} × the counter's joules")
    if row["idle_w"] is not None and row["idle_w"] * window.total_s > IDLE_DOUBT * total_j + error_j:
        doubts.append(f"idle power is {row['idle_w'] * window.total_s / total_j:.3g} × the run's")
    return "; ".join(doubts) or None


def traced(device: str, window: Window) -> dict[str, Any]:
    """A row of a device that the trace alone reads, to be judged."""
    traits, trace = window.trace.traits[device], window.trace
    if traits.power is not None:
        return row_of(device, traits.kind.name, None, reason=POWER_ALONE)
    total_j = trace.energy_between(device, *window.edges)
    if total_j is None and not trace.was_reset(device, *window.edges):
        failure = trace.failure(device)
        reason = f"its counter was not read at both edges of the window{f': {failure}' if failure else ''}"
        return row_of(device, traits.kind.name, None, reason=reason)
    return row_of(device, traits.kind.name, None, total_j or 0.0, traits.method)


def doubt_containers(rows: Sequence[dict[str, Any]]) -> None:
    """Doubt, in place, joules that are less than those of what they contain: they are of another machine, or wrong."""
    for row in rows:
        inside = [one for one in rows if one["kind"] in meters.kind(row["kind"]).contains]
        known = [one for one in inside if one["energy_j"] is not None]
        inside_j = sum(one["energy_j"] - (one["error_j"] or 0.0) for one in known)
        energy_j, error_j = row["energy_j"], row["error_j"] or 0.0
        if energy_j is not None and energy_j + error_j < inside_j:
            told = f"less than the joules of {', '.join(one['device'] for one in known)}, which it contains"
            row["doubt"] = "; ".join(filter(None, [row["doubt"], told]))


def epoch_row(epoch: Mapping[str, Any], window: Window, row: Mapping[str, Any]) -> dict[str, Any]:
    """One device's joules since the window began, from the trace: {device, energy_j, status, method, reason}.

    Args:
        epoch: with its number and elapsed_s.
        window: the run's.
        row: of the device, judged.
    """
    device, elapsed_s, tick_s = row["device"], epoch["elapsed_s"], row["tick_s"]
    begin_s, trace = window.span["begin_s"], window.trace
    if not epoch["epoch"]:
        return _no_joules(device, "unavailable", "nothing trained yet")
    counted = row["status"] == "measured"
    if counted and elapsed_s < MIN_TICKS * (tick_s or 0.0):
        slow = f"shorter than {MIN_TICKS} updates of the counter ({tick_s:.3g} s each)"
        return _no_joules(device, "below_resolution", slow)
    energy_j = trace.energy_between(device, begin_s, begin_s + elapsed_s) if counted else None
    if energy_j is not None and energy_j <= 0:
        return _no_joules(device, "below_resolution", "the counter did not advance by then")
    if energy_j is not None:
        return {"device": device, "energy_j": energy_j, "status": "measured", "method": "counter", "reason": None}
    power_w = trace.mean_power_w(device, begin_s, begin_s + elapsed_s)
    if power_w is None:
        return _no_joules(device, "unavailable", "the trace has no reading on both sides")
    energy_j = power_w * elapsed_s
    return {
        "device": device,
        "energy_j": energy_j,
        "status": "integrated",
        "method": integrated(trace, device),
        "reason": None,
    }


def _no_joules(device: str, status: str, reason: str) -> dict[str, Any]:
    return {"device": device, "energy_j": None, "status": status, "method": None, "reason": reason}
