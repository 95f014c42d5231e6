"""Under which conditions the runs were measured, and what their joules are worth."""

from __future__ import annotations

from joulesweep import provenance
from joulesweep.markup import filled
from joulesweep.sections import Results, Section

PLACE = 90


def section(results: Results) -> Section | None:
    """Flags, conditions, certificates, drift and the sweep's own cost; None where no run finished."""
    tables = results.tables
    if not results.num_ok:
        return None
    html = filled(
        "conditions.html.j2",
        num_ok=results.num_ok,
        num_flagged=tables.runs["flags"].count(),
        flags=provenance.flags(tables.runs),
        conditions=provenance.conditions(tables.runs),
        certificates=provenance.certificates(tables.devices),
        drift=provenance.drift(tables.anchors),
        own_cost=provenance.own_cost(tables, results.factors),
    )
    return Section(title="Under which conditions", html=html)
