"""Whether claims from single runs hold with repeats, and how often single runs tell the wrong order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep.analyse.comparisons import asked, key_of
from joulesweep.analyse.statistics import Contrast, Fit, repeats_for_power, times
from joulesweep.analyse.studies.published import ClaimedPairs, claimed_pairs, rows
from joulesweep.analyse.studies.single_runs import single_runs
from joulesweep.analyse.tables import Tables
from joulesweep.core.quantities import percent
from joulesweep.studies import Answer, Table

QUESTION = "Do the paper's claims, each from a single run, hold with repeats?"
PROTOCOL = (
    "The paper's main configurations run with five seeds. A claimed gain is confirmed if some pair of configurations "
    "that the paper compares is shown to reach it, less a tenth, since its figures are rounded and its boards are "
    "others; it is contradicted if every pair is shown to fall short. That quality is not lost is confirmed if every "
    "pair is shown within the margin, and contradicted if some pair is shown beyond it. Bounds are one-sided at 95 %, "
    "paired by seed, at 95 % over all pairs where one of many decides. Else the claim is not decided with these seeds."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433): one run of each; which pair a headline belongs to is not known"
#: What each claim says, as a ratio turned so that above 1 is a gain: the claimed gain, or None for "no loss".
GAINS = {"training speed": 3.5, "memory": 1 / 0.8, "power": 1 / 0.5, "validation accuracy": None}
LESS = ("memory", "power")  # claims of which a lower ratio is a gain
ROUNDED = 0.1  # share by which a gain may fall short of a rounded figure
CONFIRMED, CONTRADICTED, OPEN, UNKNOWN = "confirmed", "contradicted", "not decided", "not judged"
RISK = 0.05
POWER = 0.8
ORDERS = {"energy_j": "measured joules", "window_s": "seconds"}  # and the measure of quality


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: a key of `GAINS`.
        figure: how the paper puts it.
        verdict: confirmed, contradicted, not decided, not judged.
        extreme: the pair that decides, turned so that above 1 is a gain: the largest gain, or the worst quality.
        where: the configurations of that pair.
        num_pairs: pairs that were looked at.
        seeds: that find the claimed difference with a power of 80 %; None where it takes too many, or unknown.
    """

    claim: str
    figure: str
    verdict: str
    extreme: Contrast | None
    where: str
    num_pairs: int
    seeds: int | None


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """How many of the claims hold, and how often a single run would have told the wrong order."""
    margin, measure = asked(config)
    figures = {row["quantity"]: row["figure"] for row in rows("maina.csv")}
    pairs = claimed_pairs(tables)
    verdicts = [_judged(pairs, claim, figures.get(claim, ""), margin) for claim in GAINS]
    decided = [one for one in verdicts if one.verdict in (CONFIRMED, CONTRADICTED)]
    orders, findings = _orders(tables, measure), [_needed(one, margin) for one in verdicts if one.extreme is not None]
    if all(one.verdict == UNKNOWN for one in verdicts):
        why = (
            "no pair of finished configurations that the paper compares (dp and ddp, fp32 and fp16-mixed) has two "
            "seeds or more in common"
        )
        return Answer(
            sentence=f"Whether the paper's claims hold cannot be told: {why}.", answered=False, findings=orders
        )
    return Answer(
        sentence=_sentence(verdicts, orders),
        answered=bool(decided),
        findings=[*orders[1:], *findings],
        tables=[_table(verdicts)],
    )


def _judged(compared: Sequence[ClaimedPairs], claim: str, figure: str, margin: float) -> Verdict:
    """Judge one claim over all pairs of configurations that the paper compares."""
    contrasts: list[tuple[Contrast, str]] = []
    judged_by: Fit | None = None
    for one in compared:
        for a, b in one.pairs if one.claim == claim else ():
            fit = one.comparisons.fit(a["panel"], one.column)
            contrast = None if fit is None else fit.contrast({key_of(a): 1.0, key_of(b): -1.0})
            if fit is None or contrast is None or contrast.error is None or fit.variance is None:
                continue
            turned = contrast.inverse() if claim in LESS else contrast
            contrasts.append((turned, f"{a['name']} over {b['name']}"))
            judged_by = fit
    if judged_by is None or judged_by.variance is None:
        return Verdict(claim=claim, figure=figure, verdict=UNKNOWN, extreme=None, where="", num_pairs=0, seeds=None)
    gain = GAINS[claim]
    seeds = repeats_for_power(math.log(gain or 1 + margin), judged_by.variance, len(judged_by.keys), POWER)
    every = [contrast for contrast, _ in contrasts]
    verdict = _no_loss(every, margin) if gain is None else _reached(every, gain)
    extreme, where = (min if gain is None else max)(contrasts, key=lambda one: one[0].log)
    return Verdict(
        claim=claim,
        figure=figure,
        verdict=verdict,
        extreme=extreme,
        where=where,
        num_pairs=len(every),
        seeds=seeds,
    )


