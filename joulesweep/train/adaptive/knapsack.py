"""Choose the tensors to train that maximise importance within a cost of the backward pass.

The problem is GreenTrainer's (Huang et al., ICLR 2024, arXiv 2309.13192). Its published dynamic programme is not used:
it was sub-optimal in 126 of 600 cases compared with brute force. With the deepest chosen tensor fixed, the problem is a
0/1 knapsack of the shallower ones, and one table over the prefixes solves it for every deepest tensor in
O(tensors * levels). Costs are rounded up to multiples of a quantum, so that the budget is never exceeded. The rest of
the budget is spent greedily at the real costs, and an upper bound on every choice limits how far the result may be from
the best one.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAP = 0.01  # a larger gap is worth a finer table
CELLS = 2**23  # of the first table: a few milliseconds
MOST_CELLS = 2**25  # of the finest table: a byte or two each
MOST_LEVELS = 2**17  # of the first table: enough for few tensors


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of tensors to train.

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
        """Largest share of the best importance that the choice may miss; below 1e-11 it is only rounding."""
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
        weight_costs: cost of each tensor's weight gradient, paid if it is chosen; in FLOPs, seconds or any other unit.
        reach: cost of the activation gradients from the output down to each tensor; never decreases; same unit.
        budget: for both together, without the forward pass; same unit. If nothing fits, nothing is chosen.
        levels: least number of quanta in the budget; raised while the gap exceeds 1 % and the table stays small.
            None: as many as take a few milliseconds.

    Raises:
        ValueError: lengths differ, a number is not finite, a cost is negative, reach decreases, or levels < 1.
    """
    _check(weight_costs=weight_costs, reach=reach, importances=importances)
    num = len(reach)
    levels = min(MOST_LEVELS, CELLS // max(num, 1)) if levels is None else levels
    if levels < 1 or not math.isfinite(budget):
        raise ValueError(f"levels must be at least 1 and the budget finite, not {levels} and {budget}")
    whole_budget, step, *whole = _integers([budget, math.ulp(budget), *weight_costs, *reach])
    whole_budget += (step - 1) // 2  # the largest exact sum that math.fsum rounds to the budget
    rooms = [whole_budget - cost for cost in whole[num:]]
    useful = [k for k in range(num) if importances[k] > 0 and whole[k] <= rooms[k]]
    if not useful:
        return Choice(chosen=(False,) * num, cost=0.0, importance=0.0, bound=0.0)
    values = [float(importances[k]) for k in useful]
    picks, bound = _search(values, [whole[k] for k in useful], [rooms[k] for k in useful], levels)
    chosen = {useful[k] for k in picks}
    importance = math.fsum(importances[k] for k in chosen)
    return Choice(
        chosen=tuple(k in chosen for k in range(num)),
        cost=math.fsum([reach[max(chosen)], *(weight_costs[k] for k in chosen)]),
        importance=importance,
        bound=bound,
    )


def floor(weight_costs: Sequence[float], reach: Sequence[float]) -> float:
    """Return the cost of the cheapest choice that is not empty, in the unit of the costs.

    Raises:
        ValueError: there are no tensors, lengths differ, a cost is not finite or negative, or reach decreases.
    """
    _check(weight_costs=weight_costs, reach=reach)
    if len(reach) == 0:
        raise ValueError("there are no tensors to choose from")
    return min(cost + way for cost, way in zip(weight_costs, reach, strict=True))


def _check(**inputs: Sequence[float]) -> None:
    """Refuse inputs that do not define the problem."""
    lengths = {name: len(numbers) for name, numbers in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"inputs must have one number per tensor, not {lengths}")
    for name, numbers in inputs.items():
        if not math.isfinite(sum(map(abs, numbers))):
            raise ValueError(f"{name} must be finite, and their sum too")
        if name != "importances" and min(numbers, default=0) < 0:
            raise ValueError(f"{name} must not be negative, got {min(numbers)}")
    if any(deeper < shallower for shallower, deeper in itertools.pairwise(inputs["reach"])):
        raise ValueError("reach must not decrease from the output to the input")


def _integers(numbers: list[float]) -> list[int]:
    """Express numbers in a unit in which all are whole, so that sums of costs are exact."""
    ratios = [float(number).as_integer_ratio() for number in numbers]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two
    return [numerator * (scale // denominator) for numerator, denominator in ratios]


def _search(values: list[float], costs: list[int], rooms: list[int], levels: int) -> tuple[list[int], float]:
    """Return the best tensors found and the bound. Values are positive, and each tensor alone fits its room."""
    bounds, by_ratio = _fractional(values, costs, rooms)
    solution: list[int] = []
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
            solution = max(solution, filled, key=lambda tensors: math.fsum(values[k] for k in tensors))
        bound = float(bounds.max()) * (1 + 8 * len(values) * sys.float_info.epsilon)  # the sums in it are rounded
        levels *= 4
        if math.fsum(values[k] for k in solution) >= (1 - GAP) * bound or levels * len(values) > MOST_CELLS:
            return solution, bound


def _fill(costs: list[int], room: int, candidates: list[int]) -> list[int]:
    """Take candidates in order while they fit the room."""
    taken = []
    for k in candidates:
        if costs[k] <= room:
            room -= costs[k]
            taken.append(k)
    return taken


def _table(values: list[float], costs: list[int], rooms: list[int]) -> tuple[NDArray[np.float64], list[int]]:
    """Return, for each tensor, the best value without any deeper one; and the tensors of the best of these."""
    best = np.zeros(len(values))
    row = np.zeros(rooms[0] + 1)  # best value by room
    takes = np.zeros((len(values), len(row)), dtype=bool)
    for k, (value, cost, room) in enumerate(zip(values, costs, rooms, strict=True)):
        row = row[: room + 1]  # deeper tensors have no more room
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
    """Return Dantzig's fractional bound on the value without tensors deeper than each, and all by value per cost."""
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
            part = np.fmin(np.maximum(room - before, 0) / cost, 1)  # 0 / 0: a tensor that costs nothing is taken whole
            bounds[k] = (part * allowed) @ value
    return bounds, order.tolist()
