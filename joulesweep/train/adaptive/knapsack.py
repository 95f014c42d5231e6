"""Which tensors to train: the most importance for a given cost of the backward pass.

The problem is GreenTrainer's (Huang et al., ICLR 2024, arXiv 2309.13192). Its published dynamic programme is not used:
it was sub-optimal in 126 of 600 cases that were compared with brute force. With the deepest chosen tensor fixed, what
is left is a 0/1 knapsack of the shallower ones, and one table over the prefixes solves it for every deepest tensor in
O(tensors * levels). Its costs are multiples of a quantum, rounded up, so that the budget is never exceeded. What that
leaves over is spent greedily at the real costs, and an upper bound on every choice tells how far from the best one the
result may be.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAP = 0.01  # a larger one is worth a finer table
CELLS = 2**23  # of the first table: some milliseconds
MOST_CELLS = 2**25  # of the finest table: a byte or two each
MOST_LEVELS = 2**17  # of the first table: a few tensors need no more


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which tensors train.

    Attributes:
        chosen: one truth value per tensor.
        cost: of the choice, in the unit of the costs; 0 if nothing is chosen.
        importance: sum over the chosen tensors, in the unit of the importances.
        bound: no choice within the budget has more importance than this.
    """

    chosen: tuple[bool, ...]
    cost: float
    importance: float
    bound: float

    @property
    def gap(self) -> float:
        """The share of the best importance that is missed at most; below 1e-11 it is only rounding."""
        return 1 - self.importance / self.bound if self.bound else 0.0


