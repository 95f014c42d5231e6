"""Decide which configuration to use: the cheapest whose quality is shown to be within a margin of the best.

The rule. A cell is within the margin, beyond it, or cannot be told yet (`comparisons.qualities`). Of those within, take
the one with the least joules if every cell has measured joules of the same kinds of device, else the one with the least
seconds. A cell that takes no shown difference and at most `TIE` more is a tie; of ties the fastest is taken. Integrated
and estimated joules never decide, and where joules do, cells with doubtful joules are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import comparable_groups, doubtful, finished, undoubted, why_not_ranked
from joulesweep.analyse.comparisons import (
    BEYOND,
    OPEN,
    RATIOS,
    WITHIN,
    Comparisons,
    Key,
    Quality,
    asked,
    chosen_ratio,
    key_of,
    memory_quantity,
    not_above,
    qualities,
)
from joulesweep.analyse.statistics import Fit, Ratio, repeats_to_tell, summary
from joulesweep.analyse.tables import Row, Tables
from joulesweep.axes.strategy import spread
from joulesweep.core.quantities import percent, signed_percent
from joulesweep.reference.footprint import J_PER_KWH

TIE = 0.03  # more cost, by the estimate, that a faster cell may have if no difference is shown


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a configuration may take at most; None: anything.

    Attributes:
        memory_bytes: peak memory of the fullest GPU, or of the host where no GPU computed.
        time_s: seconds of a training.
        kwh: measured energy of a training.
        devices: GPUs, or processes on the CPU.
    """

    memory_bytes: float | None = None
    time_s: float | None = None
    kwh: float | None = None
    devices: int | None = None

    def met_by(self, row: Row) -> bool:
        """Whether a row of the cells table is known to meet every limit."""
        joules = row["energy_j_mean"] if row["energy_status"] == "measured" else None
        pairs = (
            (self.memory_bytes, row[f"{memory_quantity(row)}_mean"]),
            (self.time_s, row["window_s_mean"]),
            (self.kwh, None if joules is None else joules / J_PER_KWH),
            (self.devices, row["devices"]),
        )
        return all(most is None or (value is not None and value <= most) for most, value in pairs)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A configuration for one or more purposes, with its ratios to the baseline.

    Attributes:
        roles: of "recommended", "least energy", "fastest", "smallest memory".
        row: its row of the cells table.
        quality: how far it is from the best.
        ratios: energy, time, memory, loss over the baseline's; None for the baseline, and where not comparable. The
            interval of the quantity that it was chosen by is corrected for the choice.
    """

    roles: tuple[str, ...]
    row: Row
    quality: Quality
    ratios: dict[str, Ratio | None]


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What the sweep can tell apart.

    Attributes:
        repeats: behind a typical comparison.
        quality: half-width of the interval of a ratio of two cells' quality, as a fraction.
        cost: of their cost, likewise; None where nothing tells its noise.
    """

    repeats: int
    quality: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The recommendation among comparable configurations.

    Attributes:
        panel: model, data set and hardware; empty if the sweep has one of each.
        baseline: the row of the cells table that everything is compared with.
        baseline_why: why it is not the grid's first configuration; None if it is.
        by: the cost that decides: "energy_j" or "window_s".
        unranked: why the cost is not joules; None if it is.
        doubtful: a line per configuration left out: its name, and why its joules are doubtful.
        margin: how much worse than the best is no worse, as a fraction.
        measure: of quality, a column of the runs table.
        best: the row of the best quality.
        picks: the recommended one first; empty if no configuration meets the limits.
        ties: names of others within the margin whose cost is not shown to be higher than the recommended one's.
        verdicts: how many cells are within, beyond, cannot be told yet.
        told: whether intervals decide; False with one repeat, where estimates do.
        resolution: what the sweep can tell apart; None with one repeat.
        settle: what would tell the open cells that are cheaper than the recommended one; None where there are none.
        sure: what to know about the noise, a sentence each.
        num_cells: finished configurations that were compared.
        num_over: finished configurations beyond the limits.
    """

    panel: str
    baseline: Row
    baseline_why: str | None
    by: str
    unranked: str | None
    doubtful: list[str]
    margin: float
    measure: str
    best: Row
    picks: list[Pick]
    ties: list[str]
    verdicts: dict[str, int]
    told: bool
    resolution: Resolution | None
    settle: str | None
    sure: list[str]
    num_cells: int
    num_over: int

    @property
    def recommended(self) -> Pick | None:
        """The recommended configuration; None if none meets the limits."""
        return self.picks[0] if self.picks else None


def decisions(
    tables: Tables,
    config: Mapping[str, Any],
    limits: Limits | None = None,
    margin: float | None = None,
    comparisons: Comparisons | None = None,
) -> list[Decision]:
    """Decide in every panel that has a finished run.

    Args:
        tables: of the sweep.
        config: the manifest's.
        limits: what a configuration may take.
        margin: instead of the config's.
        comparisons: of the runs of the tables, if they were made before.
    """
    asked_margin, measure = asked(config)
    comparisons = comparisons or Comparisons(tables.runs)
    margin = asked_margin if margin is None else margin
    decided = [
        _decided(comparisons, panel, part, measure, margin, limits or Limits())
        for panel, part in comparable_groups(finished(tables.cells, "window_s_mean"))
    ]
    return [decision for decision in decided if decision is not None]


def _decided(
    comparisons: Comparisons,
    panel: str,
    cells: pl.DataFrame,
    measure: str,
    margin: float,
    limits: Limits,
) -> Decision | None:
    """The decision of one panel; None if none of its finished cells has the measure of quality."""
    baseline = next(row for row in cells.to_dicts() if row["name"] == row["compared_with"])
    cells = cells.drop_nulls("quality_verdict")
    reason = why_not_ranked(cells)
    by, left_out = "window_s" if reason else "energy_j", doubtful(cells)
    quality_fit, cost_fit = comparisons.fit(panel, measure), comparisons.fit(panel, by)
    if quality_fit is None or cost_fit is None:
        return None
    compared = (cells if reason else undoubted(cells)).to_dicts()
    compared = [row for row in compared if key_of(row) in quality_fit and key_of(row) in cost_fit]
    if not compared:
        return None
    complete = [row for row in compared if row["num_ok"] == row["num_runs"]]
    rows = complete or compared  # never recommend what diverged or ran out of memory
    allowed = [row for row in rows if limits.met_by(row)]
    verdicts = qualities(quality_fit, measure, margin, {key_of(row) for row in allowed})
    told = quality_fit.variance is not None
    within = [row for row in allowed if _is_within(verdicts[key_of(row)], margin, told)]
    # Where too much noise shows none to be within, not even the best, the best is taken.
    within = within or sorted(allowed, key=lambda row: verdicts[key_of(row)].above_best)[:1]
    picks = _picks(comparisons, within, verdicts, by, baseline)
    chosen = picks[0].row if picks else None
    return Decision(
        panel=panel,
        baseline=baseline,
        baseline_why=baseline["compared_why"],
        by=by,
        unranked=reason,
        doubtful=left_out,
        margin=margin,
        measure=measure,
        best=min(allowed or rows, key=lambda row: verdicts[key_of(row)].above_best if allowed else row["above_best"]),
        picks=picks,
        ties=[] if chosen is None else _ties(cost_fit, chosen, within),
        verdicts={
            word: sum(verdict.verdict == word for verdict in verdicts.values()) for word in (WITHIN, BEYOND, OPEN)
        },
        told=told,
        resolution=_resolution(quality_fit, cost_fit),
        settle=None if chosen is None else _settled_by(quality_fit, verdicts, allowed, chosen, by, margin),
        sure=_sure(quality_fit, cost_fit, rows, by),
        num_cells=len(allowed),
        num_over=len(rows) - len(allowed),
    )


def _is_within(quality: Quality, margin: float, told: bool) -> bool:
    """Whether a cell may be recommended: by its verdict, or with one repeat by the estimate."""
    return quality.verdict == WITHIN if told else quality.above_best <= margin


def _picks(
    comparisons: Comparisons, within: list[Row], verdicts: dict[Key, Quality], by: str, baseline: Row
) -> list[Pick]:
    """The recommended cell, and the best of those within the margin for each purpose."""
    if not within:
        return []
    chosen = _cheapest(comparisons, within, by)
    roles: dict[Key, list[str]] = {key_of(chosen): ["recommended"]}
    by_key = {key_of(row): row for row in within}
    purposes = [("fastest", "window_s"), ("smallest memory", memory_quantity(chosen))]
    if by == "energy_j":
        purposes.insert(0, ("least energy", by))
    for role, quantity in purposes:
        known = [row for row in within if row[f"{quantity}_mean"] is not None]
        if known:
            least = min(known, key=lambda row: (row[f"{quantity}_mean"], row["window_s_mean"]))
            roles.setdefault(key_of(least), []).append(role)
    keys = list(by_key)
    return [
        Pick(
            roles=tuple(names),
            row=by_key[key],
            quality=verdicts[key],
            ratios=_ratios(comparisons, by_key[key], baseline, keys, by),
        )
        for key, names in roles.items()
    ]


def _cheapest(comparisons: Comparisons, within: list[Row], by: str) -> Row:
    """The cell with the least cost; of ties the fastest."""
    least = min(within, key=lambda row: row[f"{by}_mean"])
    fit = comparisons.fit(least["panel"], by)
    if fit is None or by == "window_s":
        return least
    near = set(not_above(fit, key_of(least), [key_of(row) for row in within], 0.975))
    most = (1 + TIE) * least[f"{by}_mean"]
    ties = [row for row in within if row is least or (key_of(row) in near and row[f"{by}_mean"] <= most)]
    return min(ties if fit.variance is not None else [least], key=lambda row: row["window_s_mean"])


def _ratios(
    comparisons: Comparisons, row: Row, baseline: Row, among: Sequence[Key], by: str
) -> dict[str, Ratio | None]:
    """A pick's ratios to the baseline, with intervals corrected where it was chosen by the quantity."""
    ratios = comparisons.ratios(row, baseline)
    for name in ("energy", "time", "memory"):
        quantity = RATIOS[name] or memory_quantity(row)
        fit = comparisons.fit(row["panel"], quantity)
        if ratios[name] is not None and fit is not None:
            ratios[name] = chosen_ratio(fit, key_of(row), key_of(baseline), among)
    if row is baseline or key_of(row) == key_of(baseline):
        return dict.fromkeys(ratios)
    return ratios


