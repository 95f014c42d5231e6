"""What each change does, all else equal: to energy, time and loss.

Dot and line: the mean over all pairs of configurations that differ in this alone, with its 95 % interval. Pale: the
smallest and the largest pair. The band of the loss is the margin.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from joulesweep.analyse.comparisons import asked
from joulesweep.analyse.tables import Row
from joulesweep.report import theme
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.numbers import change_with_interval
from joulesweep.report.results import Results
from joulesweep.report.theme import Chart

TITLE = "What each change does, all else equal"
PLACE = 30
SECTION = "effects"
MAX_ROWS = 24


def draw(results: Results) -> Figure:
    """Draw the mean effects of every change, one plot for each quantity."""
    margin, measure = asked(results.manifest["config"])
    titles = {"energy_j": "Energy (%)", "window_s": "Time (%)", measure: _title(measure)}
    effects = results.tables.effects.filter(pl.col("quantity").is_in(list(titles)), kind="effect")
    if effects.is_empty():
        return nothing(TITLE, results.why_empty or "No two finished configurations differ in one axis alone.")
    names = [_name(row, effects) for row in effects.iter_rows(named=True)]
    effects = effects.with_columns(name=pl.Series(names))
    order = list(dict.fromkeys(names))
    drawn = effects.filter(pl.col("name").is_in(order[:MAX_ROWS]))
    quantities = [quantity for quantity in titles if quantity in set(drawn["quantity"])]
    notes = [
        "Dot and line: the mean over all pairs that differ in this alone, with its 95 % interval. "
        "Pale: from the smallest to the largest pair."
    ]
    notes.append(f"Band: within {100 * margin:g} %.")
    if len(order) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(order)} changes; tables/effects.parquet has all.")
    if "energy_j" not in quantities:
        notes.append("Energy is not among them: it was not measured.")
    plots = [
        _plot(
            drawn.filter(quantity=quantity), titles[quantity], order[:MAX_ROWS], margin if quantity == measure else None
        )
        for quantity in quantities
    ]
    labels = 7 * max(map(len, order[:MAX_ROWS]))
    return Figure(
        title=TITLE,
        notes=notes,
        plots=[Plot(chart=plot) for plot in plots],
        columns=len(plots),
        labels=labels,
        shared=True,
    )


def _title(measure: str) -> str:
    return f"{measure.removeprefix('validation_').replace('_', ' ').capitalize()} (%)"


def _name(row: Row, effects: pl.DataFrame) -> str:
    """A change in short, with its set of configurations if there are several."""
    name = f"{row['from_value']} → {row['to_value']}"
    return f"{row['panel']}: {name}" if effects["panel"].n_unique() > 1 else name


def _plot(effects: pl.DataFrame, title: str, order: Sequence[str], margin: float | None) -> Chart:
    data = []
    for row in effects.iter_rows(named=True):
        ends = {
            key: 100 * (row[key] - 1) for key in ("ratio", "low", "high", "smallest", "largest") if row[key] is not None
        }
        told = change_with_interval(row["ratio"], row["low"], row["high"])
        data.append({"n": row["name"], **ends, "t": told, "p": row["num_pairs"]})
    y = alt.Y("n:O").scale(domain=list(order)).title(None).axis(ticks=False, domain=False, labelPadding=6)
    x = (
        alt.X("ratio:Q")
        .title(title)
        .scale(nice=True, zero=True)
        .axis(tickCount=5, format="+.1~f", labelExpr="datum.value === 0 ? '0' : datum.label")
    )
    base, once = alt.Chart(), alt.Chart(theme.rows([{}]))
    band = (
        [once.mark_rect(color=theme.BAND).encode(x=alt.datum(-100 * margin), x2=alt.datum(100 * margin))]
        if margin
        else []
    )
    layers = [
        *band,
        once.mark_rule(color=theme.INK, strokeDash=[3, 3]).encode(x=alt.datum(0)),
        base.mark_bar(height=9, color=theme.PALE, opacity=0.6, cornerRadius=2).encode(
            y=y, x=alt.X("smallest:Q"), x2="largest:Q"
        ),
        base.mark_rule(strokeWidth=2, color=theme.COLOURS[0]).encode(y=y, x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, size=48, color=theme.COLOURS[0], opacity=1).encode(
            y=y,
            x=x,
            tooltip=[
                alt.Tooltip("n:N", title="Change"),
                alt.Tooltip("t:N", title=title),
                alt.Tooltip("p:Q", title="Pairs of configurations"),
            ],
        ),
    ]
    return alt.layer(*layers, data=theme.rows(data)).properties(height=21 * len(order))
