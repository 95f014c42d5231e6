"""Recommend a configuration by a stated rule, with comparisons that show how sure the choice is.

The rule: of the configurations whose validation loss is within `MARGIN` of the lowest (upper end of the paired 95 %
interval), take the cheapest: in joules if every configuration has measured joules of the same kinds of device, else in
seconds. Integrated and estimated joules are never used; where joules decide, configurations with doubtful joules are
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from joulesweep.analyse.cells import (
    comparable_groups,
    doubtful,
    finished,
    ratio_of,
    same_joules,
    undoubted,
    why_not_ranked,
)
from joulesweep.analyse.statistics import NO_DIFFERENCE, Ratio
from joulesweep.analyse.tables import Row, Tables

MARGIN = 0.01  # of the validation loss: what counts as "no worse"

#: Compared quantities: column, words for the ratio a/b, and the name where no difference is shown.
COMPARED = (
    ("samples_per_s", "as fast", "speed"),
    ("energy_j", "the measured energy", "measured energy"),
    ("peak_gpu_allocated_bytes", "the peak GPU memory", "peak GPU memory"),
    ("peak_host_rss_bytes", "the peak host memory", "peak host memory"),
    ("validation_loss", "the validation loss", "validation loss"),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One quantity of the chosen configuration relative to another configuration.

    Attributes:
        text: a statement with ratio, interval and number of pairs.
        shown: whether the interval excludes 1.
    """

    text: str
    shown: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A recommendation among comparable configurations.

    Attributes:
        panel: model, data set and environment; empty if the sweep has one of each.
        chosen: its row of the cells table.
        by: the cost that was minimised: "energy_j" or "window_s".
        unranked: why the cost is not joules; None if it is.
        doubtful: a line per configuration left out: its name, and why its joules are doubtful.
        ties: names of others within the margin whose cost is not shown to be higher than the chosen one's.
        num_within: configurations within the margin of the lowest loss.
        num_cells: configurations that finished.
        against: comparisons, by name and role of the other configuration.
    """

    panel: str
    chosen: Row
    by: str
    unranked: str | None
    doubtful: list[str]
    ties: list[str]
    num_within: int
    num_cells: int
    against: dict[str, list[Comparison]]


def answers(tables: Tables) -> list[Answer]:
    """One answer per panel that has a finished run."""
    return [
        _answer(tables.runs, name, part)
        for name, part in comparable_groups(finished(tables.cells, "validation_loss_mean"))
    ]


def _answer(runs: pl.DataFrame, panel: str, cells: pl.DataFrame) -> Answer:
    reason = why_not_ranked(cells)
    by = "window_s" if reason else "energy_j"
    left_out = doubtful(cells)
    cells = cells if reason else undoubted(cells)
    complete = cells.filter(pl.col("num_ok") == pl.col("num_runs"))
    rows = (complete if len(complete) else cells).to_dicts()  # never recommend what diverged or ran out of memory
    lowest = min(rows, key=lambda row: row["validation_loss_mean"])
    within = [row for row in rows if row is lowest or _within(runs, row, lowest)]
    chosen = min(within, key=lambda row: row[f"{by}_mean"])
    cheapest = min(rows, key=lambda row: row[f"{by}_mean"])
    costs = {row["name"]: ratio_of(runs, row, chosen, by) for row in within if row is not chosen}
    baseline = [row for row in rows if row["name"] == chosen["baseline"]]
    word = "the least energy" if by == "energy_j" else "the fastest"
    others = [*((row, "the baseline") for row in baseline), (lowest, "the lowest loss"), (cheapest, word)]
    against: dict[str, tuple[Row, list[str]]] = {}
    for row, role in others:
        if row is not chosen:
            against.setdefault(row["cell"], (row, []))[1].append(role)
    return Answer(
        panel=panel,
        chosen=chosen,
        by=by,
        unranked=reason,
        doubtful=left_out,
        ties=[name for name, ratio in costs.items() if ratio is None or ratio.verdict != "higher"],
        num_within=len(within),
        num_cells=len(rows),
        against={f"{row['name']} ({', '.join(roles)})": compare(runs, chosen, row) for row, roles in against.values()},
    )


def _within(runs: pl.DataFrame, row: Row, lowest: Row) -> bool:
    """Whether a cell's loss is within the margin of the lowest, by the upper end of the ratio if it has one."""
    ratio = ratio_of(runs, row, lowest, "validation_loss")
    return ratio is not None and (ratio.ratio if ratio.high is None else ratio.high) <= 1 + MARGIN


def compare(runs: pl.DataFrame, a: Row, b: Row) -> list[Comparison]:
    """Compare a with b in every quantity that both have.

    Args:
        runs: the runs table.
        a: a row of the cells table.
        b: another.
    """
    columns = [compared for compared in COMPARED if compared[0] != "energy_j" or same_joules(a, b)]
    ratios = [(ratio_of(runs, a, b, column), words, name) for column, words, name in columns]
    return [_comparison(ratio, words, name) for ratio, words, name in ratios if ratio is not None]


def _comparison(ratio: Ratio, words: str, name: str) -> Comparison:
    if ratio.low is None or ratio.high is None:
        return Comparison(text=f"{_times(ratio.ratio)}× {words} ({ratio.verdict})", shown=False)
    numbers = f"{_times(ratio.ratio)}× [{_times(ratio.low)}, {_times(ratio.high)}]"
    if ratio.verdict == NO_DIFFERENCE:
        return Comparison(text=f"{name}: {NO_DIFFERENCE} ({numbers}, n={ratio.n})", shown=False)
    return Comparison(text=f"{numbers} {words} (n={ratio.n})", shown=True)


def _times(ratio: float) -> str:
    """A ratio to three digits; near 1 to three decimals."""
    return f"{ratio:.3f}" if 0.9 < ratio < 1.1 else f"{ratio:.3g}"
