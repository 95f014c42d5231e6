"""After how many trainings the recommended configuration has saved what the sweep itself took."""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulesweep.analyse.comparisons import key_of
from joulesweep.analyse.ledger import Spent
from joulesweep.analyse.studies.decision import Decision


@dataclass(frozen=True, kw_only=True)
class Payback:
    """What a sweep took, and what a training with the recommended configuration saves over the baseline.

    Attributes:
        unit: "J" where joules decide, else "s".
        spent: by the sweep, all attempts.
        at_least: whether some attempts are known only in part, or not at all.
        saved: by a training, over the baseline; negative if it takes more.
        saved_low: lower end of its 95 % interval, or None without one.
        saved_high: upper end, likewise.
        trainings: after which the sweep is paid back; None if it never is.
        trainings_low: the fewest, by the upper end of the interval; None without one.
        trainings_high: the most; None without an interval, and if the lower end saves nothing.
    """

    unit: str
    spent: float
    at_least: bool
    saved: float
    saved_low: float | None
    saved_high: float | None
    trainings: int | None
    trainings_low: int | None
    trainings_high: int | None


def payback(decision: Decision, spent: Spent) -> Payback | None:
    """When a sweep is paid back; None if the baseline is recommended, or what it took or saves is unknown.

    Args:
        decision: of one panel; the sweep's other panels are part of what it took.
        spent: by the whole sweep.
    """
    pick, by_joules = decision.recommended, decision.by == "energy_j"
    if pick is None or key_of(pick.row) == key_of(decision.baseline):
        return None
    ratio, whole = pick.ratios["energy" if by_joules else "time"], spent.measured_j if by_joules else spent.seconds
    one = decision.baseline[f"{decision.by}_mean"]
    if ratio is None or not whole or one is None:
        return None
    saved, low, high = (None if end is None else one * (1 - end) for end in (ratio.ratio, ratio.high, ratio.low))
    assert saved is not None
    partly = spent.num_unknown + spent.num_windows if by_joules else 0
    return Payback(
        unit="J" if by_joules else "s",
        spent=whole,
        at_least=bool(partly) or (by_joules and spent.estimated_j is not None),
        saved=saved,
        saved_low=low,
        saved_high=high,
        trainings=_trainings(whole, saved),
        trainings_low=_trainings(whole, high),
        trainings_high=_trainings(whole, low),
    )


def _trainings(spent: float, saved: float | None) -> int | None:
    """Trainings until so much is saved; None if nothing is saved by one."""
    return math.ceil(spent / saved - 1e-9) if saved is not None and saved > 0 else None


def words(paid: Payback, one: str) -> str:
    """When the sweep is paid back, in a sentence.

    Args:
        paid: the numbers.
        one: what the sweep took, with its unit.
    """
    took = f"The sweep itself took {'at least ' if paid.at_least else ''}{one}"
    if paid.trainings is None:
        return f"{took}, which the recommended configuration never pays back: it takes no less than the baseline."
    after = f"{paid.trainings:,} training{'s' if paid.trainings > 1 else ''}"
    if paid.saved_low is None:
        return f"{took}: paid back after {after}, by one repeat."
    most = "perhaps never" if paid.trainings_high is None else f"at most {paid.trainings_high:,}"
    return (
        f"{took}: paid back after {after} with the recommended configuration (at least {paid.trainings_low:,}, {most})."
    )
