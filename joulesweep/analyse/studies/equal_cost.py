"""Compare the validation losses of methods at equal cost.

Methods are compared where all else is the same. For each seed, both curves of validation loss against cumulative cost
are read at the smaller of the two final costs, linearly between the ends of epochs; the untrained model has cost 0, and
nothing is extrapolated. The losses are then paired by seed.

The cost is joules if all compared runs have measured joules of the same kinds of device after every epoch; else
CPU-seconds on the CPU and seconds on GPUs. Estimated joules are never used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from joulesweep.analyse.cells import by_method, doubtful, finished, method_words, why_not_ranked
from joulesweep.analyse.epochs import with_joules
from joulesweep.analyse.statistics import NO_DIFFERENCE, NO_INTERVAL, Difference, paired_difference
from joulesweep.analyse.tables import Tables
from joulesweep.core.quantities import listed
from joulesweep.core.student import mean_interval

#: Words for a verdict on the losses a - b.
SHOWN = {"higher": "worse than", "lower": "better than"}
NOT_SHOWN = {NO_DIFFERENCE: "no difference is shown against", NO_INTERVAL: "one common seed cannot tell it from"}
TURNED = {"higher": "lower", "lower": "higher"}

Curve = list[tuple[float, float]]  # (cumulative cost, validation loss), by cost


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods at equal cost.

    Attributes:
        a: the first, with its parameters.
        b: the second.
        cost: joules or seconds at which they are compared, mean over seeds.
        loss_a: validation loss of the first at that cost, mean over seeds.
        loss_b: of the second.
        difference: loss_a - loss_b, paired by seed.
    """

    a: str
    b: str
    cost: float
    loss_a: float
    loss_b: float
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class EqualCost:
    """Comparisons of the methods of otherwise equal cells.

    Attributes:
        name: what the cells share, and their panel.
        by: the cost, a column of the epochs table: "energy_j", "cpu_s" or "elapsed_s".
        scope: of the joules, or None.
        unranked: why the cost is not joules; None if it is.
        pairs: the comparisons.
        sentences: the results in words, one for each method that is compared with the others.
    """

    name: str
    by: str
    scope: str | None
    unranked: str | None
    pairs: list[Pair]
    sentences: list[str]


def comparisons(tables: Tables) -> list[EqualCost]:
    """Compare the methods in each set of finished cells that differ in their methods alone.

    Each method that chooses tensors is compared with every other; if none does, the first of the sweep is.
    """
    choosing = set(tables.selections["cell"])
    groups = []
    for name, cells in by_method(finished(tables.cells, "validation_loss_mean")):
        labels = {row["cell"]: method_words(row) for row in cells.iter_rows(named=True)}
        references = [cell for cell in labels if cell in choosing] or [next(iter(labels))]
        groups.append(_compared(tables, name, cells, labels, references))
    return [group for group in groups if group.pairs]


def _compared(
    tables: Tables, name: str, cells: pl.DataFrame, labels: dict[str, str], references: Sequence[str]
) -> EqualCost:
    first = cells.row(0, named=True)
    epochs = tables.epochs.filter(pl.col("cell").is_in(list(labels)), environment=first["environment"])
    by, reason = _cost(tables, cells, epochs)
    curves = {cell: _curves(epochs.filter(cell=cell), by) for cell in labels}
    pairs = [
        (a, b, pair)
        for a, b in itertools.product(references, labels)
        # Compare each pair of references only once.
        if a != b and not (b in references and references.index(b) < references.index(a))
        if (pair := _pair(labels[a], labels[b], curves[a], curves[b])) is not None
    ]
    return EqualCost(
        name=name,
        by=by,
        scope=first["energy_scope"] if by == "energy_j" else None,
        unranked=reason,
        pairs=[pair for _, _, pair in pairs],
        sentences=[_sentence(labels[reference], _verdicts(reference, pairs, labels)) for reference in references],
    )


