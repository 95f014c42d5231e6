"""How well one proxy stands for joules: rank correlations, error, regret, and pairs in the wrong order.

    rank correlation  Spearman's and Kendall's (tau-b), between the mean logs of the configurations
    error             root mean square of log joules - log proxy, after the best constant factor: a proxy has no unit
    regret            joules of the configuration that the proxy would choose, over those of the best
    flips             pairs whose joules differ one way and whose proxy differs the other way, both shown

Regret is a comparison with the best (Hsu 1984, doi:10.1214/aos/1176346732). From above it is the largest bound over all
that may be the best, corrected for the choice: luck that makes a configuration fast makes its joules low as well. From
below it is taken from the observed best, corrected for having been chosen by its joules. So its interval holds for the
choice that was made here, in 95 % of sweeps or more (`python -m benchmarks.proxy_power`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from joulesweep.analyse.comparisons import MOST_DEGREES, Key, not_above
from joulesweep.analyse.statistics import Contrast, Fit, Numbers, Ratio, best_of
from joulesweep.core.student import Interval

ALL, GOOD = "all", "within the margin"  # what a choice may be made from
TIED = 1e-3  # difference of logs up to which a proxy does not tell two configurations apart
LEAST = 0.01  # difference of logs from which on the order of a pair counts
DRAWS = 1000  # of the parametric bootstrap of rank correlations
MOST_PAIRS = 10**8  # of configurations, over all draws
MOST_FLIPS = 3


@dataclass(frozen=True, kw_only=True)
class Fits:
    """Logs of joules, of a proxy, and of joules / proxy, each fitted over the same runs."""

    joules: Fit
    proxy: Fit
    quotient: Fit


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What choosing by a proxy costs.

    Attributes:
        chosen: what it would choose; several where it does not tell them apart, and one of them is taken at random.
        best: the least joules of those that the choice was among.
        among: how many those are.
        regret: joules of the chosen over those of the truly best, at least 1; `low` is 1 if no loss is shown.
    """

    chosen: tuple[Key, ...]
    best: Key
    among: int
    regret: Ratio

    @property
    def shown(self) -> bool:
        """Whether a loss is shown."""
        return self.regret.low is not None and self.regret.low > 1


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A pair whose order by the proxy is not that of its joules.

    Attributes:
        less: the configuration that takes fewer joules, and more of the proxy.
        more: the other one.
        joules: of `less` over `more`, with an interval that holds for all pairs together.
        proxy: likewise.
    """

    less: Key
    more: Key
    joules: Ratio
    proxy: Ratio


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How well one proxy stands for joules.

    Attributes:
        proxy: its name.
        spearman: rank correlation, with its interval; None if the proxy is the same everywhere.
        kendall: likewise.
        error: typical relative error after the best constant factor, with its interval.
        choices: by what the choice is among: `ALL`, and `GOOD` if two or more are within the margin.
        pairs: number of pairs whose joules and proxy both differ by 1 % or more, shown for all pairs together.
        reversed: how many of them in opposite directions.
        flips: the largest of these.
    """

    proxy: str
    spearman: Interval | None
    kendall: Interval | None
    error: Interval
    choices: Mapping[str, Choice]
    pairs: int
    reversed: int
    flips: tuple[Flip, ...]


def standing(proxy: str, fits: Fits, sets: Mapping[str, Sequence[Key]], draws: int = DRAWS) -> Standing:
    """How well a proxy stands for joules.

    Args:
        proxy: its name.
        fits: over cells of one panel, with a known noise.
        sets: of cells that a choice may be among; `ALL` has every cell to look at.
        draws: of the bootstrap.
    """
    keys = sets[ALL]
    joules = np.array([fits.joules.mean_of(key) for key in keys])
    levels = levelled(np.array([fits.proxy.mean_of(key) for key in keys]))
    spearman, kendall = _correlations(fits, keys, joules, levels, draws)
    pairs, reversed_, flips = _flips(fits, keys)
    return Standing(
        proxy=proxy,
        spearman=spearman,
        kendall=kendall,
        error=_error(fits.quotient, keys),
        choices={name: _chosen(fits, among) for name, among in sets.items()},
        pairs=pairs,
        reversed=reversed_,
        flips=flips,
    )


def levelled(logs: Numbers) -> Numbers:
    """Logs of which those that hardly differ are made equal: chains of neighbours no more than `TIED` apart."""
    order = np.argsort(logs, kind="stable")
    level = np.cumsum(np.diff(logs[order], prepend=logs[order[:1]]) > TIED)
    means = np.bincount(level, weights=logs[order]) / np.bincount(level)
    result = np.empty_like(logs)
    result[order] = means[level]
    return result


