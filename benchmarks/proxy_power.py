"""How well the cost of a proxy is told: simulated sweeps of planted physics, judged by the project's own rule.

python -m benchmarks.proxy_power [--sweeps 1000] [--seed 1]

Each sweep has 24 cells: 2 precisions, 4 batch sizes, 3 strategies. Seconds and watts of each are planted; joules are
their product; FLOPs know the batch size alone. Noise, as standard deviation of the log of a run, is that of seconds;
watts have half of it, and all cells share half of it by seed. In `planted` two boards take half the time and more than
twice the watts, so that the fastest cell is not the cheapest. In `agree` watts are the same everywhere, so that seconds
rank as joules do. In `equal` all cells are the same.

A row says, of so many sweeps, what choosing by the proxy costs in truth (mean), what is said (mean), how often the 95 %
interval holds the truth of the choice that was made, how often a loss is shown, how often it is shown where there is
less than 0.1 %, and how often the intervals of Kendall's tau and of the error hold; in `equal` there is no order.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping

import numpy as np

from benchmarks.answer_power import Rates
from joulesweep.analyse.statistics import Fit, Numbers
from joulesweep.analyse.studies.standings import ALL, Fits, kendall, levelled, standing

PRECISIONS = ((1.0, 1.0), (0.57, 0.70))  # seconds, watts
BATCHES = ((1.0, 1.0), (0.80, 1.03), (0.66, 1.06), (0.60, 1.09))
STRATEGIES = {
    "planted": ((1.0, 1.0), (0.54, 2.2), (0.87, 1.78)),
    "agree": ((1.0, 1.0), (0.54, 1.0), (0.87, 1.0)),
}
FLOPS = (1.0, 1.01, 1.02, 1.03)  # by batch size, for padding
NONE = 1e-3  # log of a loss that is none


def truth(case: str) -> dict[str, Numbers]:
    """Logs of what was planted in the 24 cells: joules and the proxies."""
    if case == "equal":
        return dict.fromkeys(("joules", "seconds", "mean watts", "FLOPs"), np.zeros(24))
    cells = list(itertools.product(PRECISIONS, BATCHES, STRATEGIES[case]))
    watts = [math.prod(part[1] for part in cell) if case == "planted" else 1.0 for cell in cells]
    seconds = [math.prod(part[0] for part in cell) for cell in cells]
    flops = [FLOPS[BATCHES.index(batch)] for _, batch, _ in cells]
    logs = {"seconds": np.log(seconds), "mean watts": np.log(watts), "FLOPs": np.log(flops)}
    return {"joules": logs["seconds"] + logs["mean watts"], **logs}


def measured(
    chance: np.random.Generator, true: Mapping[str, Numbers], repeats: int, noise: float
) -> dict[str, Numbers]:
    """Logs of runs, (cells, repeats), with noise."""
    runs = {}
    for name, sd in (("seconds", noise), ("mean watts", noise / 2)):
        own = chance.normal(0, sd, (len(true[name]), repeats))
        runs[name] = true[name][:, None] + own + chance.normal(0, sd / 2, repeats)
    runs["FLOPs"] = np.repeat(true["FLOPs"][:, None], repeats, axis=1)
    return {"joules": runs["seconds"] + runs["mean watts"], **runs}


def fit(logs: Numbers) -> Fit:
    """The fit of some runs, whose cells are numbers."""
    return Fit({cell: dict(enumerate(np.exp(row))) for cell, row in enumerate(logs)})


def judged(
    chance: np.random.Generator, case: str, sweeps: int, repeats: int, noise: float, draws: int = 200
) -> dict[str, Rates]:
    """What is said of the proxies in sweeps of one kind, and whether it is true."""
    true, told = truth(case), {name: Rates() for name in ("seconds", "mean watts", "FLOPs")}
    keys = list(range(len(true["joules"])))
    for _ in range(sweeps):
        runs = measured(chance, true, repeats, noise)
        joules = fit(runs["joules"])
        for name, rates in told.items():
            fits = Fits(joules=joules, proxy=fit(runs[name]), quotient=fit(runs["joules"] - runs[name]))
            one = standing(name, fits, {ALL: keys}, draws)
            choice = one.choices[ALL]
            loss = float(true["joules"][list(choice.chosen)].mean() - true["joules"].min())
            rates.add("true", math.expm1(loss))
            rates.add("said", choice.regret.ratio - 1)
            rates.add(
                "covered", choice.regret.low <= math.exp(loss) * (1 + 1e-9) and loss <= math.log(choice.regret.high)
            )
            rates.add("shown", choice.shown)
            if loss < NONE:
                rates.add("falsely shown", choice.shown)
            apart = true["joules"] - true[name]
            error = math.expm1(float(apart.std(ddof=1)))
            rates.add("error", one.error.low - 1e-9 <= error <= one.error.high + 1e-9)
            rates.add("flips", one.reversed)
            if case != "equal" and one.kendall and np.ptp(true[name]):
                tau = kendall(np.round(true["joules"], 9), levelled(true[name]))
                rates.add("tau", one.kendall.low - 1e-9 <= tau <= one.kendall.high + 1e-9)
    return told


def main() -> None:
    """Print a row per case, number of repeats, noise and proxy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| case | repeats | noise | proxy | true loss | said | covered | shown | falsely | tau | error | flips |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for case, repeats, noise in itertools.product(("planted", "agree", "equal"), (2, 3, 5), (0.01, 0.03)):
        told = judged(np.random.default_rng(options.seed), case, options.sweeps, repeats, noise)
        for name, rates in told.items():
            losses = " | ".join(f"{rates.mean(key):.1%}" for key in ("true", "said"))
            shares = " | ".join(
                "–" if math.isnan(rates.mean(key)) else f"{rates.mean(key):.1%}"
                for key in ("covered", "shown", "falsely shown", "tau", "error")
            )
            print(
                f"| {case} | {repeats} | {noise:.0%} | {name} | {losses} | {shares} | {rates.mean('flips'):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
