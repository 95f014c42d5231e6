"""Sections of the report: one file per section, discovered by name.

A section is a module `joulesweep/report/sections/<name>.py` with

* `section(results)`: a `Section`, or None if the sweep has nothing to show in it;
* optionally `PLACE`: sections with a lower one come first, those without one last.

A study is a section whose module makes comparisons from the tables. A section's anchor on the page is its name, with
hyphens. Charts that name it as their `SECTION` appear below its heading. No other file needs an edit.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
from markupsafe import Markup

from joulesweep.analyse.tables import Tables
from joulesweep.reference.footprint import Footprint, footprint

LAST = 1000  # PLACE of a section without one


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        html: the content below the heading and the charts.
    """

    title: str
    html: Markup


@dataclass(frozen=True)
class Results:
    """The input of every section.

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

    @property
    def num_runs(self) -> int:
        """Number of runs of the sweep, of every status."""
        return self.tables.runs.height

    @property
    def num_ok(self) -> int:
        """Number of finished runs."""
        return self.tables.runs.filter(pl.col("status") == "ok").height


def names() -> list[str]:
    """The names of all sections, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """Import one section's module."""
    return importlib.import_module(f"joulesweep.report.sections.{name}")


def made(results: Results) -> dict[str, Section]:
    """Make the sections that have content, by name, in the order of the page."""
    order = sorted(names(), key=lambda name: getattr(load(name), "PLACE", LAST))
    sections = {name: load(name).section(results) for name in order}
    return {name: section for name, section in sections.items() if section is not None}