def _chosen(fits: Fits, among: Sequence[Key]) -> Choice:
    """What the proxy chooses, and what that costs."""
    levels = levelled(np.array([fits.proxy.mean_of(key) for key in among]))
    chosen = [key for key, level in zip(among, levels, strict=True) if level == levels.min()]
    # Cells that luck could have made the choice, each of its own level.
    near = set(not_above(fits.proxy, chosen[0], among, 0.995)) | set(chosen)
    number = len({level for key, level in zip(among, levels, strict=True) if key in near})
    return choice(fits.joules, chosen, among, number)


def choice(joules: Fit, chosen: Sequence[Key], among: Sequence[Key], number: int) -> Choice:
    """What it costs to take one of the chosen cells, each as likely as the others, instead of the best.

    Args:
        joules: the fit, with a known noise.
        chosen: some of `among`.
        among: what the choice is among.
        number: how many choices luck could have made.
    """
    best = min(among, key=joules.mean_of)
    near = not_above(joules, best, among, 0.995)
    apart, ends = _from(joules, chosen, best), []
    for rival in near:
        contrast = _from(joules, chosen, rival)
        if contrast is not None and contrast.error is not None:
            ends.append(contrast.log + best_of(number, _whole(contrast.degrees)) * contrast.error)
    low = 0.0
    if apart is not None and apart.error is not None:
        low = apart.log - _luckiest(len(chosen), len(near), apart.degrees) * apart.error
    regret = Ratio(
        ratio=math.exp(apart.log) if apart else 1.0,
        low=math.exp(max(low, 0.0)),
        high=math.exp(max(0.0, *ends)) if ends else 1.0,
        n=apart.n if apart else 0,
        verdict="higher" if low > 0 else "no difference shown",
    )
    return Choice(chosen=tuple(chosen), best=best, among=len(among), regret=regret)


def _from(joules: Fit, chosen: Sequence[Key], rival: Key) -> Contrast | None:
    """The mean of the chosen cells' logs less that of another; None if that is nothing."""
    weights = dict.fromkeys(chosen, 1 / len(chosen))
    weights[rival] = weights.get(rival, 0.0) - 1.0
    return joules.contrast(weights) if any(weights.values()) else None


def _luckiest(chosen: int, number: int, degrees: float) -> float:
    """How many standard errors luck may have put the best of some below its truth, against the mean of the chosen.

    Comparisons with one cell share its noise. Those with the mean of several hardly do: Bonferroni's bound.
    """
    if chosen == 1:
        return best_of(number, _whole(degrees))
    return float(special.stdtrit(degrees, 1 - 0.025 / max(1, number)))


def _whole(degrees: float) -> int:
    return max(1, min(round(degrees), MOST_DEGREES))


def _error(quotient: Fit, keys: Sequence[Key]) -> Interval:
    """Root mean square of log joules - log proxy around its mean, as a fraction, with an interval that is no narrower.

    The noise of the means is at most as long as Scheffé's F says, and a vector is longer or shorter by no more.
    """
    logs = np.array([quotient.mean_of(key) for key in keys])
    spread = float(logs.std(ddof=1))
    noise = float(np.sqrt(np.mean(quotient.own_errors(keys) ** 2)))
    largest = noise * math.sqrt(float(special.fdtri(len(keys) - 1, max(1, quotient.degrees), 0.95)))
    middle = math.sqrt(max(0.0, spread**2 - noise**2))
    ends = [math.expm1(value) for value in (middle, max(0.0, spread - largest), spread + largest)]
    return Interval(mean=ends[0], low=ends[1], high=ends[2], n=len(keys))


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 1, of equal values their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Numbers = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def spearman(a: Numbers, b: Numbers) -> float:
    """Spearman's rank correlation; NaN if one of the two has a single value."""
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    return float(x @ y / math.sqrt(float((x @ x) * (y @ y)))) if x.any() and y.any() else math.nan


def kendall(a: Numbers, b: Numbers) -> float:
    """Kendall's tau-b; NaN if one of the two has a single value."""
    x, y = (np.sign(values[:, None] - values[None, :]) for values in (a, b))
    both = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / both) if both else math.nan


