"""Energy against quality, with a table of the marks that the reader picks."""

from __future__ import annotations

from joulesweep.report.markup import filled
from joulesweep.report.sections import Results, Section

PLACE = 20


def section(results: Results) -> Section:
    """The chart's heading, and the place for what is compared."""
    by_energy = all(decision.by == "energy_j" for decision in results.decisions)
    title = f"{'Energy' if by_energy else 'Time'} and quality"
    return Section(title=title, html=filled("quality.html.j2", any_ok=results.num_ok > 0))
