"""The table of all configurations, with every column that has a heading in `joulesweep.analyse.columns`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import polars as pl
from markupsafe import Markup

from joulesweep.analyse.columns import RUNS, Column
from joulesweep.analyse.comparisons import memory_quantity
from joulesweep.report import evidence, numbers
from joulesweep.report.markup import filled
from joulesweep.report.numbers import FormattedNumber
from joulesweep.report.sections import Results, Section

PLACE = 30
Row = dict[str, Any]


class Entries(NamedTuple):
    """A column of the table on the page.

    Attributes:
        heading: of the column.
        kind: its class: "" for numbers, "text" or "estimated".
        text: from a row of the cells table: a number with its interval or remark.
        value: from such a row: the key to sort by, or None.
    """

    heading: str
    kind: str
    text: Callable[[Row], FormattedNumber]
    value: Callable[[Row], float | None] = lambda row: None


def section(results: Results) -> Section:
    """The table, with notes on its columns."""
    tables = results.tables
    columns = list(_columns(results))
    html = filled(
        "configurations.html.j2",
        columns=columns,
        rows=list(tables.cells.iter_rows(named=True)),
        headings=[column.heading for column in columns],
        nets=tables.cells["net_energy_j_mean"].count() > 0,
        work=evidence.work(tables),
        num_marked=tables.cells["num_flagged"].sum(),
        estimates=results.manifest["config"]["energy"]["estimate"],
    )
    return Section(title="All configurations", html=html)


def _columns(results: Results) -> Iterator[Entries]:
    """The columns in the order of the runs table."""
    cells = results.tables.cells
    yield Entries("Configuration", "text", lambda row: (_marked(row), ""))
    if cells["panel"].n_unique() > 1:
        yield Entries("Part", "text", lambda row: (row["panel"], ""))
    yield Entries("Runs", "text", lambda row: (row["statuses"], ""))
    for column in RUNS.values():
        if column.heading is not None and _is_needed(column, results):
            yield _own(column, results) or _plain(column, results)
        if column.name == "window_s":
            yield Entries("Speed-up", "", numbers.speedup, lambda row: row["speedup"])


def _is_needed(column: Column, results: Results) -> bool:
    """Whether the table shows a column: never null, asked for by the config, or known of some cell."""
    factors = results.factors
    asked = {
        "energy_j": True,
        "co2e_g": factors is not None and factors.g_per_kwh is not None,
        "cost": factors is not None and factors.price_per_kwh is not None,
    }
    number = results.tables.cells[f"{column.name}_mean" if column.mean else column.name]
    return asked.get(column.name, column.null is None or number.count() > 0)


def _plain(column: Column, results: Results) -> Entries:
    """A mean with its interval, in the format of its column."""
    title = numbers.heading(column, results.tables)
    return Entries(title, "", lambda row: numbers.shown(row, column), lambda row: row[f"{column.name}_mean"])


def _own(column: Column, results: Results) -> Entries | None:
    """Quantities with a special format: joules, estimates, memory, money."""
    title = column.heading or ""
    match column.name:
        case "energy_j":
            return _energy(results.tables.cells)
        case "estimated_energy_j":
            return Entries(title, "estimated", numbers.estimated_joules, lambda row: row[column.name])
        case "estimated_co2e_g":
            return Entries(title, "estimated", numbers.estimated_co2e, lambda row: row[column.name])
        case "cost":
            currency = (results.factors.currency if results.factors else None) or ""
            return Entries(title, "", lambda row: numbers.interval(row, "cost", currency), lambda row: row["cost_mean"])
        case "peak_host_rss_bytes":
            return Entries(title, "", numbers.memory, lambda row: row[f"{memory_quantity(row)}_mean"])
    return None


def _energy(cells: pl.DataFrame) -> Entries:
    """Joules with status and scope: in the heading if all share them, else in the entries."""
    kinds = cells.drop_nulls("energy_j_mean").select("energy_status", "energy_scope").unique(maintain_order=True).rows()

    def text(row: Row) -> FormattedNumber:
        number, remark = numbers.joules(row)
        kind = f"{row['energy_status']}, {row['energy_scope']}" if row["energy_j_mean"] and len(kinds) > 1 else ""
        return number, " ".join(filter(None, [remark, kind]))

    heading = "Energy" if kinds else "Measured energy"
    if len(kinds) == 1:
        status, scope = kinds[0]
        heading = f"{status.capitalize()} energy ({scope})"
    return Entries(heading, "", text, lambda row: row["energy_j_mean"])


def _marked(row: Row) -> str:
    """A configuration's name, with a mark if runs of it are flagged."""
    if not row["num_flagged"]:
        return str(row["name"])
    title = f"{row['num_flagged']} of {row['num_ok']} runs flagged: {row['flags']}"
    mark = Markup('{} <span class="flag" role="img" title="{}" aria-label="{}">⚑</span>')
    return mark.format(row["name"], title, title)
