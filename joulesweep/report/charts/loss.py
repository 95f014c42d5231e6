"""Validation loss after each epoch against elapsed time and against joules since the window began.

Means over the repeats, for few configurations: the recommended one, its baseline, the lowest loss and the other
recommendations. Against estimated joules if no joules were measured and the config asks for estimates.
"""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from joulesweep.analyse.epochs import GROUP, with_joules
from joulesweep.report import theme
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.results import Results
from joulesweep.report.theme import LOSS, Chart, tooltip

TITLE = "Validation loss while training"
PLACE = 40
SECTION = "training"
MAX_LINES = 6
#: Stroke width and dashes of the lines, by their order.
DASHES = ([1, 0], [8, 4], [2, 2], [10, 3, 2, 3], [16, 4], [1, 4])


def draw(results: Results) -> Figure:
    """Draw validation loss against seconds, and against joules: measured ones, or else estimated ones."""
    roles = results.roles(MAX_LINES)
    epochs = results.tables.epochs.with_columns(key=pl.format("{}.{}", "cell", pl.col("environment").fill_null("")))
    num_cells = epochs["key"].n_unique()
    epochs = epochs.filter(pl.col("key").is_in(list(roles)))
    if epochs.is_empty():
        return nothing(TITLE, results.why_empty or "No epoch was scored.")
    read, why = with_joules(epochs)
    measured = results.tables.runs["energy_j"].count() > 0
    trained = epochs.filter(pl.col("epoch") > 0)
    estimated = not measured and trained["estimated_energy_j"].null_count() == 0
    notes = ["Means over the repeats after each epoch, from the untrained model on."]
    plots = [_plot(epochs, "elapsed_s", "Time (s)", roles)]
    if len(read):
        status = read.filter(pl.col("epoch") > 0)["energy_status"][0]
        plots.append(_plot(read, "energy_j", f"Energy (J), {status}, scope {read['energy_scope'][0]}", roles))
    elif measured:
        notes.append(f"Not against joules: {why}.")
    elif estimated:
        plots.append(_plot(epochs, "estimated_energy_j", "Estimated energy (J), not measured", roles))
        notes.append("Estimated joules are a guess from CPU-seconds.")
    others = num_cells - len(roles)
    notes += [f"Other configurations, not drawn: {others}."] if others > 0 else []
    return Figure(title=TITLE, notes=notes, plots=[Plot(chart=plot) for plot in plots], columns=len(plots))


def _plot(epochs: pl.DataFrame, across: str, title: str, roles: Mapping[str, str]) -> Chart:
    """Mean loss against mean cost, a line per configuration, with its role at the last point."""
    begun = pl.when(pl.col("epoch") == 0).then(0.0).otherwise(across)  # at the window's begin nothing is used yet
    epochs = epochs.with_columns(cost=begun, loss="validation_loss")
    means = epochs.group_by(*GROUP, "key", "name", maintain_order=True).agg(pl.col("cost", "loss").mean())
    means = means.with_columns(role=pl.col("key").replace_strict(dict(roles)))
    x = alt.X("cost:Q").title(title).axis(theme.si(means["cost"])).scale(nice=True)
    y = alt.Y("loss:Q").title(LOSS).scale(zero=False)
    order = [role for role in dict.fromkeys(roles.values()) if role in set(means["role"])]
    dash = alt.StrokeDash("role:N").scale(domain=order, range=list(DASHES[: len(order)])).title(None)
    dash = dash.legend(orient="bottom", columns=2, symbolType="stroke", symbolSize=400, symbolStrokeColor=theme.INK)
    numbers = tooltip("epoch=Epoch", f"cost={title}", "loss=Validation loss")
    base = alt.Chart()
    line = base.mark_line(color=theme.INK, strokeWidth=1.6).encode(x=x, y=y, strokeDash=dash, detail="key:N")
    points = base.mark_point(filled=True, color=theme.INK, size=22, opacity=1).encode(x=x, y=y, tooltip=numbers)
    data = theme.values(means, "name key epoch cost loss role")
    return alt.layer(line, points, data=data).properties(height=260)
