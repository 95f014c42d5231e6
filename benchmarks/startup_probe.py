"""Time a run's process by stage: `python -m benchmarks.startup_probe JOB OUTPUT BEGAN`, for `benchmarks.startup`.

It carries out the job as `joulesweep.train.worker` does. OUTPUT gets {stage: [CPU-seconds, seconds]} up to the first
optimizer step, each without what it spends in another one.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Times = tuple[float, float]


def now() -> Times:
    """CPU-seconds of this process since its start, and the monotonic clock."""
    return time.process_time(), time.monotonic()


class Stages:
    """Time by stage; a nested stage counts only as itself."""

    def __init__(self, began_s: float) -> None:
        self.began: Times = (0.0, began_s)
        self.spent: dict[str, list[float]] = {}
        self.inner = [[0.0, 0.0]]

    def add(self, stage: str, begin: Times, inner: list[float]) -> None:
        """Add the time since `begin`, without that of nested stages."""
        whole = [b - a for a, b in zip(begin, now(), strict=True)]
        row = self.spent.setdefault(stage, [0.0, 0.0])
        for i, value in enumerate(whole):
            row[i] += value - inner[i]
            self.inner[-1][i] += value

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function and count its calls."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the function itself
            begin = now()
            self.inner.append([0.0, 0.0])
            try:
                return function(*args, **kwargs)
            finally:
                self.add(stage, begin, self.inner.pop())

        return call

    def first_step(self, path: Path) -> None:
        """Write the times."""
        before = [b - a - c for a, b, c in zip(self.began, now(), self.spent["score"], strict=True)]
        rest = [before[i] - sum(row[i] for stage, row in self.spent.items() if stage != "score") for i in range(2)]
        path.write_text(json.dumps({**self.spent, "rest": rest, "before": before}), encoding="utf-8")


def main(argv: list[str]) -> int:
    """Wrap the functions that lead from stage to stage, then run the worker."""
    job, output, began_s = argv[1], Path(argv[2]), float(argv[3])
    stages = Stages(began_s)
    stages.add("interpreter", stages.began, [0.0, 0.0])
    gc.disable()  # as the worker does before it imports anything
    begin = now()
    from torch.optim.optimizer import register_optimizer_step_pre_hook as before_steps

    stages.add("torch", begin, [0.0, 0.0])
    from joulesweep.core import late_imports
    from joulesweep.measure import window
    from joulesweep.nets import build
    from joulesweep.train import corpus, worker

    for owner, name, stage in (
        (late_imports, "transformers", "transformers"),
        (build, "build", "model"),
        (corpus, "load", "data"),
        (window.Meter, "__init__", "meter"),
    ):
        setattr(owner, name, stages.timed(stage, getattr(owner, name)))
    from joulesweep.train import scoring  # only now: it and what it imports take the wrapped functions

    scoring.score = stages.timed("score", scoring.score)

    def first(*_: object) -> None:
        hook.remove()
        stages.first_step(output)

    hook = before_steps(first)
    sys.argv = ["joulesweep.train.worker", job]
    return worker.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
