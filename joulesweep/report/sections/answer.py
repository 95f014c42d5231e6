"""The recommended configuration, in a sentence and tiles."""

from __future__ import annotations

from typing import Any

from joulesweep.analyse.studies.recommendation import MARGIN, Answer, answers
from joulesweep.reference.footprint import Footprint
from joulesweep.report import numbers
from joulesweep.report.markup import filled
from joulesweep.report.numbers import FormattedNumber
from joulesweep.report.sections import Results, Section

PLACE = 10
MAX_TIES = 6  # names in one sentence
Tile = tuple[str, FormattedNumber, str]  # label, (number, interval), class


def section(results: Results) -> Section:
    """One answer per model and data set, or a sentence that there is none yet."""
    html = filled(
        "answer.html.j2",
        answers=[_worded(answer, results) for answer in answers(results.tables)],
        margin=f"{MARGIN:.0%}",
        num_ok=results.num_ok,
        num_runs=results.num_runs,
    )
    return Section(title="Which configuration, and what does it cost?", html=html)


def _worded(answer: Answer, results: Results) -> dict[str, Any]:
    """An answer in words and tiles."""
    row = answer.chosen
    return {
        "panel": answer.panel,
        "name": row["name"],
        "superlative": "least measured energy" if answer.by == "energy_j" else "least time",
        "cost": "measured energy" if answer.by == "energy_j" else "time",
        "unranked": answer.unranked,
        "doubtful": answer.doubtful[:MAX_TIES],
        "num_doubtful": len(answer.doubtful),
        "ties": ", ".join(answer.ties[:MAX_TIES]) + (" and others" if len(answer.ties) > MAX_TIES else ""),
        "num_within": answer.num_within,
        "num_cells": answer.num_cells,
        "num_ok": row["num_ok"],
        "flags": row["flags"],
        "tiles": [
            ("Time of a run", numbers.interval(row, "window_s", "s"), ""),
            *_energy_tiles(row, results.factors),
            (f"Peak memory, {_memory_place(row)}", numbers.memory(row), ""),
            ("Validation loss", numbers.interval(row, "validation_loss", ""), ""),
            *_quality_tiles(row, results),
        ],
        "against": answer.against,
    }


def _quality_tiles(row: dict[str, Any], results: Results) -> list[Tile]:
    """Tiles of the measures of quality other than the loss."""
    return [
        (numbers.heading(column, results.tables), numbers.shown(row, column), "")
        for column in numbers.QUALITIES
        if row[f"{column.name}_mean"] is not None
    ]


def _memory_place(row: dict[str, Any]) -> str:
    return "host" if numbers.memory_quantity(row) == "peak_host_rss_bytes" else "GPU"


def _energy_tiles(row: dict[str, Any], factors: Footprint | None) -> list[Tile]:
    """Tiles of joules and what follows from them; estimates, used if no joules were read, look different."""
    known = row["energy_j_mean"] is not None
    integrated = ", integrated" if known and row["energy_status"] == "integrated" else ""
    scope = f" ({row['energy_scope']})" if known else ""
    tiles = [(f"Energy of a run{integrated}{scope}", numbers.joules(row), "")]
    for label, quantity, unit in (
        ("Net of idle power", "net_energy_j", "J"),
        ("CO2e of a run", "co2e_g", "g"),
        ("Cost of a run", "cost", (factors.currency if factors else None) or ""),
    ):
        if row[f"{quantity}_mean"] is not None:
            tiles.append((label, numbers.interval(row, quantity, unit), ""))
    if not known and row["estimated_energy_j"] is not None:
        tiles.append(("Energy of a run, not ranked", numbers.estimated_joules(row), "estimated"))
    if not known and row["estimated_co2e_g"] is not None:
        tiles.append(("CO2e of a run, of estimated joules", numbers.estimated_co2e(row), "estimated"))
    return tiles
