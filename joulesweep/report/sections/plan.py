"""What was planned, and what it took."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.analyse.ledger import Spent
from joulesweep.analyse.studies.planned import QUANTITIES, Planned, planned
from joulesweep.core.quantities import one
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 65
BEFORE = {False: "before its configuration had run", True: "afterwards"}


def section(results: Results) -> Section | None:
    """What the sweep itself took, and how near the plans of its runs were; None before anything was tried."""
    spent, near = results.spent, planned(results.tables.runs)
    if not spent.num_attempts:
        return None
    html = filled("plan.html.j2", spent=_spent(spent), near=near, table=near and _table(near), one=one)
    return Section(title="What was planned, and what it took", short="Plan", html=html)


def _spent(spent: Spent) -> list[str]:
    """What all attempts took, in sentences."""
    of_parts = [f"{one(part.measured_j, 'J')} {part.name}" for part in spent.parts if part.measured_j is not None]
    attempts = f"{spent.num_attempts} attempt{'s' if spent.num_attempts > 1 else ''}"
    lines = [f"The sweep itself held the machine for {one(spent.seconds, 's')} in {attempts}."]
    if spent.measured_j is not None:
        lines.append(f"It took {one(spent.measured_j, 'J')}, read from meters: {', '.join(of_parts)}.")
    if spent.num_windows:
        lines.append(f"Of {spent.num_windows} attempts only the window was read.")
    if spent.estimated_j is not None:
        lines.append(f"Attempts without a meter took an estimated {one(spent.estimated_j, 'J')}.")
    if spent.num_unknown:
        lines.append(f"What {spent.num_unknown} of them took is unknown.")
    return lines


def _table(near: Planned) -> Markup:
    """How near the plans were."""
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
    return table(headings, rows, "Plan and truth")


def _name(quantity: str, near: Planned) -> str:
    estimated = quantity == "energy_j" and near.energy_status == "estimated"
    return f"Estimated {QUANTITIES[quantity].lower()}" if estimated else QUANTITIES[quantity]
