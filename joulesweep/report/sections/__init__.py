"""Sections of the report: one file per section, discovered by name.

A section is a module `joulesweep/report/sections/<name>.py` with

* `section(results)`: a `Section`, or None if the sweep has nothing to show in it;
* optionally `PLACE`: sections with a lower one come first, those without one last.

A study is a section whose module makes comparisons from the tables. A section's anchor on the page is its name, with
hyphens. Charts that name it as their `SECTION` appear below its heading. No other file needs an edit.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from markupsafe import Markup

from joulesweep.report.results import Results as Results

LAST = 1000  # PLACE of a section without one


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        text_first: whether the content stands above the charts.
        short: its name in the page's list of sections; default: its heading.
        html: the content below the heading and the charts.
    """

    title: str
    html: Markup
    short: str = ""
    text_first: bool = False


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
