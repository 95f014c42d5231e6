"""Time the choice among the 516 tensors of OPT-2.7B, and certify its gaps: `python -m benchmarks.selector`."""

from __future__ import annotations

import datetime
import itertools
import platform
import random
import statistics
import time

from joulesweep.measure.machine import cpu_model
from joulesweep.train.adaptive.knapsack import select

REPEATS = 20
RHOS = (0.36, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LAYERS, WIDTH, INNER, VOCABULARY, POSITIONS = 32, 2560, 10240, 50272, 2050
ROWS, LENGTH = 4, 512


def tensors() -> tuple[list[float], list[float], float]:
    """FLOPs of OPT-2.7B: weight costs and reach of its tensors (the tied embedding last), and of the forward pass."""
    per_weight = 2.0 * ROWS * LENGTH

    def linear(inputs: int, outputs: int, attention: float = 0.0) -> list[tuple[float, float]]:
        return [(per_weight * outputs, 0.0), (per_weight * inputs * outputs, per_weight * inputs * outputs + attention)]

    head = per_weight * WIDTH * VOCABULARY
    norm = [(per_weight * WIDTH, 0.0), (per_weight * WIDTH, per_weight * WIDTH)]
    maps = 8.0 * ROWS * LENGTH**2 * WIDTH
    layer = [*linear(INNER, WIDTH), *linear(WIDTH, INNER), *norm]
    layer += [*linear(WIDTH, WIDTH, maps), *linear(WIDTH, WIDTH), *linear(WIDTH, WIDTH), *linear(WIDTH, WIDTH), *norm]
    pairs = [*norm, *layer * LAYERS, (per_weight * WIDTH, 0.0), (head, 0.0)]  # of weight and activation gradient
    weight_costs = [weight for weight, _ in pairs]
    # A tensor needs the activation gradients of the tensors between it and the loss, not its own.
    reach = list(itertools.accumulate((activation for _, activation in pairs[:-1]), initial=head))
    return weight_costs, reach, sum(activation for _, activation in pairs) + head - LAYERS * maps / 2


def budget(rho: float) -> float:
    """FLOPs that a ratio to full training leaves for the backward pass."""
    weight_costs, reach, forward = tensors()
    return rho * (forward + sum(weight_costs) + reach[-1]) - forward


def importances(seed: int) -> dict[str, list[float]]:
    """Generated importances of several kinds, a tenth of them negative."""
    draw = random.Random(seed)
    weight_costs = tensors()[0]
    kinds = {
        "heavy-tailed": [draw.lognormvariate(0, 2) for _ in weight_costs],
        "by root of size": [draw.lognormvariate(0, 1) * cost**0.5 for cost in weight_costs],
        "by size": [draw.uniform(0.9, 1.1) * cost for cost in weight_costs],
        "equal": [1.0 for _ in weight_costs],
    }
    return {kind: [-x if draw.random() < 0.1 else x for x in values] for kind, values in kinds.items()}


def main() -> None:
    """Print median and largest milliseconds and the largest gap for each kind of importances, with machine and date."""
    weight_costs, reach, _ = tensors()
    print(f"{datetime.date.today()} · {cpu_model()} · Python {platform.python_version()} · {len(reach)} tensors")
    for kind, values in importances(seed=1).items():
        milliseconds, gaps = [], []
        for rho, _ in itertools.product(RHOS, range(REPEATS)):
            limit = budget(rho)
            began_s = time.perf_counter()
            choice = select(values, weight_costs, reach, limit)
            milliseconds.append(1e3 * (time.perf_counter() - began_s))
            gaps.append(choice.gap)
        print(
            f"{kind:>16}: median {statistics.median(milliseconds):.1f} ms, at most {max(milliseconds):.1f} ms of "
            f"{len(milliseconds)} (rho {RHOS[0]} to {RHOS[-1]}), gap at most {max(gaps):.2%}"
        )


if __name__ == "__main__":
    main()
