"""Predict a quantity of runs, seconds or joules, from the runs that have it.

Work multiplies, so the model is additive on logs. Of a cell c with n_c finished runs whose logs have the mean y_c:

    y_c = offset_c + f_c · β + u_c + e_c      β ~ N(m, diag(sd²))   u_c ~ N(0, τ²)   e_c ~ N(0, σ² / n_c)

offset_c is the log of the counted work where it is known; f_c has a constant, the axes and their pairs; sd holds what
is believed before anything ran, such as a fifth less time for twice the batch. τ (how far a cell is from what its axes
say) and σ (how far a run is from its cell) are averaged over a grid, weighted by how well they explain the runs and by
a weak prior. So a cell with finished runs is predicted by them, one without by its neighbours, and the range follows
from how far off neighbours and repeats were so far. Ranges are 90 % prediction intervals.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

Z = 1.645  # 90 % of a normal distribution is within so many standard deviations
UNKNOWN_SD = 10.0  # nothing is believed
COMMON_SD = 0.05  # one day is not like another: this error is common to all runs that are still to do
#: Standard deviations of the logs, before anything ran, between two values of an axis; and between those of a pair.
SPREAD = {
    "model": 1.5,
    "dataset": 1.5,
    "task": 0.7,
    "method": 0.4,
    "strategy": 0.5,
    "devices": 0.3,
    "precision": 0.5,
    "batching": 0.7,
    "head": 0.3,
    "engine": 0.4,
    "optimizer": 0.2,
    "batch_size": 0.1,
    "batch_size_scope": 0.2,
    "micro_batch_size": 0.1,
    "checkpoint_activations": 0.3,
    "max_grad_norm": 0.05,
}
COUNTED_SPREAD = 0.5  # of models and data sets whose work is counted
PAIR_SPREAD = 0.07
MOST_PAIRS = 120  # features of pairs; a grid with more has enough cells to do without
#: Slopes of the logs per doubling: what is believed, and its standard deviation.
SLOPE = {"batch_size": (-0.2, 0.25), "devices": (0.0, 0.5), "micro_batch_size": (-0.1, 0.15)}
TAUS = (0.01, 0.03, 0.1, 0.3)
SIGMAS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
#: How far a cell is off what its axes say, and a run off its cell: log-normal, weak.
PRIOR_TAU, PRIOR_SIGMA, PRIOR_WIDTH = 0.08, 0.05, 1.0
LEAST_LOG = 7.0  # a τ and σ that explains the runs e^7 times worse than the best is left out

_Name = tuple[tuple[str, str], ...]  # of a feature: values of none, one or two axes


@dataclass(frozen=True)
class Range:
    """A predicted quantity: its middle, and the ends of its 90 % prediction interval."""

    mid: float
    low: float
    high: float

    @classmethod
    def of_log(cls, mean: float, sd: float) -> Range:
        """The range of a quantity whose log is predicted."""
        return cls(math.exp(mean), math.exp(mean - Z * sd), math.exp(mean + Z * sd))

    @property
    def sd(self) -> float:
        """Standard deviation of its log."""
        return (math.log(self.high) - math.log(self.low)) / (2 * Z)

    def times(self, factor: float) -> Range:
        """The range in another unit."""
        return Range(self.mid * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Before:
    """What is believed of a quantity before anything finished: its log, the standard deviation, and the basis."""

    log: float
    sd: float
    basis: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of the grid.

    Attributes:
        run: its id.
        cell: id of its cell.
        label: name of the cell.
        axes: the manifest's entry: values by axis, with method_params.
        work_flop: FLOPs of one training, counted from the shapes of model and texts; None where unknown.
        before: what is believed of window_s, around_s, energy_j and around_j before anything finished, by name.
        unknown: why nothing is believed of it, in words.
        min_s: a shorter training is repeated within its window until this is over.
    """

    run: str
    cell: str
    label: str
    axes: Mapping[str, Any]
    work_flop: float | None = None
    before: Mapping[str, Before] = field(default_factory=dict)
    unknown: str = "nothing finished yet"
    min_s: float = 0.0


