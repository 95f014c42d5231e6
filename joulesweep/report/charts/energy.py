"""Joules of a run by configuration.

Full bars with 95 % intervals are measured, pale ones integrated from power readings, with one plot per scope (the
devices included). Hatched bars show the range of the estimate, if no meter was readable and the config asks for
estimates.
"""

from __future__ import annotations

import altair as alt
import polars as pl

from joulesweep.analyse.cells import finished
from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.chart_parts import (
    ENERGY,
    ESTIMATED_ENERGY,
    NO_INTERVAL,
    by_batch_size,
    doubtful_note,
    joules_title,
    renamed,
    some,
)
from joulesweep.report.theme import Chart, empty, styled, tooltip

TITLE = "Energy of a run"
PLACE = 20


def draw(tables: Tables) -> Chart:
    """Draw joules of runs, one plot per status and scope: full bars measured, pale integrated, hatched estimated."""
    cells = finished(tables.cells, "window_s_mean")
    known = cells.drop_nulls("energy_j_mean")
    if known.is_empty():
        return _estimated_energy(tables, cells)
    parts = [part for _, part in known.group_by("energy_status", "energy_scope", maintain_order=True)]
    notes = ["Mean over repeats. Dark lines: 95 % interval." if known["energy_j_low"].count() else NO_INTERVAL]
    notes[0] += " White tick: net of idle power." if known["net_energy_j_mean"].count() else ""
    if "integrated" in known["energy_status"]:
        notes.append("Pale: integrated from power readings, since the board has no energy counter.")
    without = cells.filter(pl.col("energy_j_mean").is_null())["name"].unique(maintain_order=True).to_list()
    notes += [f"Without joules: {some(without)}"] if without else []
    notes += doubtful_note(known)
    return styled(alt.vconcat(*(_joules(tables, part) for part in parts), spacing=28), TITLE, notes)


def _joules(tables: Tables, cells: pl.DataFrame) -> Chart:
    """Bars of cells with joules of one status and scope."""
    x = alt.X("value:Q").title(joules_title(cells))
    nets = cells["net_energy_j_mean"].count() > 0
    numbers = tooltip("value=Energy (J)", *(["net=Net of idle (J)"] if nets else []))
    opacity = 0.8 if cells["energy_status"][0] == "measured" else 0.4
    bars = alt.Chart().mark_bar(height=13, opacity=opacity).encode(x=x, tooltip=numbers)
    net = alt.Chart().mark_tick(thickness=2, size=11, color="white").encode(x="net:Q")
    above = [net.transform_filter("isValid(datum.net)")] if nets else []
    cells = renamed(cells, ENERGY).with_columns(net=pl.col("net_energy_j_mean"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5)
    return by_batch_size(tables, cells, [], bars, whiskers, alt.value(theme.INK), above)


def _estimated_energy(tables: Tables, cells: pl.DataFrame) -> Chart:
    """Hatched bars of estimated joules, if every cell has them."""
    if cells.is_empty() or cells["estimated_energy_j"].null_count():
        return empty(tables, TITLE, "energy was not measured, and not estimated" if len(cells) else None)
    x = alt.X("value:Q").title("Estimated energy of a run (J), not measured")
    bars = alt.Chart().mark_bar(height=13, filled=False, fill=theme.HATCH, strokeWidth=1.5)
    bars = bars.encode(x=x, tooltip=tooltip("value=Energy (J)"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5, strokeDash=[4, 3])
    chart = by_batch_size(tables, renamed(cells, ESTIMATED_ENERGY), [], bars, whiskers, alt.value(theme.INK))
    note = "Hatched: estimated from CPU-seconds, dashed over the range of the estimate. A guess, not a measurement."
    return styled(chart, "Energy of a run, estimated", [note])
