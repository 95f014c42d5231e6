"""How the loss fell while training."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.report.sections import Results, Section

PLACE = 45


def section(results: Results) -> Section | None:
    """The chart's heading; None if nothing was scored."""
    return None if results.tables.epochs.is_empty() else Section(title="While training", html=Markup())
