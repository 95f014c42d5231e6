"""The charts of a sweep, made from its tables; those over time are in `joulesweep.curves`.

Measured numbers are filled, integrated ones paler; estimated ones are hollow or dashed. The axis says which, and of
which devices. Only measured joules of the same devices are ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from joulesweep import curves, theme
from joulesweep.cells import finished, front, panels, undoubted, unranked
from joulesweep.tables import Tables
from joulesweep.theme import LOSS, Chart, empty, styled, tooltip, values

LOSS_MEAN = "validation_loss_mean"
POINT = f"name setup batch batch_size batch_size_scope status num_ok cost cost_low cost_high {LOSS_MEAN}"
POINT += " validation_loss_low validation_loss_high"
GIB = 2**30
NO_INTERVAL = "One repeat: no interval."
MAX_NAMED = 14  # of a front: more would run off the chart; the report's table has all

TIME = "window_s_mean window_s_low window_s_high"
ENERGY = "energy_j_mean energy_j_low energy_j_high"
ESTIMATED_ENERGY = "estimated_energy_j estimated_energy_low_j estimated_energy_high_j"


def pareto(tables: Tables) -> Chart:
    """What a run costs against the loss it reaches, with the Pareto front where the cost was measured."""
    cells = finished(tables.cells, "validation_loss_mean")
    if cells.is_empty():
        return empty(tables, "Cost against quality")
    note = "Black line: the Pareto front, beaten by no other configuration in both. "
    note += "Bars: 95 % interval over repeats, cut at the frame." if cells["window_s_low"].count() else NO_INTERVAL
    why = next(filter(None, (unranked(part) for _, part in panels(cells))), None)
    doubts = _doubts(cells)
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


def joules_title(cells: pl.DataFrame) -> str:
    """Axis title of joules that all have one status and scope."""
    return f"Energy of a run (J), {cells['energy_status'][0]}, scope {cells['energy_scope'][0]}"


def _one_kind(cells: pl.DataFrame) -> bool:
    known = cells.drop_nulls("energy_j_mean")
    return known.height == cells.height and known.select("energy_status", "energy_scope").n_unique() == 1


def speedup(tables: Tables) -> Chart:
    """Texts per second relative to the baseline that trains the same, paired by seed."""
    cells = finished(tables.cells, "speedup").filter(~pl.col("is_baseline"))
    if cells.is_empty():
        lonely = "no other configuration finished beside its baseline"
        return empty(tables, "Speed-up", lonely if tables.cells["num_ok"].sum() else None)
    cells = cells.rename({"speedup": "value", "speedup_low": "low", "speedup_high": "high"})
    x = alt.X("value:Q").title("Speed-up: texts per second ÷ those of the baseline").scale(zero=False, padding=12)
    line = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=theme.INK, strokeDash=[4, 3]).encode(x=alt.datum(1))
    whiskers = alt.Chart().mark_rule(strokeWidth=2, opacity=0.8)
    points = alt.Chart().mark_point(filled=True, size=70, opacity=1).encode(x=x, tooltip=tooltip("value=Speed-up"))
    baselines = cells["baseline"].str.replace(r" bs\S+$", "").unique(maintain_order=True).to_list()
    notes = [
        f"Dashed line: {_some(baselines)} at the same batch size.",
        "Bars: 95 % interval over pairs of equal seed." if cells["low"].count() else "One pair each: no interval.",
    ]
    return styled(_by_batch_size(tables, cells, [line], points, whiskers), "Speed-up over the baseline", notes)


def memory(tables: Tables) -> Chart:
    """Peak memory of each configuration: of the GPUs where they were used, else of the host."""
    gpu = finished(tables.cells, "peak_gpu_allocated_bytes_mean")
    quantity = "peak_host_rss_bytes" if gpu.is_empty() else "peak_gpu_allocated_bytes"
    cells = finished(tables.cells, f"{quantity}_mean")
    if cells.is_empty():
        return empty(tables, "Peak memory")
    ends = {"value": "mean", "low": "low", "high": "high"}
    cells = cells.with_columns((pl.col(f"{quantity}_{end}") / GIB).alias(name) for name, end in ends.items())
    what = "host memory of all processes" if gpu.is_empty() else "GPU memory allocated by PyTorch"
    bars = alt.Chart().mark_bar(height=13, opacity=0.8)
    bars = bars.encode(x=alt.X("value:Q").title(f"Peak {what} (GiB)"), tooltip=tooltip("value=Peak (GiB)"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5)
    chart = _by_batch_size(tables, cells, [], bars, whiskers, whisker_colour=alt.value(theme.INK))
    notes = ["Mean over repeats. Dark lines: 95 % interval." if cells["low"].count() else NO_INTERVAL]
    out = tables.cells.filter(pl.col("statuses").str.contains("oom"))["name"].unique(maintain_order=True).to_list()
    if out:
        notes.append(f"Out of memory: {_some(out)}")
    return styled(chart, f"Peak {what}", notes)


def energy(tables: Tables) -> Chart:
    """Joules of a run: full bars measured, pale ones integrated, each kind and scope apart; hatched ones estimated."""
    cells = finished(tables.cells, "window_s_mean")
    known = cells.drop_nulls("energy_j_mean")
    if known.is_empty():
        return _estimated_energy(tables, cells)
    parts = [part for _, part in known.group_by("energy_status", "energy_scope", maintain_order=True)]
    notes = ["Mean over repeats. Dark lines: 95 % interval." if known["energy_j_low"].count() else NO_INTERVAL]
    notes[0] += " White tick: net of idle power." if known["net_energy_j_mean"].count() else ""
    if "integrated" in known["energy_status"]:
        notes.append("Pale: integrated from power readings, since the board has no energy counter.")
    without = cells.filter(pl.col("energy_j_mean").is_null())["name"].unique(maintain_order=True).to_list()
    notes += [f"Without joules: {_some(without)}"] if without else []
    notes += _doubts(known)
    return styled(alt.vconcat(*(_joules(tables, part) for part in parts), spacing=28), "Energy of a run", notes)


def _joules(tables: Tables, cells: pl.DataFrame) -> Chart:
    """Bars of cells whose joules have one status and scope."""
    x = alt.X("value:Q").title(joules_title(cells))
    nets = cells["net_energy_j_mean"].count() > 0
    numbers = tooltip("value=Energy (J)", *(["net=Net of idle (J)"] if nets else []))
    opacity = 0.8 if cells["energy_status"][0] == "measured" else 0.4
    bars = alt.Chart().mark_bar(height=13, opacity=opacity).encode(x=x, tooltip=numbers)
    net = alt.Chart().mark_tick(thickness=2, size=11, color="white").encode(x="net:Q")
    above = [net.transform_filter("isValid(datum.net)")] if nets else []
    cells = _renamed(cells, ENERGY).with_columns(net=pl.col("net_energy_j_mean"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5)
    return _by_batch_size(tables, cells, [], bars, whiskers, alt.value(theme.INK), above)


def _estimated_energy(tables: Tables, cells: pl.DataFrame) -> Chart:
    """Hatched bars of estimated joules, if every cell has them."""
    if cells.is_empty() or cells["estimated_energy_j"].null_count():
        return empty(tables, "Energy of a run", "energy was not measured, and not estimated" if len(cells) else None)
    x = alt.X("value:Q").title("Estimated energy of a run (J), not measured")
    bars = alt.Chart().mark_bar(height=13, filled=False, fill=theme.HATCH, strokeWidth=1.5)
    bars = bars.encode(x=x, tooltip=tooltip("value=Energy (J)"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5, strokeDash=[4, 3])
    chart = _by_batch_size(tables, _renamed(cells, ESTIMATED_ENERGY), [], bars, whiskers, alt.value(theme.INK))
    note = "Hatched: estimated from CPU-seconds, dashed over the range of the estimate. A guess, not a measurement."
    return styled(chart, "Energy of a run, estimated", [note])


def _renamed(cells: pl.DataFrame, columns: str) -> pl.DataFrame:
    """Three columns of the cells as value, low and high."""
    names = dict(zip(columns.split(), ("value", "low", "high"), strict=True))
    return cells.with_columns(pl.col(column).alias(name) for column, name in names.items())


def _doubts(cells: pl.DataFrame) -> list[str]:
    names = cells.drop_nulls("energy_doubt")["name"].unique(maintain_order=True).to_list()
    return [f"Doubtful joules, in no ranking: {_some(names)}"] if names else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


CHARTS: dict[str, Callable[[Tables], Chart]] = {
    "pareto": pareto,
    "energy": energy,
    "speedup": speedup,
    "loss": curves.loss,
    "memory": memory,
    "power": curves.power,
    "tensors": curves.tensors,
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
    cells = cells.with_columns(pl.col(column).alias(name) for column, name in names.items())
    cells = cells.with_columns(status=pl.lit(status))
    rows = []
    for name, part in panels(cells):
        losses = [part["validation_loss_low"], part["validation_loss_high"]] if status != "estimated" else []
        across = theme.reach(part["cost"], part["cost_low"], part["cost_high"])
        x = alt.X("cost:Q").title(title).scale(across).axis(theme.si(cells["cost"]))
        y = alt.Y("validation_loss_mean:Q").title(LOSS).scale(theme.reach(part[LOSS_MEAN], *losses))
        layers, key = _points(tables, part, x, y, title, statuses), []
        if status == "measured":
            best = part.filter(pl.col("cell").is_in(front(part, "cost", LOSS_MEAN))).sort("cost")
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


def _by_batch_size(
    tables: Tables,
    cells: pl.DataFrame,
    below: list[Chart],
    marks: Chart,
    whiskers: Chart,
    whisker_colour: object = None,
    above: Sequence[Chart] = (),
) -> Chart:
    """One line per configuration, those of one batch size together; the columns value, low and high are drawn."""
    colour = alt.Color("setup:N").scale(theme.setup_scale(tables.cells)).legend(None)
    intervals = whiskers.transform_filter("isValid(datum.low)").encode(x="low:Q", x2="high:Q")
    layers = [marks.encode(color=colour), *above, intervals.encode(color=whisker_colour or colour)]
    columns = "name setup value low high" + (" net" if "net" in cells.columns else "")
    rows = []
    for name, part in panels(cells):
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