def _bounds(contrast: Contrast, confidence: float) -> tuple[float, float]:
    bounds = contrast.bounds(confidence)
    assert bounds is not None  # those without noise were left out
    return bounds


def _reached(contrasts: Sequence[Contrast], gain: float) -> str:
    """Whether some pair gains as much as claimed."""
    least = gain * (1 - ROUNDED)
    if any(_bounds(one, 1 - RISK / len(contrasts))[0] >= least for one in contrasts):
        return CONFIRMED
    return CONTRADICTED if all(_bounds(one, 1 - RISK)[1] < least for one in contrasts) else OPEN


def _no_loss(contrasts: Sequence[Contrast], margin: float) -> str:
    """Whether no pair loses more than the margin."""
    if all(_bounds(one, 1 - RISK)[0] >= 1 - margin for one in contrasts):
        return CONFIRMED
    return CONTRADICTED if any(_bounds(one, 1 - RISK / len(contrasts))[1] < 1 - margin for one in contrasts) else OPEN


def _sentence(verdicts: Sequence[Verdict], orders: Sequence[str]) -> str:
    seeds = max(one.extreme.n for one in verdicts if one.extreme is not None)
    parts = []
    for kind in (CONFIRMED, CONTRADICTED, OPEN, UNKNOWN):
        of_kind = [one for one in verdicts if one.verdict == kind]
        if of_kind:
            parts.append(f"{len(of_kind)} {kind} ({'; '.join(_worded(one) for one in of_kind)})")
    whole = f"Of the paper's {len(verdicts)} claims from single runs, {seeds} seeds leave {', '.join(parts)}"
    return f"{whole}; {orders[0][0].lower()}{orders[0][1:]}" if orders else f"{whole}."


def _worded(one: Verdict) -> str:
    if one.extreme is None:
        unmeasured = "joules were not measured" if one.claim == "power" else "no pair has it"
        return f"{one.claim}, {one.figure}: {unmeasured}"
    shown = one.extreme.inverse() if one.claim in LESS else one.extreme
    return f"{one.claim}, {one.figure}: {'at worst' if GAINS[one.claim] is None else 'at best'} {times(shown.ratio())}"


def _needed(one: Verdict, margin: float) -> str:
    """How many seeds tell the claimed difference."""
    apart = f"a loss of {percent(margin)} %" if GAINS[one.claim] is None else f"the claimed gain ({one.figure})"
    number = "more than 200 seeds" if one.seeds is None else f"{one.seeds} seeds"
    return (
        f"To find {apart} in {one.claim} with a power of 80 % takes {number} in this grid, by the noise measured here."
    )


def _orders(tables: Tables, measure: str) -> list[str]:
    """How often single runs tell the wrong order: quality first, then cost."""
    told = []
    for quantity, words in {measure: measure.replace("_", " "), **ORDERS}.items():
        one = single_runs(tables, quantity)
        if one is None:
            continue
        rest = f"of {one.told + one.open} pairs {one.open} are not told apart, yet single runs would order them"
        if one.draws:
            share = f"{percent(one.wrong / one.draws)} % of {one.draws:,} draws from pairs that are told apart"
            told.append(f"A single run of each configuration tells the wrong order of {words} in {share}; {rest}.")
        else:
            told.append(f"No pair of configurations is told apart in {words}; {rest}.")
    return told


def _table(verdicts: Sequence[Verdict]) -> Table:
    return Table(
        title="The paper's claims, restated with intervals",
        headings={
            "Quantity": "text",
            "Claim": "text",
            "Verdict": "text",
            "Ratio": "",
            "Pairs": "",
            "Seeds needed": "",
            "Of": "text wrap",
        },
        rows=[
            [
                one.claim,
                one.figure,
                one.verdict,
                _ratio(one),
                str(one.num_pairs),
                "–" if one.extreme is None else "> 200" if one.seeds is None else str(one.seeds),
                one.where,
            ]
            for one in verdicts
        ],
    )


def _ratio(one: Verdict) -> str | tuple[str, str]:
    if one.extreme is None:
        return "–"
    number, _, rest = times((one.extreme.inverse() if one.claim in LESS else one.extreme).ratio()).partition(", ")
    return number, rest
