"""The configurations that the config excludes, with its reasons."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.report.sections import Results, Section

PLACE = 75


def section(results: Results) -> Section | None:
    """The excluded configurations; None if there are none."""
    lines = [f"{entry['label']}: {entry['reason']}" for entry in results.manifest["excluded"]]
    items = Markup().join(Markup("<li>{}</li>").format(line) for line in lines)
    return Section(title="Left out on purpose", html=Markup("<ul>{}</ul>").format(items)) if lines else None
