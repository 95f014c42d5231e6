"""Whether the numbers can be trusted: how joules were read, flags, conditions, certificates, drift."""

from __future__ import annotations

from joulesweep.report import evidence
from joulesweep.report.markup import filled
from joulesweep.report.sections import Results, Section

PLACE = 60


def section(results: Results) -> Section | None:
    """Flags, conditions, certificates, drift and the sweep's own cost; None where no run finished."""
    tables = results.tables
    if not results.num_ok:
        return None
    html = filled(
        "conditions.html.j2",
        num_ok=results.num_ok,
        energy=evidence.energy(tables.runs),
        boards_read=tables.devices.filter(kind="gpu").drop_nulls("energy_j").height > 0,
        estimates=evidence.estimates(results.manifest, tables.runs),
        num_flagged=tables.runs["flags"].count(),
        flags=evidence.flags(tables.runs),
        conditions=evidence.conditions(tables.runs),
        certificates=evidence.certificates(tables.devices),
        drift=evidence.drift(tables.anchors),
        own_cost=evidence.sweep_energy(tables, results.factors),
    )
    return Section(title="Can the numbers be trusted?", short="Trust", html=html, text_first=True)