def _cost(tables: Tables, cells: pl.DataFrame, epochs: pl.DataFrame) -> tuple[str, str | None]:
    """The column of the epochs table that is the cost, and why it is not joules; None if it is."""
    reason = why_not_ranked(cells)
    if reason is None and (doubts := doubtful(cells)):
        reason = f"doubtful joules: {doubts[0]}"
    if reason is None:
        read, why = with_joules(epochs)
        reason = None if read.height == epochs.height else f"joules are not known after every epoch: {why}"
    if reason is None:
        return "energy_j", None
    used = tables.runs.filter(pl.col("cell").is_in(cells["cell"].to_list()))["accelerator"]
    return "elapsed_s" if "cuda" in used else "cpu_s", reason


def _curves(epochs: pl.DataFrame, by: str) -> dict[int, Curve]:
    """The curve of every repeat of a cell; the untrained model has cost 0."""
    cost = pl.when(epoch=0).then(0.0).otherwise(by)
    known = epochs.select("repeat", cost=cost, loss="validation_loss").drop_nulls().sort("repeat", "cost", "loss")
    parts = known.group_by("repeat", maintain_order=True)
    return {repeat: part.select("cost", "loss").rows() for (repeat,), part in parts}


def loss_at(curve: Curve, cost: float) -> float:
    """The loss at a cost, interpolated linearly on a curve.

    Args:
        curve: points by cost.
        cost: between those of the first and the last point.

    Raises:
        ValueError: the cost is outside the curve.
    """
    if not curve or not curve[0][0] <= cost <= curve[-1][0]:
        raise ValueError(f"the curve does not reach {cost}")
    for (low, loss_low), (high, loss_high) in itertools.pairwise(curve):
        if low <= cost < high:
            return loss_low + (cost - low) / (high - low) * (loss_high - loss_low)
    return curve[-1][1]


def _pair(a: str, b: str, curves_a: dict[int, Curve], curves_b: dict[int, Curve]) -> Pair | None:
    """Compare two methods over their common seeds; None if there is none."""
    seeds = sorted(curves_a.keys() & curves_b.keys())
    if not seeds:
        return None
    costs = [min(curves[seed][-1][0] for curves in (curves_a, curves_b)) for seed in seeds]
    losses_a, losses_b = (
        [loss_at(curves[seed], cost) for seed, cost in zip(seeds, costs, strict=True)]
        for curves in (curves_a, curves_b)
    )
    cost, loss_a, loss_b = (mean_interval(values).mean for values in (costs, losses_a, losses_b))
    difference = paired_difference(losses_a, losses_b)
    return Pair(a=a, b=b, cost=cost, loss_a=loss_a, loss_b=loss_b, difference=difference)


def _verdicts(cell: str, pairs: Sequence[tuple[str, str, Pair]], labels: dict[str, str]) -> list[tuple[str, str]]:
    """The verdicts on one method's loss, each with the other method's label, in the order of the sweep."""
    verdicts = {b: pair.difference.verdict for a, b, pair in pairs if a == cell}
    turned = {a: pair.difference.verdict for a, b, pair in pairs if b == cell}
    verdicts |= {other: TURNED.get(verdict, verdict) for other, verdict in turned.items()}
    return [(verdicts[other], label) for other, label in labels.items() if other in verdicts]


def _sentence(label: str, verdicts: Sequence[tuple[str, str]]) -> str:
    """The verdicts on a method as a sentence: "lora(r=8) is shown worse than full; no difference is shown …"."""
    others: dict[str, list[str]] = {}
    for verdict, other in verdicts:
        others.setdefault(verdict, []).append(other)
    shown = [f"{word} {listed(others[verdict])}" for verdict, word in SHOWN.items() if verdict in others]
    rest = [f"{words} {listed(others[verdict])}" for verdict, words in NOT_SHOWN.items() if verdict in others]
    if not verdicts:
        return f"{label} has no seed in common with another method."
    if not shown:
        return f"{label}: {'; '.join(rest)}."
    return f"{label} is shown {'; '.join([', '.join(shown), *rest])}."