def _correlations(
    fits: Fits, keys: Sequence[Key], joules: Numbers, levels: Numbers, draws: int
) -> tuple[Interval | None, Interval | None]:
    """Spearman's and Kendall's, with intervals from means that are moved by their noise: a parametric bootstrap.

    The noise of joules and of the proxy go together as far as that of their quotient says. Where cells are nearer to
    each other than their noise, a moved order is further from the truth than the observed one, so that percentiles lie
    too low; pivotal intervals are too narrow at the end of the scale. From the lower to the higher of both ends, 95 to
    100 % hold.
    """
    if len(np.unique(levels)) < 2:
        return None, None
    draws = max(50, min(draws, MOST_PAIRS // len(keys) ** 2))
    chance = np.random.default_rng(1)
    _, first, place = np.unique(levels, return_index=True, return_inverse=True)
    mine, theirs = chance.standard_normal((2, draws, len(keys)))
    together = _together(fits)
    theirs = (together * mine + math.sqrt(1 - together**2) * theirs)[:, first][:, place]  # of one level, one noise
    degrees = max(1, fits.joules.degrees)
    wider = np.sqrt(degrees / chance.chisquare(degrees, (draws, 1)))
    moved = joules + wider * mine * fits.joules.own_errors(keys)
    others = levels + wider * theirs * fits.proxy.own_errors(keys)[first][place]
    return (
        _ends(spearman(joules, levels), [spearman(a, b) for a, b in zip(moved, others, strict=True)]),
        _ends(kendall(joules, levels), [kendall(a, b) for a, b in zip(moved, others, strict=True)]),
    )


def _together(fits: Fits) -> float:
    """Correlation of the noise of joules with that of the proxy, from the variance of their quotient."""
    own, other, both = ((fit.variance or 0.0) for fit in (fits.joules, fits.proxy, fits.quotient))
    return max(-1.0, min((own + other - both) / (2 * math.sqrt(own * other)), 1.0)) if own and other else 0.0


def _ends(value: float, drawn: Sequence[float]) -> Interval:
    """From the lowest to the highest of the ends of the percentile and of the pivotal interval."""
    known = np.array([number for number in drawn if not math.isnan(number)])
    low, high = (float(end) for end in np.quantile(known, [0.025, 0.975])) if len(known) else (-1.0, 1.0)
    return Interval(
        mean=value,
        low=max(-1.0, min(low, 2 * value - high, value)),
        high=min(1.0, max(high, 2 * value - low, value)),
        n=len(known),
    )


def _flips(fits: Fits, keys: Sequence[Key]) -> tuple[int, int, tuple[Flip, ...]]:
    """Pairs that differ in both, those of them in opposite directions, and the largest of these."""
    pairs = len(keys) * (len(keys) - 1) // 2
    confidence = 1 - 0.025 / pairs
    places = [_places(fit, keys) for fit in (fits.joules, fits.proxy)]
    shown, reversed_, largest = 0, 0, []
    for i, key in enumerate(keys[:-1]):
        (joules, told), (proxy, also) = (
            _shown(fit, rows[i], rows[i + 1 :], confidence)
            for fit, rows in zip((fits.joules, fits.proxy), places, strict=True)
        )
        both = told & also
        opposed = np.flatnonzero(both & (np.sign(joules) != np.sign(proxy)))
        shown, reversed_ = shown + int(both.sum()), reversed_ + len(opposed)
        largest += [
            (
                min(abs(float(joules[j])), abs(float(proxy[j]))),
                *_ordered(key, keys[i + 1 + int(j)], bool(joules[j] > 0)),
            )
            for j in opposed
        ]
    largest.sort(key=lambda entry: -entry[0])
    flips = (_flip(fits, less, more, confidence) for _, less, more in largest[:MOST_FLIPS])
    return shown, reversed_, tuple(flip for flip in flips if flip)


def _places(fit: Fit, keys: Sequence[Key]) -> list[int]:
    """The positions of cells in a fit."""
    places = {key: i for i, key in enumerate(fit.keys)}
    return [places[key] for key in keys]


def _ordered(key: Key, other: Key, other_is_more: bool) -> tuple[Key, Key]:
    return (key, other) if other_is_more else (other, key)


def _shown(fit: Fit, row: int, rows: Sequence[int], confidence: float) -> tuple[Numbers, NDArray[np.bool_]]:
    """Differences of logs from one cell, and whether they are shown and worth a word."""
    logs, errors, degrees = fit.versus(row)
    apart = logs[rows]
    if errors is None:  # of a proxy without noise of its own
        return apart, np.abs(apart) >= LEAST
    needed = special.stdtrit(np.maximum(degrees[rows], 1), confidence) * errors[rows]
    return apart, (np.abs(apart) > needed) & (np.abs(apart) >= LEAST)


def _flip(fits: Fits, less: Key, more: Key, confidence: float) -> Flip | None:
    """A reversed pair; None if no seed links the two."""
    ratios = []
    for fit in (fits.joules, fits.proxy):
        contrast = fit.contrast({less: 1.0, more: -1.0})
        if contrast is None:
            return None
        quantile = float(special.stdtrit(max(contrast.degrees, 1), confidence))
        ratios.append(contrast.ratio(low=quantile, high=quantile))
    return Flip(less=less, more=more, joules=ratios[0], proxy=ratios[1])