def select(
    importances: Sequence[float],
    weight_costs: Sequence[float],
    reach: Sequence[float],
    budget: float,
    levels: int | None = None,
) -> Choice:
    """Choose the tensors with the largest sum of importances whose cost is within the budget.

    A choice costs the reach of its deepest tensor plus the weight costs of all its tensors. It is optimal if the budget
    is at most `levels` times the greatest common divisor of the weight costs; otherwise its gap says how good it is.

    Args:
        importances: one per tensor, from the output to the input; only positive ones are ever chosen.
        weight_costs: of each tensor's own gradient, paid if it is chosen; in FLOPs, seconds or any one unit.
        reach: of the activation gradients from the output down to each tensor; never decreases; same unit.
        budget: for both together, without the forward pass; same unit. Where nothing fits, nothing is chosen.
        levels: least number of quanta in the budget; raised while the gap exceeds 1 % and the table stays small.
            None: as many as take some milliseconds.

    Raises:
        ValueError: lengths differ, a number is not finite, a cost is negative, the reach decreases, or levels < 1.
    """
    _check(weight_costs=weight_costs, reach=reach, importances=importances)
    num = len(reach)
    levels = min(MOST_LEVELS, CELLS // max(num, 1)) if levels is None else levels
    if levels < 1 or not math.isfinite(budget):
        raise ValueError(f"levels must be at least 1 and the budget finite, not {levels} and {budget}")
    whole_budget, step, *whole = _integers([budget, math.ulp(budget), *weight_costs, *reach])
    whole_budget += (step - 1) // 2  # the largest exact sum that is the budget after rounding: as math.fsum sees it
    rooms = [whole_budget - cost for cost in whole[num:]]
    useful = [k for k in range(num) if importances[k] > 0 and whole[k] <= rooms[k]]
    if not useful:
        return Choice(chosen=(False,) * num, cost=0.0, importance=0.0, bound=0.0)
    values = [float(importances[k]) for k in useful]
    found, bound = _search(values, [whole[k] for k in useful], [rooms[k] for k in useful], levels)
    chosen = {useful[k] for k in found}
    importance = math.fsum(importances[k] for k in chosen)
    return Choice(
        chosen=tuple(k in chosen for k in range(num)),
        cost=math.fsum([reach[max(chosen)], *(weight_costs[k] for k in chosen)]),
        importance=importance,
        bound=bound,
    )


def floor(weight_costs: Sequence[float], reach: Sequence[float]) -> float:
    """Cost of the cheapest choice that is not empty, in the unit of the costs: a smaller budget trains nothing.

    Raises:
        ValueError: no tensors, lengths that differ, a cost that is not finite or negative, or a reach that decreases.
    """
    _check(weight_costs=weight_costs, reach=reach)
    if len(reach) == 0:
        raise ValueError("there are no tensors to choose from")
    return min(cost + way for cost, way in zip(weight_costs, reach, strict=True))


def _check(**inputs: Sequence[float]) -> None:
    """Refuse what is no instance of the problem."""
    lengths = {name: len(numbers) for name, numbers in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"one number per tensor is needed everywhere, not {lengths}")
    for name, numbers in inputs.items():
        if not math.isfinite(sum(map(abs, numbers))):
            raise ValueError(f"{name} must be finite, and so must be their sum")
        if name != "importances" and min(numbers, default=0) < 0:
            raise ValueError(f"{name} must not be negative, and one is {min(numbers)}")
    if any(deeper < shallower for shallower, deeper in itertools.pairwise(inputs["reach"])):
        raise ValueError("reach must not decrease from the output to the input")


def _integers(numbers: list[float]) -> list[int]:
    """The same numbers in a unit in which all are whole, so that no sum of costs is rounded."""
    ratios = [float(number).as_integer_ratio() for number in numbers]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two
    return [numerator * (scale // denominator) for numerator, denominator in ratios]


def _search(values: list[float], costs: list[int], rooms: list[int], levels: int) -> tuple[list[int], float]:
    """The tensors found, and the bound. Values are positive, and each tensor alone fits its room."""
    bounds, by_ratio = _fractional(values, costs, rooms)
    found: list[int] = []
    while True:
        # A quantum that divides the larger costs rounds only biases and the like.
        divisor = math.gcd(*(cost for cost in costs if cost >= rooms[0] // levels)) or 1
        quantum = divisor * max(1, rooms[0] // (divisor * levels))
        room_quanta = [room // quantum for room in rooms]
        best, picks = _table(values, [-(-cost // quantum) for cost in costs], room_quanta)
        # With costs rounded down, every choice within the budget is in the table.
        ceilings, _ = _table(values, [cost // quantum for cost in costs], room_quanta)
        bounds = np.minimum(bounds, ceilings)
        for deepest, first in itertools.product((int(best.argmax()), int(bounds.argmax())), (picks, [])):
            filled = _fill(costs, rooms[deepest], [k for k in dict.fromkeys(first + by_ratio) if k <= deepest])
            found = max(found, filled, key=lambda tensors: math.fsum(values[k] for k in tensors))
        bound = float(bounds.max()) * (1 + 8 * len(values) * sys.float_info.epsilon)  # the sums in it are rounded
        levels *= 4
        if math.fsum(values[k] for k in found) >= (1 - GAP) * bound or levels * len(values) > MOST_CELLS:
            return found, bound


def _fill(costs: list[int], room: int, candidates: list[int]) -> list[int]:
    """Those candidates that fit the room, the first ones first."""
    taken = []
    for k in candidates:
        if costs[k] <= room:
            room -= costs[k]
            taken.append(k)
    return taken


def _table(values: list[float], costs: list[int], rooms: list[int]) -> tuple[NDArray[np.float64], list[int]]:
    """For each tensor the best value without any deeper one, and the tensors of the best of these."""
    best = np.zeros(len(values))
    row = np.zeros(rooms[0] + 1)  # best value by room
    takes = np.zeros((len(values), len(row)), dtype=bool)
    for k, (value, cost, room) in enumerate(zip(values, costs, rooms, strict=True)):
        row = row[: room + 1]  # deeper tensors have no more
        if cost <= room:
            with_it = row[: room + 1 - cost] + value
            np.greater(with_it, row[cost:], out=takes[k, cost : room + 1])
            np.maximum(with_it, row[cost:], out=row[cost:])
        best[k] = row[-1]
    deepest = int(best.argmax())
    picks, left = [], rooms[deepest]
    for k in range(deepest, -1, -1):
        if takes[k, left]:
            picks.append(k)
            left -= costs[k]
    return best, picks


def _fractional(values: list[float], costs: list[int], rooms: list[int]) -> tuple[NDArray[np.float64], list[int]]:
    """For each tensor Dantzig's bound (parts count) on the value without any deeper one, and all by value per cost."""
    scale = max(rooms[0], 1)
    value, cost = np.array(values), np.array([whole / scale for whole in costs])
    bounds = np.empty(len(values))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        order = np.argsort(-value / cost, kind="stable")
        value, cost = value[order], cost[order]
        for k, whole in enumerate(rooms):
            room = whole / scale
            allowed = order <= k
            before = np.cumsum(cost * allowed) - cost
            part = np.fmin(np.maximum(room - before, 0) / cost, 1)  # 0 / 0 is a tensor that costs nothing: all of it
            bounds[k] = (part * allowed) @ value
    return bounds, order.tolist()
