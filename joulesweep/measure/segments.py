"""Add up a measurement in several attempts: seconds and joules are sums, a status is that of the worst part.

A part without a number leaves the sum without one, with its reason. Joules that were read are never added to estimated
ones. Bounds of errors add up, because ranks and attempts may share what causes them.
"""

# changes no number: of a run in one attempt
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from joulesweep.core.outcome import (
    DeviceEnergy,
    EpochEnd,
    EpochEnergy,
    Flag,
    Measurement,
    Overhead,
    Segment,
    Status,
    WholeRunEnergy,
)
from joulesweep.measure import conditions

#: Statuses of a number, the best first.
STATUSES: tuple[Status, ...] = ("measured", "integrated", "estimated", "below_resolution", "unavailable")
NOT_READ = "it was not read"
Row = Mapping[str, Any]
T = TypeVar("T")


def whole(rows: Sequence[DeviceEnergy], num_passes: int) -> list[DeviceEnergy]:
    """Return rows of one pass as rows of the whole window."""
    return [
        replace(
            row,
            energy_j=row.total_energy_j,
            error_j=None if row.error_j is None else row.error_j * num_passes,
            net_energy_j=None if row.net_energy_j is None else row.net_energy_j * num_passes,
        )
        for row in rows
    ]


def combined(measured: Measurement, segments: Sequence[Segment]) -> Measurement:
    """Return a measurement of all attempts.

    Args:
        measured: of the last attempt; what counts the whole training stays as it is.
        segments: of all attempts, that one too.
    """
    num_passes, total_s = measured.num_passes, math.fsum(segment.window_s for segment in segments)
    window_s, energy = total_s / num_passes, energies(segments, num_passes)
    rates = {name: getattr(measured, name) * measured.window_s / window_s for name in RATES}
    return replace(
        measured,
        window_s=window_s,
        total_window_s=total_s,
        cpu_s=math.fsum(segment.cpu_s for segment in segments) / num_passes,
        energy=energy,
        flags=_flags(segments, energy, total_s),
        overhead=_overhead([segment.overhead for segment in segments]),
        segments=list(segments),
        **rates,
    )


RATES = ("samples_per_s", "tokens_per_s", "padded_tokens_per_s", "epochs_per_minute")


def energies(segments: Sequence[Segment], num_passes: int = 1) -> list[DeviceEnergy]:
    """Return the joules of each device over all segments, per pass."""
    devices = dict.fromkeys(row.device for segment in segments for row in segment.energy)
    return [_energy(device, segments, num_passes) for device in devices]


def _energy(device: str, segments: Sequence[Segment], num_passes: int) -> DeviceEnergy:
    parts = [next((row for row in segment.energy if row.device == device), None) for segment in segments]
    rows = [row for row in parts if row is not None]
    seconds = [segment.window_s for segment, row in zip(segments, parts, strict=True) if row is not None]
    statuses: list[Status] = [row.status if row else "unavailable" for row in parts]
    status = worst(statuses)
    if status == "estimated" and len(set(statuses)) > 1:
        status = "unavailable"
    total_j = _sum(row.total_energy_j if row else None for row in parts)
    total_j = total_j if status in ("measured", "integrated", "estimated") else None
    idle_w = _mean([row.idle_w for row in rows], seconds)
    net_j = None if total_j is None else _sum(row.net_energy_j for row in rows)
    error_j = None if total_j is None else _sum(row.error_j for row in rows)
    ratios = [row.power_ratio for row in rows if row.power_ratio is not None]
    ticks_s = [row.tick_s for row in rows if row.tick_s is not None]
    return replace(
        rows[-1],
        total_energy_j=total_j,
        energy_j=None if total_j is None else total_j / num_passes,
        error_j=None if error_j is None else error_j / num_passes,
        net_energy_j=None if net_j is None else net_j / num_passes,
        status=status,
        method=_joined(rows, lambda row: row.method) if total_j is not None else None,
        reason=_numbered(parts, lambda row: row.reason) or "estimated joules add to no others"
        if total_j is None
        else None,
        tick_s=max(ticks_s) if len(ticks_s) == len(rows) else None,
        mean_power_w=_mean([row.mean_power_w for row in rows], seconds),
        power_ratio=max(ratios, key=lambda ratio: abs(ratio - 1), default=None),
        ratio_reason=None if ratios else _joined(rows, lambda row: row.ratio_reason),
        idle_w=idle_w,
        idle_reason=None if idle_w is not None else _numbered(parts, lambda row: row.idle_reason),
        net_reason=None if net_j is not None else _numbered(parts, lambda row: row.net_reason),
        doubt=_numbered([row for row in parts if row], lambda row: row.doubt) if total_j is not None else None,
    )


def worst(statuses: Iterable[Status]) -> Status:
    """Return the worst status."""
    return max(statuses, key=STATUSES.index)


