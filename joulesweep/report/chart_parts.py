"""Parts that several charts share: bars and points of configurations, columns of joules, and notes."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from joulesweep.analyse.cells import comparable_groups
from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.theme import Chart, values

NO_INTERVAL = "One repeat: no interval."
MAX_TRACES = 36  # configurations that get their own plot: nobody looks at more
ENERGY = "energy_j_mean energy_j_low energy_j_high"
ESTIMATED_ENERGY = "estimated_energy_j estimated_energy_low_j estimated_energy_high_j"


def joules_title(cells: pl.DataFrame) -> str:
    """Axis title of joules of one status and scope."""
    return f"Energy of a run (J), {cells['energy_status'][0]}, scope {cells['energy_scope'][0]}"


def renamed(cells: pl.DataFrame, columns: str) -> pl.DataFrame:
    """Copy three columns of the cells to value, low and high."""
    names = dict(zip(columns.split(), ("value", "low", "high"), strict=True))
    return cells.with_columns(pl.col(column).alias(name) for column, name in names.items())


def by_batch_size(
    tables: Tables,
    cells: pl.DataFrame,
    below: list[Chart],
    marks: Chart,
    whiskers: Chart,
    whisker_colour: object = None,
    above: Sequence[Chart] = (),
) -> Chart:
    """Draw value, low and high: one line per configuration, grouped by batch size."""
    colour = alt.Color("setup:N").scale(theme.setup_scale(tables.cells)).legend(None)
    intervals = whiskers.transform_filter("isValid(datum.low)").encode(x="low:Q", x2="high:Q")
    layers = [marks.encode(color=colour), *above, intervals.encode(color=whisker_colour or colour)]
    columns = "name setup value low high" + (" net" if "net" in cells.columns else "")
    rows = []
    for name, part in comparable_groups(cells):
        y = alt.Y("name:N").title(None).scale(domain=_grouped(part)).axis(ticks=False, domain=False, labelPadding=6)
        drawn = alt.layer(*below, *(layer.encode(y=y) for layer in layers), data=values(part, columns))
        rows.append(drawn.properties(width=600, height=alt.Step(19), title=theme.panel_title(name)))
    return alt.vconcat(*rows)


def _grouped(cells: pl.DataFrame) -> list[str]:
    """The names by batch size, with an empty line between two sizes."""
    names: list[str] = []
    for i, batch in enumerate(theme.batch_order(cells)):
        names += [" " * i] if i else []
        names += cells.filter(pl.col("batch") == batch)["name"].to_list()
    return names


def doubtful_note(cells: pl.DataFrame) -> list[str]:
    """A note that names the cells whose joules are doubtful, if there are any."""
    names = cells.drop_nulls("energy_doubt")["name"].unique(maintain_order=True).to_list()
    return [f"Doubtful joules, in no ranking: {some(names)}"] if names else []


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