def _ties(fit: Fit, chosen: Row, within: list[Row]) -> list[str]:
    """The names of the others whose cost is not shown to be higher."""
    near = set(not_above(fit, key_of(chosen), [key_of(row) for row in within], 0.975))
    return [row["name"] for row in within if row is not chosen and key_of(row) in near]


def _resolution(quality_fit: Fit, cost_fit: Fit) -> Resolution | None:
    of_quality, of_cost = quality_fit.resolution(), cost_fit.resolution()
    if of_quality is None:
        return None
    return Resolution(repeats=of_quality[1], quality=of_quality[0], cost=None if of_cost is None else of_cost[0])


def _settled_by(
    fit: Fit, verdicts: dict[Key, Quality], rows: list[Row], chosen: Row, by: str, margin: float
) -> str | None:
    """How many repeats would tell the open cells that are cheaper than the chosen one."""
    cost = f"{by}_mean"
    open_rows = [row for row in rows if verdicts[key_of(row)].verdict == OPEN and row[cost] < chosen[cost]]
    if not open_rows:
        return None
    several = len(open_rows) > 1
    subject = (
        f"{len(open_rows)} configurations that cannot be told yet are"
        if several
        else f"{open_rows[0]['name']}, which cannot be told yet, is"
    )
    begin = f"{subject} cheaper"
    if fit.variance is None:
        return f"{begin}: with grid.repeats of 3 or more, the noise and so the verdicts can be told"
    needed = [
        repeats_to_tell(abs(verdicts[key_of(row)].above_best - margin), fit.variance, max(2, len(fit.keys)))
        for row in open_rows
    ]
    told = sorted(number for number in needed if number is not None)
    if not told:
        return f"{begin}, too near the margin to tell with 20 repeats"
    if len(told) < len(needed):
        return f"{begin}: grid.repeats of {told[-1]} would tell {len(told)} of them, if the estimates hold"
    return f"{begin}: grid.repeats of {told[-1]} would tell {'them' if several else 'it'}, if the estimates hold"


