"""Where the savings come from: from the baseline to the recommended configuration, one change at a time.

Each step says what it changes in the cost, with the 95 % interval of the ratio to the step before, paired by seed; time
and loss stand below. The last step is the cheapest configuration whose quality cannot be told yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import altair as alt

from joulesweep.analyse.comparisons import OPEN
from joulesweep.analyse.statistics import NO_DIFFERENCE, Ratio
from joulesweep.analyse.studies.decision import Decision
from joulesweep.analyse.tables import Row
from joulesweep.core import quantities
from joulesweep.report import theme
from joulesweep.report.charts.quality import COSTS, scale_of
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.looks import AXES, Looks
from joulesweep.report.numbers import change_with_interval
from joulesweep.report.results import Results, key
from joulesweep.report.theme import Chart

TITLE = "The savings ladder: one change at a time"
PLACE = 20
SECTION = "ladder"
ROW = 54  # pixels of a step: two lines of text above a bar
MAX_ORDER = 4  # changes of which every order is tried
MAX_PLOTS = 4
FIRST = ("Precision", "Method", "Devices")  # axes that are changed first
NOT_COMPARED = "cannot be compared"
#: Colours of the bars, by what they say.
MEANING = {
    "total": theme.FAINT,
    "saves": theme.SAVES,
    "costs more": theme.COLOURS[1],
    "no difference shown": theme.PALE,
    "quality not yet shown": theme.UNSURE,
    NOT_COMPARED: theme.COLOURS[5],
}


def draw(results: Results) -> Figure:
    """Draw the steps from the baseline to the recommended configuration, for each set of comparable ones."""
    plots, notes = [], []
    for decision in results.decisions[:MAX_PLOTS]:
        if (steps := ladder(results, decision)) is None:
            name, why = f"{decision.panel}: " if decision.panel else "", why_none(decision)
            notes.append(f"{name or why[0].upper()}{why if name else why[1:]}.")
        else:
            plots.append(Plot(chart=_plot(decision, steps), title=decision.panel))
    if not plots:
        return nothing(TITLE, " ".join(notes) or results.why_empty or "No configuration is recommended yet.")
    notes.insert(
        0,
        "Each step against the one before, with 95 % intervals, paired by seed. The last step is not recommended yet.",
    )
    return Figure(title=TITLE, notes=notes, plots=plots)


def why_none(decision: Decision) -> str:
    """Why a decision has no ladder."""
    if not decision.picks:
        return "no configuration is recommended yet"
    return "the recommended configuration is the baseline: nothing saves more"


def ladder(results: Results, decision: Decision) -> list[dict[str, Any]] | None:
    """The rows of a ladder, from the baseline down; None if there is none to draw.

    Args:
        results: of the sweep.
        decision: of one set of comparable configurations.
    """
    if not decision.picks:
        return None
    baseline, chosen = decision.baseline, decision.picks[0].row
    cells = [row for row in results.rows(decision.panel) if row["num_ok"] and row[f"{decision.by}_mean"] is not None]
    if key(baseline) == key(chosen):
        return None
    path = [baseline, *_path(results.looks, cells, baseline, chosen)]
    rows = [_total("baseline", baseline, decision, results.looks)]
    rows += [_step(results, decision, *pair) for pair in itertools.pairwise(path)]
    rows.append(_total("recommended", chosen, decision, results.looks))
    further = _further(results.looks, cells, chosen, decision)
    if further is not None:
        step = _step(results, decision, chosen, further)
        rows.append({**step, "head": f"not yet: {step['head']}", "kind": "quality not yet shown"})
    return rows


def differences(looks: Looks, a: Row, b: Row) -> list[str]:
    """The axes in which two configurations differ, the batch size last."""
    axes = [title for title in looks.varying if AXES[title](a) != AXES[title](b)]
    return [*axes, *(["Batch size"] if a["batch"] != b["batch"] else [])]


def _path(looks: Looks, cells: Sequence[Row], a: Row, b: Row) -> list[Row]:
    """Configurations that lead from one to another and each change one axis; the other alone if there are none."""
    by_axes = {_place(looks, row): row for row in cells}
    changed = differences(looks, a, b)
    preferred = sorted(changed, key=lambda title: FIRST.index(title) if title in FIRST else len(FIRST))
    for order in itertools.permutations(preferred) if len(changed) <= MAX_ORDER else [tuple(preferred)]:
        places = [_between(looks, a, b, order[: i + 1]) for i in range(len(order))]
        if all(place in by_axes for place in places):
            return [by_axes[place] for place in places]
    return [b]


def _place(looks: Looks, row: Row) -> tuple[str, ...]:
    return (*(AXES[title](row) for title in looks.varying), row["batch"])


def _between(looks: Looks, a: Row, b: Row, taken: Sequence[str]) -> tuple[str, ...]:
    """The place of the configuration that has the taken axes from b and the others from a."""
    titles = (*looks.varying, "Batch size")
    pairs = zip(titles, _place(looks, a), _place(looks, b), strict=True)
    return tuple(theirs if title in taken else mine for title, mine, theirs in pairs)


def _further(looks: Looks, cells: Sequence[Row], chosen: Row, decision: Decision) -> Row | None:
    """The cheapest configuration below the chosen one whose quality cannot be told yet, one change away if possible."""
    cost = f"{decision.by}_mean"
    cheaper = [row for row in cells if row["quality_verdict"] == OPEN and row[cost] < chosen[cost]]
    near = [row for row in cheaper if len(differences(looks, chosen, row)) == 1]
    return min(near or cheaper, key=lambda row: row[cost], default=None)


def _total(kind: str, row: Row, decision: Decision, looks: Looks) -> dict[str, Any]:
    cost = row[f"{decision.by}_mean"]
    told = quantities.one(cost, COSTS[decision.by][1])
    return {"head": f"{kind}: {told}", "kind": "total", "from": 0.0, "to": cost, "below": looks.words(row)}


def _step(results: Results, decision: Decision, a: Row, b: Row) -> dict[str, Any]:
    """One change: what it does to the cost, and below it to time and loss."""
    looks = results.looks
    values = [b["batch"] if title == "Batch size" else AXES[title](b) for title in differences(looks, a, b)]
    words = [f"batch {value}" if value == b["batch"] else value for value in values]
    ratio = results.comparisons.ratio(b, a, decision.by)
    others = {"time": "window_s", decision.measure.removeprefix("validation_").replace("_", " "): decision.measure}
    if decision.by == "window_s":
        del others["time"]
    below = [f"{name} {_told(results.comparisons.ratio(b, a, quantity))}" for name, quantity in others.items()]
    return {
        "head": f"+ {', '.join(words)}: {_told(ratio)}",
        "kind": _kind(ratio, b[f"{decision.by}_mean"] < a[f"{decision.by}_mean"]),
        "from": a[f"{decision.by}_mean"],
        "to": b[f"{decision.by}_mean"],
        "below": " · ".join(below),
    }


def _told(ratio: Ratio | None) -> str:
    return "unknown" if ratio is None else change_with_interval(ratio.ratio, ratio.low, ratio.high)


def _kind(ratio: Ratio | None, cheaper: bool) -> str:
    if ratio is None:
        return NOT_COMPARED
    if ratio.verdict == NO_DIFFERENCE:
        return NO_DIFFERENCE
    return "saves" if cheaper else "costs more"


def _plot(decision: Decision, steps: Sequence[dict[str, Any]]) -> Chart:
    """Bars from cost to cost, each below its two lines of text, so that narrow pages have room for them."""
    title, unit, _ = COSTS[decision.by]
    size, unit = scale_of([step["to"] for step in steps], unit)
    data = theme.rows(
        [{**step, "k": i, "from": step["from"] / size, "to": step["to"] / size} for i, step in enumerate(steps)]
    )
    y = alt.Y("k:O").axis(None)
    used = [kind for kind in MEANING if any(step["kind"] == kind for step in steps)]
    colour = alt.Color("kind:N").scale(domain=used, range=[MEANING[kind] for kind in used]).title(None)
    colour = colour.legend(orient="bottom", direction="horizontal")
    base = alt.Chart()
    bars = base.mark_bar(height=14, yOffset=16).encode(
        y=y, x=alt.X("from:Q").title(f"{title} ({unit})").axis(tickCount=6, grid=False), x2="to:Q", color=colour
    )
    heads = base.mark_text(align="left", dy=-17, fontWeight="bold", fontSize=12).encode(
        y=y, x=alt.value(2), text="head:N"
    )
    below = base.mark_text(align="left", dy=-2, color=theme.FAINT).encode(y=y, x=alt.value(2), text="below:N")
    return alt.layer(bars, heads, below, data=data).properties(height=ROW * len(steps))
