"""Sections of the report: one file per section, found by its name.

A section is a module `joulesweep/report/sections/<name>.py` with

* `section(results)`: a `Section`, or None where the sweep has nothing for it;
* perhaps `PLACE`: sections with a lower one come first, those without one last.

A study is a section whose module compares what the tables have. Its address on the page is its name, with hyphens. The
charts that name it as their `SECTION` stand below its heading. Nothing else needs to be edited.
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

LAST = 1000  # the place of a section without one


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        html: what stands below the heading and its charts.
    """

    title: str
    html: Markup


@dataclass(frozen=True)
class Results:
    """What a section is made from.

    Attributes:
        manifest: of the sweep, with its config.
        tables: what `aggregate` made of its runs.
    """

    manifest: Mapping[str, Any]
    tables: Tables

    @functools.cached_property
    def factors(self) -> Footprint | None:
        """What turns joules into emissions and cost, where the config asks for one of them."""
        return footprint(self.manifest["config"]["energy"])

    @property
    def num_runs(self) -> int:
        """Runs of the sweep, whatever became of them."""
        return self.tables.runs.height

    @property
    def num_ok(self) -> int:
        """Finished runs."""
        return self.tables.runs.filter(pl.col("status") == "ok").height


def names() -> list[str]:
    """Every section there is, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """Import one section's module."""
    return importlib.import_module(f"joulesweep.report.sections.{name}")


def made(results: Results) -> dict[str, Section]:
    """The sections that have something to say, by name, in the order of the page."""
    order = sorted(names(), key=lambda name: getattr(load(name), "PLACE", LAST))
    sections = {name: load(name).section(results) for name in order}
    return {name: section for name, section in sections.items() if section is not None}
