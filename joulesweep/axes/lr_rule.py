"""Values of the axis lr_rule: how the peak learning rate grows with the batch, one table row per rule.

The rate of a run is resolved when the grid is expanded: its spec has the rate alone, so that a run is the same one
whichever rules lead to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        factor: of the rate, by how many times the batch is larger than the base.
        source: who proposed it; None for the plain one.
    """

    about: str
    factor: Callable[[float], float]
    source: str | None = None


LR_RULES: dict[str, Rule] = {
    "constant": Rule(about="the same rate at every batch", factor=lambda times: 1.0),
    "sqrt": Rule(
        about="the rate grows with the square root of the batch",
        factor=math.sqrt,
        source="Krizhevsky 2014 (arXiv 1404.5997); for Adam Malladi et al. 2022 (arXiv 2205.10287)",
    ),
    "linear": Rule(
        about="the rate grows with the batch",
        factor=lambda times: times,
        source="Goyal et al. 2017 (arXiv 1706.02677), for SGD",
    ),
}


def peak(rule: str, lr: float, batch_size: int, base: int | None) -> float:
    """The peak learning rate at a batch.

    Args:
        rule: a key of `LR_RULES`.
        lr: rate at the base.
        batch_size: texts per optimizer step over all devices.
        base: batch size at which every rule gives `lr`; None where `constant` is the only one.

    Returns:
        The rate, to six digits unless it is `lr` itself: rates that meet are then equal, and ids readable.
    """
    factor = 1.0 if base is None else LR_RULES[rule].factor(batch_size / base)
    return lr if factor == 1 else float(f"{lr * factor:.6g}")


def leading_to(
    lr: float, batch_size: int, base: int | None, *, rules: Iterable[str], rates: Iterable[float]
) -> list[str]:
    """The rules that give a rate at a batch, from one of several rates at the base; arguments as in `peak`."""
    rates = list(rates)
    return [rule for rule in rules if lr in {peak(rule, rate, batch_size, base) for rate in rates}]
