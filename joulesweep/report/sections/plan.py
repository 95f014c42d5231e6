"""What was planned, and what it took."""

from __future__ import annotations

from joulesweep.analyse.studies.planned import QUANTITIES, Planned, planned
from joulesweep.core.quantities import one
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 65
BEFORE = {False: "before its configuration had run", True: "afterwards"}


def section(results: Results) -> Section | None:
    """How near the plans of the runs were; None where no run ended after another."""
    near = planned(results.tables.runs)
    if near is None:
        return None
    headings = {"Planned": "text", "Runs": "", "Median error": "", "Within the 90 % range": ""}
    rows = [
        [
            f"{_name(name, near)}, {BEFORE[seen]}",
            str(accuracy.num),
            f"{100 * accuracy.median:.1f} %",
            f"{100 * accuracy.covered:.0f} %",
        ]
        for (name, seen), accuracy in near.rows.items()
    ]
    html = filled(
        "plan.html.j2",
        table=table(headings, rows, "Plan and truth"),
        planned=one(near.planned_s, "s"),
        took=one(near.took_s, "s"),
        num_runs=near.num_runs,
        num_more=near.num_more,
    )
    return Section(title="What was planned, and what it took", short="Plan", html=html)


def _name(quantity: str, near: Planned) -> str:
    estimated = quantity == "energy_j" and near.energy_status == "estimated"
    return f"Estimated {QUANTITIES[quantity].lower()}" if estimated else QUANTITIES[quantity]