class Estimator:
    """The model of one quantity, fitted to what is known of it.

    Args:
        name: of the quantity, in `Job.before`.
        known: runs with a value each, above 0.
        others: further runs that will be asked for.
    """

    def __init__(self, name: str, known: Sequence[tuple[Job, float]], others: Iterable[Job] = ()) -> None:
        self.name = name
        self.logs: dict[str, list[float]] = defaultdict(list)
        for job, value in known:
            self.logs[job.cell].append(math.log(value))
        cells = {job.cell: job for job in (*others, *(job for job, _ in known))}
        self._believed = all(name in job.before for job in cells.values())
        self._counted = self._believed or all(job.work_flop for job in cells.values())
        self._features = _Features(list(cells.values()), self._counted)
        jobs = [cells[cell] for cell in self.logs]
        means = [float(np.mean(logs)) - self._offset(job) for logs, job in zip(self.logs.values(), jobs, strict=True)]
        # Without a belief about the constant, it is sought around the mean: units then make no difference.
        self._shift = 0.0 if self._believed or not means else float(np.mean(means))
        self._means = {cell: mean - self._shift for cell, mean in zip(self.logs, means, strict=True)}
        constant_sd = (
            max((job.before[name].sd for job in cells.values()), default=0.0) if self._believed else UNKNOWN_SD
        )
        self._posteriors = self._fitted(
            self._features.rows(jobs), np.array(means) - self._shift, self._features.sd(constant_sd)
        )

    def _offset(self, job: Job) -> float:
        if self._believed:
            return job.before[self.name].log
        return math.log(job.work_flop) if self._counted and job.work_flop else 0.0

    def _fitted(self, rows: Array, means: Array, sds: Array) -> list[_Posterior]:
        """The posterior of β for each τ and σ of the grid that explains the runs, with its weight."""
        counts = np.array([len(logs) for logs in self.logs.values()], dtype=float)
        within = sum(float(np.sum((np.array(logs) - np.mean(logs)) ** 2)) for logs in self.logs.values())
        free = float(counts.sum()) - len(counts)
        rest, prior = means - rows @ self._features.mean, np.diag(1 / sds**2)
        fitted: list[_Posterior] = []
        for tau, sigma in itertools.product(TAUS, SIGMAS):
            of_cell = tau**2 + sigma**2 / counts
            lower = np.linalg.cholesky(prior + (rows.T / of_cell) @ rows)
            seen = np.linalg.solve(lower, (rows.T / of_cell) @ rest)
            log = 0.5 * (float(seen @ seen) - float(np.sum(rest**2 / of_cell) + np.sum(np.log(of_cell))))
            log -= float(np.sum(np.log(np.diag(lower)))) + free * math.log(sigma) + within / (2 * sigma**2)
            log -= 0.5 * math.hypot(math.log(tau / PRIOR_TAU), math.log(sigma / PRIOR_SIGMA)) ** 2 / PRIOR_WIDTH**2
            fitted.append(_Posterior(log, tau, sigma, seen, lower))
        best = max(one.weight for one in fitted)
        kept = [replace(one, weight=math.exp(one.weight - best)) for one in fitted if one.weight > best - LEAST_LOG]
        whole = sum(one.weight for one in kept)
        return [replace(one, weight=one.weight / whole) for one in kept]

    def predict(self, jobs: Sequence[Job]) -> tuple[list[Range], float]:
        """The range of each of at least one run, and the standard deviation of the log of their sum."""
        cells = {job.cell: job for job in jobs}
        numbers = {cell: i for i, cell in enumerate(cells)}
        index = np.array([numbers[job.cell] for job in jobs])
        rows = self._features.rows(list(cells.values()))
        own = np.array([len(self.logs.get(cell, ())) for cell in cells], dtype=float)
        means = np.array([self._means.get(cell, 0.0) for cell in cells])
        drawn = [one.drawn(rows, self._features.mean, own, means) for one in self._posteriors]
        weights = [one.weight for one in self._posteriors]
        middle = np.sum([w * one.mean for w, one in zip(weights, drawn, strict=True)], axis=0)
        spread = [w * (one.variance + (one.mean - middle) ** 2) for w, one in zip(weights, drawn, strict=True)]
        sds = np.sqrt(np.sum(spread, axis=0))
        offsets = np.array([self._offset(job) + self._shift for job in cells.values()])
        ranges = [Range.of_log(float(mean), float(sd)) for mean, sd in zip(middle + offsets, sds, strict=True)]
        amounts = np.exp(middle + offsets)[index]
        shares = amounts / amounts.sum()
        of_cells = np.bincount(index, weights=shares).astype(float)
        squares = float(np.sum(shares**2))
        variance = math.fsum(
            w * (one.of_sum(of_cells, squares) + float(of_cells @ (one.mean - middle)) ** 2)
            for w, one in zip(weights, drawn, strict=True)
        )
        return [ranges[i] for i in index], math.sqrt(variance + COMMON_SD**2)


