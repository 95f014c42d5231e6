"""Evaluate a device's joules: number, error bound, status, and contradictions.

Every number is judged by what the run's own trace saw, never by what a counter of its kind ought to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

from joulesweep.core.outcome import (
    CounterReads,
    DeviceEnergy,
    DeviceTotal,
    EpochEnd,
    EpochEnergy,
    Reading,
    Span,
    Status,
)
from joulesweep.measure import counter, meters
from joulesweep.measure.trace import PERIOD_S, Trace
from joulesweep.measure.window import NO_COUNTER
from joulesweep.measure.window import reading as reading_of

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
TOTAL = tuple(field.name for field in dataclasses.fields(DeviceTotal))


@dataclass(frozen=True)
class Window:
    """A run's window, and what the trace saw of it.

    Attributes:
        trace: the readings.
        span: when it and the idle baseline began and ended.
        total_s: its length.
        num_passes: over which joules are shared out.
    """

    trace: Trace
    span: Span
    total_s: float
    num_passes: int

    @property
    def edges(self) -> tuple[float, float]:
        """When it began and ended."""
        return self.span.begin_s, self.span.end_s

    @property
    def idle(self) -> tuple[float, float]:
        """When the idle baseline began and ended."""
        return self.span.idle_begin_s, self.span.idle_end_s


def finalise_energy(reading: Reading, window: Window, known_tick_s: float | None, integrable: bool) -> DeviceEnergy:
    """A device's final numbers and status.

    Args:
        reading: of `Meter.readings`.
        window: the run's.
        known_tick_s: time between two moves of its counter, as measured before the run.
        integrable: whether its power readings are of nothing but the run: not of a board that is split.
    """
    seen = window.trace.steps(reading.device, *window.edges)
    tick_s = tick_in_force(known_tick_s, seen)
    total, error_j = reading, None
    if total.status == "measured":
        total, error_j = _count(total, window, seen, tick_s)
    if total.status == "unavailable" and integrable:
        total, error_j = _integrate(total, window)
    power_w = _power_w(window, reading.device)
    power_ratio = None
    if power_w is not None and total.total_energy_j is not None and total.status == "measured":
        power_ratio = power_w * window.total_s / total.total_energy_j
    idle_w, idle_reason = _idle_w(window, reading.device, tick_s)
    energy_j = None if total.total_energy_j is None else total.total_energy_j / window.num_passes
    net_energy_j, net_reason = _net_j(energy_j, idle_w, idle_reason, window)
    energy = DeviceEnergy(
        **{name: getattr(total, name) for name in TOTAL},
        energy_j=energy_j,
        error_j=None if error_j is None else error_j / window.num_passes,
        tick_s=None if total.status == "integrated" else tick_s,
        mean_power_w=power_w,
        power_method=window.trace.power_method(reading.device),
        power_ratio=power_ratio,
        ratio_reason=_unchecked(total) if power_ratio is None else None,
        idle_w=idle_w,
        idle_reason=idle_reason,
        net_energy_j=net_energy_j,
        net_reason=net_reason,
    )
    return replace(energy, doubt=_doubt(energy, window))


def tick_in_force(known_s: float | None, seen: counter.Steps) -> float | None:
    """The time between two moves of a counter: as known before the run, unless it stood still for longer in the run."""
    stale = known_s is not None and seen.still_s > TICK_OFF * known_s + TICK_OFF_S
    if known_s is not None and not stale:
        return known_s
    return seen.still_s if stale and seen.tick_s is None else seen.tick_s


def was_reset(row: DeviceTotal) -> bool:
    """Whether a judged row's counter was reset in the window."""
    return RESET in (row.reason or "") or RESET in (row.method or "")


def _count(reading: Reading, window: Window, seen: counter.Steps, tick_s: float | None) -> tuple[Reading, float | None]:
    """Make the counter's difference the joules of the window, or say why it is none; and the bound of the error."""
    trace, device, limit_w = window.trace, reading.device, meters.kind(reading.kind).most_w
    traits = trace.traits.get(device)
    if traits is not None and traits.range_j is not None:
        reading = _unwrapped(reading, window, traits.range_j)
    total_j = reading.total_energy_j
    assert total_j is not None
    impossible = limit_w is not None and (
        total_j > limit_w * window.total_s or trace.jumped(device, *window.edges, tick_s or seen.still_s)
    )
    if trace.was_reset(device, *window.edges) or total_j < 0 or impossible:
        return replace(reading, status="unavailable", reason=RESET, total_energy_j=None, method=None), None
    slow = _too_slow(total_j, window, device, seen, tick_s)
    if slow is not None:
        return replace(reading, status="below_resolution", reason=slow, total_energy_j=None), None
    if tick_s is None:
        return reading, None
    most_w = _most_w(device, total_j, window, tick_s)
    if reading.reads is None:  # late by a tick at most at the end, and at the begin early
        late_s = tick_s + (traits.late_s if traits is not None else 0.0)
        return reading, counter.SLACK * late_s * most_w + CLOCKS * total_j
    corrected_j, error_j = _count_between_moves(device, total_j, reading.reads, window, tick_s, most_w)
    return replace(reading, total_energy_j=corrected_j), error_j


