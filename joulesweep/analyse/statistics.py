"""Confidence intervals from few repeats, and comparisons paired by seed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

LARGEST_LOG = math.log(1e300)
NO_DIFFERENCE = "no difference shown"
NO_INTERVAL = "n=1, no interval"


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


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The ratio of one quantity to another, over paired seeds. Has no unit.

    Attributes:
        ratio: geometric mean of the pairs' ratios.
        low: lower end of its confidence interval, or None for a single pair.
        high: upper end, or None for a single pair.
        n: how many pairs.
        verdict: "higher", "lower", "no difference shown" (the interval spans 1) or "n=1, no interval".
    """

    ratio: float
    low: float | None
    high: float | None
    n: int
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """The difference of two quantities over paired seeds, in their unit, with its interval; n counts pairs.

    Attributes:
        verdict: "higher", "lower", "no difference shown" (the interval spans 0) or "n=1, no interval".
    """

    verdict: str


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


def paired_ratio(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Ratio a/b with the t interval of the log-ratios; `a[i]` and `b[i]` share their seed.

    Args:
        a: positive values.
        b: positive values, as many.
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: lengths differ, no pairs, or a value is not positive.
    """
    logs = mean_interval([math.log(x) - math.log(y) for x, y in zip(a, b, strict=True)], confidence)
    low, high = (None if end is None else _exp(end) for end in (logs.low, logs.high))
    return Ratio(ratio=_exp(logs.mean), low=low, high=high, n=logs.n, verdict=_verdict(logs))


def _exp(log: float) -> float:
    """The ratio with this logarithm, limited to 1e±300."""
    return math.exp(min(max(log, -LARGEST_LOG), LARGEST_LOG))


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Difference:
    """Difference a - b with its t interval; `a[i]` and `b[i]` share their seed.

    Args:
        a: values.
        b: values in the same unit, as many.
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: lengths differ, or no pairs.
    """
    interval = mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
    return Difference(**asdict(interval), verdict=_verdict(interval))


def _verdict(interval: Interval) -> str:
    """Which side of 0 an interval is on."""
    if interval.low is None or interval.high is None:
        return NO_INTERVAL
    return NO_DIFFERENCE if interval.low <= 0 <= interval.high else "higher" if interval.low > 0 else "lower"


@functools.cache
def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t distribution, by bisection, since hosts with GPUs may lack SciPy."""
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
