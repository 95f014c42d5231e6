"""The charts over time: how the loss falls, what power the devices drew, and which tensors trained."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import altair as alt
import polars as pl

from joulesweep import theme
from joulesweep.cells import panels
from joulesweep.tables import Tables
from joulesweep.theme import LOSS, Chart, empty, styled, tooltip, values

CURVE = "run name setup batch status epoch cost loss mean_cost mean_loss"
TRACE = "name setup device t_s power_w window_s"
MAX_THIN = 500  # runs: more thin lines than that are a smear, and megabytes
MAX_TRACES = 36  # configurations: nobody looks at more
MAX_POINTS = 200  # of one power trace: more than its plot has pixels
GROUP = ("cell", "environment", "epoch")
SHARE = "name title epoch layer share num_tensors num_runs"
TITLE_WIDTH = 44  # letters above one plot; longer names are broken


def loss(tables: Tables) -> Chart:
    """How the validation loss falls with seconds, and with joules: read ones, else estimated ones if there are any."""
    epochs = tables.epochs
    if epochs.is_empty():
        return empty(tables, "Validation loss while training")
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
    return styled(alt.vconcat(*curves, spacing=28), "Validation loss while training", filter(None, notes))


def with_joules(epochs: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The epochs that every repeat of a cell has joules of, and why there are none.

    Args:
        epochs: the epochs table.

    Returns:
        Rows whose joules are of one scope and status, with the untrained model's; or no rows and the reason.
    """
    trained = epochs.filter(pl.col("epoch") > 0)
    whole = (pl.col("energy_j").is_null() | pl.col("energy_scope").is_null()).sum().over(GROUP) == 0
    found = trained.filter(whole)
    for column, word in (("energy_scope", "scopes"), ("energy_status", "statuses")):
        kinds = found[column].unique(maintain_order=True).to_list()
        if len(kinds) > 1:
            return found.clear(), f"joules of different {word} are not drawn together: {', '.join(kinds)}"
    reasons = trained["energy_reason"].drop_nulls().unique(maintain_order=True).to_list()
    untrained = epochs.filter(pl.col("epoch") == 0).join(found.select("run").unique(), on="run", how="semi")
    return pl.concat([untrained, found]), reasons[0] if reasons else "no epoch has joules in every repeat"


def power(tables: Tables) -> Chart:
    """Power against seconds for the first traced repeat of each configuration, with the measured window marked."""
    traced = tables.power.drop_nulls("power_w")
    if traced.is_empty():
        any_run = "ok" in tables.runs["status"]
        return empty(tables, "Power while training", "no power could be read" if any_run else None)
    first = pl.col("repeat") == pl.col("repeat").min().over("panel", "name")
    traced = _thinned(traced.filter(first))
    names = traced.select("panel", "name").unique(maintain_order=True)
    traced = traced.join(names.head(MAX_TRACES), on=["panel", "name"])
    notes = ["First repeat of each configuration, one line per device. Grey: the measured window."]
    notes += [f"The first {MAX_TRACES} of {names.height} configurations."] if names.height > MAX_TRACES else []
    return styled(alt.vconcat(*(_traces(tables, *part) for part in panels(traced))), "Power while training", notes)


def _thinned(traced: pl.DataFrame) -> pl.DataFrame:
    """At most `MAX_POINTS` per line: means over equal stretches of time."""
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


def _curves(
    tables: Tables, epochs: pl.DataFrame, across: str, title: str, statuses: Sequence[str], status: str
) -> Chart:
    """Loss against a cumulative cost: thin lines for runs, a thick one for their mean, apart by batch size."""
    begun = pl.when(pl.col("epoch") == 0).then(0.0).otherwise(across)  # the window's begin: nothing was used yet
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
            for name, part in panels(epochs)
        )
    )


def tensors(tables: Tables) -> Chart:
    """Which tensors a method that chooses them trained: by layer, from the input (bottom) to the output."""
    heading, chosen = "Which tensors trained", tables.selections
    if chosen.is_empty():
        return empty(tables, heading, "no method chose tensors" if "ok" in tables.runs["status"] else None)
    names = chosen.select("panel", "name").unique(maintain_order=True)
    found = shares(chosen.join(names.head(MAX_TRACES), on=["panel", "name"], maintain_order="left"))
    parts: dict[tuple[str, ...], list[pl.DataFrame]] = {}  # models of different layers share no axis
    for (panel, _), part in found.group_by("panel", "name", maintain_order=True):
        parts.setdefault((panel, *part["layer"].unique(maintain_order=True)), []).append(part)
    plots = [_layers(panel, layers, pl.concat(same)) for (panel, *layers), same in parts.items()]
    notes = ["By layer and choice, mean over the repeats. Output at the top. A choice holds until the next one."]
    notes += [f"The first {MAX_TRACES} of {names.height} configurations."] if names.height > MAX_TRACES else []
    return styled(alt.vconcat(*plots, spacing=28), heading, notes)


def shares(selections: pl.DataFrame) -> pl.DataFrame:
    """Which share of a layer's tensors trained, by configuration and choice, over the repeats; from the output down.

    A layer is what a tensor's name says up to its first number; a tensor outside of the numbered ones counts to its
    module.

    Args:
        selections: rows of that table.
    """
    name = pl.col("candidates")
    layer = pl.coalesce(name.str.extract(r"^((?:.*?\.)?\d+)\."), name.str.replace(r"\.[^.]*$", ""))
    trained = selections.select("run", "epoch", pl.col("chosen").alias("candidates"), trained=1.0).explode("candidates")
    every = selections.select("panel", "name", "run", "epoch", "candidates").explode("candidates")
    every = every.join(trained, on=["run", "epoch", "candidates"], how="left", maintain_order="left")
    layers = every.group_by("panel", "name", "epoch", layer.alias("layer"), maintain_order=True)
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
    return facets.resolve_scale(x="independent")  # one choice for the whole training is as wide as several
