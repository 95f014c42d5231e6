"""Compare the cells of a panel: one fit per quantity, ratios to a baseline, and who is within the margin of the best.

Cells of different panels, so of other models, data sets, boards, drivers or versions, are never compared here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from joulesweep.analyse.statistics import Contrast, Fit, Numbers, Ratio, best_of
from joulesweep.analyse.tables import Row

Key = tuple[str, str | None]  # a cell's id and environment

#: Ratios in the cells table: the beginning of their columns' names, and the quantity (of memory see `memory_quantity`).
RATIOS = {"energy": "energy_j", "time": "window_s", "memory": "", "loss": "validation_loss"}
#: Measures of quality of which more is better.
MORE_IS_BETTER = ("masked_accuracy", "choice_accuracy", "rouge1", "rouge2", "rougeL")
WITHIN, BEYOND, OPEN = "within", "beyond", "cannot be told yet"
#: The defaults of the config's `answer`, for manifests that are older than it.
MARGIN, QUALITY = 0.01, "validation_loss"
MOST_DEGREES = 1000  # of freedom: beyond them Student's t is normal


def asked(config: Mapping[str, Any]) -> tuple[float, str]:
    """The margin and the measure of quality that a manifest's config names."""
    answer = config.get("answer") or {}
    return answer.get("margin", MARGIN), answer.get("quality", QUALITY)


def against_margin(low: float | None, high: float | None, margin: float) -> str:
    """Whether a quality is worse by no more than the margin: "within", "beyond" or "cannot be told yet".

    Args:
        low: lower end of the ratio's interval, above 1 where it is worse; None where nothing tells the noise.
        high: its upper end.
        margin: as a fraction.
    """
    if low is None or high is None:
        return OPEN
    return WITHIN if high <= 1 + margin else BEYOND if low > 1 + margin else OPEN


def key_of(row: Row) -> Key:
    """The key of a row of the cells or runs table."""
    return row["cell"], row["environment"]


def memory_quantity(row: Row) -> str:
    """The column of a cell's peak memory: of the GPUs if they were used, else of the host."""
    return "peak_host_rss_bytes" if row.get("peak_gpu_allocated_bytes_mean") is None else "peak_gpu_allocated_bytes"


def same_joules(a: Row, b: Row) -> bool:
    """Whether both cells have measured joules of the same kinds of device, without doubts."""
    read = all(row.get("energy_j_mean") is not None and row["energy_doubt"] is None for row in (a, b))
    measured = read and a["energy_status"] == b["energy_status"] == "measured"
    return measured and a["energy_scope"] == b["energy_scope"]


