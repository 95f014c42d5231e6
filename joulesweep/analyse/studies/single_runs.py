"""What a single run per configuration would have told: in how many pairs it has the order wrong.

A pair of cells is told apart where the 95 % interval of its ratio, paired by seed with pooled noise, excludes 1. A
single run of each, of any two seeds, then tells the wrong order if its difference has the other sign. Of pairs that are
not told apart, single runs tell an order all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from joulesweep.analyse.cells import comparable_groups
from joulesweep.analyse.comparisons import Comparisons, key_of, same_joules
from joulesweep.analyse.statistics import Fit
from joulesweep.analyse.tables import Row, Tables


@dataclass(frozen=True, kw_only=True)
class SingleRuns:
    """The orders that single runs tell of one quantity, over all pairs of cells in a sweep's panels.

    Attributes:
        quantity: a column of the runs table.
        told: pairs of cells that all repeats together tell apart.
        open: pairs that they do not.
        draws: pairs of single runs of the pairs told apart, of any two seeds.
        wrong: of these, with the order of the means reversed.
    """

    quantity: str
    told: int
    open: int
    draws: int
    wrong: int


def single_runs(tables: Tables, quantity: str) -> SingleRuns | None:
    """The orders of single runs in a quantity; None where no cell has two runs with it.

    Args:
        tables: of the sweep.
        quantity: "energy_j", of which only measured ones count, or another column.
    """
    comparisons = Comparisons(tables.runs)
    told = left = draws = wrong = 0
    for panel, part in comparable_groups(tables.cells.filter(pl.col("num_ok") > 0)):
        fit = comparisons.fit(panel, quantity)
        if fit is None or fit.variance is None:
            continue
        for a, b in _pairs(fit, part.to_dicts(), quantity):
            ratio = fit.ratio(key_of(a), key_of(b))
            if ratio is None or ratio.verdict not in ("higher", "lower"):
                left += ratio is not None
                continue
            values = [fit.values_of(key_of(row)) for row in (a, b)]
            reversed_ = sum((x > y) != (ratio.ratio > 1) for x, y in itertools.product(*values))
            told, draws, wrong = told + 1, draws + len(values[0]) * len(values[1]), wrong + reversed_
    return SingleRuns(quantity=quantity, told=told, open=left, draws=draws, wrong=wrong) if told + left else None


def _pairs(fit: Fit, cells: Sequence[Row], quantity: str) -> list[tuple[Row, Row]]:
    known = [row for row in cells if key_of(row) in fit]
    pairs = itertools.combinations(known, 2)
    return [pair for pair in pairs if quantity != "energy_j" or same_joules(*pair)]
