"""How well stand-ins for joules do: seconds, FLOPs, watts, a power limit × time, an estimate from CPU-seconds.

Of each proxy, over the configurations of a panel with undoubted, counted joules of the same kinds of device:

    rank correlation  Spearman's and Kendall's (tau-b), between the mean logs of the configurations
    error             root mean square of log joules - log proxy, after the best constant factor: a proxy has no unit
    regret            joules of the configuration that the proxy would choose, over those of the best
    flips             pairs whose joules differ one way and whose proxy differs the other way, both shown

Estimated and integrated joules are left out: an estimate is made of seconds, and would stand for itself.

Regret is a comparison with the best (Hsu 1984, doi:10.1214/aos/1176346732). From above it is the largest bound over all
that may be the best, corrected for the choice: luck that makes a configuration fast makes its joules low as well. From
below it is taken from the observed best, corrected for having been chosen by its joules. So its interval holds for the
choice that was made here, in at least 95 % of sweeps (`python -m benchmarks.proxy_power`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from joulesweep.analyse.cells import comparable_groups, doubtful, finished
from joulesweep.analyse.comparisons import MOST_DEGREES, WITHIN, Comparisons, Key, key_of, not_above
from joulesweep.analyse.statistics import Contrast, Fit, Numbers, Ratio, best_of
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.student import Interval
from joulesweep.reference.cpu_estimate import Asked, estimate_cpu

SECONDS, WATTS, ESTIMATE = "seconds", "mean watts", "an estimate from CPU-seconds"
RANDOM = "a random choice"
#: Proxies that are worked out from columns of the runs.
PROXIES: dict[str, pl.Expr] = {
    SECONDS: pl.col("window_s"),
    "executed FLOPs": pl.col("executed_flops"),
    "useful FLOPs": pl.col("useful_flops"),
    WATTS: pl.col("counted_j") / pl.col("window_s"),
    "power limit × time": pl.col("power_limit_w") * pl.col("devices") * pl.col("window_s"),
    "time per token": 1 / pl.col("tokens_per_s"),
}
#: Why a proxy may be lacking.
LACKING = {
    "executed FLOPs": "they were not counted",
    "useful FLOPs": "they were not counted",
    "power limit × time": "no board's power limit is recorded",
    "time per token": "all configurations train on as many tokens, so it ranks as seconds do",
}
ALL, GOOD = "all", "within the margin"  # what a choice may be made from
FEWEST = 3  # configurations of a panel
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


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The proxies of one panel.

    Attributes:
        name: of the panel; empty if the sweep has one.
        rows: of the cells table: the configurations that were compared.
        scope: kinds of device whose joules these are.
        repeats: fewest of a configuration.
        standings: of each proxy that is known.
        at_random: what a random choice costs, by what it is among.
        lacking: a reason for each proxy that is not known.
        left_out: a line per configuration that was left out, and why.
        why_not: why nothing can be said; then there are no standings.
    """

    name: str
    rows: tuple[Row, ...] = ()
    scope: str = ""
    repeats: int = 0
    standings: tuple[Standing, ...] = ()
    at_random: Mapping[str, Choice] | None = None
    lacking: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()
    why_not: str | None = None


def panels(tables: Tables, asked: Asked) -> list[Panel]:
    """The proxies of every panel with a finished run.

    Args:
        tables: of the sweep.
        asked: the config's settings for estimates, whose watts are used.
    """
    cells = finished(tables.cells, "window_s_mean")
    if cells.is_empty():
        return []
    runs = _with_proxies(tables.runs, asked)
    comparisons = Comparisons(runs)
    return [_panel(name, part, comparisons, runs) for name, part in comparable_groups(cells)]


def _column(proxy: str) -> str:
    return f"proxy {proxy}"


def _quotient(proxy: str) -> str:
    return f"joules / {proxy}"


