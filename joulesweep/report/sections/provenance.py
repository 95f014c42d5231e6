"""How to make the numbers again: commands, machines, versions, factors, code, config."""

from __future__ import annotations

import yaml

from joulesweep.reference.footprint import describe_factors
from joulesweep.report import evidence
from joulesweep.report.markup import filled
from joulesweep.report.sections import Results, Section

PLACE = 90


def section(results: Results) -> Section:
    """Commands, machines, code and config."""
    tables, config = results.tables, results.manifest["config"]
    html = filled(
        "provenance.html.j2",
        exported=not {"missing", "unreadable"} & set(tables.runs["status"]),
        factors=describe_factors(results.factors) if results.factors else [],
        environments=evidence.environments(tables.runs),
        code=evidence.code(tables.runs),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )
    return Section(title="How to reproduce it", short="Reproduce", html=html)
