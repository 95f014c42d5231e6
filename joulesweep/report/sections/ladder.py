"""The savings ladder: from the baseline to the recommended configuration."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.report.sections import Results, Section

PLACE = 25


def section(results: Results) -> Section | None:
    """The chart's heading; None without a decision."""
    return (
        Section(title="Where the savings come from", short="Savings ladder", html=Markup())
        if results.decisions
        else None
    )
