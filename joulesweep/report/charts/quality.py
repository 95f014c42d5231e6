"""What a training costs, against how much worse its loss is than the best one's.

Each mark is a configuration: the mean over its repeats, with 95 % intervals of the ratios to the baseline and to the
best, paired by seed. Left is cheaper, lower is better; in the band the loss is within the margin of the best. A ring
marks the recommended configuration. The cost is joules where every configuration has measured ones, else time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from joulesweep.analyse.cells import comparable_groups, finished
from joulesweep.analyse.comparisons import WITHIN
from joulesweep.analyse.studies.decision import Decision
from joulesweep.analyse.tables import Row
from joulesweep.core.quantities import PREFIXES
from joulesweep.report import numbers, theme
from joulesweep.report.chart_parts import some
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.looks import AXES, Looks
from joulesweep.report.results import Results, key
from joulesweep.report.theme import Chart

Mark = dict[str, Any]  # the data of one mark, as Vega-Lite takes them
TITLE = "Energy and quality"
PLACE = 10
SECTION = "quality"
COSTS = {"energy_j": ("Energy of one training", "J", "energy"), "window_s": ("Time of one training", "s", "time")}
MAX_PLOTS = 8
MAX_WHISKERS = 300  # marks: more intervals hide each other
MAX_SERIES = 40
BEYOND = 30  # margins: a scale that reaches further is logarithmic beyond the margin
SHOWN = "indexof(hidden, datum.c) < 0 && indexof(hidden, datum.s) < 0"
PICKED = "indexof(picked, datum.i) >= 0"


def draw(results: Results) -> Figure:
    """Draw cost against the loss above the best, one plot for each set of comparable configurations."""
    decisions = {decision.panel: decision for decision in results.decisions}
    cells = finished(results.tables.cells, "above_best")
    every = [(decisions[name], part.to_dicts()) for name, part in comparable_groups(cells) if name in decisions]
    parts = [(decision, [row for row in rows if _is_sure(decision, row)]) for decision, rows in every]
    if not parts:
        return nothing(TITLE, results.why_empty or "No two configurations can be compared.")
    notes = [
        "Each mark is one configuration, the mean over its seeds. "
        "Left is cheaper, lower is better; in the band the loss is within the margin."
    ]
    if max(len(rows) for _, rows in parts) > MAX_WHISKERS:
        notes.append("Intervals are too many to draw: the table has them.")
    untold = results.looks.untold()
    notes += [f"Neither colour nor shape tells: {', '.join(untold).lower()}."] if untold else []
    notes += [f"By time, since {decision.unranked}." for decision, _ in parts[:1] if decision.unranked]
    notes += _left_out(parts) + _doubtful(every)
    notes += (
        [f"The first {MAX_PLOTS} of {len(parts)} sets of comparable configurations."] if len(parts) > MAX_PLOTS else []
    )
    plots = [Plot(chart=_plot(results.looks, *part), title=part[0].panel) for part in parts[:MAX_PLOTS]]
    return Figure(
        title=_title([decision for decision, _ in parts]),
        notes=notes,
        plots=plots,
        columns=1 if len(plots) == 1 else 2,
        keys=results.looks.keys,
        params={"hidden": [], "picked": [], "narrow": False},
    )


def _title(decisions: Sequence[Decision]) -> str:
    """What the chart shows, as a finding if there is one."""
    cost = "Energy" if all(decision.by == "energy_j" for decision in decisions) else "Time"
    pick = decisions[0].recommended if len(decisions) == 1 else None
    ratio = pick.ratios["energy" if cost == "Energy" else "time"] if pick else None
    if pick is None or ratio is None or ratio.verdict != "lower" or pick.quality.verdict != WITHIN:
        return f"{cost} and quality"
    what = decisions[0].measure.removeprefix("validation_").replace("_", " ")
    margin = f"{100 * decisions[0].margin:g} %"
    return f"{numbers.change_of(ratio.ratio)} {cost.lower()} without more than {margin} worse {what}"


def _is_sure(decision: Decision, row: Row) -> bool:
    """Whether nothing contradicts the joules of a configuration, where joules are its cost."""
    return decision.by != "energy_j" or row["energy_doubt"] is None


def _doubtful(parts: Sequence[tuple[Decision, list[Row]]]) -> list[str]:
    names = [row["name"] for decision, rows in parts for row in rows if not _is_sure(decision, row)]
    return [f"Without a mark, since their joules are doubtful: {some(names)}."] if names else []


def _left_out(parts: Sequence[tuple[Decision, list[Row]]]) -> list[str]:
    """The finished configurations without the cost, which have no mark."""
    lacking = [row["name"] for decision, rows in parts for row in rows if row[f"{decision.by}_mean"] is None]
    return [f"Without a mark, since the cost is unknown: {some(lacking)}."] if lacking else []


def _plot(looks: Looks, decision: Decision, rows: Sequence[Row]) -> Chart:
    """One scatter with the margin's band, the baseline's batch sizes and the names of two configurations."""
    title, unit, _ = COSTS[decision.by]
    size, unit = scale_of([row[f"{decision.by}_mean"] for row in rows if row[f"{decision.by}_mean"]], unit)
    marks = [_mark(looks, decision, row, size) for row in rows if row[f"{decision.by}_mean"]]
    costs, margin = [mark["x"] for mark in marks], 100 * decision.margin
    low, high = min(costs) * 0.93, max(costs) * 1.08
    x = alt.X("x:Q").title(f"{title} ({unit}, log scale)").scale(type="log", domain=[low, high], nice=False)
    x = x.axis(values=ticks(low, high), format="~r" if high < 1e4 else "~s")
    reach = _losses(marks, margin)
    y = alt.Y("y:Q").title(quality_title(decision.measure)).scale(**reach)
    layers = [_band(reach["domain"][0], margin), *_lines(marks, x, y), *_whiskers(marks, x, y)]
    return alt.layer(
        *layers, _points(looks, x, y, title, unit), *_labels(decision, marks, x, y, (low, high)), data=theme.rows(marks)
    ).properties(height=300)


def _mark(looks: Looks, decision: Decision, row: Row, size: float) -> Mark:
    """The data of one mark: costs in the axis's unit, losses in percent."""
    cost = row[f"{decision.by}_mean"] / size
    ratios = "energy" if decision.by == "energy_j" else "time"
    mark = {
        "i": key(row),
        "n": looks.words(row),
        "c": looks.colour(row),
        "s": looks.shape(row),
        "b": row["batch"],
        "o": row["batch_size"],
        "g": " ".join(axis(row) for axis in (AXES[title] for title in looks.varying)),
        "x": cost,
        "y": 100 * row["above_best"],
        "v": row["quality_verdict"],
    }
    if None not in (row["above_best_low"], row["above_best_high"]):
        mark |= {"yl": 100 * row["above_best_low"], "yh": 100 * row["above_best_high"]}
    ends = [row[f"{ratios}_ratio{end}"] for end in ("", "_low", "_high")]
    if None not in ends and ends[0]:
        mark |= {"xl": cost * ends[1] / ends[0], "xh": cost * ends[2] / ends[0]}
    return mark


