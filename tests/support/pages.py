"""Synthetic sweeps as tables, charts and pages, each made once for all tests of a process that ask for the same."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import synthetic

from joulesweep.analyse import collect
from joulesweep.analyse.tables import Tables
from joulesweep.report import charts
from joulesweep.report import page as report
from joulesweep.report.figure import Figure
from joulesweep.report.results import Results

Change = Callable[[dict[str, Any]], dict[str, Any] | None]
_MADE: dict[tuple[Change, str], tuple[dict[str, Any], Tables]] = {}


def as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that went well."""
    return row


def build(
    folder: Path, change: Change = as_it_is, axes: dict[str, Any] | None = None, **sections: Any
) -> tuple[dict[str, Any], Tables]:
    """The manifest and the tables of a sweep, written to a folder unless an earlier test had the same one written.

    Args:
        folder: of the test.
        change: edits each record, as for `synthetic.write_sweep`. One that a test defines itself is of that test alone.
        axes: keys of the grid.
        sections: of the config.
    """
    own = "<locals>" in change.__qualname__
    key = change, json.dumps([axes, sections], sort_keys=True)
    if own or key not in _MADE:
        manifest, runs = synthetic.write_sweep(folder, synthetic.raw_config(axes, **sections), change)
        made = manifest, collect.aggregate(manifest, runs)
        if own:
            return made
        _MADE[key] = made
    manifest, tables = _MADE[key]
    return copy.deepcopy(manifest), tables


def results(manifest: dict[str, Any], tables: Tables) -> Results:
    """The input of sections and charts."""
    return Results(manifest, tables)


def page(folder: Path, change: Change = as_it_is, axes: dict[str, Any] | None = None, **sections: Any) -> str:
    """The report of such a sweep, without charts."""
    return rendered(*build(folder, change, axes, **sections))


def rendered(manifest: dict[str, Any], tables: Tables) -> str:
    """The report without its charts: they take nine tenths of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "draw", lambda name, results: Figure(title=name, notes=["not drawn here"]))
        return report.build(manifest, tables)


def words(html: str) -> str:
    """What a reader sees below the list of sections: no scripts, no tags, single spaces."""
    body = re.sub(r"<(script|style|nav)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def text_of(figure: Figure) -> str:
    """A figure's whole specification, with its notes."""
    return json.dumps(figure.whole().to_dict(), ensure_ascii=False)


def drawn(figure: Figure, plot: int | None = None) -> list[dict[str, Any]]:
    """Every row of data behind a figure, or behind one of its plots."""
    plots = figure.plots if plot is None else [figure.plots[plot]]
    return [row for one in plots for rows in one.chart.to_dict().get("datasets", {}).values() for row in rows]
