"""The look of all charts: colours for light and dark, shapes, text sizes, and how numbers become rows of data.

A chart names colours of the light scheme. On a page each of them becomes a variable of `report.css`, so that a chart
follows the reader's scheme without being drawn again; a file of its own keeps the light ones.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

Chart = Any  # Altair has one type per kind of composition

#: Colours that carry meaning, the most distinct ones first: apart for any colour vision, at least 3:1 on white.
COLOURS = ("#0072B2", "#C44E00", "#00906A", "#740056", "#B064FE", "#442616", "#011A8E", "#4C4C4C")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
INK, FAINT, GRID, BAND, PALE, PAPER = "#222222", "#5F5F5F", "#E3E5E7", "#DCEFE5", "#8FA3B3", "#FFFFFF"
SAVES, UNSURE = "#00785A", "#B06F00"
#: Variables of the style sheet, by the colours that they replace on a page.
VARIABLES = {
    **{colour: f"mark-{i}" for i, colour in enumerate(COLOURS, start=1)},
    **{INK: "chart-ink", FAINT: "chart-faint", GRID: "chart-grid", BAND: "band", PALE: "pale", PAPER: "paper"},
    **{SAVES: "saves", UNSURE: "unsure"},
}
LINE = 130  # characters of a note as wide as a chart
WIDTH = 900  # pixels of a chart in a file of its own
LOSS = "Validation loss (nats)"


def config() -> dict[str, Any]:
    """Vega's settings for every chart; labels are never cut, since their ends may matter."""
    words = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 12, "labelLimit": 0}
    words |= {"titleFontWeight": "normal"}
    return {
        "aria": False,  # the figure has a name, and the tables have its numbers
        "background": None,
        "font": "Arial, Helvetica, sans-serif",
        "view": {"stroke": GRID, "continuousWidth": 400, "continuousHeight": 260},
        "axis": {**words, "gridColor": GRID, "domainColor": FAINT, "tickColor": FAINT, "titlePadding": 8},
        "legend": {**words, "symbolOpacity": 1, "symbolFillColor": FAINT, "symbolStrokeColor": FAINT},
        "title": {"color": INK, "subtitleColor": INK, "fontSize": 12, "anchor": "start", "fontWeight": "normal"},
        "text": {"fontSize": 11, "color": INK},
    }


def themed(spec: str) -> str:
    """The JSON of a chart for a page: its colours are the style sheet's variables."""
    for colour, name in VARIABLES.items():
        spec = spec.replace(f'"{colour}"', f'"var(--{name})"')
    return spec


def values(frame: pl.DataFrame, columns: str) -> alt.InlineData:
    """Rows of the drawn columns as plain values, to four digits."""
    drawn = frame.select(columns.split()).with_columns(pl.col(pl.Float64).round_sig_figs(5))
    return alt.InlineData(values=drawn.to_dicts())


def rows(data: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Rows of data as they are; numbers to five digits."""
    return alt.InlineData(values=[{key: _short(value) for key, value in row.items()} for row in data])


def _short(value: Any) -> Any:  # noqa: ANN401 - of any column
    return float(f"{value:.5g}") if isinstance(value, float) else value


def si(costs: pl.Series) -> alt.Axis:
    """An axis with few ticks, in k and M if plain numbers would be long."""
    return alt.Axis(tickCount=6, format="~s") if max(costs.to_list()) >= 1e5 else alt.Axis(tickCount=6)


def tooltip(*fields: str) -> list[alt.Tooltip]:
    """The configuration's name, then numbers to four digits; a field has the form `column=Title (unit)`."""
    pairs = (field.split("=", 1) for field in fields)
    numbers = [alt.Tooltip(f"{column}:Q", title=title, format=".4~g") for column, title in pairs]
    return [alt.Tooltip("name:N", title="Configuration"), *numbers]


def styled(chart: Chart, title: str, notes: Iterable[str]) -> Chart:
    """Add the title, the notes below it, and the common look, for a chart in a file of its own."""
    lines = [line for note in notes for line in textwrap.wrap(note, LINE)]
    heading = alt.TitleParams(
        title, subtitle=lines, anchor="start", fontSize=15, fontWeight="bold", subtitleFontSize=11, offset=14
    )
    return chart.properties(title=heading, padding=12).configure(**{**config(), "background": PAPER})
