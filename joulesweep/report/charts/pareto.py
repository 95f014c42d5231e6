"""The cost of a run against the validation loss that it reaches.

The black line is the Pareto front: no other configuration is better in both. The cost is joules if all were measured on
the same kinds of device, else time; integrated joules and estimated ones (hollow) are not ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from joulesweep.analyse.cells import comparable_groups, finished, pareto_front, undoubted, why_not_ranked
from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.chart_parts import ENERGY, ESTIMATED_ENERGY, NO_INTERVAL, doubtful_note, joules_title
from joulesweep.report.theme import LOSS, Chart, empty, styled, tooltip, values

TITLE = "Cost against quality"
PLACE = 10
LOSS_MEAN = "validation_loss_mean"
POINT = f"name setup batch batch_size batch_size_scope status num_ok cost cost_low cost_high {LOSS_MEAN}"
POINT += " validation_loss_low validation_loss_high"
TIME = "window_s_mean window_s_low window_s_high"
MAX_NAMED = 14  # of a front: more do not fit on the chart; the report's table has all


def draw(tables: Tables) -> Chart:
    """Draw the cost of a run against the loss that it reaches, with the Pareto front if the cost was measured."""
    cells = finished(tables.cells, "validation_loss_mean")
    if cells.is_empty():
        return empty(tables, TITLE)
    note = "Black line: the Pareto front, beaten by no other configuration in both. "
    note += "Bars: 95 % interval over repeats, cut at the frame." if cells["window_s_low"].count() else NO_INTERVAL
    why = next(filter(None, (why_not_ranked(part) for _, part in comparable_groups(cells))), None)
    doubts = doubtful_note(cells)
    if why is None:
        cells = undoubted(cells)
        chart = _costs(tables, cells, ENERGY, joules_title(cells))
        return styled(chart, "Energy against quality", [note, *doubts])
    known = cells["energy_j_mean"].count() > 0
    estimated = not known and cells["estimated_energy_j"].null_count() == 0
    statuses = theme.STATUSES if estimated else theme.STATUSES[:1]
    charts, notes = [_costs(tables, cells, TIME, "Time of a run (s)", statuses)], [note]
    if known:
        notes.append(f"The front is over time: {why}.")
    if known and _one_kind(cells):
        charts.append(_costs(tables, cells, ENERGY, joules_title(cells), status=cells["energy_status"][0]))
        notes += doubts
    if estimated:
        title = "Estimated energy of a run (J), not measured"
        charts.append(_costs(tables, cells, ESTIMATED_ENERGY, title, statuses, status="estimated"))
        notes.append("Hollow: joules estimated from CPU-seconds, dashed over their range. Not ranked: no front.")
    title = "Time against quality" + ("" if known else "; energy was not measured")
    return styled(alt.vconcat(*charts, spacing=28), title, notes)


def _one_kind(cells: pl.DataFrame) -> bool:
    known = cells.drop_nulls("energy_j_mean")
    return known.height == cells.height and known.select("energy_status", "energy_scope").n_unique() == 1


def _costs(
    tables: Tables,
    cells: pl.DataFrame,
    columns: str,
    title: str,
    statuses: Sequence[str] = theme.STATUSES[:1],
    status: str = "measured",
) -> Chart:
    """One scatter per panel: cost across, loss up; the front and its key only if the cost is measured."""
    names = dict(zip(columns.split(), ("cost", "cost_low", "cost_high"), strict=True))
    cells = cells.with_columns(pl.col(column).alias(name) for column, name in names.items())
    cells = cells.with_columns(status=pl.lit(status))
    rows = []
    for name, part in comparable_groups(cells):
        losses = [part["validation_loss_low"], part["validation_loss_high"]] if status != "estimated" else []
        across = theme.reach(part["cost"], part["cost_low"], part["cost_high"])
        x = alt.X("cost:Q").title(title).scale(across).axis(theme.si(cells["cost"]))
        y = alt.Y("validation_loss_mean:Q").title(LOSS).scale(theme.reach(part[LOSS_MEAN], *losses))
        layers, key = _points(tables, part, x, y, title, statuses), []
        if status == "measured":
            best = part.filter(pl.col("cell").is_in(pareto_front(part, "cost", LOSS_MEAN))).sort("cost")
            layers, key = [*_front(best, part, x, y), *layers], [_key(best["name"].to_list())]
        plot = alt.layer(*layers).properties(width=460, height=300, title=theme.panel_title(name))
        rows.append(alt.hconcat(plot, *key, spacing=12))
    return alt.vconcat(*rows)


def _points(tables: Tables, part: pl.DataFrame, x: alt.X, y: alt.Y, title: str, statuses: Sequence[str]) -> list[Chart]:
    """The points, their intervals, and a faint line through the batch sizes of a configuration."""
    setups, hollow = theme.setup_scale(tables.cells), part["status"][0] == "estimated"
    fill = alt.Fill("setup:N").scale(setups).title("Configuration")
    stroke = alt.Stroke("setup:N").scale(setups).title("Configuration")
    base = alt.Chart(values(part, POINT)).encode(stroke=stroke, y=y)
    dashed = base.encode(strokeDash=theme.dash(statuses))
    across = dashed.transform_filter("isValid(datum.cost_low)").mark_rule(opacity=0.5, clip=True)
    up = base.transform_filter("isValid(datum.validation_loss_low)").mark_rule(opacity=0.5, clip=True)
    low = alt.Y("validation_loss_low:Q").title(LOSS)
    marks = base.mark_point(size=75, strokeWidth=1.6, opacity=1)
    numbers = tooltip(f"cost={title}", "validation_loss_mean=Validation loss", "num_ok=Finished repeats")
    return [
        across.encode(x=alt.X("cost_low:Q").title(title), x2="cost_high:Q"),
        *([up.encode(x=x, y=low, y2="validation_loss_high:Q")] if not hollow else []),
        dashed.mark_line(strokeWidth=1, opacity=0.5).encode(x=x, order="batch_size:Q", detail="batch_size_scope:N"),
        marks.encode(
            x=x,
            fill=fill,
            fillOpacity=alt.value(0 if hollow else 1),
            shape=theme.batch_shape(tables.cells),
            tooltip=numbers,
        ),
    ]


def _front(best: pl.DataFrame, part: pl.DataFrame, x: alt.X, y: alt.Y) -> list[Chart]:
    """A step line through the front, and the number of each of its points; points that touch share a label."""
    labels: list[dict[str, Any]] = []
    spans = [max(part[column].to_list()) - min(part[column].to_list()) for column in ("cost", LOSS_MEAN)]
    for number, row in enumerate(best.select("cost", LOSS_MEAN).iter_rows(named=True), start=1):
        last = labels[-1] if labels else None
        if last and all(abs(row[key] - last[key]) <= 0.06 * span for key, span in zip(row, spans, strict=True)):
            last["number"] = f"{last['number']}, {number}"
        else:
            labels.append({**row, "number": str(number)})
    text = alt.Chart(alt.InlineData(values=labels)).mark_text(dx=-9, dy=11, align="right", fontWeight="bold")
    step = alt.Chart(values(best, POINT)).mark_line(interpolate="step-after", color=theme.INK, strokeWidth=1.4)
    return [step.encode(x=x, y=y), text.encode(x=x, y=y, text="number:N")]


def _key(names: Sequence[str]) -> Chart:
    """The names of the numbered points of a front."""
    lines = ["On the front, cheapest first:", *(f"{i}  {name}" for i, name in enumerate(names[:MAX_NAMED], start=1))]
    lines += [f"… and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    data = alt.InlineData(values=[{"row": i, "text": line} for i, line in enumerate(lines)])
    text = alt.Chart(data).mark_text(align="left").encode(x=alt.value(0), y=alt.Y("row:O").axis(None), text="text:N")
    width = 6 * max(map(len, lines))  # roughly an 11 px Arial
    return text.properties(width=width, height=alt.Step(17), view={"stroke": None})