def _unwrapped(reading: Reading, window: Window, range_j: float) -> Reading:
    """With the ranges of a RAPL counter that Zeus missed: it looks once a second whether the counter began again."""
    traced_j, total_j = window.trace.energy_between(reading.device, *window.edges), reading.total_energy_j
    missed = 0 if traced_j is None or total_j is None else round((traced_j - total_j) / range_j)
    if total_j is None or not missed:
        return reading
    method = f"{reading.method}, {missed:+d} range of {range_j:g} J that it missed"
    return replace(reading, total_energy_j=total_j + missed * range_j, method=method)


def _too_slow(total_j: float, window: Window, device: str, seen: counter.Steps, tick_s: float | None) -> str | None:
    """Reason why the counter is too coarse for this window, or None."""
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


def _most_w(device: str, total_j: float, window: Window, tick_s: float) -> float:
    """The highest power that the device may have drawn in a tick about the window's edges."""
    trace, (begin_s, end_s) = window.trace, window.edges
    near = begin_s - NEAR_S, end_s + NEAR_S
    powers_w = trace.powers_w(device, *near) if trace.is_instant(device) else []
    rises_w = [(later - value) / max(apart_s, tick_s) for apart_s, value, later in trace.rises(device, *near)]
    return counter.SLACK * max([total_j / window.total_s, *powers_w, *rises_w])


def _count_between_moves(
    device: str, total_j: float, reads: CounterReads, window: Window, tick_s: float, most_w: float
) -> tuple[float, float]:
    """A board's joules corrected by what its counter lagged behind at both edges, and the bound of the error."""
    trace, (begin_s, end_s) = window.trace, window.edges
    begin, end = (
        counter.lag(
            trace.times_s,
            trace.series[device].energy_j if device in trace.series else [],
            at_s=at_s,
            read_s=read_s,
            reading_j=reading_j,
            tick_s=tick_s,
            power_w=_power_at(device, total_j, window, at_s, tick_s),
            most_w=most_w,
        )
        for at_s, read_s, reading_j in (
            (begin_s, reads.begin_s, reads.begin_j),
            (end_s, reads.end_s, reads.begin_j + total_j),
        )
    )
    corrected_j = total_j + end.energy_j - begin.energy_j
    return corrected_j, begin.error_j + end.error_j + CLOCKS * corrected_j


def _power_at(device: str, total_j: float, window: Window, at_s: float, tick_s: float) -> float:
    """Power just before a moment: as the board says, else by its counter, else the window's mean."""
    trace = window.trace
    powers_w = trace.powers_w(device, at_s - 3 * PERIOD_S, at_s) if trace.is_instant(device) else []
    if powers_w:
        return powers_w[-1]
    slope_w = trace.slope_w(device, at_s - max(3 * tick_s, 5 * PERIOD_S), at_s)
    return total_j / window.total_s if slope_w is None else slope_w


def _integrate(total: Reading, window: Window) -> tuple[Reading, float | None]:
    """Make a board's power readings over the window its joules; and the bound of their error."""
    power_w, reason = window.trace.mean_power_w(total.device, *window.edges), total.reason
    if not power_w:
        failure = window.trace.failure(total.device)
        detail = f": {failure}" if failure else ""
        return replace(total, reason=f"{reason}, and its power could not be read{detail}"), None
    method = integrated(window.trace, total.device)
    method = method if reason in (NO_COUNTER, POWER_ALONE) else f"{method}: {reason}"
    joules = power_w * window.total_s
    error_j = (_power_error_w(window, total.device) + SAMPLES * power_w) * window.total_s
    return replace(total, total_energy_j=joules, status="integrated", method=method, reason=None), error_j


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


def _unchecked(total: DeviceTotal) -> str:
    """Why a device's joules were not compared with its power."""
    if total.total_energy_j is None:
        return "there are no joules to check"
    if total.status == "measured":
        return "the trace has too few readings to check it"
    return "the joules are its power's own"


def integrated(trace: Trace, device: str) -> str:
    """How a device's power readings became joules."""
    source = f"{trace.traits[device].source} " if device in trace.traits else ""
    return f"{source}{INTEGRATED}"


