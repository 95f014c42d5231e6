"""The input of every section and chart: a sweep's manifest and tables, and what follows from both."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse import ledger
from joulesweep.analyse.cells import comparable_groups
from joulesweep.analyse.comparisons import Comparisons
from joulesweep.analyse.ledger import Spent
from joulesweep.analyse.studies.decision import Decision, decisions
from joulesweep.analyse.tables import Row, Tables
from joulesweep.reference.footprint import Footprint, footprint
from joulesweep.report.looks import Looks, looks

BASELINE, BEST = "baseline", "best quality"


def key(row: Row) -> str:
    """What identifies a row of the cells table on the page: its cell and environment."""
    return f"{row['cell']}.{row['environment'] or ''}"


@dataclass(frozen=True)
class Results:
    """The input of every section and chart.

    Attributes:
        manifest: of the sweep, with its config.
        tables: of the sweep, from `aggregate`.
    """

    manifest: Mapping[str, Any]
    tables: Tables

    @functools.cached_property
    def factors(self) -> Footprint | None:
        """Factors from joules to emissions and cost; None if the config asks for neither."""
        return footprint(self.manifest["config"]["energy"])

    @functools.cached_property
    def decisions(self) -> list[Decision]:
        """What is recommended, in each set of comparable configurations."""
        return decisions(self.tables, self.manifest["config"], comparisons=self.comparisons)

    @functools.cached_property
    def comparisons(self) -> Comparisons:
        """Ratios of configurations."""
        return Comparisons(self.tables.runs)

    @functools.cached_property
    def spent(self) -> Spent:
        """What the sweep itself took: every attempt of every run."""
        return ledger.spent(self.tables.attempts)

    @functools.cached_property
    def looks(self) -> Looks:
        """What colour and shape mean in the sweep."""
        return looks(self.tables.cells)

    @functools.cached_property
    def _rows(self) -> dict[str, list[Row]]:
        return {name: part.to_dicts() for name, part in comparable_groups(self.tables.cells)}

    def rows(self, panel: str) -> list[Row]:
        """The rows of the cells table that belong to a set of comparable configurations."""
        return self._rows.get(panel, [])

    def roles(self, most: int) -> dict[str, str]:
        """The configurations that matter most, by `key`, with what makes them matter.

        Args:
            most: how many at most.
        """
        named: list[tuple[Row, str]] = []
        for decision in self.decisions:
            named += [(pick.row, " and ".join(pick.roles)) for pick in decision.picks[:1]]
            named.append((decision.baseline, BASELINE))
        for decision in self.decisions:
            named += [(pick.row, " and ".join(pick.roles)) for pick in decision.picks[1:]]
            named.append((decision.best, BEST))
        roles: dict[str, str] = {}
        for row, role in named:
            roles.setdefault(key(row), role)
        return dict(list(roles.items())[:most])

    @property
    def why_empty(self) -> str | None:
        """Why nothing can be drawn; None if some run finished."""
        if self.num_ok:
            return None
        counts = self.tables.runs["status"].value_counts(sort=True).rows()
        return "No run finished: " + ", ".join(f"{number} {status}" for status, number in counts) + "."

    @property
    def num_runs(self) -> int:
        """Number of runs of the sweep, of every status."""
        return self.tables.runs.height

    @property
    def num_ok(self) -> int:
        """Number of finished runs."""
        return self.tables.runs.filter(pl.col("status") == "ok").height