@dataclass
class Comparisons:
    """The fits of a sweep's finished runs, made when they are first asked for.

    Attributes:
        runs: the runs table.
    """

    runs: pl.DataFrame
    _fits: dict[tuple[str, str], Fit | None] = field(default_factory=dict, init=False)
    _panels: dict[str, pl.DataFrame] = field(init=False)

    def __post_init__(self) -> None:
        """Sort the finished runs into panels."""
        ok = self.runs.filter(pl.col("status") == "ok")
        self._panels = {str(name): part for (name,), part in ok.group_by("panel", maintain_order=True)}

    def fit(self, panel: str, quantity: str) -> Fit | None:
        """The fit of a quantity over a panel's cells; None if no run has it.

        Numbers that are not positive are left out, as are joules that are not measured.
        """
        if (panel, quantity) not in self._fits:
            values = self._values(panel, quantity)
            self._fits[panel, quantity] = Fit(values) if values else None
        return self._fits[panel, quantity]

    def _values(self, panel: str, quantity: str) -> dict[Key, dict[int, float]]:
        part = self._panels.get(panel)
        if part is None:
            return {}
        part = part.filter(pl.col(quantity) > 0)
        if quantity == "energy_j":
            part = part.filter(pl.col("energy_status") == "measured", pl.col("energy_doubt").is_null())
        values: dict[Key, dict[int, float]] = {}
        for cell, environment, repeat, value in part.select("cell", "environment", "repeat", quantity).iter_rows():
            values.setdefault((cell, environment), {})[repeat] = value
        return values

    def ratio(self, a: Row, b: Row, quantity: str) -> Ratio | None:
        """The ratio of a quantity in one cell to that in another of its panel, paired by seed.

        Args:
            a: a row of the cells table.
            b: another.
            quantity: a numeric column of the runs.

        Returns:
            None without a common seed, and for joules of different kinds.
        """
        fit = self.fit(a["panel"], quantity)
        if fit is None or a["panel"] != b["panel"] or (quantity == "energy_j" and not same_joules(a, b)):
            return None
        return fit.ratio(key_of(a), key_of(b))

    def worse(self, a: Row, b: Row, measure: str) -> Ratio | None:
        """The ratio of a measure of quality, turned so that above 1 the first cell is worse; None as in `ratio`."""
        return self.ratio(b, a, measure) if measure in MORE_IS_BETTER else self.ratio(a, b, measure)

    def change(self, pairs: Sequence[tuple[Row, Row]], quantity: str) -> Contrast | None:
        """The mean change of a quantity's log over pairs of cells of one panel, from the first to the second of each.

        Args:
            pairs: rows of the cells table, at least one pair.
            quantity: a numeric column of the runs.

        Returns:
            None as in `ratio`, for any of the pairs.
        """
        fit = self.fit(pairs[0][0]["panel"], quantity)
        before, after = ([key_of(pair[i]) for pair in pairs] for i in (0, 1))
        if fit is None or not all(key in fit for key in (*before, *after)):
            return None
        if quantity == "energy_j" and not all(same_joules(*pair) for pair in pairs):
            return None
        return fit.weighted(fit.changes(before, after))

    def ratios(self, row: Row, baseline: Row) -> dict[str, Ratio | None]:
        """A cell's ratios to its baseline: energy, time, memory and loss."""
        return {name: self.ratio(row, baseline, quantity or memory_quantity(row)) for name, quantity in RATIOS.items()}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How far a cell's quality is from the best of its panel.

    Attributes:
        above_best: by how much it is worse, as a fraction of the best; of a loss 0.004 is 0.4 % above the lowest.
        low: with 95 % it is at least so much worse; None where nothing tells the noise.
        high: with 95 % it is at most so much worse.
        verdict: "within" the margin, "beyond" it, or "cannot be told yet".
    """

    above_best: float
    low: float | None
    high: float | None
    verdict: str


def qualities(fit: Fit, quantity: str, margin: float, among: Collection[Key] | None = None) -> dict[Key, Quality]:
    """Compare every cell with the best.

    A cell is within the margin if it is shown so against each cell that may be the best: as an intersection-union test
    (Berger 1982, doi:10.1080/00401706.1982.10487790) each comparison may err by 5 %, and so may all together. It is
    beyond if the observed best, which luck made look better than it is, is better by more than the margin even after
    the correction for having been chosen.

    Args:
        fit: of the measure of quality.
        quantity: the measure.
        margin: as a fraction.
        among: the cells to compare; default: all.
    """
    rows = np.array([i for i, key in enumerate(fit.keys) if among is None or key in among], dtype=int)
    if not len(rows):
        return {}
    worse = (-1.0 if quantity in MORE_IS_BETTER else 1.0) * fit.means
    best = int(rows[np.argmin(worse[rows])])
    apart = worse - worse[best]
    _, errors, degrees = fit.versus(best)
    if errors is None:
        return {
            fit.keys[i]: Quality(
                above_best=math.expm1(apart[i]), low=None, high=None, verdict=WITHIN if i == best else OPEN
            )
            for i in rows
        }
    rivals = [i for i in rows if apart[i] <= _t(degrees)[i] * errors[i]]
    number = int((apart[rows] <= (_t(degrees, 0.995) * errors)[rows]).sum())
    low = np.maximum(apart - best_of(number, _rounded(float(np.median(degrees))), 0.95) * errors, 0.0)
    high = np.zeros(len(apart))
    for rival in rivals:
        _, errors, degrees = fit.versus(rival)
        assert errors is not None
        ends = worse - worse[rival] + _t(degrees) * errors
        ends[rival] = 0.0
        high = np.maximum(high, ends)
    limit = math.log1p(margin)
    verdicts = np.where(high <= limit, WITHIN, np.where(low > limit, BEYOND, OPEN))
    return {
        fit.keys[i]: Quality(
            above_best=math.expm1(apart[i]), low=math.expm1(low[i]), high=math.expm1(high[i]), verdict=str(verdicts[i])
        )
        for i in rows
    }


def _rounded(degrees: float) -> int:
    """Degrees of freedom as a whole number, of which few are worked out."""
    return max(1, min(round(degrees), MOST_DEGREES))


def _t(degrees: Numbers, confidence: float = 0.95) -> Numbers:
    """One-sided quantiles of Student's t; each degree of freedom is worked out once."""
    values, places = np.unique(degrees, return_inverse=True)
    quantiles: Numbers = special.stdtrit(values, confidence)[places]
    return quantiles


def chosen_ratio(fit: Fit, chosen: Key, baseline: Key, among: Sequence[Key]) -> Ratio | None:
    """The ratio of a cell that was chosen for its low number to the baseline, its interval corrected for the choice.

    The lowest of several noisy numbers is lower than its truth, so the upper end is that of the largest of as many t
    ratios as there are cells that luck could have made the lowest (`best_of`).

    Args:
        fit: of the quantity by which it was chosen, or that goes with it.
        chosen: the cell.
        baseline: what it is compared with.
        among: the cells that could have been chosen.

    Returns:
        None if it is the baseline, or has no seed in common with it.
    """
    contrast = fit.contrast({chosen: 1.0, baseline: -1.0}) if chosen != baseline else None
    if contrast is None or contrast.error is None:
        return None if contrast is None else contrast.ratio()
    number = len(not_above(fit, chosen, among, 0.995))
    return contrast.ratio(high=best_of(number, _rounded(contrast.degrees)))


def not_above(fit: Fit, chosen: Key, among: Sequence[Key], confidence: float) -> list[Key]:
    """The cells that are not shown to be above the chosen one, itself among them.

    Args:
        fit: of the quantity.
        chosen: a cell of it.
        among: the cells to look at.
        confidence: one-sided, of what counts as shown.
    """
    logs, errors, degrees = fit.versus(fit.keys.index(chosen))
    if errors is None:
        return list(among)
    near = dict(zip(fit.keys, logs <= _t(degrees, confidence) * errors, strict=True))
    return [key for key in among if key == chosen or near.get(key)]