def _net_j(
    energy_j: float | None, idle_w: float | None, idle_reason: str | None, window: Window
) -> tuple[float | None, str | None]:
    """Joules per pass net of the idle power, or why there are none."""
    if energy_j is None:
        return None, "there are no joules to subtract it from"
    if idle_w is None:
        return None, idle_reason
    idle_j = idle_w * window.total_s / window.num_passes
    if energy_j < idle_j:
        return None, f"idle power took {idle_j:.4g} J of the {energy_j:.4g} J: nothing is left"
    return energy_j - idle_j, None


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


def _doubt(row: DeviceEnergy, window: Window) -> str | None:
    """Why a row's number is contradicted and must not be ranked; None if nothing speaks against it."""
    total_j, doubts = row.total_energy_j, []
    if row.energy_j is None or total_j is None:
        return None
    error_j = (row.error_j or 0.0) * window.num_passes
    if row.status == "measured" and row.tick_s is None:
        doubts.append(TICK)
    if row.power_ratio is not None:
        apart_j = abs(row.power_ratio - 1) * total_j
        power_error_j = _power_error_w(window, row.device) * window.total_s
        if apart_j > CROSS_CHECK * total_j + error_j + power_error_j:
            doubts.append(f"{POWER} is {row.power_ratio:.3g} × the counter's joules")
    if row.idle_w is not None and row.idle_w * window.total_s > IDLE_DOUBT * total_j + error_j:
        doubts.append(f"idle power is {row.idle_w * window.total_s / total_j:.3g} × the run's")
    return "; ".join(doubts) or None


def traced(device: str, window: Window) -> Reading:
    """What the trace has of a device that it alone reads."""
    traits, trace = window.trace.traits[device], window.trace
    if traits.power is not None:
        return reading_of(device, traits.kind.name, None, reason=POWER_ALONE)
    total_j = trace.energy_between(device, *window.edges)
    if total_j is None and not trace.was_reset(device, *window.edges):
        failure = trace.failure(device)
        reason = f"its counter was not read at both edges of the window{f': {failure}' if failure else ''}"
        return reading_of(device, traits.kind.name, None, reason=reason)
    return reading_of(device, traits.kind.name, None, total_j or 0.0, traits.method)


def with_doubt_of_containers(rows: Sequence[DeviceEnergy]) -> list[DeviceEnergy]:
    """The same rows, with doubt where joules are less than those of what they contain: of another machine, or wrong."""
    return [_contradicted(row, rows) for row in rows]


def _contradicted(row: DeviceEnergy, rows: Sequence[DeviceEnergy]) -> DeviceEnergy:
    contents = meters.kind(row.kind).contains
    inside = {other.device: (other.energy_j, other.error_j or 0.0) for other in rows if other.kind in contents}
    known = {device: energy_j - error_j for device, (energy_j, error_j) in inside.items() if energy_j is not None}
    if row.energy_j is None or row.energy_j + (row.error_j or 0.0) >= sum(known.values()):
        return row
    contradiction = f"less than the joules of {', '.join(known)}, which it contains"
    return replace(row, doubt="; ".join(filter(None, [row.doubt, contradiction])))


def epoch_energy(epoch: EpochEnd, window: Window, row: DeviceEnergy, earlier_s: float = 0.0) -> EpochEnergy:
    """One device's joules from the window's begin to the end of an epoch, from the trace.

    Args:
        epoch: with its number and elapsed_s.
        window: the run's.
        row: of the device.
        earlier_s: what elapsed_s has of earlier attempts.
    """
    device, elapsed_s, tick_s = row.device, epoch.elapsed_s - earlier_s, row.tick_s
    begin_s, trace = window.span.begin_s, window.trace
    if not epoch.epoch:
        return _no_joules(device, "unavailable", "nothing trained yet")
    counted = row.status == "measured"
    if counted and elapsed_s < MIN_TICKS * (tick_s or 0.0):
        slow = f"shorter than {MIN_TICKS} updates of the counter ({tick_s:.3g} s each)"
        return _no_joules(device, "below_resolution", slow)
    energy_j = trace.energy_between(device, begin_s, begin_s + elapsed_s) if counted else None
    if energy_j is not None and energy_j <= 0:
        return _no_joules(device, "below_resolution", "the counter did not advance by then")
    if energy_j is not None:
        return EpochEnergy(device=device, energy_j=energy_j, status="measured", method="counter", reason=None)
    power_w = trace.mean_power_w(device, begin_s, begin_s + elapsed_s)
    if power_w is None:
        return _no_joules(device, "unavailable", "the trace has no reading on both sides")
    energy_j = power_w * elapsed_s
    method = integrated(trace, device)
    return EpochEnergy(device=device, energy_j=energy_j, status="integrated", method=method, reason=None)


def _no_joules(device: str, status: Status, reason: str) -> EpochEnergy:
    return EpochEnergy(device=device, energy_j=None, status=status, method=None, reason=reason)
