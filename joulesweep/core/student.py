"""The mean of few values with Student's t interval; without SciPy, which hosts that certify their boards may lack."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values.

    Attributes:
        mean: arithmetic mean.
        low: lower end, or None for a single value.
        high: upper end, or None for a single value.
        n: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval, which assumes independent, roughly normal values.

    Args:
        values: at least one.
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values: a mean needs at least one")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1)
    # hypot: squares could overflow a float where the values do not.
    half = t_quantile(n - 1, confidence) * math.hypot(*(value - mean for value in values)) / math.sqrt((n - 1) * n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n)


@functools.cache
def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t distribution, by bisection."""
    low, high = 0.0, 1.0
    while _t_coverage(high, degrees) < confidence:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _t_coverage(middle, degrees) < confidence else (low, middle)
    return high


def _t_coverage(t: float, degrees: int) -> float:
    """Probability that Student's t is within ±t (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (i + 1) / (i + 2)
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
