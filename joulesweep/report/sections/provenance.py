"""The sources of the numbers: meters, factors, machines, code, config."""

from __future__ import annotations

import yaml

from joulesweep.reference.footprint import describe_factors
from joulesweep.report import evidence
from joulesweep.report.markup import filled
from joulesweep.report.sections import Results, Section

PLACE = 100


def section(results: Results) -> Section:
    """The sources of all numbers."""
    tables, config = results.tables, results.manifest["config"]
    html = filled(
        "provenance.html.j2",
        energy=evidence.energy(tables.runs),
        boards_read=tables.devices.filter(kind="gpu").drop_nulls("energy_j").height > 0,
        factors=describe_factors(results.factors) if results.factors else [],
        estimates=evidence.estimates(results.manifest, tables.runs),
        environments=evidence.environments(tables.runs),
        code=evidence.code(tables.runs),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )
    return Section(title="Where the numbers come from", html=html)
