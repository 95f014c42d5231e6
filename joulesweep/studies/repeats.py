"""Whether claims from single runs hold with repeats, and how often single runs tell the wrong order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import why_not_ranked
from joulesweep.analyse.comparisons import asked, key_of
from joulesweep.analyse.statistics import Contrast, repeats_to_pass, times
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
        seeds: that decide a claim that is not decided, with a power of 80 %; None where it takes too many.
        why: the reason why it is not judged.
    """

    claim: str
    figure: str
    verdict: str
    extreme: Contrast | None = None
    where: str = ""
    num_pairs: int = 0
    seeds: int | None = None
    why: str = ""


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """How many of the claims hold, and how often a single run would have told the wrong order."""
    margin, measure = asked(config)
    figures = {row["quantity"]: row["figure"] for row in rows("maina.csv")}
    pairs, finished = claimed_pairs(tables), tables.cells.filter(pl.col("num_ok") > 0, method="full", task="mlm")
    missing = {"power": why_not_ranked(finished)}
    verdicts = [
        _judged(pairs, claim, figures.get(claim, ""), margin, missing.get(claim) or "no pair has it") for claim in GAINS
    ]
    decided = [one for one in verdicts if one.verdict in (CONFIRMED, CONTRADICTED)]
    orders, findings = _orders(tables, measure), [_needed(one) for one in verdicts if one.verdict == OPEN]
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


def _judged(compared: Sequence[ClaimedPairs], claim: str, figure: str, margin: float, missing: str) -> Verdict:
    """Judge one claim over all pairs of configurations that the paper compares.

    It is judged whether some pair lies beyond a line: the claimed gain, or, of reciprocals, the margin.
    """
    gain = GAINS[claim]
    line = 1 / (1 - margin) if gain is None else gain * (1 - ROUNDED)
    contrasts: list[tuple[Contrast, str]] = []
    for one in compared:
        for a, b in one.pairs if one.claim == claim else ():
            fit = one.comparisons.fit(a["panel"], one.column)
            contrast = None if fit is None else fit.contrast({key_of(a): 1.0, key_of(b): -1.0})
            if contrast is not None and contrast.error is not None:
                turned = contrast.inverse() if claim in LESS or gain is None else contrast
                contrasts.append((turned, f"{a['name']} over {b['name']}"))
    if not contrasts:
        return Verdict(claim=claim, figure=figure, verdict=UNKNOWN, why=missing)
    every = [contrast for contrast, _ in contrasts]
    verdict = {True: CONFIRMED, False: CONTRADICTED, None: OPEN}
    if gain is None:
        verdict |= {True: CONTRADICTED, False: CONFIRMED}
    beyond = _beyond(every, line)
    extreme, where = max(contrasts, key=lambda one: one[0].log)
    return Verdict(
        claim=claim,
        figure=figure,
        verdict=verdict[beyond],
        extreme=extreme.inverse() if gain is None else extreme,
        where=where,
        num_pairs=len(every),
        seeds=_seeds(every, line) if beyond is None else None,
    )


def _beyond(contrasts: Sequence[Contrast], line: float) -> bool | None:
    """Whether some pair lies beyond the line; None where that is not decided."""
    bounds = [one.bounds(1 - RISK / len(contrasts)) for one in contrasts]
    if any(ends is not None and ends[0] >= line for ends in bounds):
        return True
    bounds = [one.bounds(1 - RISK) for one in contrasts]
    return False if all(ends is not None and ends[1] < line for ends in bounds) else None


def _seeds(contrasts: Sequence[Contrast], line: float) -> int | None:
    """Seeds that decide with a power of 80 % whether some pair lies beyond the line, if each is as measured."""
    log = math.log(line)
    beyond = [one for one in contrasts if one.log >= log]
    risk = RISK / len(contrasts) if beyond else RISK
    seeds = [repeats_to_pass(one, log, 1 - risk, POWER) for one in beyond or contrasts]
    known = [number for number in seeds if number is not None]
    if beyond:  # one pair is enough
        return min(known, default=None)
    return max(known) if len(known) == len(seeds) else None  # all pairs must be shown to fall short


def _sentence(verdicts: Sequence[Verdict], orders: Sequence[str]) -> str:
    numbers = sorted({one.extreme.n for one in verdicts if one.extreme is not None})
    seeds = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    parts = []
    for kind in (CONFIRMED, CONTRADICTED, OPEN, UNKNOWN):
        of_kind = [one for one in verdicts if one.verdict == kind]
        if of_kind:
            parts.append(f"{len(of_kind)} {kind} ({'; '.join(_worded(one) for one in of_kind)})")
    whole = f"Of the paper's {len(verdicts)} claims from single runs, {seeds} seeds leave {', '.join(parts)}"
    return f"{whole}; {orders[0][0].lower()}{orders[0][1:]}" if orders else f"{whole}."


def _worded(one: Verdict) -> str:
    if one.extreme is None:
        return f"{one.claim}, {one.figure}: {one.why}"
    shown = one.extreme.inverse() if one.claim in LESS else one.extreme
    return f"{one.claim}, {one.figure}: {'at worst' if GAINS[one.claim] is None else 'at best'} {times(shown.ratio())}"


def _needed(one: Verdict) -> str:
    """How many seeds would decide a claim that is not decided."""
    number = "more than 200 seeds" if one.seeds is None else f"{one.seeds} seeds"
    return f"To decide on {one.claim} with a power of 80 % takes {number} in this grid, if its ratio is as measured."


def _orders(tables: Tables, measure: str) -> list[str]:
    """How often single runs tell the wrong order: quality first, then cost."""
    told = []
    for quantity, words in {measure: measure.replace("_", " "), **ORDERS}.items():
        one = single_runs(tables, quantity)
        if one is None:
            continue
        every = one.told + one.open
        rest = f"not told apart, yet ordered by single runs, are {one.open} of {every} pairs of configurations"
        if one.draws:
            share = f"{percent(one.wrong / one.draws)} % of {one.draws:,} draws from pairs that are told apart"
            told.append(f"A single run of each configuration tells the wrong order of {words} in {share}; {rest}.")
        else:
            told.append(f"No pair of configurations is told apart in {words}, yet single runs would order them.")
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
                "–" if one.verdict != OPEN else "> 200" if one.seeds is None else str(one.seeds),
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
