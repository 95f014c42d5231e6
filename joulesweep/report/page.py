"""Build the report: one HTML file that starts with the answer, opens from disk, and needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joulesweep.analyse.tables import Tables
from joulesweep.core.errors import one_of
from joulesweep.report import charts, sections
from joulesweep.report.markup import embedded, filled, vega
from joulesweep.report.sections import Results


def build(manifest: Mapping[str, Any], tables: Tables) -> str:
    """Render the report: every section with content, and its charts.

    Args:
        manifest: of the sweep.
        tables: of the sweep, from `aggregate`.

    Returns:
        A self-contained HTML page.

    Raises:
        LookupError: a chart names an unknown section.
    """
    results, of_section = Results(manifest, tables), charts.by_section()
    for section, names in of_section.items():
        if section not in sections.names():
            raise LookupError(f"{', '.join(names)}: {one_of('section', section, sections.names())}")
    parts = [(name, section, of_section.get(name, [])) for name, section in sections.made(results).items()]
    page = filled(
        "report.html.j2",
        sweep=manifest["sweep"],
        num_ok=results.num_ok,
        num_runs=results.num_runs,
        statuses=tables.runs["status"].value_counts(sort=True, name="runs").rows(),
        sections=[(name.replace("_", "-"), section, drawn) for name, section, drawn in parts],
        charts={name: embedded(charts.draw(name, tables).to_dict()) for _, _, drawn in parts for name in drawn},
        bundle=vega(),
    )
    return str(page)
