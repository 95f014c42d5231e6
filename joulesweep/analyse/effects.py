"""What each change does, all else equal: main effects, interactions, and on complete grids shares of the variance.

Effects are ratios of cells that differ in one axis alone, averaged on logs over all such pairs of a panel. On a
complete grid, in which every combination of the varying axes has finished every repeat, the variance of the logs splits
exactly into parts: of each axis, of each pair of axes, of what three or more do together, of the seeds, and of noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from joulesweep.analyse.cells import comparable_groups, method_words
from joulesweep.analyse.comparisons import Comparisons, Key, asked, key_of, memory_quantity, same_joules
from joulesweep.analyse.statistics import Contrast, Fit, Numbers
from joulesweep.analyse.tables import Row
from joulesweep.axes.strategy import spread
from joulesweep.core.quantities import signed_percent

#: The axes in the order of names, each with how a cell's value reads.
AXES: dict[str, Callable[[Row], str]] = {
    "method": method_words,
    "strategy": lambda row: spread(row["strategy"], row["devices"], row["nodes"]),
    "precision": lambda row: row["precision"],
    "batching": lambda row: row["batching"],
    "head": lambda row: row["head"],
    "engine": lambda row: row["engine"],
    "optimizer": lambda row: row["optimizer"],
    "micro_batch_size": lambda row: (
        f"micro-batch {row['micro_batch_size']}" if row["micro_batch_size"] else "whole batch"
    ),
    "checkpoint_activations": lambda row: "checkpointed" if row["checkpoint_activations"] else "stored",
    "batch_size": lambda row: f"batch {row['batch']}",
    "lr": lambda row: f"lr {row['lr']:g}",
    "max_grad_norm": lambda row: f"clip {row['max_grad_norm']:g}" if row["max_grad_norm"] else "unclipped",
}
#: Axes whose values have an order: each is compared with the one before, not with all.
ORDERED = ("batch_size", "lr", "max_grad_norm", "micro_batch_size")
MOST_LEVELS = 4  # of an axis without order, all of whose pairs are compared; of more, each with the first
#: Chance, over all interactions tried in a panel, of naming one where there is none.
FALSE_INTERACTION = 0.05
SMALL = 0.02  # by how much an effect must differ between two values of another axis, as a fraction, to be told
WORDS = {"energy_j": "energy", "window_s": "time", "memory": "memory"}

Cells = dict[tuple[str, ...], Row]  # by the values of the varying axes
Pair = tuple[tuple[str, ...], Key, Key]  # values of the first cell, and both cells


def tabulate(cells: pl.DataFrame, config: Mapping[str, Any], comparisons: Comparisons) -> list[Row]:
    """Build the rows of the effects table.

    Args:
        cells: the cells table.
        config: the manifest's: its `answer` names the measure of quality.
        comparisons: of the runs.
    """
    _, measure = asked(config)
    rows: list[Row] = []
    for panel, part in comparable_groups(cells.filter(pl.col("num_ok") > 0)):
        every = part.to_dicts()
        quantities = {
            "energy_j": _of_one_scope(every),
            "window_s": every,
            measure: every,
            memory_quantity(every[0]): every,
        }
        for quantity, known in quantities.items():
            fit = comparisons.fit(panel, quantity)
            if fit is not None:
                known = [row for row in known if key_of(row) in fit]
                rows += [{"panel": panel, "quantity": quantity, **row} for row in _of_panel(fit, known, quantity)]
    return rows


def _of_one_scope(cells: Sequence[Row]) -> list[Row]:
    """The cells with measured joules, if these are all of the same kinds of device."""
    measured = [row for row in cells if same_joules(row, row)]
    return measured if len({row["energy_scope"] for row in measured}) == 1 else []


def _of_panel(fit: Fit, cells: Sequence[Row], quantity: str) -> Iterator[Row]:
    """The effects, interactions and shares of one quantity in one panel."""
    levels = {axis: list(dict.fromkeys(word(row) for row in cells)) for axis, word in AXES.items()}
    varying = {axis: values for axis, values in levels.items() if len(values) > 1}
    by_values: Cells = {tuple(AXES[axis](row) for axis in varying): row for row in cells}
    if len(by_values) < len(cells):
        return  # two cells that differ in no axis: of different parameters that names do not tell
    axes = list(varying)
    tests = []
    for at, axis in enumerate(axes):
        for a, b in _steps(axis, varying[axis], cells):
            pairs = _pairs(by_values, at, a, b)
            if not pairs:
                continue
            if (effect := _effect(fit, pairs)) is not None:
                yield {"kind": "effect", "axis": axis, "from_value": a, "to_value": b, **effect}
            tests += [
                (chance, axis, a, b, other, parts)
                for other_at, other in enumerate(axes)
                if other != axis and (result := _interaction(fit, pairs, other_at)) is not None
                for chance, parts in [result]
            ]
    for chance, axis, a, b, other, parts in tests:
        ratios = [effect["ratio"] for effect in parts.values()]
        if chance * len(tests) < FALSE_INTERACTION and max(ratios) > (1 + SMALL) * min(ratios):
            text = _depends(axis, a, b, other, parts, quantity)
            for value, effect in parts.items():
                yield {
                    **{"kind": "interaction", "axis": axis, "from_value": a, "to_value": b},
                    **{"other_axis": other, "other_value": value, "text": text, **effect},
                }
    yield from _shares(fit, by_values, varying)


def _steps(axis: str, values: list[str], cells: Sequence[Row]) -> list[tuple[str, str]]:
    """The pairs of an axis's values that are compared."""
    if axis in ORDERED:
        size = {AXES[axis](row): row[axis] or math.inf for row in cells}
        return list(itertools.pairwise(sorted(values, key=lambda value: size[value])))
    return (
        list(itertools.combinations(values, 2)) if len(values) <= MOST_LEVELS else [(values[0], v) for v in values[1:]]
    )


