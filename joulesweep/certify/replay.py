"""Replay a certificate's raw readings as a run would have seen them, and compare the result with the truth.

The truth is the counter itself, interpolated between its moves: when it moves, it has counted all energy drawn so far.
Only the board's power readings can show whether the counter's scale is right.
"""

from __future__ import annotations

import bisect
import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep.certify.readings import NUMBER, Block, Channel, Readings, Span
from joulesweep.core import outcome
from joulesweep.core.outcome import CounterReads
from joulesweep.measure import counter, meters, verdict
from joulesweep.measure.trace import PERIOD_S, Series, Trace
from joulesweep.measure.window import reading

SKIP_S, SKIP = 1.0, 0.25  # a load's first second, or first quarter if shorter, is not steady yet
STOOD = 10  # a counter stands still after this many ticks without a move
FEW = 3  # least number of readings or moves for a mean or a line
OWN = 4  # least number of independent values for the error of a mean
Found = dict[str, Any]


@dataclass(frozen=True)
class Counter:
    """A counter's readings in one block.

    Attributes:
        device: the device's name.
        kind: gpu, cpu or dram.
        times_s: when each reading began.
        took_s: how long each reading took.
        joules: the values, without wraps.
        falls: how often the counter fell.
    """

    device: str
    kind: str
    times_s: list[float]
    took_s: list[float]
    joules: list[float]
    falls: int

    @property
    def reset(self) -> bool:
        """Whether the counter fell."""
        return self.falls > 0

    def moves(self, begin_s: float = float("-inf"), end_s: float = float("inf")) -> list[Move]:
        """The counter's moves between two times."""
        return [
            Move(self.times_s[i - 1], self.times_s[i] + self.took_s[i], self.joules[i])
            for i in range(1, len(self.joules))
            if self.joules[i] != self.joules[i - 1] and begin_s <= self.times_s[i - 1] and self.times_s[i] <= end_s
        ]

    def slope(self, begin_s: float, end_s: float) -> tuple[float, float, Move, Move] | None:
        """Watts between the first and the last move in a span, with their error and these moves.

        A standstill at the end of the span counts as part of it.
        """
        moves = self.moves(begin_s, end_s)
        if len(moves) < 2:
            return None
        first, last, read_s = moves[0], moves[-1], min(end_s, self.times_s[-1])
        if read_s - last.at_s > STOOD * statistics.median(b.at_s - a.at_s for a, b in itertools.pairwise(moves)):
            last = Move(read_s, read_s, last.joules)
        slope_w = (last.joules - first.joules) / (last.at_s - first.at_s)
        return slope_w, abs(slope_w) * (first.error_s + last.error_s) / (last.at_s - first.at_s), first, last


@dataclass(frozen=True)
class Move:
    """A move of a counter: the times between which it moved, and its new value."""

    low_s: float
    high_s: float
    joules: float

    @property
    def at_s(self) -> float:
        """The middle of these times."""
        return (self.low_s + self.high_s) / 2

    @property
    def error_s(self) -> float:
        """Half the time between them."""
        return (self.high_s - self.low_s) / 2


def counted(block: Block | None, device: Mapping[str, Any]) -> Counter | None:
    """A device's counter in a block; None if it was not read.

    Args:
        block: the block.
        device: a row of the header's `devices`.
    """
    channel = block.channels.get(device["device"]) if block else None
    if channel is None:
        return None
    times_s: list[float] = []
    took_s: list[float] = []
    joules: list[float] = []
    wrapped_j, falls, most_w = 0.0, 0, meters.kind(device["kind"]).most_w or 0.0
    for at_s, late_s, value in zip(channel.times_s, channel.took_s, channel.values, strict=True):
        if not isinstance(value, NUMBER):
            continue
        range_j, last_j = device["range_j"], joules[-1] - wrapped_j if joules else 0.0
        if joules and value < last_j:
            wrap = range_j is not None and range_j - last_j + value <= most_w * (at_s - times_s[-1] + PERIOD_S)
            wrapped_j += range_j if wrap else 0.0
            falls += not wrap
        times_s.append(at_s)
        took_s.append(late_s)
        joules.append(value + wrapped_j)
    return Counter(device["device"], device["kind"], times_s, took_s, joules, falls) if joules else None


def inside(span: Span) -> tuple[float, float]:
    """The steady part of a time under load: (begin, end)."""
    return span.began_s + min(SKIP_S, SKIP * (span.ended_s - span.began_s)), span.ended_s


def why(readings: Readings, name: str, device: Mapping[str, Any] | None = None) -> str | None:
    """Reason why a block, or a device's counter in it, has no usable readings; None if it has."""
    block = readings.blocks.get(name)
    if block is None:
        return "the measuring ended before"
    if block.reason is not None:
        return block.reason
    log = counted(block, device) if device is not None else None
    if device is not None and log is None:
        return f"the counter gave no reading ({name})" if block.silent is None else f"{block.silent} ({name})"
    return "the counter was reset meanwhile" if log is not None and log.reset else None