def quality_title(measure: str) -> str:
    """The title of an axis of how much worse than the best a configuration is."""
    if measure == "validation_loss":
        return "Loss above the best (%)"
    return f"{measure.replace('_', ' ').capitalize()} below the best (%)"


def scale_of(costs: Sequence[float], unit: str) -> tuple[float, str]:
    """The size and the name of the prefixed unit that suits most costs."""
    middle = sorted(costs)[len(costs) // 2]
    return next(((size, name) for size, name in PREFIXES[unit] if middle >= 2 * size), (1.0, unit))


def ticks(low: float, high: float) -> list[float]:
    """Places of an axis's labels on a log scale: 1, 2, 5, and more of them where the axis spans little."""
    steps = (
        (1, 2, 5)
        if high > 8 * low
        else (1, 1.5, 2, 3, 4, 5, 6, 8)
        if high > 1.8 * low
        else [1 + k / 10 for k in range(90)]
    )
    places = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
    ]
    within = [float(f"{place:.6g}") for place in places if low <= place <= high]
    return within[:: 1 + len(within) // 9]


def _losses(marks: Sequence[dict[str, Any]], margin: float) -> dict[str, Any]:
    """The scale of the losses: every mark, intervals as far as marks reach, logarithmic far beyond the margin."""
    highest = max(*(mark["y"] for mark in marks), 1.3 * margin)
    lowest = max(min(mark.get("yl", mark["y"]) for mark in marks), -0.25 * highest)
    low = min(lowest, -0.12 * min(highest, BEYOND * margin))
    if highest > BEYOND * margin:
        return {"type": "symlog", "constant": margin, "domain": [low, 1.3 * highest], "nice": False}
    return {"domain": [low, 1.06 * highest], "nice": False}


def _band(lowest: float, margin: float) -> Chart:
    """The losses that count as no worse."""
    base = alt.Chart(theme.rows([{"low": lowest, "high": margin}]))
    return base.mark_rect(color=theme.BAND).encode(y=alt.Y("low:Q"), y2="high:Q")


def _lines(marks: Sequence[Mark], x: alt.X, y: alt.Y) -> list[Chart]:
    """Faint lines through the batch sizes of configurations that are otherwise the same."""
    if not 1 < len({mark["g"] for mark in marks}) <= MAX_SERIES:
        return []
    line = alt.Chart().mark_line(strokeWidth=1, opacity=0.35, color=theme.FAINT)
    return [line.encode(x=x, y=y, detail="g:N", order="o:Q")]


def _whiskers(marks: Sequence[Mark], x: alt.X, y: alt.Y) -> list[Chart]:
    if len(marks) > MAX_WHISKERS:
        return []
    rule = alt.Chart().mark_rule(strokeWidth=1.2, color=theme.FAINT, clip=True)
    rule = rule.encode(opacity=alt.condition(SHOWN, alt.value(0.45), alt.value(0)))
    up = rule.transform_filter("isValid(datum.yl)").encode(x=x, y=alt.Y("yl:Q"), y2="yh:Q")
    across = rule.transform_filter("isValid(datum.xl)").encode(y=y, x=alt.X("xl:Q"), x2="xh:Q")
    return [up, across]


def _points(looks: Looks, x: alt.X, y: alt.Y, title: str, unit: str) -> Chart:
    points = (
        alt.Chart()
        .mark_point(filled=True, size=70, cursor="pointer")
        .encode(
            x=x,
            y=y,
            opacity=alt.condition(SHOWN, alt.value(1), alt.value(0.07)),
            stroke=alt.condition(PICKED, alt.value(theme.INK), alt.value(theme.PAPER)),
            strokeWidth=alt.condition(PICKED, alt.value(2.5), alt.value(0.7)),
            size=alt.condition(PICKED, alt.value(130), alt.value(70)),
            tooltip=[
                alt.Tooltip("n:N", title="Configuration"),
                alt.Tooltip("x:Q", title=f"{title} ({unit})", format=".3~r"),
                alt.Tooltip("y:Q", title="Worse than the best (%)", format=".2f"),
                alt.Tooltip("v:N", title="Quality"),
            ],
        )
    )
    for field, kind, channel in (("c", "colour", alt.Fill), ("s", "shape", alt.Shape)):
        keys = [key for key in looks.keys if getattr(key, kind)]
        scale = alt.Scale(domain=[key.value for key in keys], range=[getattr(key, kind) for key in keys])
        encoding = channel(f"{field}:N").scale(scale).title(keys[0].axis) if keys else alt.value(DEFAULT[kind])
        points = points.encode(**{channel.__name__.lower(): encoding})
    return points


DEFAULT = {"colour": theme.COLOURS[0], "shape": theme.SHAPES[0]}


def _labels(decision: Decision, marks: Sequence[Mark], x: alt.X, y: alt.Y, ends: tuple[float, float]) -> list[Chart]:
    """A ring and the name of the recommended configuration, the baseline's name, and its line's batch sizes."""
    by_key = {mark["i"]: mark for mark in marks}
    baseline = by_key.get(key(decision.baseline))
    chosen = by_key.get(key(decision.picks[0].row)) if decision.picks else None
    named = []
    if chosen:
        named.append({**chosen, "t": f"recommended: {chosen['n']}", "k": "recommended", "w": "bold"})
    if baseline and baseline is not chosen:
        named.append({**baseline, "t": f"baseline: {baseline['n']}", "k": "baseline", "w": "normal"})
    layers = []
    if chosen:
        ring = alt.Chart(theme.rows([chosen])).mark_point(size=330, filled=False, color=theme.INK, strokeWidth=2)
        layers.append(ring.encode(x=x, y=y))
    for align, side in (("left", 1), ("right", -1)):
        here = [mark for mark in named if (_share(mark["x"], ends) < 0.5) == (side == 1)]
        for weight in ("bold", "normal"):
            rows = [mark for mark in here if mark["w"] == weight]
            if rows:
                layers += [text.encode(x=x, y=y) for text in _names(rows, align, 6 * side, weight)]
    if baseline:
        sizes = [mark for mark in marks if mark["g"] == baseline["g"] and mark is not baseline]
        text = alt.Chart(theme.rows(sizes)).mark_text(align="left", dx=8, dy=1, color=theme.FAINT, fontSize=10)
        layers += [text.encode(x=x, y=y, text="b:N")] if sizes else []
    return layers


def _names(rows: Sequence[Mark], align: Any, aside: int, weight: Any) -> list[Chart]:  # noqa: ANN401 - Altair's words
    """Names beside marks, with a halo below the letters; short ones where there is little room."""
    base, text = alt.Chart(theme.rows(rows)), alt.expr("narrow ? datum.k : datum.t")
    below = 17 if weight == "bold" else -13  # where no other mark of its line is
    halo = base.mark_text(
        align=align, dx=aside, dy=below, fontWeight=weight, text=text, stroke=theme.PAPER, strokeWidth=4, opacity=0.8
    )
    return [halo, base.mark_text(align=align, dx=aside, dy=below, fontWeight=weight, text=text)]


def _share(cost: float, ends: tuple[float, float]) -> float:
    """How far right a cost lies on a log axis: 0 to 1."""
    low, high = map(math.log, ends)
    return (math.log(cost) - low) / (high - low)