def _with_proxies(runs: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """The runs with a column for each proxy, and one for joules over it."""
    counted = pl.when(pl.col("energy_status") == "measured", pl.col("energy_doubt").is_null()).then("energy_j")
    runs = runs.with_columns(counted_j=counted)
    estimates = [_estimate(row, asked) for row in runs.iter_rows(named=True)]
    columns = {_column(name): proxy for name, proxy in PROXIES.items()}
    runs = runs.with_columns(pl.Series(_column(ESTIMATE), estimates, dtype=pl.Float64), **columns)
    names = [*PROXIES, ESTIMATE]
    return runs.with_columns(**{_quotient(name): pl.col("counted_j") / pl.col(_column(name)) for name in names})


def _estimate(row: Row, asked: Asked) -> float | None:
    """Joules of the processor as software estimates them, from CPU-seconds and published watts; None where unknown."""
    cpu_s, window_s, model, cores = (row[key] for key in ("cpu_s", "window_s", "cpu_model", "cpu_cores"))
    if None in (cpu_s, window_s, model, cores):
        return None
    return estimate_cpu(cpu_s, (row["nodes"] or 1) * window_s, model, cores, asked.cpu_watts).mid_j


def _panel(name: str, cells: pl.DataFrame, comparisons: Comparisons, runs: pl.DataFrame) -> Panel:
    counted = cells.filter(pl.col("energy_doubt").is_null(), energy_status="measured").drop_nulls("energy_j_mean")
    if counted.is_empty():
        return Panel(name=name, why_not=_why_uncounted(cells, runs))
    scope = str(counted["energy_scope"].mode(maintain_order=True)[0])
    same = counted.filter(energy_scope=scope)
    complete = same.filter(pl.col("num_ok") == pl.col("num_runs"))
    rows = (complete if len(complete) >= FEWEST else same).to_dicts()
    left_out = tuple(_left_out(cells, {key_of(row) for row in rows}, scope))
    told = Panel(
        name=name,
        rows=tuple(rows),
        scope=scope,
        repeats=min(row["num_ok"] for row in rows),
        left_out=left_out,
    )
    joules = comparisons.fit(name, "energy_j")
    if joules is None or len(rows) < FEWEST:
        few = f"joules were counted of {len(rows)} configuration{'s' if len(rows) > 1 else ''}, and {FEWEST} are needed"
        return Panel(**{**vars(told), "why_not": few})
    if joules.variance is None:
        once = "every configuration was measured once, so nothing tells the noise: set grid.repeats to 3 or more"
        return Panel(**{**vars(told), "why_not": once})
    standings, lacking = [], {}
    for proxy in [*PROXIES, ESTIMATE]:
        fits = _fits(proxy, name, rows, comparisons, joules)
        if fits is None:
            lacking[proxy] = LACKING.get(proxy, "it is not known of every configuration")
        else:
            standings.append(standing(proxy, fits, _sets(rows)))
    at_random = {key: choice(joules, among, among, 1) for key, among in _sets(rows).items()}
    return Panel(**{**vars(told), "standings": tuple(standings), "at_random": at_random, "lacking": lacking})


def _why_uncounted(cells: pl.DataFrame, runs: pl.DataFrame) -> str:
    """Why no configuration of a panel has joules that count."""
    if len(lines := doubtful(cells)):
        return f"the joules of every configuration are doubtful ({lines[0]})"
    if "integrated" in set(cells["energy_status"]):
        return "energy was integrated from power readings, not counted"
    reasons = runs.filter(pl.col("status") == "ok").drop_nulls("energy_reason")["energy_reason"].unique()
    why = f" ({sorted(reasons)[0]})" if len(reasons) else ""
    return f"no joule was measured{why}"


def _left_out(cells: pl.DataFrame, kept: set[Key], scope: str) -> list[str]:
    """A line for each configuration that is not compared."""
    lines = []
    for row in cells.to_dicts():
        if key_of(row) in kept:
            continue
        if row["energy_doubt"]:
            why = f"doubtful joules: {row['energy_doubt']}"
        elif row["energy_j_mean"] is None or row["energy_status"] != "measured":
            why = f"energy {row['energy_status'] or 'unavailable'}"
        elif row["energy_scope"] != scope:
            why = f"joules of {row['energy_scope']}, the others' are of {scope}"
        else:
            why = f"of its runs: {row['statuses']}"
        lines.append(f"{row['name']}: {why}")
    return lines


def _sets(rows: Sequence[Row]) -> dict[str, list[Key]]:
    """What a choice may be among: all, and those whose quality is within the margin, if that is a choice."""
    good = [key_of(row) for row in rows if row["quality_verdict"] == WITHIN]
    return {**({GOOD: good} if len(good) > 1 else {}), ALL: [key_of(row) for row in rows]}


def _fits(proxy: str, panel: str, rows: Sequence[Row], comparisons: Comparisons, joules: Fit) -> Fits | None:
    """The fits of a proxy; None if a configuration lacks it, or if it says what seconds say."""
    fit, quotient = (comparisons.fit(panel, name) for name in (_column(proxy), _quotient(proxy)))
    if fit is None or quotient is None or not all(key_of(row) in fit and key_of(row) in quotient for row in rows):
        return None
    if proxy == "time per token":
        seconds = comparisons.fit(panel, _column(SECONDS))
        assert seconds is not None
        apart = [fit.mean_of(key_of(row)) - seconds.mean_of(key_of(row)) for row in rows]
        if max(apart) - min(apart) < LEAST:
            return None
    return Fits(joules=joules, proxy=fit, quotient=quotient)


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
        low = apart.log - best_of(len(near), _whole(apart.degrees)) * apart.error
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

    The noise of joules and of the proxy go together as far as that of their quotient says. Where cells are nearer to each
    other than their noise, a moved order is further from the truth than the observed one, so that percentiles lie too low;
    pivotal intervals are too narrow at the end of the scale. From the lower to the higher of both, 95 to 100 % hold.
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
            (min(abs(float(joules[j])), abs(float(proxy[j]))), *_ordered(key, keys[i + 1 + j], joules[j] > 0))
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


def _shown(fit: Fit, row: int, rows: Sequence[int], confidence: float) -> tuple[Numbers, Any]:
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
        ratios.append(contrast.ratio(low=-quantile, high=quantile))
    return Flip(less=less, more=more, joules=ratios[0], proxy=ratios[1])
