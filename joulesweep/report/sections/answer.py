"""The recommended configuration, in a sentence and tiles."""

from __future__ import annotations

from typing import Any

from joulesweep.analyse.comparisons import memory_quantity
from joulesweep.analyse.studies.decision import Decision, decisions, sentence
from joulesweep.reference.footprint import Footprint
from joulesweep.report import numbers
from joulesweep.report.markup import filled
from joulesweep.report.numbers import FormattedNumber
from joulesweep.report.sections import Results, Section

PLACE = 10
MAX_TIES = 6  # names in one sentence
Tile = tuple[str, FormattedNumber, str]  # label, (number, interval), class


def section(results: Results) -> Section:
    """One answer per model, data set and hardware, or a sentence that there is none yet."""
    decided = decisions(results.tables, results.manifest["config"])
    html = filled(
        "answer.html.j2",
        answers=[_worded(decision, results) for decision in decided],
        num_ok=results.num_ok,
        num_runs=results.num_runs,
    )
    return Section(title="Which configuration, and what does it cost?", html=html)


def _worded(decision: Decision, results: Results) -> dict[str, Any]:
    """A decision in words and tiles."""
    pick = decision.recommended
    assert pick is not None  # without limits there is one
    row = pick.row
    return {
        "panel": decision.panel,
        "sentence": sentence(decision),
        "name": row["name"],
        "cost": "measured energy" if decision.by == "energy_j" else "time",
        "unranked": decision.unranked,
        "doubtful": decision.doubtful[:MAX_TIES],
        "num_doubtful": len(decision.doubtful),
        "ties": ", ".join(decision.ties[:MAX_TIES]) + (" and others" if len(decision.ties) > MAX_TIES else ""),
        "verdicts": decision.verdicts,
        "margin": f"{100 * decision.margin:g} %",
        "told": decision.told,
        "resolution": decision.resolution,
        "settle": decision.settle,
        "sure": decision.sure,
        "baseline_why": decision.baseline_why,
        "flags": row["flags"],
        "tiles": [
            ("Time of a run", numbers.interval(row, "window_s", "s"), ""),
            *_energy_tiles(row, results.factors),
            (f"Peak memory, {_memory_place(row)}", numbers.memory(row), ""),
            ("Validation loss", numbers.interval(row, "validation_loss", ""), ""),
            *_quality_tiles(row, results),
        ],
    }


def _quality_tiles(row: dict[str, Any], results: Results) -> list[Tile]:
    """Tiles of the measures of quality other than the loss."""
    return [
        (numbers.heading(column, results.tables), numbers.shown(row, column), "")
        for column in numbers.QUALITIES
        if row[f"{column.name}_mean"] is not None
    ]


def _memory_place(row: dict[str, Any]) -> str:
    return "host" if memory_quantity(row) == "peak_host_rss_bytes" else "GPU"


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
