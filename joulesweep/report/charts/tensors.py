"""Which tensors trained, for methods that choose them: by layer, and by choice.

The input is at the bottom, the output at the top. Darker means that a larger share of the layer's tensors trained, over
the repeats.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import altair as alt
import polars as pl

from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.chart_parts import MAX_TRACES
from joulesweep.report.theme import Chart, empty, styled, tooltip, values

TITLE = "Which tensors trained"
PLACE = 70
SECTION = "selections"  # of the report, which shows this chart
SHARE = "name title epoch layer share num_tensors num_runs"
TITLE_WIDTH = 44  # characters above one plot; longer names are wrapped


def draw(tables: Tables) -> Chart:
    """Draw which tensors trained, for methods that choose them, by layer from the input (bottom) to the output."""
    chosen = tables.selections
    if chosen.is_empty():
        return empty(tables, TITLE, "no method chose tensors" if "ok" in tables.runs["status"] else None)
    names = chosen.select("panel", "name").unique(maintain_order=True)
    layer_shares = shares(chosen.join(names.head(MAX_TRACES), on=["panel", "name"], maintain_order="left"))
    parts: dict[tuple[str, ...], list[pl.DataFrame]] = {}  # models with different layers share no axis
    for (panel, _), part in layer_shares.group_by("panel", "name", maintain_order=True):
        parts.setdefault((panel, *part["layer"].unique(maintain_order=True)), []).append(part)
    plots = [_layers(panel, layers, pl.concat(same)) for (panel, *layers), same in parts.items()]
    notes = ["By layer and choice, mean over the repeats. Output at the top. A choice holds until the next one."]
    notes += [f"The first {MAX_TRACES} of {names.height} configurations."] if names.height > MAX_TRACES else []
    return styled(alt.vconcat(*plots, spacing=28), TITLE, notes)


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


def _layers(panel: str, layers: Sequence[str], part: pl.DataFrame) -> Chart:
    """One small plot per configuration: a column per choice, a row per layer."""
    titles = {name: "\n".join(textwrap.wrap(name, TITLE_WIDTH)) for name in dict.fromkeys(part["name"])}
    part = part.with_columns(title=pl.col("name").replace_strict(titles))
    scale = alt.Scale(domain=[0, 1], range=["#FFFFFF", theme.COLOURS[0]], interpolate="rgb")
    legend = alt.Legend(orient="top", direction="horizontal", gradientLength=200, titleLimit=300, format="%")
    legend.values = [0, 0.25, 0.5, 0.75, 1]
    colour = alt.Color("share:Q").scale(scale).legend(legend).title("Share of a layer's tensors that trained")
    y = alt.Y("layer:N").scale(domain=list(layers)).title(None).axis(ticks=False, domain=False)
    numbers = tooltip("epoch=From epoch", "share=Share of its tensors", "num_tensors=Tensors", "num_runs=Repeats")
    numbers.insert(1, alt.Tooltip("layer:N", title="Layer"))
    x = alt.X("epoch:O").title("Chosen before epoch").axis(labelAngle=0)
    cells = alt.Chart(values(part, SHARE)).mark_rect(stroke=theme.GRID)
    cells = cells.encode(x=x, y=y, color=colour, tooltip=numbers)
    header = alt.Header(labelAnchor="start", labelPadding=3, labelExpr="split(datum.label, '\\n')")
    facet = alt.Facet("title:N").sort(list(titles.values())).title(None).header(header)
    plots = cells.properties(width=240, height=alt.Step(13))
    facets = plots.facet(facet, columns=3, title=theme.panel_title(panel), spacing=14)
    return facets.resolve_scale(x="independent")  # a single choice is as wide as several
