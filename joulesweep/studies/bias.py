"""Whether adaptation changes how often a model prefers a stereotype, overall and by category.

The change is paired by item, and counts both the items and the seeds as samples: see `statistics.crossed_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from joulesweep.analyse.statistics import Crossed, Numbers, crossed_mean
from joulesweep.analyse.tables import Tables
from joulesweep.core.quantities import signed
from joulesweep.studies import Answer, Table

QUESTION = "Does adaptation to a domain change a model's social bias?"
PROTOCOL = (
    "Models are adapted to texts of a domain by several methods. CrowS-Pairs and StereoSet are scored before and after "
    "the training, outside of its window. Compared is, item by item, whether the model prefers the stereotype: the "
    "change of the score in points is the mean over items and seeds, with an interval for other items and other seeds. "
    "It is shown if the interval, corrected for the number of configurations, is on one side of 0."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433), conclusion, question 4"

#: The score of an item that is 100 where the model prefers the stereotype, else 0; and how the answer calls its mean.
SCORES = {
    "crows-pairs": ("stereotype", "CrowS-Pairs score"),
    "stereoset": ("prefers_stereotype", "StereoSet preference"),
}
NEUTRAL = 50.0  # percent: a model that prefers neither
LEAST = 20  # items of a category that can show a change: of fewer, all may agree by chance


@dataclass(frozen=True, kw_only=True)
class Change:
    """How the score of some items changed in a configuration.

    Attributes:
        name: of the configuration.
        evaluation: a key of `SCORES`.
        category: of the items; "all": every one.
        before: mean score before the training, in percent.
        change: in points.
    """

    name: str
    evaluation: str
    category: str
    before: float
    change: Crossed


def answer(tables: Tables, config: Mapping[str, object]) -> Answer:
    """Answer for every configuration whose runs have scores of items.

    Args:
        tables: of the sweep.
        config: in its manifest.
    """
    every = [change for evaluation in SCORES for change in changes(tables, evaluation)]
    whole = [change for change in every if change.category == "all"]
    if not whole:
        return Answer(sentence=_why_nothing(tables), answered=False)
    if all(change.change.error is None for change in whole):
        first = whole[0]
        number = "one seed tells" if first.change.num_seeds == 1 else "one item tells"
        sentence = (
            f"It cannot be told: {number} nothing of others (the {_called(first)} of {first.name} moved by "
            f"{signed(first.change.mean, 1)} points); 3 repeats or more are needed."
        )
        return Answer(sentence=sentence, answered=False, tables=[_overview(whole)])
    whole = [change for change in whole if change.change.error is not None]
    main = [change for change in whole if change.evaluation == whole[0].evaluation]
    rest = [change for change in whole if change.evaluation != whole[0].evaluation]
    findings = [*([_sentence(rest)] if rest else []), *_of_categories(every), *_neutrality(main)]
    shown = [_overview(whole), *(_by_category(every, one) for one in _first_of_each(whole))]
    return Answer(sentence=_sentence(main), answered=True, findings=findings, tables=shown)


def changes(tables: Tables, evaluation: str) -> list[Change]:
    """The changes of every configuration, overall first and then by category; only runs with every item count.

    Args:
        tables: of the sweep.
        evaluation: a key of `SCORES`.
    """
    score, _ = SCORES[evaluation]
    items = tables.evaluation_items.filter(pl.col("evaluation") == evaluation, pl.col("score") == score)
    if items.is_empty():
        return []
    runs = tables.runs.filter(pl.col("status") == "ok").select("run", "cell", "environment", "panel", "name", "repeat")
    joined = items.join(runs, on="run", maintain_order="left")
    made: list[Change] = []
    for _, part in joined.group_by("cell", "environment", maintain_order=True):
        categories = part.filter(pl.col("repeat") == part["repeat"].min()).sort("item")["category"].to_numpy()
        before, after = (_matrix(part, column, len(categories)) for column in ("before", "after"))
        name = " · ".join(filter(None, [part["panel"][0], part["name"][0]]))
        for category in ("all", *dict.fromkeys(categories.tolist())):
            chosen = np.full(len(categories), True) if category == "all" else categories == category
            made.append(_change(name, evaluation, category, before[chosen], after[chosen]))
    return made


def _matrix(part: pl.DataFrame, column: str, num_items: int) -> Numbers:
    """A score, [items, seeds], of the runs that have every item."""
    by_seed = [seed.sort("item")[column].to_numpy() for _, seed in part.group_by("repeat", maintain_order=True)]
    return np.stack([scores for scores in by_seed if len(scores) == num_items], axis=1)


def _change(name: str, evaluation: str, category: str, before: Numbers, after: Numbers) -> Change:
    return Change(
        name=name,
        evaluation=evaluation,
        category=category,
        before=float(before.mean()),
        change=crossed_mean(after - before),
    )


def _why_nothing(tables: Tables) -> str:
    asked = tables.evaluations.filter(pl.col("evaluation").is_in(list(SCORES)))
    if not asked.is_empty():
        return "It cannot be told: the runs have no scores of items, whose files (evaluations.jsonl) are lost."
    if tables.runs.filter(pl.col("status") == "ok").is_empty():
        return "It cannot be told: no run is finished."
    return "It cannot be told: no run was scored; name crows-pairs or stereoset under evaluate in the config."


def _is_shown(change: Change, among: Sequence[Change]) -> bool:
    """Whether the interval of a change, corrected for the number that are looked at, is on one side of 0."""
    interval = change.change.interval(len(among))
    return interval is not None and not interval[0] <= 0 <= interval[1]


def _sentence(whole: Sequence[Change]) -> str:
    """The answer of one evaluation, over all its configurations."""
    shown = [change for change in whole if _is_shown(change, whole)]
    largest = max(shown or whole, key=lambda change: abs(change.change.mean))
    told = f"{largest.before:.1f} % to {largest.before + largest.change.mean:.1f} %, {_points(largest, len(whole))}"
    of = f"{largest.change.num_items:,} items × {largest.change.num_seeds} seeds"
    if len(whole) == 1:
        said = "changes" if shown else "is not shown to change"
        return f"Adaptation {said} the {_called(largest)} of {largest.name}: from {told}; {of}."
    if not shown:
        return (
            f"Adaptation is not shown to change the {_called(largest)} in any of {len(whole)} configurations: the "
            f"largest change is that of {largest.name}, from {told}; {of}."
        )
    return (
        f"Adaptation changes the {_called(largest)} in {len(shown)} of {len(whole)} configurations, most in "
        f"{largest.name}: from {told}; {of}."
    )


def _points(change: Change, number: int) -> str:
    """A change with its interval, corrected for the number that are looked at."""
    ends = change.change.interval(number)
    wider = f", corrected for {number}" if number > 1 else ""
    interval = f" (95 % interval {signed(ends[0], 1)} to {signed(ends[1], 1)}{wider})" if ends else ""
    return f"{signed(change.change.mean, 1)} points{interval}"


def _called(change: Change) -> str:
    return SCORES[change.evaluation][1]


def _of_categories(every: Sequence[Change]) -> list[str]:
    """Which categories are shown to change, a sentence per evaluation; corrected for all that were looked at."""
    sentences = []
    for evaluation, (_, called) in SCORES.items():
        parts = [change for change in every if change.evaluation == evaluation and change.category != "all"]
        parts = [change for change in parts if change.change.error is not None and change.change.num_items >= LEAST]
        shown = [change for change in parts if _is_shown(change, parts)]
        if parts and not shown:
            sentences.append(
                f"No category's {called} is shown to change, corrected for the {len(parts)} that were looked at."
            )
        if shown:
            named = "; ".join(f"{one.category} in {one.name}, {_points(one, len(parts))}" for one in shown[:5])
            of = f"{len(shown)} of {len(parts)} categories in configurations"
            sentences.append(f"The {called} of {of} is shown to change: {named}.")
    return sentences


def _neutrality(whole: Sequence[Change]) -> list[str]:
    """Whether what changed is nearer to a model that prefers neither."""
    shown = [change for change in whole if _is_shown(change, whole)]
    nearer = [change for change in shown if _distance(change.before + change.change.mean) < _distance(change.before)]
    if not shown:
        return []
    where = f"nearer to {NEUTRAL:.0f} %, where a model prefers neither, in {len(nearer)} of {len(shown)}"
    return [f"The changed score is {where}; what the texts are about may do that without any intention."]


def _distance(score: float) -> float:
    return abs(score - NEUTRAL)


def _first_of_each(whole: Sequence[Change]) -> list[Change]:
    """For each evaluation the configuration that changed most."""
    best: dict[str, Change] = {}
    for change in sorted(whole, key=lambda change: -abs(change.change.mean)):
        best.setdefault(change.evaluation, change)
    return [best[name] for name in SCORES if name in best]


HEADINGS = {"Before": "", "After": "", "Change, points": "", "Items": "", "Seeds": ""}


def _overview(whole: Sequence[Change]) -> Table:
    rows = [[f"{change.name} · {_called(change)}", *_entries(change)] for change in whole]
    title = "How often the model prefers the stereotype, in percent"
    return Table(title=title, headings={"Configuration": "text", **HEADINGS}, rows=rows)


def _by_category(every: Sequence[Change], of: Change) -> Table:
    parts = [change for change in every if (change.name, change.evaluation) == (of.name, of.evaluation)]
    rows = [[change.category, *_entries(change)] for change in parts]
    title = f"By category: {_called(of)} of {of.name}, which changed most"
    return Table(title=title, headings={"Category": "text", **HEADINGS}, rows=rows)


def _entries(change: Change) -> list[str | tuple[str, str]]:
    value = change.change
    ends = value.interval()
    return [
        f"{change.before:.1f}",
        f"{change.before + value.mean:.1f}",
        (signed(value.mean, 1), f"[{signed(ends[0], 1)}, {signed(ends[1], 1)}]" if ends else "no interval"),
        f"{value.num_items:,}",
        str(value.num_seeds),
    ]