def _sure(quality_fit: Fit, cost_fit: Fit, rows: list[Row], by: str) -> list[str]:
    """What to know about the noise, and the fallback where it is unequal."""
    names = {key_of(row): row["name"] for row in rows}
    sentences = []
    for what, fit in (("quality", quality_fit), ("energy" if by == "energy_j" else "time", cost_fit)):
        sentences += [f"Of {what}, {said}" for said in summary(fit, lambda key: names.get(key, "another cell"))]
        if fit.unequal is not None:
            sentences[-1] += ": intervals use each configuration's own noise, drawn toward the others'"
    return sentences


def configuration(row: Row) -> str:
    """A cell in plain words: 2 GPUs with DDP, bf16-mixed, batch 32."""
    kind = "GPU" if row["gpus"] else "process"
    if row["strategy"] == "single":
        place = f"one {kind}" if row["gpus"] else "one process on the CPU"
    else:
        nodes = f" on {row['nodes']} nodes" if (row["nodes"] or 1) > 1 else ""
        several = f"{kind}{'s' if kind == 'GPU' else 'es on the CPU'}{nodes}"
        place = f"{row['devices']} {several} with {row['strategy'].upper()}"
    # What the name says beside strategy, precision and batch: the method, and the axes that vary.
    words = f" {row['setup']} ".partition(f" {spread(row['strategy'], row['devices'], row['nodes'])} ")
    method, rest = words[0].strip(), words[2].split()[1:]
    return ", ".join(filter(None, [method, place, row["precision"], *rest, f"batch {row['batch']}"]))


