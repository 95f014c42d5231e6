"""Time the validation and expansion of a config of 10,000 runs: `python -m benchmarks.expand`."""

from __future__ import annotations

import datetime
import platform
import statistics
import time

from joulesweep.measure.machine import cpu_model
from joulesweep.plan.config import SweepConfig, validate
from joulesweep.plan.grid import expand

REPEATS = 5


def config() -> SweepConfig:
    """A sweep of 2 strategies × 5 precisions × 2 batchings × 5 batch sizes × 10 learning rates × 10 repeats."""
    return validate(
        {
            "sweep": "benchmark",
            "models": {"bert": {"source": {"hub": "bert-base-uncased"}}},
            "datasets": {"texts": {"source": {"local": "texts.txt"}, "format": "text"}},
            "grid": {
                "model": ["bert"],
                "dataset": ["texts"],
                "strategy": ["single", "ddp"],
                "precision": ["fp32", "tf32", "fp16-mixed", "bf16-mixed", "bf16-true"],
                "batching": ["dynamic", "fixed"],
                "batch_size": [8, 16, 32, 64, 128],
                "lr": [i * 1e-5 for i in range(1, 11)],
                "repeats": 10,
            },
            "train": {"epochs": 1},
            "hardware": {"accelerator": "cuda"},
        }
    )


def main() -> None:
    """Print the median and the range of several repeats, with machine and date."""
    seconds = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        num_runs = len(expand(config()).runs)
        seconds.append(time.perf_counter() - began_s)
    print(f"{datetime.date.today()} · {cpu_model()} · Python {platform.python_version()}")
    print(
        f"{num_runs} runs: median {statistics.median(seconds):.3f} s of {REPEATS}, "
        f"range {min(seconds):.3f} to {max(seconds):.3f} s"
    )


if __name__ == "__main__":
    main()