@dataclass(frozen=True)
class _Posterior:
    """What the runs tell of β at one τ and one σ.

    Attributes:
        weight: of this τ and σ.
        tau: τ.
        sigma: σ.
        seen: `lower`⁻¹ times what the runs add.
        lower: Cholesky factor of the precision of β.
    """

    weight: float
    tau: float
    sigma: float
    seen: Array
    lower: Array

    def drawn(self, rows: Array, prior: Array, own: Array, means: Array) -> _Drawn:
        """One more run of each cell.

        Args:
            rows: features of the cells.
            prior: means of β before anything ran.
            own: finished runs of each cell.
            means: the mean of their logs; anything where there are none.
        """
        scaled = np.linalg.solve(self.lower, rows.T)
        trend = rows @ prior + scaled.T @ self.seen
        kept = np.where(own > 0, self.tau**2 / (self.tau**2 + self.sigma**2 / np.maximum(own, 1)), 0.0)
        of_trend = np.sum(scaled**2, axis=0)
        variance = (1 - kept) ** 2 * of_trend + self.tau**2 * (1 - kept) + self.sigma**2
        return _Drawn(trend + kept * (means - trend), variance, kept, scaled, self.tau, self.sigma)


@dataclass(frozen=True)
class _Drawn:
    """Logs of one more run of each cell, at one τ and one σ.

    Attributes:
        mean: of each cell.
        variance: of each cell.
        kept: how far the cell's own runs count, 0 to 1.
        scaled: features over the Cholesky factor: a column per cell.
        tau: τ.
        sigma: σ.
    """

    mean: Array
    variance: Array
    kept: Array
    scaled: Array
    tau: float
    sigma: float

    def of_sum(self, shares: Array, squares: float) -> float:
        """Variance of the log of a sum, to first order: all share the trend's error, the runs of a cell the cell's.

        Args:
            shares: of each cell in the sum.
            squares: sum of the squares of the runs' shares.
        """
        common = self.scaled @ (shares * (1 - self.kept))
        of_cells = self.tau**2 * np.sum(shares**2 * (1 - self.kept))
        return float(common @ common + of_cells + self.sigma**2 * squares)


class _Features:
    """Features of cells: slopes of the numeric axes, a constant, a column per value of an axis and per pair of values.

    Only axes that vary among the cells have any.

    Args:
        jobs: a run of each cell.
        counted: whether the work of models and texts is known.
    """

    def __init__(self, jobs: Sequence[Job], counted: bool) -> None:
        words = [words_of(job) for job in jobs]
        values = {axis: dict.fromkeys(word[axis] for word in words) for axis in SPREAD}
        self._axes = [axis for axis in SPREAD if len(values[axis]) > 1]
        sds: dict[_Name, float] = {(): UNKNOWN_SD}
        for axis in self._axes:
            spread = COUNTED_SPREAD if counted and axis in ("model", "dataset") else SPREAD[axis]
            sds |= {((axis, value),): spread for value in values[axis]}
        pairs = dict.fromkeys(pair for word in words for pair in self._pairs(word))
        sds |= dict.fromkeys(pairs if len(pairs) <= MOST_PAIRS else (), PAIR_SPREAD)
        self._slopes = [axis for axis in SLOPE if axis in self._axes]
        self._columns = {name: i + len(self._slopes) for i, name in enumerate(sds)}
        self.mean = np.array([SLOPE[axis][0] for axis in self._slopes] + [0.0] * len(sds))
        self._sd = np.array([SLOPE[axis][1] for axis in self._slopes] + list(sds.values()))

    def _pairs(self, word: Mapping[str, str]) -> list[_Name]:
        return [((a, word[a]), (b, word[b])) for a, b in itertools.combinations(self._axes, 2)]

    def sd(self, constant_sd: float) -> Array:
        """Standard deviations of β before anything ran."""
        sds = self._sd.copy()
        sds[self._columns[()]] = constant_sd
        return sds

    def rows(self, jobs: Sequence[Job]) -> Array:
        """A row per job."""
        rows = np.zeros((len(jobs), len(self.mean)))
        for row, job in zip(rows, jobs, strict=True):
            word = words_of(job)
            row[: len(self._slopes)] = [_doublings(job, axis) for axis in self._slopes]
            for name in [(), *(((axis, word[axis]),) for axis in self._axes), *self._pairs(word)]:
                if name in self._columns:
                    row[self._columns[name]] = 1.0
        return rows


def words_of(job: Job) -> dict[str, str]:
    """The values of a run's axes as words; a method with its parameters."""
    words = {axis: str(job.axes.get(axis)) for axis in SPREAD}
    params = job.axes.get("method_params") or {}
    params = params if isinstance(params, str) else json.dumps(params, sort_keys=True)
    return {**words, "method": f"{words['method']} {params}"}


def _doublings(job: Job, axis: str) -> float:
    """Log2 of a numeric axis over a usual value: texts per step, devices, texts per forward pass of a device."""
    size, devices = float(job.axes["batch_size"]), float(job.axes["devices"])
    total = size * (devices if job.axes.get("batch_size_scope") == "per_device" else 1)
    if axis == "micro_batch_size":
        return math.log2(float(job.axes.get(axis) or total / devices) / 32)
    return math.log2(total / 32) if axis == "batch_size" else math.log2(devices)
