"""The table of all configurations, with every column that has a heading in `joulesweep.analyse.columns`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from markupsafe import Markup

from joulesweep.analyse.columns import RUNS, Column
from joulesweep.analyse.comparisons import memory_quantity
from joulesweep.analyse.tables import Row
from joulesweep.report import evidence, numbers
from joulesweep.report.markup import embedded, filled
from joulesweep.report.numbers import FormattedNumber
from joulesweep.report.results import key
from joulesweep.report.sections import Results, Section

PLACE = 40
MAX_ROWS = 300  # beyond it rows are made when the reader asks for them


class Entries(NamedTuple):
    """A column of the table on the page.

    Attributes:
        heading: of the column.
        kind: its classes: "" for numbers, "text" or "estimated"; "more" for columns that are folded away at first.
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
    chosen = {key(decision.picks[0].row) for decision in results.decisions if decision.picks}
    rows = _ordered(results, chosen)
    entries = [
        {
            "cell": key(row),
            "name": row["name"],
            "chosen": key(row) in chosen,
            "mark": marked(row) if row["num_flagged"] else "",
            "entries": [(*column.text(row), column.value(row), column.kind) for column in columns],
        }
        for row in rows
    ]
    rest = [[row["cell"], row["name"], [entry[:3] for entry in row["entries"]]] for row in entries[MAX_ROWS:]]
    html = filled(
        "configurations.html.j2",
        columns=columns,
        rows=entries[:MAX_ROWS],
        rest=embedded(rest) if rest else "",
        num_rows=len(rows),
        folded=any("more" in column.kind for column in columns),
        headings=[column.heading for column in columns],
        nets=tables.cells["net_energy_j_mean"].count() > 0,
        work=evidence.work(tables),
        num_marked=tables.cells["num_flagged"].sum(),
        estimates=results.manifest["config"]["energy"]["estimate"],
        baselines=sorted({decision.baseline["name"] for decision in results.decisions}),
    )
    return Section(title="All configurations", html=html)


def _ordered(results: Results, chosen: set[str]) -> list[Row]:
    """The rows as the sweep has them; where they are too many to show, the recommended and the cheapest first."""
    rows = list(results.tables.cells.iter_rows(named=True))
    if len(rows) <= MAX_ROWS:
        return rows
    by = {decision.panel: f"{decision.by}_mean" for decision in results.decisions}
    costs = {key(row): row[by.get(row["panel"], "window_s_mean")] for row in rows}
    return sorted(rows, key=lambda row: (key(row) not in chosen, costs[key(row)] is None, costs[key(row)] or 0.0))


def _columns(results: Results) -> Iterator[Entries]:
    """The columns: loss and energy first, with their changes against the baseline, then the others."""
    cells = results.tables.cells
    if cells["panel"].n_unique() > 1:
        yield Entries("Part", "text", lambda row: (row["panel"], ""))
    if cells["above_best"].count():
        yield Entries("Loss above the best", "", numbers.above_best, lambda row: row["above_best"])
        yield Entries("Verdict", "text", lambda row: (row["quality_verdict"] or "–", ""))
    yield _energy(results)
    for heading, quantity in (("Energy, change", "energy"), ("Time, change", "time")):
        if quantity == "time":
            yield Entries(
                "Time", "", lambda row: numbers.interval(row, "window_s", "s"), lambda row: row["window_s_mean"]
            )
        if cells[f"{quantity}_ratio"].count():
            yield _change(heading, quantity)
    yield Entries("Memory", "", numbers.memory, lambda row: row[f"{memory_quantity(row)}_mean"])
    yield Entries("Runs", "text", lambda row: (row["statuses"], ""))
    first = ("energy_j", "window_s", "peak_host_rss_bytes")
    for column in RUNS.values():
        if column.heading is not None and column.name not in first and _is_needed(column, results):
            yield _own(column, results) or _plain(column, results)


def _change(heading: str, quantity: str) -> Entries:
    """The change of a quantity against the baseline."""
    return Entries(heading, "", lambda row: numbers.change(row, quantity), lambda row: row[f"{quantity}_ratio"])


def _is_needed(column: Column, results: Results) -> bool:
    """Whether the table shows a column: never null, asked for by the config, or known of some cell."""
    factors = results.factors
    asked = {
        "co2e_g": factors is not None and factors.g_per_kwh is not None,
        "cost": factors is not None and factors.price_per_kwh is not None,
    }
    number = results.tables.cells[f"{column.name}_mean" if column.mean else column.name]
    return asked.get(column.name, column.null is None or number.count() > 0)


def _plain(column: Column, results: Results) -> Entries:
    """A mean with its interval, in the format of its column."""
    title = numbers.heading(column, results.tables)
    return Entries(title, "more", lambda row: numbers.shown(row, column), lambda row: row[f"{column.name}_mean"])


def _own(column: Column, results: Results) -> Entries | None:
    """Quantities with a special format: estimates, money."""
    title = column.heading or ""
    match column.name:
        case "estimated_energy_j":
            return Entries(title, "estimated", numbers.estimated_joules, lambda row: row[column.name])
        case "estimated_co2e_g":
            return Entries(title, "estimated more", numbers.estimated_co2e, lambda row: row[column.name])
        case "cost":
            currency = (results.factors.currency if results.factors else None) or ""
            return Entries(
                title, "more", lambda row: numbers.interval(row, "cost", currency), lambda row: row["cost_mean"]
            )
    return None


def _energy(results: Results) -> Entries:
    """Joules with status and scope: in the heading if all share them, else in the entries."""
    cells = results.tables.cells
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


def marked(row: Row) -> Markup:
    """A mark if runs of a configuration are flagged."""
    title = f"{row['num_flagged']} of {row['num_ok']} runs flagged: {row['flags']}"
    mark = Markup(' <span class="flag" role="img" title="{}" aria-label="{}">⚑</span>')
    return mark.format(title, title)
