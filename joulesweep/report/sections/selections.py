"""The tensors that trained, for methods that choose them, and the cost of the choices."""

from __future__ import annotations

import polars as pl

from joulesweep.analyse.tables import Row
from joulesweep.core import quantities
from joulesweep.report.markup import filled, table
from joulesweep.report.numbers import ABSENT
from joulesweep.report.sections import Results, Section

PLACE = 55
HEADINGS = {
    "Configuration": "text wrap",
    "Choices": "",
    "Objective": "text",
    "ρ": "",
    "Predicted cost": "",
    "Counted cost": "",
    "Floor": "",
    "A step": "",
    "Rating": "",
    "Tensors": "",
    "Parameters": "",
    "Importance": "",
    "Largest gap": "",
}


def section(results: Results) -> Section | None:
    """The choices of each configuration; None if no method chose."""
    selections = results.tables.selections
    if selections.is_empty():
        return None
    html = filled(
        "selections.html.j2",
        table=table(HEADINGS, map(_row, _means(selections).iter_rows(named=True)), "Chosen tensors"),
        timed="time" in selections["objective"],
        uncounted=sorted(set(selections["cost_reason"].drop_nulls())),
    )
    return Section(title="Which tensors trained, and at what cost", html=html)


def _means(selections: pl.DataFrame) -> pl.DataFrame:
    """Means over choices and repeats of each configuration, and the largest gap."""
    same = pl.col("name", "panel", "objective", "rho").first()
    costs = ("floor", "predicted_cost", "counted_cost", "rating_s", "step_s")
    quantities = pl.col(*costs, "trained_share", "importance_share")
    # No mean over only some rows: it would look like one over all.
    means = pl.when(quantities.null_count() == 0).then(quantities.mean())
    numbers = pl.col("num_chosen", "num_candidates").mean()
    groups = selections.group_by("cell", "environment", maintain_order=True)
    return groups.agg(same, means, numbers, pl.col("gap").max(), runs=pl.col("run").n_unique(), choices=pl.len())


def _row(row: Row) -> list[str]:
    return [
        row["name"] + (f" · {row['panel']}" if row["panel"] else ""),
        f"{row['choices']} in {row['runs']} runs",
        row["objective"],
        "–" if row["rho"] is None else f"{row['rho']:g}",
        *(_text(row[key]) for key in ("predicted_cost", "counted_cost", "floor")),
        *(_text(row[key], 1000, "ms") for key in ("step_s", "rating_s")),
        f"{_text(row['num_chosen'])} of {row['num_candidates']:g}",
        *(_text(row[key], 100, "%") for key in ("trained_share", "importance_share")),
        "< 0.01 %" if row["gap"] < 1e-4 else _text(row["gap"], 100, "%"),
    ]


def _text(value: float | None, factor: float = 1, unit: str = "") -> str:
    return ABSENT[0] if value is None else quantities.one(factor * value, unit)
