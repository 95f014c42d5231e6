"""The look of all charts: colours, shapes, titles, and the difference between estimates and measurements."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl

from joulesweep.analyse.tables import Tables

Chart = Any  # Altair has one type per kind of composition

#: Okabe and Ito's colours, distinct with any colour vision, without their yellow, too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5A5A5A", "#8C510A")
#: Vega's shapes, then our SVG paths: saltire, hourglass, bow tie, half disc.
SHAPES = (
    *("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"),
    "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
    "M-1,-1H1L-1,1H1Z",
    "M-1,-1V1L1,-1V1Z",
    "M-1,.5A1,1,0,0,1,1,.5Z",
)
STATUSES: Sequence[str] = ("measured", "estimated")
LINE = 130  # characters of a note as wide as a plot
LOSS = "Validation loss (nats)"
INK, FAINT, GRID = "#333333", "#9A9A9A", "#ECECEC"

#: Stripes for estimated numbers. Vega has no hatching, so a gradient with hard edges draws them.
HATCH = {
    "gradient": "linear",
    "x1": 0,
    "y1": 0,
    "x2": 1,
    "y2": 0,
    "stops": [
        {"offset": (stripe + edge) / 40, "color": colour}
        for stripe in range(40)
        for edge, colour in ((0, "#B8BDC2"), (0.5, "#B8BDC2"), (0.5, "#FFFFFF"), (1, "#FFFFFF"))
    ],
}


def setup_scale(cells: pl.DataFrame) -> alt.Scale:
    """One colour per configuration, the same in every chart if called with all cells of the sweep."""
    domain = list(dict.fromkeys(cells["setup"]))
    return alt.Scale(domain=domain, range=_cycle(COLOURS, domain))


def batch_order(cells: pl.DataFrame) -> list[str]:
    """The batch sizes as shown, smallest first."""
    return list(dict.fromkeys(cells.sort("batch_size", maintain_order=True)["batch"]))


def batch_shape(cells: pl.DataFrame) -> alt.Shape:
    """One shape per batch size."""
    order = batch_order(cells)
    return alt.Shape("batch:N").scale(domain=order, range=_cycle(SHAPES, order)).title("Batch size")


def dash(statuses: Sequence[str]) -> alt.StrokeDash:
    """Solid lines for measured numbers, dashed for estimated, with a legend if a chart has both."""
    legend = alt.Legend(symbolType="stroke", symbolStrokeColor=INK, symbolStrokeWidth=2, symbolSize=220)
    scale = alt.Scale(domain=list(statuses), range=[[4, 3] if status == "estimated" else [1, 0] for status in statuses])
    return alt.StrokeDash("status:N").scale(scale).title("Cost is").legend(legend if len(statuses) > 1 else None)


def si(costs: pl.Series) -> alt.Axis:
    """An axis with few ticks, in k and M if plain numbers would be long."""
    return alt.Axis(tickCount=6, format="~s") if max(costs.to_list()) >= 1e5 else alt.Axis(tickCount=6)


def values(frame: pl.DataFrame, columns: str) -> alt.InlineData:
    """Rows of the drawn columns as plain values, without a limit on their number or inferred types."""
    drawn = frame.select(columns.split()).with_columns(pl.col(pl.Float64).round_sig_figs(6))
    return alt.InlineData(values=drawn.to_dicts())


def reach(points: pl.Series, *ends: pl.Series) -> alt.Scale:
    """The scale of an axis: all points, and their intervals up to half the points' spread beyond the points.

    The interval of two repeats can be ten times as long as everything else together.
    """
    centre = points.to_list()
    spread = max(centre) - min(centre)
    beyond = 0.5 * spread if spread else float("inf")
    extent = [*centre, *(end for series in ends for end in series.drop_nulls())]
    low, high = max(min(extent), min(centre) - beyond), min(max(extent), max(centre) + beyond)
    padding = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return alt.Scale(domain=[low - padding, high + padding], zero=False)


def tooltip(*fields: str) -> list[alt.Tooltip]:
    """The configuration's name, then numbers to four digits; a field has the form `column=Title (unit)`."""
    pairs = (field.split("=", 1) for field in fields)
    numbers = [alt.Tooltip(f"{column}:Q", title=title, format=".4~g") for column, title in pairs]
    return [alt.Tooltip("name:N", title="Configuration"), *numbers]


def panel_title(name: str) -> alt.TitleParams:
    """The small title of one part of a chart."""
    return alt.TitleParams(name, fontSize=12, anchor="start", fontWeight="normal", color=INK)


def styled(chart: Chart, title: str, notes: Iterable[str]) -> Chart:
    """Add the title, the notes below it, and the common look; labels are never cut, since their ends may matter."""
    lines = [line for note in notes for line in textwrap.wrap(note, LINE)]
    heading = alt.TitleParams(
        title, subtitle=lines, anchor="start", fontSize=15, subtitleFontSize=11, subtitleColor=INK, offset=14
    )
    words = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 12, "labelLimit": 0}
    return (
        chart.properties(title=heading, padding=12, background="white")
        .configure(font="Arial, Helvetica, sans-serif")
        .configure_view(stroke="#DDDDDD")
        .configure_axis(**words, titleFontWeight="normal", gridColor=GRID, domainColor=FAINT, tickColor=FAINT)
        .configure_legend(**words, titleFontWeight="normal", symbolOpacity=1)
        .configure_header(**words, titleFontWeight="normal")
        .configure_text(fontSize=11, color=INK)
    )


def empty(tables: Tables, title: str, reason: str | None = None) -> Chart:
    """A chart that says why there is nothing to draw."""
    counts = tables.runs["status"].value_counts(sort=True).rows()
    reason = reason or "no run finished: " + ", ".join(f"{n} {status}" for status, n in counts)
    text = alt.Chart(alt.InlineData(values=[{"text": reason}])).mark_text(fontSize=13).encode(text="text:N")
    return styled(text.properties(width=480, height=100), title, ["Nothing to draw."])


def _cycle(choices: Sequence[str], domain: Sequence[str]) -> list[str]:
    return [choices[i % len(choices)] for i in range(len(domain))]