def _pairs(by_values: Cells, at: int, a: str, b: str) -> list[Pair]:
    """The pairs of cells that differ in one axis alone."""
    return [
        (values, key_of(row), key_of(by_values[partner]))
        for values, row in by_values.items()
        if values[at] == a and (partner := (*values[:at], b, *values[at + 1 :])) in by_values
    ]


def _effect(fit: Fit, pairs: Sequence[Pair]) -> Row | None:
    """The mean ratio over pairs, with its interval, and the smallest and largest."""
    contrast = fit.weighted(_weights(fit, pairs))
    if contrast is None:
        return None
    mean, logs = contrast.ratio(), [fit.mean_of(b) - fit.mean_of(a) for _, a, b in pairs]
    return {
        **{"ratio": mean.ratio, "low": mean.low, "high": mean.high, "num_pairs": len(pairs)},
        **{"smallest": math.exp(min(logs)), "largest": math.exp(max(logs))},
    }


def _weights(fit: Fit, pairs: Sequence[Pair]) -> Numbers:
    return fit.changes([before for _, before, _ in pairs], [after for _, _, after in pairs])


def _interaction(fit: Fit, pairs: Sequence[Pair], other_at: int) -> tuple[float, dict[str, Row]] | None:
    """Whether an effect depends on another axis: the chance of so large a difference, and the effect at each value.

    Bonferroni's bound over the pairs of values, each by Student's t.
    """
    at_value: dict[str, list[Pair]] = {}
    for pair in pairs:
        at_value.setdefault(pair[0][other_at], []).append(pair)
    if len(at_value) < 2 or fit.variance is None:
        return None
    weights = [_weights(fit, of_value) for of_value in at_value.values()]
    contrasts = [fit.weighted(one - two) for one, two in itertools.combinations(weights, 2)]
    chances = [_chance(contrast) for contrast in contrasts if contrast is not None]
    parts = {value: effect for value, of in at_value.items() if (effect := _effect(fit, of)) is not None}
    return (min(1.0, min(chances) * len(chances)), parts) if chances else None


def _chance(contrast: Contrast) -> float:
    """Two-sided p-value of a contrast."""
    if not contrast.error:
        return float(contrast.log == 0)
    return float(2 * special.stdtr(contrast.degrees, -abs(contrast.log) / contrast.error))


def _depends(axis: str, a: str, b: str, other: str, parts: Mapping[str, Row], quantity: str) -> str:
    """An interaction in words."""
    what = WORDS.get(quantity, "memory" if quantity.startswith("peak_") else quantity.replace("_", " "))
    name = other.replace("_size", "").replace("_", " ")
    at = ", ".join(f"{signed_percent(effect['ratio'] - 1)} % with {value}" for value, effect in parts.items())
    return f"What {a} → {b} does to {what} depends on {name}: {at}."


def _shares(fit: Fit, by_values: Cells, varying: Mapping[str, list[str]]) -> Iterator[Row]:
    """The exact parts of the variance of the logs, if the grid is complete."""
    logs = fit.complete_logs(
        [key_of(by_values[values]) for values in itertools.product(*varying.values()) if values in by_values]
    )
    shape = [len(values) for values in varying.values()]
    if logs is None or math.prod(shape) != len(logs) or not varying:
        return
    whole = float(((logs - logs.mean()) ** 2).sum())
    if not whole:
        return
    by_axis = logs.mean(1).reshape(shape)
    seeds = logs.shape[1]
    parts: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}
    total = 0.0
    for size in (0, 1, 2):
        for chosen in itertools.combinations(range(len(shape)), size):
            mean = by_axis.mean(tuple(i for i in range(len(shape)) if i not in chosen), keepdims=True)
            parts[chosen] = mean - sum(part for inner, part in parts.items() if set(inner) < set(chosen))
            share = seeds * float((np.broadcast_to(parts[chosen], shape) ** 2).sum()) / whole
            if size:
                axes = [list(varying)[i] for i in chosen]
                total += share
                yield {"kind": "share", "axis": axes[0], "other_axis": axes[1] if size == 2 else None, "ratio": share}
    of_seeds = float(((logs.mean(0) - logs.mean()) ** 2).sum()) * len(logs) / whole
    of_cells = seeds * float(((by_axis - by_axis.mean()) ** 2).sum()) / whole
    for name, share in (("rest", of_cells - total), ("seed", of_seeds), ("noise", 1 - of_cells - of_seeds)):
        if name != "rest" or len(shape) > 2:
            yield {"kind": "share", "axis": name, "ratio": max(0.0, share)}