def epochs(ends: Sequence[EpochEnd], earlier: Sequence[Segment]) -> list[EpochEnd]:
    """Add the joules of earlier attempts to those of the epochs that ended in the present one.

    Args:
        ends: whose joules count from the begin of the present attempt's window.
        earlier: the earlier attempts.
    """
    before = {row.device: row for row in energies(earlier)}
    return [replace(end, energy=[_since_begin(row, before.get(row.device)) for row in end.energy]) for end in ends]


def _since_begin(row: EpochEnergy, before: DeviceEnergy | None) -> EpochEnergy:
    if row.energy_j is None:
        return row
    if before is None or before.total_energy_j is None:
        reason = f"in an earlier attempt: {before.reason if before else NOT_READ}"
        return replace(row, energy_j=None, status="unavailable", method=None, reason=reason)
    status = worst([row.status, before.status])
    return replace(row, energy_j=row.energy_j + before.total_energy_j, status=status)


def joined_power(
    earlier: Sequence[Row], rows: Sequence[Row], earlier_s: float, earlier_j: Mapping[str, float | None]
) -> list[Row]:
    """Join the power traces of the windows of earlier attempts and of the present one.

    Args:
        earlier: rows {t_s, device, power_w, energy_j} of earlier attempts.
        rows: those of the present attempt, which count from its window's begin.
        earlier_s: seconds of the windows of earlier attempts.
        earlier_j: their joules, by device.
    """
    before = [row for row in earlier if (_t_s(row)) <= earlier_s]
    after = []
    for row in rows:
        risen_j, before_j = row["energy_j"], earlier_j.get(str(row["device"]))
        known = isinstance(risen_j, float) and before_j is not None
        if _t_s(row) >= 0:
            after.append({**row, "t_s": _t_s(row) + earlier_s, "energy_j": risen_j + before_j if known else None})
    return [*before, *after]


def _t_s(row: Row) -> float:
    return float(row["t_s"] or 0.0)


def _flags(segments: Sequence[Segment], energy: Sequence[DeviceEnergy], total_s: float) -> list[Flag]:
    """Return all flags, each with the parts in which it was raised; whether the window is short, is judged anew."""
    raised: dict[Flag, list[int]] = {}
    for number, segment in enumerate(segments, 1):
        for flag in segment.flags:
            if flag.flag != "short_window":
                raised.setdefault(flag, []).append(number)
    of_parts = [
        flag if len(numbers) == len(segments) else replace(flag, text=f"{_parts(numbers)}: {flag.text}")
        for flag, numbers in raised.items()
    ]
    short = [flag for row in energy for flag in [conditions.short(row, total_s)] if flag is not None]
    boards = [sorted({board.uuid for board in segment.conditions.boards}) for segment in segments]
    moved = "" if all(uuids == boards[0] for uuids in boards) else ", on other boards than before"
    stops = ", ".join(str(segment.last_step) for segment in segments[:-1])
    text = (
        f"preempted after step {stops}, and went on{moved}; seconds and joules are sums over {len(segments)} attempts"
    )
    return [*short, *of_parts, Flag(flag="resumed", text=text)]


def _parts(numbers: Sequence[int]) -> str:
    return f"attempt {', '.join(map(str, numbers))}"


def _overhead(parts: Sequence[Overhead]) -> Overhead:
    devices = dict.fromkeys(row.device for part in parts for row in part.whole_run_energy)
    whole_run = []
    for device in devices:
        rows = [next((row for row in part.whole_run_energy if row.device == device), None) for part in parts]
        energy_j = _sum(row.energy_j if row else None for row in rows)
        reason = None if energy_j is not None else _numbered(rows, lambda row: row.reason)
        whole_run.append(WholeRunEnergy(device=device, energy_j=energy_j, reason=reason))
    return Overhead(
        meter_s=math.fsum(part.meter_s for part in parts),
        weights_s=_sum(part.weights_s for part in parts),
        trace_cpu_s=_sum(part.trace_cpu_s for part in parts),
        num_samples=sum(part.num_samples for part in parts),
        whole_run_s=_sum(part.whole_run_s for part in parts),
        whole_run_energy=whole_run,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum; None if a value is missing."""
    known = list(values)
    return None if None in known else math.fsum(value for value in known if value is not None)


def _mean(values: Sequence[float | None], seconds: Sequence[float]) -> float | None:
    """Return the mean over time; None if a value is missing."""
    total = _sum(None if value is None else value * s for value, s in zip(values, seconds, strict=True))
    return None if total is None or not sum(seconds) else total / math.fsum(seconds)


def _joined(rows: Sequence[T], said: Callable[[T], str | None]) -> str | None:
    """Return the distinct texts, in order; None if there are none."""
    return ", ".join(dict.fromkeys(text for row in rows if (text := said(row)))) or None


def _numbered(parts: Sequence[T | None], said: Callable[[T], str | None]) -> str | None:
    """Return the texts with the numbers of the parts that say them; None if there are none."""
    raised: dict[str, list[int]] = {}
    for number, part in enumerate(parts, 1):
        text = NOT_READ if part is None else said(part)
        if text:
            raised.setdefault(text, []).append(number)
    return "; ".join(f"{_parts(numbers)}: {text}" for text, numbers in raised.items()) or None