class Replay(Trace):
    """The trace that a run would have recorded of a block: readings at random moments, ten per second.

    Args:
        log: the counter; None: there is none.
        power: the board's power readings, empty if there are none.
        instant: whether they are instantaneous.
        seed: seed of the random moments.
    """

    def __init__(self, log: Counter | None, device: str, power: Channel, instant: bool, seed: int) -> None:
        super().__init__([], [])
        kind = meters.kind(device.partition(":")[0])
        power_method = "instant" if instant else "averaged"
        self.traits = {device: meters.Traits(kind=kind, source="", power=power_method)}
        chance, series = random.Random(seed), Series()
        clock = log.times_s if log else power.times_s
        values = _interpolated(power, clock) if log else [_number(value) for value in power.values]
        slot_s = clock[0]
        while slot_s < clock[-1]:
            i = bisect.bisect_left(clock, slot_s + chance.random() * PERIOD_S)
            if i < len(clock) and (not self.times_s or clock[i] > self.times_s[-1]):
                self.times_s.append(clock[i])
                self.took_s.append(log.took_s[i] if log else 0.0)
                series.energy_j.append(log.joules[i] if log else None)
                series.power_w.append(values[i])
            slot_s += PERIOD_S
        self.series = {device: series}


def _number(value: Any) -> float | None:  # noqa: ANN401 - a reading
    return float(value) if isinstance(value, int | float) else None


def _interpolated(power: Channel, clock: Sequence[float]) -> list[float | None]:
    """The newest power reading at each moment, or None."""
    known = power.numbers()
    times_s = [at_s for at_s, _ in known]
    places = (bisect.bisect_right(times_s, at_s) - 1 for at_s in clock)
    return [known[i][1] if i >= 0 else None for i in places]


def power_of(block: Block, header: Mapping[str, Any]) -> Channel:
    """The power readings that a run would use."""
    return block.channels.get("instant" if header["identity"]["instant"] else "average", Channel())


def measured(log: Counter, moves: Sequence[Move], trace: Replay, first: int, last: int, tick_s: float) -> Found:
    """Energy of a window between two readings of a counter, as a run would report it, and in truth.

    Args:
        log: the counter.
        moves: its moves.
        trace: the trace that the run would have recorded.
        first: index of the reading at the begin.
        last: index of the reading at the end.
        tick_s: the counter's tick, as the run knows it.
    """
    begin_s, end_s = log.times_s[first] + log.took_s[first], log.times_s[last]
    bare_j = log.joules[last] - log.joules[first]
    reads = CounterReads(
        begin_j=log.joules[first],
        begin_s=(log.times_s[first], begin_s),
        end_s=(end_s, end_s + log.took_s[last]),
    )
    read = reading(log.device, log.kind, None, bare_j, "counter", reads=reads)
    window = verdict.Window(trace, outcome.Span(begin_s=begin_s, end_s=end_s), end_s - begin_s, 1)
    judged = verdict.finalise_energy(read, window, tick_s, integrable=False)
    ends = [_corner(moves, at_s) for at_s in (begin_s, end_s)]
    return {
        "window_s": end_s - begin_s,
        "bare_j": bare_j,
        "own_j": judged.energy_j,
        "error_j": judged.error_j,
        "status": judged.status,
        "true_j": ends[1][0] - ends[0][0],
        "true_error_j": ends[0][1] + ends[1][1],
    }


def _corner(moves: Sequence[Move], at_s: float) -> tuple[float, float]:
    """Joules at a moment, interpolated between the moves around it, with their error."""
    after = min(max(1, bisect.bisect_left(moves, at_s, key=lambda move: move.at_s)), len(moves) - 1)
    low, high = moves[after - 1], moves[after]
    power_w = (high.joules - low.joules) / max(high.at_s - low.at_s, 1e-9)
    return low.joules + power_w * (at_s - low.at_s), abs(power_w) * max(low.error_s, high.error_s)


def mean_w(points: Sequence[tuple[float, float]]) -> float | None:
    """Mean over time of power readings; None for fewer than three."""
    if len(points) < FEW:
        return None
    area_j = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    return area_j / (points[-1][0] - points[0][0])


def joined(readings: Readings, name: str) -> Block:
    """All readings of a channel, from all blocks, as one block."""
    whole = Channel()
    for channel in (block.channels[name] for block in readings.blocks.values() if name in block.channels):
        whole.times_s += channel.times_s
        whole.took_s += channel.took_s
        whole.values += channel.values
    return Block("all", channels={name: whole} if whole.values else {})


def update_s(readings: Readings, kind: str) -> float | None:
    """Median time between new values of a power sensor, at rest and under steady load; None if too few were seen."""
    gaps_s: list[float] = []
    for block in (readings.blocks.get(name) for name in ("idle", "context", "steady", "rest")):
        known = block.channels.get(kind, Channel()).numbers() if block else []
        changed_s = [b[0] for a, b in itertools.pairwise(known) if a[1] != b[1]]
        gaps_s += [after - before for before, after in itertools.pairwise(changed_s)]
    return statistics.median(gaps_s) if len(gaps_s) >= FEW else None


def mean_error_w(points: Sequence[tuple[float, float]], apart_s: float | None) -> float | None:
    """Error of the mean of power readings, of which only independent ones count.

    Args:
        points: (time, watts).
        apart_s: seconds between independent values of the sensor; None: unknown.

    Returns:
        Watts; None for fewer than `OWN` independent values.
    """
    kept: list[tuple[float, float]] = []
    for at_s, watts in points if apart_s is not None else ():
        if not kept or at_s - kept[-1][0] >= apart_s:  # type: ignore[operator]
            kept.append((at_s, watts))
    return counter.sampling_error_w([watts for _, watts in kept]) if len(kept) >= OWN else None
