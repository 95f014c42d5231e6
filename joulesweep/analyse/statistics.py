"""Confidence intervals from few repeats, and comparisons paired by seed.

Quantities that are positive are compared on logs: a ratio is the exponential of a difference of logs, and no interval
reaches below zero. `Fit` compares many cells at once: log value = cell + seed + noise, with the noise of all cells
pooled, which gives three repeats of 24 cells 46 degrees of freedom instead of 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from joulesweep.core.quantities import digits, signed_percent
from joulesweep.core.student import Interval, mean_interval

LARGEST_LOG = math.log(1e300)
NO_DIFFERENCE = "no difference shown"
NO_INTERVAL = "n=1, no interval"
#: Chance at which a check of the noise speaks although all cells have the same, normal noise.
FALSE_ALARM = 0.01
#: The same of the test whether cells differ in their noise: it seldom sees it in few repeats.
FALSE_ALARM_OF_NOISE = 0.05
#: Share of Smyth's prior degrees of freedom that counts. He takes the variances of cells to follow one bell; where half
#: of the cells are far noisier than the others, the whole prior makes intervals too narrow (simulated: 91 % hold).
LENT = 0.25
OFTEN = 50  # ratios to one cell, after which those of all cells to it are worked out at once
UNLINKED = 1e-9  # what of a difference no seed explains, above which it cannot be estimated
ROUNDING = 1e-12  # of logs: noise below is the computer's
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The ratio of one quantity to another, over paired seeds. Has no unit.

    Attributes:
        ratio: geometric mean of the pairs' ratios.
        low: lower end of its confidence interval, or None where nothing tells the noise.
        high: upper end, likewise.
        n: how many pairs: seeds that both have.
        verdict: "higher", "lower", "no difference shown" (the interval spans 1) or "n=1, no interval".
    """

    ratio: float
    low: float | None
    high: float | None
    n: int
    verdict: str


def times(ratio: Ratio) -> str:
    """A ratio as sentences give it: `× 0.381, 0.374 to 0.388, n = 5`."""
    ends = "no interval" if ratio.low is None or ratio.high is None else f"{_to(ratio.low)} to {_to(ratio.high)}"
    return f"× {_to(ratio.ratio)}, {ends}, n = {ratio.n}"


def change(ratio: Ratio) -> str:
    """A ratio as tables give it, as a change in percent: `+3 % [+1, +5]`."""
    known = ratio.low is not None and ratio.high is not None
    ends = f"[{signed_percent(ratio.low - 1)}, {signed_percent(ratio.high - 1)}]" if known else NO_INTERVAL  # type: ignore[operator]
    return f"{signed_percent(ratio.ratio - 1)} % {ends}"


def _to(value: float) -> str:
    """A ratio with three digits, or as many after the point where it is within a tenth of 1."""
    return f"{value:.3f}" if 0.9 < value < 1.1 else digits(value)


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """The difference of two quantities over paired seeds, in their unit, with its interval; n counts pairs.

    Attributes:
        verdict: "higher", "lower", "no difference shown" (the interval spans 0) or "n=1, no interval".
    """

    verdict: str


