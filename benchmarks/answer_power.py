"""How good the answer is: simulated sweeps of known truth, decided by the project's own rule.

python -m benchmarks.answer_power [--sweeps 2000] [--seed 1]

Each sweep has 24 cells, 4 batch sizes of 6 ways each, whose true loss is 0, 0.2, 0.6 and 1.5 % above the best, so 18
are within 1 %. The ways differ in energy, and larger batches take less. A row says, of so many sweeps: how many of the
18 were found to be within, what the recommended cell takes more than the truly cheapest of the 18, how often a cell was
called within or beyond wrongly, and how often 95 % intervals cover the truth. With equal cells, how often the saving of
the chosen cell is covered, and how often it is falsely shown to be cheaper than the baseline.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from joulesweep.analyse.comparisons import BEYOND, WITHIN, chosen_ratio, qualities
from joulesweep.analyse.statistics import Fit, positive_interval

LOSS_ABOVE = (0.0, 0.002, 0.006, 0.015)  # by batch size
ENERGY = (1.0, 0.8, 0.65, 0.55)  # by batch size, relative
WAYS = (1.0, 0.6, 0.62, 1.02, 0.64, 0.95)  # relative energy of the ways
MARGIN = 0.01
PAIRS = {"quiet": (0, 2), "mixed": (0, 1), "noisy": (1, 3)}  # of cells, every second of which is noisy


@dataclass
class Rates:
    """Counts over sweeps, by what they are of."""

    counts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Add one case."""
        self.counts.setdefault(name, []).append(float(value))

    def mean(self, name: str) -> float:
        """The mean over all cases; NaN without any."""
        return float(np.mean(self.counts.get(name, [math.nan])))


def main() -> None:
    """Print a row per noise and number of repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| repeats | noise of a pair | found of 18 | more joules | false within | false beyond | pairs covered |")
    print("|---|---|---|---|---|---|---|")
    for repeats, noise in ((3, 0.001), (3, 0.002), (3, 0.003), (3, 0.006), (2, 0.003), (5, 0.003), (10, 0.006)):
        rates = decided(np.random.default_rng(options.seed), options.sweeps, repeats, noise)
        print(
            f"| {repeats} | {noise:.1%} | {rates.mean('found'):.1f} | {rates.mean('more'):+.1%} "
            f"| {rates.mean('false within'):.2%} | {rates.mean('false beyond'):.2%} | {rates.mean('pair'):.1%} |",
            flush=True,
        )
    print("\n| repeats | noise of a run | chosen covered | falsely cheaper | pairs covered | means covered |")
    print("|---|---|---|---|---|---|")
    for repeats, noise in itertools.product((2, 3, 5, 10), (0.01, 0.03)):
        rates = equal(np.random.default_rng(options.seed), options.sweeps, repeats, noise)
        print(
            f"| {repeats} | {noise:.0%} | {rates.mean('chosen'):.1%} | {rates.mean('cheaper'):.1%} "
            f"| {rates.mean('pair'):.1%} | {rates.mean('mean'):.1%} |",
            flush=True,
        )
    print("\n| repeats | noise of every second cell | all pairs covered | of quiet cells | mixed | of noisy cells |")
    print("|---|---|---|---|---|---|")
    for repeats, factor in itertools.product((3, 5, 10), (2.0, 3.3)):
        rates = unequal(np.random.default_rng(options.seed), options.sweeps, repeats, factor)
        kinds = " | ".join(f"{rates.mean(kind):.1%}" for kind in ("all", *PAIRS))
        print(f"| {repeats} | {factor:g} × | {kinds} |", flush=True)


def simulated(
    random: np.random.Generator, logs: np.ndarray, repeats: int, noise: float | np.ndarray, seed_noise: float
) -> Fit:
    """Fit runs whose logs are those of their cell, plus noise of the seed, which all share, and of their own."""
    runs = logs[:, None] + random.normal(0, seed_noise, repeats) + random.normal(0, noise, (len(logs), repeats))
    return Fit({cell: dict(enumerate(np.exp(row))) for cell, row in enumerate(runs)})


def decided(random: np.random.Generator, sweeps: int, repeats: int, noise: float) -> Rates:
    """Decide sweeps whose loss has this noise, as standard deviation of the log ratio of two runs of one seed."""
    rates = Rates()
    loss = np.log1p(np.repeat(LOSS_ABOVE, len(WAYS)))
    energy = np.log(np.outer(ENERGY, WAYS).ravel())
    truly_within = loss <= math.log1p(MARGIN)
    cheapest = np.exp(energy[truly_within].min())
    for _ in range(sweeps):
        fit = simulated(random, loss, repeats, noise / math.sqrt(2), 0.01)
        joules = simulated(random, energy, repeats, 0.01, 0.005)
        verdicts = qualities(fit, "validation_loss", MARGIN)
        within = [cell for cell, quality in verdicts.items() if quality.verdict == WITHIN]
        within = within or [min(verdicts, key=lambda cell: verdicts[cell].above_best)]
        rates.add("found", sum(truly_within[cell] for cell in within))
        for cell, quality in verdicts.items():
            if truly_within[cell]:
                rates.add("false beyond", quality.verdict == BEYOND)
            else:
                rates.add("false within", quality.verdict == WITHIN)
        chosen = min(within, key=joules.mean_of)
        rates.add("more", math.exp(energy[chosen]) / cheapest - 1)
        a, b = random.choice(len(loss), 2, replace=False)
        ratio = fit.ratio(int(a), int(b))
        rates.add("pair", ratio.low <= math.exp(loss[a] - loss[b]) <= ratio.high)
    return rates


def equal(random: np.random.Generator, sweeps: int, repeats: int, noise: float) -> Rates:
    """Choose the cheapest of 24 cells that all take the same."""
    rates = Rates()
    cells = list(range(24))
    for _ in range(sweeps):
        fit = simulated(random, np.zeros(24), repeats, noise, 0.005)
        chosen = min(cells, key=fit.mean_of)
        ratio = chosen_ratio(fit, chosen, 0, cells)
        if ratio is not None:
            rates.add("chosen", ratio.low <= 1 <= ratio.high)
            rates.add("cheaper", ratio.high < 1)
        pair = fit.ratio(3, 7)
        rates.add("pair", pair.low <= 1 <= pair.high)
        interval = positive_interval(np.exp(random.normal(0, noise, repeats)).tolist())
        rates.add("mean", interval.low <= 1 <= interval.high)
    return rates


def unequal(random: np.random.Generator, sweeps: int, repeats: int, factor: float) -> Rates:
    """Compare cells that all take the same, of which every second one has so many times the noise of the others."""
    rates = Rates()
    noise = np.where(np.arange(24) % 2, 0.01 * factor, 0.01)[:, None]
    for _ in range(sweeps):
        fit = simulated(random, np.zeros(24), repeats, noise, 0.005)
        for kind, (a, b) in PAIRS.items():
            ratio = fit.ratio(a, b)
            for name in (kind, "all"):
                rates.add(name, ratio.low <= 1 <= ratio.high)
    return rates


if __name__ == "__main__":
    main()
