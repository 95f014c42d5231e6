"""Estimate the energy between two moments from a counter that moves in steps, with an error bound.

Between its moves a counter lags behind: at most by the energy of one tick. A window begins and ends somewhere within a
tick, so what it counts holds some of what was drawn before it and lacks some of what was drawn in it:

    counter   ____|‾‾‾‾|____|‾‾‾‾|____|‾‾‾‾|____
    moves         τ0   ^begin          τ1  ^end
                  |<-->| drawn before, counted inside      |<-->| drawn inside, not counted

Both parts are estimated from the trace around the edge, with a bound that holds whatever the device drew there.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SLACK = 1.1  # margin: a tick, or a highest power, may be larger than observed


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How a counter moved in a span.

    Attributes:
        num_moves: observed moves.
        still_s: the longest observed time without a move: a lower bound of the tick.
        tick_s: the time between two moves; None if fewer than three were observed.
    """

    num_moves: int
    still_s: float
    tick_s: float | None


def steps(
    times_s: Sequence[float], values: Sequence[float | None], took_s: Sequence[float], begin_s: float, end_s: float
) -> Steps:
    """Analyse how a counter moved in a span.

    Args:
        times_s: when each reading began.
        values: the readings, in joules; None where one failed.
        took_s: how long each took; empty if no time.
        begin_s: of the span.
        end_s: of the span.
    """
    first, last = bisect.bisect_left(times_s, begin_s), bisect.bisect_right(times_s, end_s)
    known = [i for i in range(first, last) if values[i] is not None]
    groups = [list(group) for _, group in itertools.groupby(known, key=lambda i: values[i])]
    late_s = (lambda i: took_s[i]) if took_s else (lambda i: 0.0)
    # It was read at the earliest when the reading began, at the latest when that ended.
    stills = [max(0.0, times_s[group[-1]] - times_s[group[0]] - late_s(group[0])) for group in groups]
    spans = [
        times_s[after[0]] + late_s(after[0]) - times_s[before[-1]]
        for before, after in zip(groups, groups[2:], strict=False)
    ]
    still_s = max(stills, default=0.0)
    tick_s = (still_s + max(still_s, min(spans))) / 2 if len(spans) > 1 else None
    return Steps(num_moves=max(0, len(groups) - 1), still_s=still_s, tick_s=tick_s)


@dataclass(frozen=True, kw_only=True)
class Lag:
    """Energy that a counter had not counted yet at a moment, with the bound of its error; both in joules."""

    energy_j: float
    error_j: float


def lag(
    times_s: Sequence[float],
    values: Sequence[float | None],
    *,
    at_s: float,
    read_s: tuple[float, float],
    reading_j: float,
    tick_s: float,
    power_w: float,
    most_w: float,
) -> Lag:
    """Estimate what a device had drawn by a moment and its counter had not counted.

    Args:
        times_s: when the trace read the counter.
        values: what it read, in joules; None where that failed.
        at_s: the moment.
        read_s: the times between which the counter was read for it.
        reading_j: that reading.
        tick_s: time between its moves.
        power_w: the device's power just before the moment.
        most_w: the highest possible power around it.
    """
    low_s, high_s, next_j = _around(times_s, values, at_s, reading_j)
    low_s = max(low_s, read_s[0] - SLACK * tick_s)
    high_s = max(low_s, min(high_s, read_s[1]))
    most_j = (at_s - low_s) * most_w
    if next_j is not None:
        most_j = min(most_j, next_j - reading_j + max(0.0, at_s - read_s[0]) * most_w)
    least_j = min(0.0, at_s - high_s) * most_w
    age_s = at_s - (low_s + high_s) / 2
    energy_j = min(max(power_w * age_s, least_j), most_j)
    return Lag(energy_j=energy_j, error_j=max(energy_j - least_j, most_j - energy_j))


def _around(
    times_s: Sequence[float], values: Sequence[float | None], at_s: float, reading_j: float
) -> tuple[float, float, float | None]:
    """The times between which a counter moved to a reading, and its value after the next move, or None."""
    after = bisect.bisect_left(times_s, at_s)
    low_s, high_s, newest_j = float("-inf"), float("inf"), float("inf")
    for i in range(after - 1, -1, -1):
        value = values[i]
        if value is None:
            continue
        if value < reading_j or value > newest_j:  # more than later: it was reset
            low_s = times_s[i]
            break
        high_s, newest_j = times_s[i], value
    later = (value for value in itertools.islice(values, after, None) if value is not None and value != reading_j)
    next_j = next(later, None)
    return low_s, high_s, None if next_j is None or next_j < reading_j else next_j


def sampling_error_w(powers_w: Sequence[float]) -> float:
    """Bound of the error of mean power: three standard errors, from the differences of neighbouring readings.

    The readings are at random moments, so a periodic load needs no other treatment.
    """
    apart = [(after - before) ** 2 for before, after in itertools.pairwise(powers_w)]
    if not apart:
        return 0.0
    edges_w = max(apart) ** 0.5 / len(powers_w)  # what the first and the last reading stand for, too
    return float(3 * (statistics.fmean(apart) / 2 / len(powers_w)) ** 0.5 + edges_w)
