"""Which tensors trained, for methods that choose them: by layer, and by choice.

The input is at the bottom, the output at the top. Darker means that a larger share of the layer's tensors trained, over
the repeats.
"""

from __future__ import annotations

import altair as alt
import polars as pl

from joulesweep.report import theme
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.results import Results
from joulesweep.report.theme import Chart, tooltip, values

TITLE = "Which tensors trained"
PLACE = 70
SECTION = "selections"  # of the report, which shows this chart
SHARE = "name epoch layer share num_tensors num_runs"
MAX_PLOTS = 12  # configurations that get a plot: nobody looks at more


def draw(results: Results) -> Figure:
    """Draw which tensors trained, for methods that choose them, by layer from the input (bottom) to the output."""
    chosen = results.tables.selections
    if chosen.is_empty():
        return nothing(TITLE, "No method chose tensors." if results.num_ok else results.why_empty or "")
    names = chosen.select("panel", "name").unique(maintain_order=True)
    drawn = chosen.join(names.head(MAX_PLOTS), on=["panel", "name"], maintain_order="left")
    parts = shares(drawn).group_by("panel", "name", maintain_order=True)
    plots = [Plot(chart=_layers(part), title=" · ".join(filter(None, key[::-1]))) for key, part in parts]
    notes = [
        "By layer and choice, mean over the repeats: the darker, the more of its tensors trained. Output at the top."
    ]
    notes += [f"The first {MAX_PLOTS} of {names.height} configurations."] if names.height > MAX_PLOTS else []
    return Figure(title=TITLE, notes=notes, plots=plots, columns=min(3, len(plots)), labels=150)


def shares(selections: pl.DataFrame) -> pl.DataFrame:
    """The share of each layer's tensors that trained, by configuration and choice, over repeats, from the output down.

    A layer is a tensor's name up to its first number; a tensor outside the numbered layers belongs to its module.

    Args:
        selections: rows of the selections table.
    """
    name = pl.col("candidates")
    layer = pl.coalesce(name.str.extract(r"^((?:.*?\.)?\d+)\."), name.str.replace(r"\.[^.]*$", ""))
    trained = selections.select("run", "epoch", pl.col("chosen").alias("candidates"), trained=1.0).explode("candidates")
    candidates = selections.select("panel", "name", "run", "epoch", "candidates").explode("candidates")
    candidates = candidates.join(trained, on=["run", "epoch", "candidates"], how="left", maintain_order="left")
    layers = candidates.group_by("panel", "name", "epoch", layer.alias("layer"), maintain_order=True)
    num_runs, share = pl.col("run").n_unique(), pl.col("trained").fill_null(0.0).mean()
    return layers.agg(share=share, num_tensors=pl.len() / num_runs, num_runs=num_runs)


def _layers(part: pl.DataFrame) -> Chart:
    """A column per choice, a row per layer."""
    y = alt.Y("layer:N").scale(domain=part["layer"].unique(maintain_order=True).to_list()).title(None)
    y = y.axis(ticks=False, domain=False)
    numbers = tooltip("epoch=From epoch", "share=Share of its tensors", "num_tensors=Tensors", "num_runs=Repeats")
    numbers.insert(1, alt.Tooltip("layer:N", title="Layer"))
    x = alt.X("epoch:O").title("Chosen before epoch").axis(labelAngle=0)
    # Opacity of one colour rather than a ramp of colours: it suits light and dark pages.
    opacity = alt.FillOpacity("share:Q").scale(domain=[0, 1], range=[0, 1]).legend(None)
    cells = alt.Chart(values(part, SHARE)).mark_rect(stroke=theme.GRID, fill=theme.COLOURS[0])
    return cells.encode(x=x, y=y, fillOpacity=opacity, tooltip=numbers).properties(height=13 * part["layer"].n_unique())
