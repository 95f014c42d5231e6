"""Energy against quality, with a table of the marks that the reader picks."""

from __future__ import annotations

from joulesweep.report.markup import filled
from joulesweep.report.sections import Results, Section

PLACE = 20


def section(results: Results) -> Section:
    """The chart's heading, and the place for what is compared."""
    return Section(title="Energy and quality", html=filled("quality.html.j2", any_ok=results.num_ok > 0))
