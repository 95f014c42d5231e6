"""The charts that no other section shows."""

from markupsafe import Markup

from joulesweep.report.sections import Results, Section

PLACE = 20


def section(results: Results) -> Section:
    """The heading above the charts."""
    return Section(title="Charts", html=Markup())
