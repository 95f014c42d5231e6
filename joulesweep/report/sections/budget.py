"""What trainings cost: kilowatt-hours, money and emissions of the recommended configurations and the baseline."""

from __future__ import annotations

from joulesweep.analyse.tables import Row
from joulesweep.core import quantities
from joulesweep.reference.footprint import J_PER_KWH
from joulesweep.report.markup import filled, table
from joulesweep.report.results import BASELINE, key
from joulesweep.report.sections import Results, Section

PLACE = 35
MAX_ROWS = 8
TRAININGS = 20


def section(results: Results) -> Section | None:
    """The table; None if no configuration is recommended."""
    rows = _rows(results)
    if not rows:
        return None
    joules = any(row["energy_j_mean"] is not None for _, row in rows)
    factors = results.factors
    co2e, price = (factors is not None and getattr(factors, key) is not None for key in ("g_per_kwh", "price_per_kwh"))
    headings = {"Configuration": "text", "Role": "text"}
    headings |= {"One training": "", "kWh": ""} if joules else {}
    headings |= {str(factors.currency or "Cost"): ""} if joules and price and factors else {}
    headings |= {"g CO2e": ""} if joules and co2e else {}
    headings |= {"Trainings per kWh": ""} if joules else {}
    headings |= {f"Hours for {TRAININGS}": ""}
    lines = [_line(row, role, joules, co2e, price, results) for role, row in rows]
    html = filled("budget.html.j2", table=table(headings, lines, "Budget"), joules=joules, factors=co2e or price)
    return Section(title="What fits my budget?", short="Budget", html=html)


def _rows(results: Results) -> list[tuple[str, Row]]:
    """The configurations that matter, with their roles."""
    by_key = {key(row): row for decision in results.decisions for row in results.rows(decision.panel)}
    roles = results.roles(MAX_ROWS)
    order = sorted(roles, key=lambda one: roles[one] == BASELINE)
    return [(roles[one], by_key[one]) for one in order]


def _line(row: Row, role: str, joules: bool, co2e: bool, price: bool, results: Results) -> list[str]:
    """A configuration's entries; a dash where its joules are unknown."""
    energy_j, factors = row["energy_j_mean"], results.factors
    kwh = None if energy_j is None else energy_j / J_PER_KWH
    known = [
        None if energy_j is None else quantities.one(energy_j, "J"),
        None if kwh is None else quantities.digits(kwh),
        *([_of(factors.cost(energy_j)) if factors else None] if price else []),
        *([_of(factors.co2e_g(energy_j)) if factors else None] if co2e else []),
        None if not kwh else quantities.digits(1 / kwh),
    ]
    hours = quantities.digits(TRAININGS * row["window_s_mean"] / 3600)
    return [row["name"], role, *(text or "–" for text in known if joules), hours]


def _of(value: float | None) -> str | None:
    return None if value is None else quantities.digits(value)
