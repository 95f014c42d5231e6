"""The charts of a sweep, made from its tables.

Measured numbers are filled; estimated ones are hollow or dashed, say so in axis title and legend, and are never
ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from joulesweep import theme
from joulesweep.cells import finished, front, panels
from joulesweep.tables import Tables
from joulesweep.theme import Chart, styled, tooltip, values

LOSS_MEAN = "validation_loss_mean"
POINT = f"name setup batch batch_size batch_size_scope status num_ok cost cost_low cost_high {LOSS_MEAN}"
POINT += " validation_loss_low validation_loss_high"
CURVE = "run name setup batch status epoch cost loss mean_cost mean_loss"
MAX_THIN = 500  # runs: more thin lines than that are a smear, and megabytes
LOSS = "Validation loss (nats)"
GIB = 2**30
MAX_NAMED = 14  # of a front: more would run off the chart; the report's table has all

ENERGY = {"value": "energy_j_mean", "low": "energy_j_low", "high": "energy_j_high"}
ESTIMATED_ENERGY = {
    "value": "estimated_energy_j",
    "low": "estimated_energy_low_j",
    "high": "estimated_energy_high_j",
}


def pareto(tables: Tables) -> Chart:
    """What a run costs against the loss it reaches, with the Pareto front where the cost was measured."""
    cells = finished(tables.cells, "validation_loss_mean")
    if cells.is_empty():
        return _empty(tables, "Cost against quality")
    note = "Black line: the Pareto front, beaten by no other configuration in both. "
    note += (
        "Bars: 95 % interval over repeats, cut at the frame."
        if cells["window_s_low"].count()
        else "One repeat: no interval."
    )
    if cells["energy_j_mean"].null_count() == 0:
        chart = _costs(tables, cells, "energy_j_mean energy_j_low energy_j_high", "Energy of a run (J), measured")
        return styled(chart, "Energy against quality", [note])
    estimated = cells["estimated_energy_j"].null_count() == 0
    statuses = theme.STATUSES if estimated else theme.STATUSES[:1]
    time = "window_s_mean window_s_low window_s_high"
    charts, notes = [_costs(tables, cells, time, "Time of a run (s)", statuses)], [note]
    if estimated:
        columns = "estimated_energy_j estimated_energy_low_j estimated_energy_high_j"
        title = "Estimated energy of a run (J), not measured"
        charts.append(_costs(tables, cells, columns, title, statuses, status="estimated"))
        notes.append("Hollow: joules estimated from CPU-seconds, dashed over their range. Not ranked: no front.")
    return styled(alt.vconcat(*charts, spacing=28), "Time against quality; energy was not measured", notes)


def speedup(tables: Tables) -> Chart:
    """Texts per second relative to the baseline of equal batch size, paired by seed."""
    cells = finished(tables.cells, "speedup").filter(~pl.col("is_baseline"))
    if cells.is_empty():
        lonely = "no second strategy or precision finished beside the baseline"
        return _empty(tables, "Speed-up", lonely if tables.cells["num_ok"].sum() else None)
    cells = cells.rename({"speedup": "value", "speedup_low": "low", "speedup_high": "high"})
    x = alt.X("value:Q").title("Speed-up: texts per second ÷ those of the baseline").scale(zero=False, padding=12)
    line = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=theme.INK, strokeDash=[4, 3]).encode(x=alt.datum(1))
    whiskers = alt.Chart().mark_rule(strokeWidth=2, opacity=0.8)
    points = alt.Chart().mark_point(filled=True, size=70, opacity=1).encode(x=x, tooltip=tooltip("value=Speed-up"))
    baseline = ", ".join(cells["baseline"].str.replace(r" bs\S+$", "").unique(maintain_order=True))
    notes = [
        f"Dashed line: {baseline} at the same batch size.",
        "Bars: 95 % interval over pairs of equal seed." if cells["low"].count() else "One pair each: no interval.",
    ]
    return styled(_by_batch_size(tables, cells, [line], points, whiskers), "Speed-up over the baseline", notes)


def memory(tables: Tables) -> Chart:
    """Peak memory of each configuration: of the GPUs where they were used, else of the host."""
    gpu = finished(tables.cells, "peak_gpu_allocated_bytes_mean")
    quantity = "peak_host_rss_bytes" if gpu.is_empty() else "peak_gpu_allocated_bytes"
    cells = finished(tables.cells, f"{quantity}_mean")
    if cells.is_empty():
        return _empty(tables, "Peak memory")
    ends = {"value": "mean", "low": "low", "high": "high"}
    cells = cells.with_columns((pl.col(f"{quantity}_{end}") / GIB).alias(name) for name, end in ends.items())
    what = "host memory of all processes" if gpu.is_empty() else "GPU memory allocated by PyTorch"
    bars = alt.Chart().mark_bar(height=13, opacity=0.8)
    bars = bars.encode(x=alt.X("value:Q").title(f"Peak {what} (GiB)"), tooltip=tooltip("value=Peak (GiB)"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5)
    chart = _by_batch_size(tables, cells, [], bars, whiskers, whisker_colour=alt.value(theme.INK))
    notes = ["Mean over repeats. Dark lines: 95 % interval." if cells["low"].count() else "One repeat: no interval."]
    out = tables.cells.filter(pl.col("statuses").str.contains("oom"))["name"].unique(maintain_order=True).to_list()
    if out:
        notes.append(f"Out of memory: {', '.join(out[:3])}" + (f" and {len(out) - 3} more" if len(out) > 3 else ""))
    return styled(chart, f"Peak {what}", notes)


def energy(tables: Tables) -> Chart:
    """Joules of a run: full bars where they were measured, hatched ones where they are estimated."""
    cells = finished(tables.cells, "window_s_mean")
    measured = bool(len(cells)) and cells["energy_j_mean"].null_count() == 0
    if not measured and (cells.is_empty() or cells["estimated_energy_j"].null_count()):
        return _empty(tables, "Energy of a run", "energy was not measured, and not estimated" if len(cells) else None)
    columns = ENERGY if measured else ESTIMATED_ENERGY
    cells = cells.with_columns(pl.col(column).alias(name) for name, column in columns.items())
    look = {"opacity": 0.8} if measured else {"filled": False, "fill": theme.HATCH, "strokeWidth": 1.5}
    x = alt.X("value:Q").title(
        "Energy of a run (J), measured" if measured else "Estimated energy of a run (J), not measured"
    )
    bars = alt.Chart().mark_bar(height=13, **look).encode(x=x, tooltip=tooltip("value=Energy (J)"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5, strokeDash=[1, 0] if measured else [4, 3])
    chart = _by_batch_size(tables, cells, [], bars, whiskers, whisker_colour=alt.value(theme.INK))
    if measured:
        note = "Mean over repeats. Dark lines: 95 % interval." if cells["low"].count() else "One repeat: no interval."
        return styled(chart, "Energy of a run", [note])
    note = "Hatched: estimated from CPU-seconds, dashed over the range of the estimate. A guess, not a measurement."
    return styled(chart, "Energy of a run, estimated", [note])


def loss(tables: Tables) -> Chart:
    """How the validation loss falls with seconds, and with estimated joules where there are any."""
    epochs = tables.epochs
    if epochs.is_empty():
        return _empty(tables, "Validation loss while training")
    measured = finished(tables.cells, "window_s_mean")["energy_j_mean"].null_count() == 0
    estimated = not measured and epochs["estimated_energy_j"].null_count() == 0
    statuses = theme.STATUSES if estimated else theme.STATUSES[:1]
    curves = [_curves(tables, "elapsed_s", "Time (s)", statuses, "measured")]
    notes = ["Thick: mean over repeats after each epoch, from the untrained model on. "]
    notes[0] += "Single runs are too many to draw." if epochs["run"].n_unique() > MAX_THIN else "Thin: single runs."
    if estimated:
        title = "Estimated energy (J), not measured"
        curves.append(_curves(tables, "estimated_energy_j", title, statuses, "estimated"))
        notes.append("Dashed, hollow: against joules estimated from CPU-seconds.")
    notes.append("Horizontal scales differ between batch sizes." if epochs["batch"].n_unique() > 1 else "")
    return styled(alt.vconcat(*curves, spacing=28), "Validation loss while training", filter(None, notes))


CHARTS: dict[str, Callable[[Tables], Chart]] = {
    "pareto": pareto,
    "energy": energy,
    "speedup": speedup,
    "loss": loss,
    "memory": memory,
}


def save_all(tables: Tables, folder: Path) -> None:
    """Write every chart as `<name>.svg` and as `<name>.html`, which opens without network."""
    folder.mkdir(parents=True, exist_ok=True)
    actions = {"export": True, "source": False, "compiled": False, "editor": False}
    for name, make in CHARTS.items():
        chart = make(tables)
        chart.save(folder / f"{name}.svg")
        chart.save(folder / f"{name}.html", inline=True, embed_options={"renderer": "svg", "actions": actions})


def _costs(
    tables: Tables,
    cells: pl.DataFrame,
    columns: str,
    title: str,
    statuses: Sequence[str] = theme.STATUSES[:1],
    status: str = "measured",
) -> Chart:
    """One scatter per panel: cost across, loss up; the front and its key only where the cost is measured."""
    names = dict(zip(columns.split(), ("cost", "cost_low", "cost_high"), strict=True))
    cells = cells.rename(names).with_columns(status=pl.lit(status))
    rows = []
    for name, part in panels(cells):
        losses = [part["validation_loss_low"], part["validation_loss_high"]] if status == "measured" else []
        across = theme.reach(part["cost"], part["cost_low"], part["cost_high"])
        x = alt.X("cost:Q").title(title).scale(across).axis(theme.si(cells["cost"]))
        y = alt.Y("validation_loss_mean:Q").title(LOSS).scale(theme.reach(part[LOSS_MEAN], *losses))
        layers, key = _points(tables, part, x, y, title, statuses), []
        if status == "measured":
            best = part.filter(pl.col("cell").is_in(front(part, "cost", LOSS_MEAN))).sort("cost")
            layers, key = [*_front(best, part, x, y), *layers], [_key(best["name"].to_list())]
        plot = alt.layer(*layers).properties(width=560, height=300, title=theme.panel_title(name))
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


def _by_batch_size(
    tables: Tables,
    cells: pl.DataFrame,
    below: list[Chart],
    marks: Chart,
    whiskers: Chart,
    whisker_colour: object = None,
) -> Chart:
    """One line per configuration, those of one batch size together; the columns value, low and high are drawn."""
    colour = alt.Color("setup:N").scale(theme.setup_scale(tables.cells)).legend(None)
    intervals = whiskers.transform_filter("isValid(datum.low)").encode(x="low:Q", x2="high:Q")
    layers = [marks.encode(color=colour), intervals.encode(color=whisker_colour or colour)]
    rows = []
    for name, part in panels(cells):
        y = alt.Y("name:N").title(None).scale(domain=_grouped(part)).axis(ticks=False, domain=False, labelPadding=6)
        drawn = alt.layer(
            *below, *(layer.encode(y=y) for layer in layers), data=values(part, "name setup value low high")
        )
        rows.append(drawn.properties(width=600, height=alt.Step(19), title=theme.panel_title(name)))
    return alt.vconcat(*rows)


def _grouped(cells: pl.DataFrame) -> list[str]:
    """The names by batch size, with an empty line between two sizes."""
    names: list[str] = []
    for i, batch in enumerate(theme.batch_order(cells)):
        names += [" " * i] if i else []
        names += cells.filter(pl.col("batch") == batch)["name"].to_list()
    return names


def _curves(tables: Tables, across: str, title: str, statuses: Sequence[str], status: str) -> Chart:
    """Loss against a cumulative cost: thin lines for runs, a thick one for their mean, apart by batch size."""
    groups = ("cell", "environment", "epoch")
    epochs = tables.epochs.rename({across: "cost", "validation_loss": "loss"}).with_columns(status=pl.lit(status))
    epochs = epochs.with_columns(pl.col("cost", "loss").mean().over(groups).name.prefix("mean_"))
    x, mean_x = (alt.X(f"{column}:Q").title(title).axis(theme.si(epochs["cost"])) for column in ("cost", "mean_cost"))
    y, mean_y = (alt.Y(f"{column}:Q").title(LOSS).scale(zero=False) for column in ("loss", "mean_loss"))
    colour = alt.Color("setup:N").scale(theme.setup_scale(tables.cells)).title("Configuration")
    many = epochs["run"].n_unique() > MAX_THIN
    if many:
        epochs = epochs.unique(groups, keep="first", maintain_order=True)
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


def _empty(tables: Tables, title: str, reason: str | None = None) -> Chart:
    """A chart that says why there is nothing to draw."""
    counts = tables.runs["status"].value_counts(sort=True).rows()
    reason = reason or "no run finished: " + ", ".join(f"{n} {status}" for status, n in counts)
    text = alt.Chart(alt.InlineData(values=[{"text": reason}])).mark_text(fontSize=13).encode(text="text:N")
    return styled(text.properties(width=480, height=100), title, ["Nothing to draw."])