def change(ratio: Ratio | None, less: str, more: str, same: str) -> str | None:
    """A ratio in words: 60 % less energy [59, 60].

    Args:
        ratio: to the baseline.
        less: words for a ratio below 1: less energy.
        more: words for one above: more energy.
        same: what no difference is shown in: energy.
    """
    if ratio is None:
        return None
    size, word = percent(ratio.ratio - 1), less if ratio.ratio < 1 else more
    if ratio.low is None or ratio.high is None:
        return f"{size} % {word} (one repeat, no interval)"
    low, high = ratio.low - 1, ratio.high - 1
    if ratio.verdict not in ("higher", "lower"):
        ends = f"[{signed_percent(low)}, {signed_percent(high)}]"
        return f"no difference in {same} is shown ({signed_percent(ratio.ratio - 1)} % {ends})"
    return f"{size} % {word} [{', '.join(map(percent, sorted((abs(low), abs(high)))))}]"


def sentence(decision: Decision) -> str:
    """The decision in one sentence, of page, terminal and `joulesweep recommend`."""
    pick, where = decision.recommended, f"{decision.panel}: " if decision.panel else ""
    if pick is None:
        return f"{where}No finished configuration meets the limits."
    begin = f"{where}Train with {configuration(pick.row)}"
    parts = []
    if key_of(pick.row) == key_of(decision.baseline):
        parts.append("it is the baseline")
    else:
        than = f" than {configuration(decision.baseline)}"
        energy = change(pick.ratios["energy"], "less energy", "more energy", "energy")
        time = change(pick.ratios["time"], "less time", "more time", "time")
        told = [words for words in ((energy, time) if decision.by == "energy_j" else (time,)) if words]
        parts += [_taking(told, than)] if told else []
    parts.append(_quality_words(decision, pick))
    return f"{begin}: {', and '.join(parts)}."


def _taking(told: list[str], than: str) -> str:
    shown = [words for words in told if not words.startswith("no difference")]
    others = [words for words in told if words.startswith("no difference")]
    first = [f"it takes {' and '.join(shown)}{than}"] if shown else []
    return "; ".join([*first, *(words if first else f"{words} from{than.removeprefix(' than')}" for words in others)])


def _quality_words(decision: Decision, pick: Pick) -> str:
    what = "loss" if decision.measure == "validation_loss" else decision.measure.replace("_", " ")
    side = "above" if what == "loss" else "below"
    if key_of(pick.row) == key_of(decision.best):
        return f"its {what} is the {'lowest' if what == 'loss' else 'best'} of {decision.num_cells}"
    if not decision.told:
        return f"its {what} is {percent(pick.quality.above_best)} % {side} the best, by one repeat"
    return f"its {what} is shown to be no more than {100 * decision.margin:g} % {side} the best"
