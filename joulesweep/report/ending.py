"""The answer of a sweep as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from joulesweep import studies
from joulesweep.analyse import collect, ledger, tables
from joulesweep.analyse.comparisons import BEYOND, OPEN, WITHIN, key_of
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies.decision import Decision, Limits, Pick, decisions, sentence
from joulesweep.analyse.studies.payback import payback, words
from joulesweep.analyse.tables import Row
from joulesweep.core.errors import UserError
from joulesweep.core.quantities import one, percent, signed_percent
from joulesweep.report import numbers
from joulesweep.report.numbers import FormattedNumber

NOTHING = "There is no answer yet: no run has finished, or none has the measure that answer.quality names."
#: Columns below a decision's sentence: heading, ratio of a pick, and the number itself.
COLUMNS: tuple[tuple[str, Callable[[Row], FormattedNumber]], ...] = (
    ("energy", numbers.joules),
    ("time", lambda row: numbers.interval(row, "window_s", "s")),
    ("memory", numbers.memory),
)


def lines(folder: Path) -> list[str]:
    """A sentence per group of comparable configurations, one per study, and one on what the sweep itself took.

    Args:
        folder: results/<sweep>, or its folder `partial`.

    Raises:
        UserError: the tables or the manifest cannot be read.
    """
    read = tables.read(folder / "tables")
    of_sweep = config(folder)
    decided, answers = decisions(read, of_sweep), studies.answers(read, of_sweep)
    told = [f"{studies.load(name).QUESTION} {answer.sentence}" for name, answer in answers.items()]
    return [*(sentence(decision) for decision in decided), *_paid_back(decided, read), *told] or [NOTHING]


def _paid_back(decided: Sequence[Decision], read: tables.Tables) -> list[str]:
    """When a sweep with one group of comparable configurations is paid back; nothing where that is unknown."""
    if len(decided) != 1:
        return []
    paid = payback(decided[0], ledger.spent(read.attempts))
    return [] if paid is None else [words(paid, one(paid.spent, paid.unit))]


def made(folder: Path, limits: Limits | None = None, margin: float | None = None) -> list[Decision]:
    """The decisions of a sweep from its tables.

    Args:
        folder: results/<sweep>, or its folder `partial`.
        limits: what a configuration may take.
        margin: instead of the config's.

    Raises:
        UserError: the tables or the manifest cannot be read.
    """
    read = tables.read(folder / "tables")
    return decisions(read, config(folder), limits, margin)


def config(folder: Path) -> Mapping[str, Any]:
    """The config in the manifest of a sweep.

    Args:
        folder: results/<sweep>, or its folder `partial`.

    Raises:
        UserError: the manifest is missing or cannot be read.
    """
    of_sweep = folder.parent if folder.name == "partial" else folder
    if not (of_sweep / "grid.json").exists():
        raise UserError(f"{of_sweep}: no sweep has begun there: it has no grid.json")
    read: Mapping[str, Any] = collect.read_grid(of_sweep / "grid.json")["config"]
    return read


def told(decision: Decision) -> list[str]:
    """A decision in lines: the sentence, a table of the picks, and how sure it is."""
    told = [sentence(decision)]
    if decision.picks:
        told += ["", *_aligned(list(_table(decision)))]
    return [*told, "", *_how_sure(decision)]


def _table(decision: Decision) -> Iterator[list[str]]:
    yield ["", "configuration", *(name for name, _ in COLUMNS), decision.measure.replace("_", " ")]
    for pick in decision.picks:
        roles = [*pick.roles, *(["baseline"] if key_of(pick.row) == key_of(decision.baseline) else [])]
        yield [", ".join(roles), pick.row["name"], *_costs(pick), _quality(decision, pick)]
    if all(key_of(pick.row) != key_of(decision.baseline) for pick in decision.picks):
        row = decision.baseline
        yield ["baseline", row["name"], *(number(row)[0] for _, number in COLUMNS), ""]


def _costs(pick: Pick) -> list[str]:
    return [f"{number(pick.row)[0]}{_change(pick.ratios[name])}" for name, number in COLUMNS]


def _change(ratio: Ratio | None) -> str:
    """A ratio to the baseline as percent with its interval."""
    if ratio is None:
        return ""
    mean, *ends = [signed_percent(end - 1) for end in (ratio.ratio, ratio.low, ratio.high) if end is not None]
    return f" ({mean} %{f' [{ends[0]}, {ends[1]}]' if ends else ''})"


def _quality(decision: Decision, pick: Pick) -> str:
    apart = f"{percent(pick.quality.above_best)} % from the best" if pick.quality.above_best else "the best"
    return f"{apart}, {pick.quality.verdict}" if decision.told and pick.quality.above_best else apart


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _how_sure(decision: Decision) -> Iterator[str]:
    margin, verdicts = f"{100 * decision.margin:g} %", decision.verdicts
    if decision.told:
        yield (
            f"Of {decision.num_cells} configurations {verdicts[WITHIN]} are shown to be within {margin} of the best, "
            f"{verdicts[BEYOND]} beyond it, {verdicts[OPEN]} cannot be told yet."
        )
    else:
        yield "One repeat cannot tell a difference from chance."
    if decision.resolution is not None:
        cost = decision.resolution.cost
        of_cost = "" if cost is None else f", ±{percent(cost)} % of {'energy' if decision.by == 'energy_j' else 'time'}"
        of_quality = f"±{percent(decision.resolution.quality)} % of quality"
        yield f"{decision.resolution.repeats} repeats resolve {of_quality}{of_cost}."
    if decision.unranked:
        yield f"Ranked by time: {decision.unranked}."
    if decision.baseline_why:
        yield f"The baseline is not the grid's first configuration: {decision.baseline_why}."
    if decision.num_over:
        yield f"{decision.num_over} finished configurations are beyond the limits, or not known to meet them."
    yield from (f"{text}." for text in [decision.settle, *decision.sure] if text)
