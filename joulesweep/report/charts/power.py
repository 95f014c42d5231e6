"""Power of each device against seconds, for the first repeat of each configuration.

The measured window is grey. Each line has at most 200 points, averages of readings.
"""

from __future__ import annotations

import altair as alt
import polars as pl

from joulesweep.analyse.cells import comparable_groups
from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.chart_parts import MAX_TRACES
from joulesweep.report.theme import Chart, empty, styled, tooltip, values

TITLE = "Power while training"
PLACE = 60
TRACE = "name setup device t_s power_w window_s"
MAX_POINTS = 200  # of one trace: its plot has fewer pixels


def draw(tables: Tables) -> Chart:
    """Draw power against seconds for the first traced repeat of each configuration, with the measured window marked."""
    traced = tables.power.drop_nulls("power_w")
    if traced.is_empty():
        any_run = "ok" in tables.runs["status"]
        return empty(tables, TITLE, "no power could be read" if any_run else None)
    first = pl.col("repeat") == pl.col("repeat").min().over("panel", "name")
    traced = _thinned(traced.filter(first))
    names = traced.select("panel", "name").unique(maintain_order=True)
    traced = traced.join(names.head(MAX_TRACES), on=["panel", "name"])
    notes = ["First repeat of each configuration, one line per device. Grey: the measured window."]
    notes += [f"The first {MAX_TRACES} of {names.height} configurations."] if names.height > MAX_TRACES else []
    return styled(alt.vconcat(*(_traces(tables, *part) for part in comparable_groups(traced))), TITLE, notes)


def _thinned(traced: pl.DataFrame) -> pl.DataFrame:
    """Reduce each line to at most `MAX_POINTS`: means over equal stretches of time."""
    line = ("panel", "name", "run", "device")
    begin_s, end_s = (getattr(pl.col("t_s"), end)().over(line) for end in ("min", "max"))
    place = ((pl.col("t_s") - begin_s) / (end_s - begin_s) * MAX_POINTS).fill_nan(0).floor().clip(0, MAX_POINTS - 1)
    stretches = traced.with_columns(stretch=place).group_by(*line, "stretch", maintain_order=True)
    return stretches.agg(pl.col("setup", "window_s").first(), pl.col("t_s", "power_w").mean()).sort(
        *line[1:], "t_s", maintain_order=True
    )


def _traces(tables: Tables, panel: str, part: pl.DataFrame) -> Chart:
    """One small plot per configuration of a panel; all share the scale of the power."""
    names = [name for name in dict.fromkeys(tables.cells["name"]) if name in set(part["name"])]
    colour = alt.Color("setup:N").scale(theme.setup_scale(tables.cells)).legend(None)
    x = alt.X("t_s:Q").title("Seconds since the window began").axis(tickCount=5)
    window = alt.Chart().transform_aggregate(end="max(window_s)", groupby=["name"]).transform_calculate(begin="0")
    band = window.mark_rect(color=theme.GRID).encode(x=alt.X("begin:Q"), x2="end:Q")
    line = alt.Chart().mark_line(strokeWidth=1.2, opacity=0.85)
    numbers = tooltip("power_w=Power (W)", "t_s=Seconds")
    line = line.encode(x=x, y=alt.Y("power_w:Q").title("Power (W)"), color=colour, detail="device:N", tooltip=numbers)
    facet = alt.Facet("name:N").sort(names).title(None).header(labelAnchor="start", labelPadding=3)
    plots = alt.layer(band, line, data=values(part, TRACE)).properties(width=230, height=90)
    return plots.facet(facet, columns=3, title=theme.panel_title(panel), spacing=14).resolve_scale(x="independent")