def positive_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Arithmetic mean of positive values, with the t interval of their logs laid around it: its ends are positive.

    Args:
        values: at least one, all above 0.
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: no values, or one that is not positive.
    """
    mean = mean_interval(values).mean
    logs = mean_interval([math.log(value) for value in values], confidence)
    if logs.high is None:
        return Interval(mean=mean, low=None, high=None, n=1)
    factor = _exp(logs.high - logs.mean)
    return Interval(mean=mean, low=mean / factor, high=min(mean * factor, 1e300), n=logs.n)


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
    return Ratio(ratio=_exp(logs.mean), low=low, high=high, n=logs.n, verdict=_verdict(logs.low, logs.high))


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
    return Difference(**asdict(interval), verdict=_verdict(interval.low, interval.high))


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """A mean over items and seeds, with what it would be for other items and other seeds of the same kinds.

    Attributes:
        mean: over all items and seeds.
        error: standard error; None with one item or one seed.
        degrees: of freedom of the standard error; 0 without one.
        num_items: how many items.
        num_seeds: how many seeds, each with every item.
    """

    mean: float
    error: float | None
    degrees: float
    num_items: int
    num_seeds: int

    def interval(self, number: int = 1) -> tuple[float, float] | None:
        """The ends of the 95 % interval; None with one item or one seed.

        Args:
            number: of intervals that are looked at together, for which Bonferroni's correction makes them wider.
        """
        if self.error is None:
            return None
        half = one_sided(self.degrees, 1 - 0.025 / number) * self.error
        return self.mean - half, self.mean + half


def crossed_mean(values: Numbers) -> Crossed:
    """Mean of the same items under several seeds, both of which are samples: items and seeds cross.

    The variance of the mean adds that of items and that of seeds, from their mean squares, less their interaction,
    which is in both; it is never less than what either alone tells. Degrees of freedom are Satterthwaite's. Clark 1973
    (doi:10.1016/S0022-5371(73)80014-3) says why items are no fixed effect. Simulated for 3 seeds and 20 to 1,500 items,
    the interval holds the truth in 93 to 98 % of cases.

    Args:
        values: (items, seeds), at least one of each.
    """
    num_items, num_seeds = values.shape
    mean = float(values.mean())
    if min(num_items, num_seeds) < 2:
        return Crossed(mean=mean, error=None, degrees=0.0, num_items=num_items, num_seeds=num_seeds)
    of_items, of_seeds = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - of_items[:, None] - of_seeds
    degrees = np.array([num_items - 1, num_seeds - 1, (num_items - 1) * (num_seeds - 1)], dtype=float)
    sums = [num_seeds * (of_items**2).sum(), num_items * (of_seeds**2).sum(), (rest**2).sum()]
    items, seeds, both = squares = np.array(sums) / degrees
    whole = float(max(items + seeds - both, items, seeds))
    freedom = whole**2 / float((squares**2 / degrees).sum()) if whole > 0 else 0.0
    return Crossed(
        mean=mean,
        error=math.sqrt(whole / values.size),
        degrees=max(freedom, float(degrees.min())),
        num_items=num_items,
        num_seeds=num_seeds,
    )


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A weighted sum of cells' logs, with weights that sum to 0.

    Attributes:
        log: its estimate.
        error: standard error; None where nothing tells the noise.
        degrees: of freedom of the standard error; 0 where nothing tells the noise.
        n: fewest repeats of a cell in it; for two cells the seeds that both have.
    """

    log: float
    error: float | None
    degrees: float
    n: int

    def end(self, quantile: float) -> float | None:
        """The estimate plus so many standard errors, as a ratio."""
        return None if self.error is None else _exp(self.log + quantile * self.error)

    def ratio(self, low: float | None = None, high: float | None = None) -> Ratio:
        """The contrast as a ratio, with its 95 % interval.

        Args:
            low: standard errors from the estimate down to the lower end; default: Student's t.
            high: standard errors up to the upper end; default: Student's t.
        """
        usual = one_sided(self.degrees, 0.975) if self.error is not None else 0.0
        ends = [self.end(-(usual if low is None else low)), self.end(usual if high is None else high)]
        logs = [None if end is None else math.log(end) for end in ends]
        return Ratio(ratio=_exp(self.log), low=ends[0], high=ends[1], n=self.n, verdict=_verdict(*logs))

    def bounds(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """One-sided bounds as ratios, each holding with this confidence; None where nothing tells the noise."""
        if self.error is None:
            return None
        quantile = one_sided(self.degrees, confidence)
        return _exp(self.log - quantile * self.error), _exp(self.log + quantile * self.error)

    def inverse(self) -> Contrast:
        """The contrast of the reciprocal."""
        return dataclasses.replace(self, log=-self.log)


class Fit:
    """Logs of one quantity in comparable cells: log value = cell + seed + noise, by least squares.

    The noise is pooled over all cells. Where Bartlett's test shows that cells differ in it, each cell has its own
    variance, drawn toward the others' (Smyth 2004, doi:10.2202/1544-6115.1027, section 6.2); differences then have
    Satterthwaite's degrees of freedom.

    Attributes:
        keys: the cells, in the order given.
        means: (cells,) log means of the cells, adjusted for seeds that some lack.
        degrees: of freedom of the pooled variance.
        variance: pooled variance of the noise of one run; None without degrees of freedom.
        unequal: p-value of Bartlett's test if it shows that the cells' noise differs, else None.
        outliers: (cell, seed, ratio to what the model expects) of the run furthest off, if no chance explains it.
    """

    def __init__(self, values: Mapping[Any, Mapping[int, float]]) -> None:
        """Fit the model.

        Args:
            values: by cell, then by seed; each cell has one at least, and all are positive.
        """
        self.keys = list(values)
        self._row = {key: i for i, key in enumerate(self.keys)}
        seeds = sorted({seed for of_cell in values.values() for seed in of_cell})
        logs = np.array([[math.log(of_cell.get(seed, math.nan)) for seed in seeds] for of_cell in values.values()])
        self._logs, self._known = logs, ~np.isnan(logs)
        self._counts = self._known.sum(1)
        filled = np.where(self._known, logs, 0.0)
        # The cells are eliminated: what is left is a small system, of the seeds alone.
        weights = self._known / self._counts[:, None]
        system = np.diag(self._known.sum(0).astype(float)) - self._known.T.astype(float) @ weights
        self._inverse, rank = _inverse(system)
        self._weights = weights
        self._system = system
        effects = self._inverse @ (filled.sum(0) - self._known.T @ (filled.sum(1) / self._counts))
        self.means: Numbers = (filled.sum(1) - self._known @ effects) / self._counts
        residuals = np.where(self._known, logs - self.means[:, None] - effects, 0.0)
        self.degrees = int(self._known.sum() - len(self.keys) - rank)
        squares = residuals**2
        self.variance = float(squares.sum() / self.degrees) if self.degrees > 0 else None
        if self.variance is not None and self.variance < ROUNDING**2:
            self.variance = 0.0
        self.unequal: float | None = None
        self.outliers: list[tuple[Hashable, int, float]] = []
        self._variances = np.full(len(self.keys), self.variance or 0.0)
        self._freedom = np.full(len(self.keys), float(self.degrees))
        self._asked: Counter[int] = Counter()
        self._against: dict[int, list[Ratio | None]] = {}
        if self.variance:
            self._examine(logs - effects, residuals, seeds)

    def _examine(self, adjusted: Numbers, residuals: Numbers, seeds: Sequence[int]) -> None:
        """Look for outliers and unequal variances."""
        self.outliers = self._furthest(residuals, seeds)
        repeated = [row[known] for row, known in zip(adjusted, self._known, strict=True) if known.sum() > 1]
        if len(repeated) < 3 or len(seeds) < 3 or any(np.ptp(row) == 0 for row in repeated):
            return
        chance = bartlett(repeated)
        if not chance < FALSE_ALARM_OF_NOISE:
            return
        self.unequal = chance
        own = self._counts * (self.degrees / self._known.sum())  # each cell's share of the degrees of freedom
        self._variances, prior = shrunk((residuals**2).sum(1) / own, own)
        self._freedom = np.minimum(own + prior, self.degrees)

    def _furthest(self, residuals: Numbers, seeds: Sequence[int]) -> list[tuple[Hashable, int, float]]:
        """The run with the largest externally studentised residual, if Bonferroni's bound calls it an outlier."""
        if self.degrees < 2 or self.variance is None:
            return []
        apart = np.eye(len(seeds))[None] - self._weights[:, None, :]
        leverage = 1 / self._counts[:, None] + np.einsum("csi,ij,csj->cs", apart, self._inverse, apart)
        free = np.where(self._known, np.maximum(1 - leverage, 1e-12), 1.0)
        inner = np.abs(residuals) / np.sqrt(self.variance * free)
        cell, seed = np.unravel_index(np.argmax(inner), inner.shape)
        square = min(inner[cell, seed] ** 2, self.degrees * (1 - 1e-12))
        outer = math.sqrt(square * (self.degrees - 1) / (self.degrees - square))
        chance = 2 * special.stdtr(self.degrees - 1, -outer) * self._known.sum()
        if chance >= FALSE_ALARM:
            return []
        # Without the run, its residual is larger by 1 / (1 - leverage).
        return [(self.keys[cell], seeds[int(seed)], _exp(residuals[cell, seed] / free[cell, seed]))]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._row

    def mean_of(self, key: Hashable) -> float:
        """The log mean of a cell."""
        return float(self.means[self._row[key]])

    def values_of(self, key: Hashable) -> list[float]:
        """The logs of a cell's runs, by seed."""
        row = self._row[key]
        return [float(value) for value in self._logs[row][self._known[row]]]

    def contrast(self, weights: Mapping[Any, float]) -> Contrast | None:
        """A weighted sum of the cells' logs.

        Args:
            weights: by cell; they sum to 0.

        Returns:
            None if a cell is unknown, or if no seed links the cells.
        """
        if not all(key in self._row for key in weights):
            return None
        factors = np.zeros(len(self.keys))
        factors[[self._row[key] for key in weights]] = list(weights.values())
        return self.weighted(factors)

    def changes(self, before: Sequence[Hashable], after: Sequence[Hashable]) -> Numbers:
        """The weights of the mean change over pairs of cells, for `weighted`: (cells,), which sum to 0.

        Args:
            before: the first cell of each pair; all are known.
            after: the second of each, as many.
        """
        weights = np.zeros(len(self.keys))
        for keys, weight in ((before, -1 / len(before)), (after, 1 / len(after))):
            np.add.at(weights, [self._row[key] for key in keys], weight)
        return weights

    def weighted(self, weights: Numbers) -> Contrast | None:
        """A weighted sum of the cells' logs; None if no seed links the cells.

        Args:
            weights: (cells,), in the order of `keys`; they sum to 0.
        """
        rows = np.flatnonzero(weights)
        factors = weights[rows]
        through_seeds = factors @ self._weights[rows]
        if np.abs(self._system @ (self._inverse @ through_seeds) - through_seeds).max() > UNLINKED:
            return None
        log, n = float(factors @ self.means[rows]), int(self._counts[rows].min())
        if len(rows) == 2:
            n = int((self._known[rows[0]] & self._known[rows[1]]).sum())
        if self.variance is None:
            return Contrast(log=log, error=None, degrees=0, n=n)
        parts = factors**2 / self._counts[rows] * self._variances[rows]
        shared = float(through_seeds @ self._inverse @ through_seeds) * self.variance
        whole = float(parts.sum()) + shared
        degrees = float(self.degrees)
        if self.unequal is not None and whole > 0:
            degrees = min(degrees, max(1.0, whole**2 / float((parts**2 / self._freedom[rows]).sum() + 1e-300)))
        return Contrast(log=log, error=math.sqrt(whole), degrees=degrees, n=n)

    def versus(self, row: int) -> tuple[Numbers, Numbers | None, Numbers]:
        """Every cell against one: differences of log means, their standard errors and degrees of freedom.

        Args:
            row: the position of the one in `keys`.

        Returns:
            Three arrays of the length of `keys`; no standard errors where nothing tells the noise.
        """
        logs = self.means - self.means[row]
        if self.variance is None:
            return logs, None, np.zeros(len(self.keys))
        through_seeds = self._weights - self._weights[row]
        shared = np.einsum("cs,st,ct->c", through_seeds, self._inverse, through_seeds) * self.variance
        own = self._variances / self._counts
        whole = own + own[row] + shared
        degrees = np.full(len(self.keys), float(self.degrees))
        if self.unequal is not None:
            parts = own**2 / self._freedom
            degrees = np.clip(whole**2 / (parts + parts[row] + 1e-300), 1.0, self.degrees)
        whole[row] = 0.0
        return logs, np.sqrt(whole), degrees

    def ratio(self, a: Hashable, b: Hashable) -> Ratio | None:
        """The ratio of one cell to another; None if one is unknown, or if no seed links them."""
        if a == b or a not in self._row or b not in self._row:
            return None
        other = self._row[b]
        self._asked[other] += 1
        if self._asked[other] == OFTEN:
            self._against[other] = self._ratios(other)
        if other in self._against:
            return self._against[other][self._row[a]]
        contrast = self.contrast({a: 1.0, b: -1.0})
        return None if contrast is None else contrast.ratio()

    def _ratios(self, row: int) -> list[Ratio | None]:
        """The ratios of all cells to one."""
        logs, errors, degrees = self.versus(row)
        through_seeds = self._weights - self._weights[row]
        off = np.abs(through_seeds @ (self._system @ self._inverse).T - through_seeds).max(1) > UNLINKED
        common = (self._known & self._known[row]).sum(1)
        contrasts = (
            Contrast(
                log=float(logs[i]),
                error=None if errors is None else float(errors[i]),
                degrees=float(degrees[i]),
                n=int(common[i]),
            )
            for i in range(len(logs))
        )
        return [None if is_off else contrast.ratio() for contrast, is_off in zip(contrasts, off, strict=True)]

    def complete_logs(self, keys: Sequence[Hashable]) -> Numbers | None:
        """The logs of some cells, (cells, seeds); None if a cell is unknown or lacks a seed of another."""
        if not all(key in self._row for key in keys) or not keys:
            return None
        rows = [self._row[key] for key in keys]
        return self._logs[rows] if self._known[rows].all() else None

    def own_errors(self, keys: Sequence[Hashable]) -> Numbers:
        """Standard errors of some cells' log means, without what the seeds share: 0 where nothing tells the noise."""
        rows = [self._row[key] for key in keys]
        errors: Numbers = np.sqrt(self._variances[rows] / self._counts[rows])
        return errors

    def resolution(self) -> tuple[float, int] | None:
        """Half-width of the interval of a typical ratio, as a fraction, and the repeats behind it; None without any."""
        if self.variance is None or len(self.keys) < 2:
            return None
        n = int(np.median(self._counts))
        variance = float(np.median(self._variances)) * 2 / n
        return _exp(one_sided(float(np.median(self._freedom)), 0.975) * math.sqrt(variance)) - 1, n


def _inverse(system: Numbers) -> tuple[Numbers, int]:
    """Moore and Penrose's inverse of a symmetric matrix, and its rank."""
    sizes, vectors = np.linalg.eigh(system)
    kept = sizes > 1e-9 * max(1.0, float(sizes.max()))
    return (vectors[:, kept] / sizes[kept]) @ vectors[:, kept].T, int(kept.sum())


def bartlett(samples: Sequence[Numbers]) -> float:
    """The p-value of Bartlett's test for equal variances, as `scipy.stats.bartlett`, whose import takes half a second.

    Args:
        samples: two or more, of two values or more each, none of them all equal.
    """
    degrees = np.array([len(sample) - 1.0 for sample in samples])
    variances = np.array([sample.var(ddof=1) for sample in samples])
    whole, number = degrees.sum(), len(samples)
    pooled = float(degrees @ variances) / whole
    apart = whole * math.log(pooled) - float(degrees @ np.log(variances))
    correction = 1 + (float((1 / degrees).sum()) - 1 / whole) / (3 * (number - 1))
    return float(special.chdtrc(number - 1, apart / correction))


def shrunk(variances: Numbers, degrees: Numbers) -> tuple[Numbers, float]:
    """Variances drawn toward a common one, by how much more they differ than chance makes them (Smyth 2004, 6.2).

    Args:
        variances: (cells,) of each cell.
        degrees: (cells,) of freedom of each.

    Returns:
        (cells,) variances, and the degrees of freedom that the others lend to each (`LENT` of Smyth's): infinite if
        chance explains all.
    """
    logs = np.log(np.maximum(variances, 1e-300))
    logs = np.maximum(logs, np.median(logs) - 12)  # a variance of 0 is rounding, not knowledge
    centred = logs - special.digamma(degrees / 2) + np.log(degrees / 2)
    more = float(centred.var(ddof=1) - special.polygamma(1, degrees / 2).mean())
    if more <= 0:
        return np.full(len(variances), math.exp(float(centred.mean()))), math.inf
    prior = 2 * _inverse_trigamma(more)
    common = math.exp(float(centred.mean()) + float(special.digamma(prior / 2)) - math.log(prior / 2))
    prior *= LENT
    return (prior * common + degrees * variances) / (prior + degrees), prior


def _inverse_trigamma(value: float) -> float:
    """The number whose trigamma this is, by Newton's method (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


def _exp(log: float) -> float:
    """The ratio with this logarithm, limited to 1e±300."""
    return math.exp(min(max(log, -LARGEST_LOG), LARGEST_LOG))


def _verdict(low: float | None, high: float | None) -> str:
    """Which side of 0 an interval is on."""
    if low is None or high is None:
        return NO_INTERVAL
    return NO_DIFFERENCE if low <= 0 <= high else "higher" if low > 0 else "lower"


@functools.cache
def one_sided(degrees: float, confidence: float = 0.95) -> float:
    """One-sided quantile of Student's t distribution."""
    return float(special.stdtrit(degrees, confidence))


#: Nodes and weights that integrate over a standard normal variable.
NORMAL = np.polynomial.hermite_e.hermegauss(64)


@functools.cache
def best_of(number: int, degrees: float, confidence: float = 0.975) -> float:
    """One-sided quantile of the largest of many t ratios that share what they are compared with.

    It bounds, whichever of `number` cells was chosen by looking, how far luck has moved it from the one it is compared
    with (Dunnett 1955, doi:10.1080/01621459.1955.10501294). One cell: Student's t.

    Args:
        number: cells that the choice was among.
        degrees: of freedom of the standard error, rounded for the cache by the caller.
        confidence: coverage, one-sided.
    """
    from scipy import optimize

    if number <= 1:
        return one_sided(degrees, confidence)
    shared, masses = NORMAL[0], NORMAL[1] / NORMAL[1].sum()
    # Student's denominator: chi over the root of its degrees of freedom, at the middles of equally likely parts.
    parts = (np.arange(400) + 0.5) / 400
    spread = np.sqrt(special.chdtri(degrees, 1 - parts) / degrees)

    def short(quantile: float) -> float:
        below = special.ndtr(shared[None, :] + quantile * math.sqrt(2) * spread[:, None]) ** number
        return float((below @ masses).mean() - confidence)

    return float(optimize.brentq(short, 0, 100, xtol=1e-6))


def repeats_to_tell(apart: float, variance: float, cells: int, most: int = 20) -> int | None:
    """Repeats per cell until two cells so far apart are told apart by a one-sided 95 % bound; None beyond `most`.

    Args:
        apart: absolute difference of their logs.
        variance: of the noise of one run's log.
        cells: of the sweep, among which the noise is pooled.
        most: repeats that anyone would make.
    """
    for n in range(2, most + 1):
        if one_sided((cells - 1) * (n - 1)) * math.sqrt(2 * variance / n) < apart:
            return n
    return None


def power_to_pass(contrast: Contrast, line: float, confidence: float, n: int) -> float:
    """Chance that a contrast's one-sided bound passes a line with n repeats per cell, if its estimate is the truth.

    Args:
        contrast: whose noise is known; its estimate lies on either side of the line.
        line: a log.
        confidence: of the bound.
        n: repeats per cell, 2 or more.
    """
    assert contrast.error is not None
    had = max(contrast.n, 1)  # cells without a common seed may be linked by others
    apart, error = abs(contrast.log - line), contrast.error * math.sqrt(had / n)
    if error <= ROUNDING:
        return float(apart > 0)
    # The noise is pooled over cells, each of which has one repeat less to tell it.
    degrees = contrast.degrees * (n - 1) / max(had - 1, 1)
    beyond, shift = one_sided(degrees, confidence), apart / error
    return 1.0 if shift > 30 + beyond else float(1 - special.nctdtr(degrees, shift, beyond))


def repeats_to_pass(
    contrast: Contrast, line: float, confidence: float, power: float = 0.8, most: int = 200
) -> int | None:
    """Repeats per cell, 2 or more, with which a contrast's one-sided bound passes a line with this chance.

    Args:
        contrast: whose noise is known, and whose estimate is taken for the truth.
        line: a log.
        confidence: of the bound.
        power: the chance.
        most: repeats that anyone would make; None beyond.
    """
    return next((n for n in range(2, most + 1) if power_to_pass(contrast, line, confidence, n) >= power), None)


def heterogeneity(contrasts: Sequence[Contrast]) -> float | None:
    """Chance that independent contrasts of one size differ as these do: Welch's test, with few degrees of freedom.

    It is Cochran's Q of the contrasts, divided and corrected for variances that are themselves estimated from few runs
    (Welch 1951, doi:10.1093/biomet/38.3-4.330).

    Args:
        contrasts: of different fits.

    Returns:
        The p-value, or None with fewer than two contrasts whose noise is known.
    """
    known = [one for one in contrasts if one.error is not None]
    if len(known) < 2:
        return None
    logs = np.array([one.log for one in known])
    errors = np.maximum(np.array([one.error for one in known], dtype=float), ROUNDING)
    if np.ptp(logs) <= ROUNDING:
        return 1.0
    weights, number = errors**-2.0, len(known)
    shares = weights / weights.sum()
    between = float(weights @ (logs - shares @ logs) ** 2) / (number - 1)
    spread = float(((1 - shares) ** 2 / np.array([one.degrees for one in known])).sum())
    degrees = (number**2 - 1) / (3 * spread)
    corrected = between / (1 + 2 * (number - 2) / (number**2 - 1) * spread)
    return float(special.fdtrc(number - 1, degrees, corrected))


def summary(fit: Fit, name: Any) -> list[str]:  # noqa: ANN401 - a function from a key to words
    """What to know about the noise of a fit, a sentence each."""
    return [
        *(f"run {seed} of {name(key)} is {ratio:.3g}× what the others let expect" for key, seed, ratio in fit.outliers),
        *(
            [f"the noise differs between configurations (Bartlett's test, p = {fit.unequal:.1g})"]
            if fit.unequal
            else []
        ),
    ]
