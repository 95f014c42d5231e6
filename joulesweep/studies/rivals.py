"""Whether GreenTrainer saves more than its rivals: a sampled backward pass, a cache of frozen layers, frozen layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import by_method, finished, method_words, why_not_ranked
from joulesweep.analyse.comparisons import BEYOND, OPEN, WITHIN, Comparisons, against_margin, asked
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies import equal_cost
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import digits, listed, percent
from joulesweep.studies import Answer, Entry, Table

QUESTION = "At equal quality and at equal cost, does GreenTrainer save more joules than its rivals?"
PROTOCOL = (
    "Methods vary, all else is the same; each is set to about two thirds of full training's work. GreenTrainer's cost "
    "and quality are divided by each rival's, paired by seed. It saves more where its cost is shown lower and its "
    "quality is shown to be worse by no more than the sweep's margin, and less where that holds of the rival. The cost "
    "is measured joules; without them FLOPs, which leave out what is no matrix product and what waits. Losses at equal "
    "cost, between the ends of epochs, stand below."
)
SOURCE = "Huang et al. 2024 (arXiv 2309.13192), which compares with LoRA and frozen layers, and by FLOPs and hours"
OURS = "greentrainer"
RIVALS = ("sampled-backward", "freeze-cache", "freeze-bottom")

#: What is said of rivals by verdict; each is followed by their names.
WORDS = {
    "saves": "saves more than",
    "loses": "saves less than",
    "worse": "costs less but is worse by more than the margin than",
    "better": "costs more but is better by more than the margin than",
    "cheaper": "costs less, at a quality that cannot be told within the margin, than",
    "dearer": "costs more, at a quality that cannot be told within the margin, than",
    "same": "is not shown to cost more or less than",
}


@dataclass(frozen=True, kw_only=True)
class _Against:
    """GreenTrainer against a rival.

    Attributes:
        rival: a row of the cells table.
        cost: GreenTrainer's cost over the rival's; its interval is known.
        quality: the same of the measure of quality; None if it is not known.
        verdict: a key of `WORDS`.
    """

    rival: Row
    cost: Ratio
    quality: Ratio | None
    verdict: str


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """Compare each GreenTrainer with the rivals that differ from it in the method alone."""
    margin, measure = asked(config)
    comparisons = Comparisons(tables.runs)
    clauses, made, reasons, groups = [], list[Table](), list[str](), by_method(finished(tables.cells, "window_s_mean"))
    for name, cells in groups:
        ours, rivals = _of(cells, [OURS]), _of(cells, RIVALS)
        if not (ours and rivals):
            continue
        quantity, basis = _quantity(cells)
        for row in ours:
            against = [one for rival in rivals if (one := _against(row, rival, quantity, comparisons, margin, measure))]
            if against:
                where = f"{name}: " if len(groups) > 1 else ""
                clauses.append(f"{where}by {basis}, {_clause(row, against)}")
                made.append(_table(f"{name}, {method_words(row)}: over each rival, by {basis}", measure, against))
            else:
                reasons.append(f"{method_words(row)} shares no two seeds with known {basis} with a rival")
    if not clauses:
        return Answer(sentence=_lacking(reasons), answered=False)
    text = f"At a margin of {percent(margin)} % in {measure.replace('_', ' ')}, {'; '.join(clauses)}."
    return Answer(sentence=text, answered=True, findings=_findings(tables, groups, comparisons), tables=made)


def _lacking(reasons: Sequence[str]) -> str:
    """Why there is no answer, and what it takes."""
    if reasons:
        return f"It cannot be told: {reasons[0]}."
    return f"It takes finished runs of {OURS} and of {listed(RIVALS, 'or')} that differ in nothing else."


def _of(cells: pl.DataFrame, names: Sequence[str]) -> list[Row]:
    rows = {name: list(cells.filter(method=name).iter_rows(named=True)) for name in names}
    return [row for name in names for row in rows[name]]


def _quantity(cells: pl.DataFrame) -> tuple[str, str]:
    """The column of the runs that is the cost, and its name with why it is not joules."""
    reason = why_not_ranked(cells)
    if reason is None and cells["energy_doubt"].null_count() < cells.height:
        reason = "some joules are doubtful"
    return ("energy_j", "measured joules") if reason is None else ("executed_flops", f"FLOPs since {reason}")


def _against(
    ours: Row, rival: Row, quantity: str, comparisons: Comparisons, margin: float, measure: str
) -> _Against | None:
    """Compare with a rival; None without an interval of the cost."""
    cost = comparisons.ratio(ours, rival, quantity)
    if cost is None or cost.low is None or cost.high is None or cost.n < 2:
        return None
    verdict = _verdict(cost, comparisons.worse(ours, rival, measure), margin)
    return _Against(rival=rival, cost=cost, quality=comparisons.ratio(ours, rival, measure), verdict=verdict)


def _verdict(cost: Ratio, worse: Ratio | None, margin: float) -> str:
    """A key of `WORDS`."""
    if cost.verdict not in ("lower", "higher"):
        return "same"
    is_lower = cost.verdict == "lower"
    low, high = (None, None) if worse is None else (worse.low, worse.high)
    if low is not None and high is not None and not is_lower:
        low, high = 1 / high, 1 / low  # of the rival, which costs less
    words = {WITHIN: ("saves", "loses"), BEYOND: ("worse", "better"), OPEN: ("cheaper", "dearer")}
    return words[against_margin(low, high, margin)][0 if is_lower else 1]


def _clause(row: Row, against: Sequence[_Against]) -> str:
    """The verdicts on one GreenTrainer: "greentrainer(rho=0.7) saves more than full (0.8 [0.7, 0.9] of its …)"."""
    parts = []
    for verdict, words in WORDS.items():
        names = [
            f"{method_words(one.rival)} ({_number(one.cost)} of its cost)" for one in against if one.verdict == verdict
        ]
        if names:
            parts.append(f"{words} {listed(names)}")
    return f"{method_words(row)} {', '.join(parts)} (n = {min(one.cost.n for one in against)})"


def _number(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return digits(ratio.ratio)
    return f"{digits(ratio.ratio)} [{digits(ratio.low)}, {digits(ratio.high)}]"


def _findings(tables: Tables, groups: Sequence[tuple[str, pl.DataFrame]], comparisons: Comparisons) -> list[str]:
    """What each method takes of full training's cost, and the losses at equal cost, a sentence each."""
    sentences = []
    for name, cells in groups:
        whole, others = _of(cells, ["full"]), _of(cells, [OURS, *RIVALS])
        quantity, basis = _quantity(cells)
        ratios = [(method_words(row), comparisons.ratio(row, whole[0], quantity)) for row in others if whole]
        known = [f"{label} {_number(ratio)}" for label, ratio in ratios if ratio is not None]
        if known:
            sentences.append(f"{name}: of full training's cost, by {basis}, take {', '.join(known)}.")
    for group in equal_cost.comparisons(tables):
        unit = {"energy_j": "joules", "cpu_s": "CPU-seconds"}.get(group.by, "seconds")
        sentences += [f"{group.name}, at equal {unit}: {one}" for one in group.sentences]
    return sentences


def _table(title: str, measure: str, against: Sequence[_Against]) -> Table:
    rows: list[list[Entry]] = [
        [
            method_words(one.rival),
            _entry(one.cost),
            "not known" if one.quality is None else _entry(one.quality),
            f"{OURS} {WORDS[one.verdict].removesuffix(' than')}",
        ]
        for one in against
    ]
    return Table(
        title=title,
        headings={"Rival": "text", "Cost": "", measure.replace("_", " ").capitalize(): "", "Verdict": "text wrap"},
        rows=rows,
    )


def _entry(ratio: Ratio) -> Entry:
    text, _, interval = _number(ratio).partition(" ")
    return (text, interval) if interval else text
