"""Validation loss after each epoch against elapsed time and against joules since the window began.

If no joules were measured and the config asks for estimates, against estimated joules. Thick lines are means over
repeats, thin ones single runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from joulesweep.analyse.cells import comparable_groups
from joulesweep.analyse.epochs import GROUP, with_joules
from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.theme import LOSS, Chart, empty, styled, tooltip, values

TITLE = "Validation loss while training"
PLACE = 40
CURVE = "run name setup batch status epoch cost loss mean_cost mean_loss"
MAX_THIN = 500  # runs: more thin lines are a smear, and megabytes


def draw(tables: Tables) -> Chart:
    """Draw validation loss against seconds, and against joules: measured ones, or else estimated ones."""
    epochs = tables.epochs
    if epochs.is_empty():
        return empty(tables, TITLE)
    read, why = with_joules(epochs)
    measured = tables.runs["energy_j"].count() > 0
    trained = epochs.filter(pl.col("epoch") > 0)
    estimated = not measured and trained["estimated_energy_j"].null_count() == 0
    statuses = theme.STATUSES if estimated else theme.STATUSES[:1]
    curves = [_curves(tables, epochs, "elapsed_s", "Time (s)", statuses, "measured")]
    notes = ["Thick: mean over repeats after each epoch, from the untrained model on. "]
    notes[0] += "Single runs are too many to draw." if epochs["run"].n_unique() > MAX_THIN else "Thin: single runs."
    if len(read):
        status = read.filter(pl.col("epoch") > 0)["energy_status"][0]
        title = f"Energy (J), {status}, scope {read['energy_scope'][0]}"
        curves.append(_curves(tables, read, "energy_j", title, statuses, "measured"))
    elif measured:
        notes.append(f"Not against joules: {why}.")
    elif estimated:
        title = "Estimated energy (J), not measured"
        curves.append(_curves(tables, epochs, "estimated_energy_j", title, statuses, "estimated"))
        notes.append("Dashed, hollow: against joules estimated from CPU-seconds.")
    notes.append("Horizontal scales differ between batch sizes." if epochs["batch"].n_unique() > 1 else "")
    return styled(alt.vconcat(*curves, spacing=28), TITLE, filter(None, notes))


def _curves(
    tables: Tables, epochs: pl.DataFrame, across: str, title: str, statuses: Sequence[str], status: str
) -> Chart:
    """Loss against a cumulative cost: thin lines for runs, a thick one for their mean, one plot per batch size."""
    begun = pl.when(pl.col("epoch") == 0).then(0.0).otherwise(across)  # at the window's begin nothing is used yet
    epochs = epochs.with_columns(cost=begun, loss="validation_loss", status=pl.lit(status))
    epochs = epochs.with_columns(pl.col("cost", "loss").mean().over(GROUP).name.prefix("mean_"))
    x, mean_x = (alt.X(f"{column}:Q").title(title).axis(theme.si(epochs["cost"])) for column in ("cost", "mean_cost"))
    y, mean_y = (alt.Y(f"{column}:Q").title(LOSS).scale(zero=False) for column in ("loss", "mean_loss"))
    colour = alt.Color("setup:N").scale(theme.setup_scale(tables.cells)).title("Configuration")
    many = epochs["run"].n_unique() > MAX_THIN
    if many:
        epochs = epochs.unique(GROUP, keep="first", maintain_order=True)
    base = alt.Chart().encode(color=colour, detail="run:N")
    mean = base.encode(x=mean_x, y=mean_y)  # every run of a cell draws the same mean
    numbers = tooltip("epoch=Epoch", f"mean_cost={title}", "mean_loss=Validation loss")
    layers = [
        *([] if many else [base.mark_line(strokeWidth=0.8, opacity=0.35).encode(x=x, y=y)]),
        mean.mark_line(strokeWidth=2, opacity=1).encode(strokeDash=theme.dash(statuses)),
        mean.mark_point(size=26, strokeWidth=1.5, opacity=1, filled=status == "measured").encode(tooltip=numbers),
    ]
    facet = alt.Facet("batch:N").sort(theme.batch_order(epochs)).title("Batch size")
    return alt.vconcat(
        *(
            alt.layer(*layers, data=values(part, CURVE))
            .properties(width=330 if part["batch"].n_unique() <= 2 else 240, height=210)
            .facet(facet, columns=3, title=theme.panel_title(name))
            .resolve_scale(x="independent")
            for name, part in comparable_groups(epochs)
        )
    )
