"""The gain of one way of training over another for each model: joules, seconds and quality, paired by seed.

A way is a strategy with a precision. The first way is that of the grid's first values, the last that of its last
values: of strategies [dp, ddp] and precisions [fp32, fp16-mixed], ddp with fp16-mixed is compared with dp with fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import method_words, texts_per_step, why_not_ranked
from joulesweep.analyse.comparisons import MORE_IS_BETTER, Comparisons, asked, key_of, same_joules
from joulesweep.analyse.statistics import Contrast, Fit
from joulesweep.analyse.tables import Row, Tables

Way = tuple[str, str]  # strategy and precision
#: Axes on which the two cells of a pair are equal, beside the batch of a step; devices where both strategies spread.
SHARED = ("batching", "head", "engine", "micro_batch_size", "checkpoint_activations", "lr", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What the last way does over the first, for one model: mean ratios over pairs of configurations.

    Attributes:
        model: its name.
        dataset: of its texts.
        task: what it learns.
        environment: what its runs ran on; None where none finished.
        energy: of measured joules; None with `why`.
        time: of seconds; None where no pair finished.
        worse: of the measure of quality, turned so that above 1 is worse; None where no pair has it.
        why: why there are no joules, or why there is nothing at all; None where there are joules.
    """

    model: str
    dataset: str
    task: str
    environment: str | None
    energy: Contrast | None
    time: Contrast | None
    worse: Contrast | None
    why: str | None


def ways(config: Mapping[str, Any]) -> tuple[Way, Way]:
    """The first and the last way of a manifest's grid; equal where it has one only."""
    strategies, precisions = config["grid"]["strategy"], config["grid"]["precision"]
    return (strategies[0], precisions[0]), (strategies[-1], precisions[-1])


def gains(tables: Tables, config: Mapping[str, Any], first: Way, last: Way) -> list[Gain]:
    """The gain for each model, data set and task on each machine, in the order of the sweep.

    Args:
        tables: of the sweep.
        config: of its manifest, whose `answer` names the measure of quality.
        first: the way that is compared with.
        last: the way whose gain it is.
    """
    comparisons, (_, measure) = Comparisons(tables.runs), asked(config)
    told = []
    for _, part in tables.cells.group_by("model", "dataset", "task", maintain_order=True):
        machines = part["environment"].drop_nulls().unique(maintain_order=True).to_list()
        for machine in machines or [None]:  # what did not finish belongs to every machine
            here = part.filter(pl.col("environment").is_null() | pl.col("environment").eq_missing(machine))
            told.append(_gain(comparisons, here, machine, (first, last), measure))
    return [gain for gain in told if gain is not None]


def _gain(
    comparisons: Comparisons, cells: pl.DataFrame, machine: str | None, compared: tuple[Way, Way], measure: str
) -> Gain | None:
    """The gain for one model on one machine; None if its grid has not both ways."""
    rows = cells.to_dicts()
    of_ways = [[row for row in rows if (row["strategy"], row["precision"]) == way] for way in compared]
    if not all(of_ways):
        return None
    pairs = [(a, b) for a in of_ways[0] for b in of_ways[1] if _alike(a, b)]
    done = [(a, b) for a, b in pairs if a["num_ok"] and b["num_ok"]]
    panel = done[0][0]["panel"] if done else ""
    energy = _contrast(comparisons.fit(panel, "energy_j"), [pair for pair in done if same_joules(*pair)])
    quality = _contrast(comparisons.fit(panel, measure), done)
    return Gain(
        model=rows[0]["model"],
        dataset=rows[0]["dataset"],
        task=rows[0]["task"],
        environment=machine,
        energy=energy,
        time=_contrast(comparisons.fit(panel, "window_s"), done),
        worse=quality.inverse() if quality is not None and measure in MORE_IS_BETTER else quality,
        why=None if energy is not None else _why(cells, comparisons.runs, pairs, done),
    )


def _alike(a: Row, b: Row) -> bool:
    """Whether two cells differ in their ways alone; a step has as many texts in both."""
    spread = a["devices"] == b["devices"] or 1 in (a["devices"], b["devices"])
    same = all(a[axis] == b[axis] for axis in SHARED) and method_words(a) == method_words(b)
    return same and spread and texts_per_step(a) == texts_per_step(b)


def _contrast(fit: Fit | None, pairs: Sequence[tuple[Row, Row]]) -> Contrast | None:
    """The mean change of logs over the pairs that a fit has."""
    keys = [(key_of(a), key_of(b)) for a, b in pairs]
    known = [pair for pair in keys if fit is not None and all(key in fit for key in pair)]
    if fit is None or not known:
        return None
    if len(known) == 1:  # whose n is of the seeds that both have
        ((before, after),) = known
        return fit.contrast({after: 1.0, before: -1.0})
    return fit.weighted(fit.changes([before for before, _ in known], [after for _, after in known]))


def _why(
    cells: pl.DataFrame, runs: pl.DataFrame, pairs: Sequence[tuple[Row, Row]], done: Sequence[tuple[Row, Row]]
) -> str:
    """Why there is no ratio of joules."""
    if not pairs:
        return "no two configurations differ in strategy and precision alone"
    if not done:
        unfinished = next(row for pair in pairs for row in pair if not row["num_ok"])
        return f"{unfinished['name']}: {unfinished['statuses']}"
    keys = [row["cell"] for pair in done for row in pair]
    reasons = runs.filter(pl.col("cell").is_in(keys), status="ok")["energy_reason"].drop_nulls()
    ranked = why_not_ranked(cells.filter(pl.col("cell").is_in(keys), pl.col("num_ok") > 0))
    return str(reasons[0]) if len(reasons) else ranked or "no seed is common to both"
