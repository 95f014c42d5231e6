"""Time steps of chosen tensors and of full training in turn: shared by `benchmarks.partial` and the GPU day."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Set
from typing import Any

from joulesweep.train import loop
from joulesweep.train.adaptive import choosing
from joulesweep.train.trainer import Trainer


def compared(trainer: Trainer, num_steps: int) -> dict[str, Any]:
    """Predicted and measured cost of a choice, as shares of full training.

    Args:
        trainer: of a method that chooses.
        num_steps: of each kind.

    Returns:
        predicted, measured (median over steps), off (relative), trained_share, rates, full_step_s, and chosen: the
        names of the tensors. On the CPU seconds are those of the process.
    """
    trainer.open_phase("rating", 1)
    choice = choosing.choose(trainer, 1)
    trainer.open_phase("training", 1)
    chosen, candidates = set(choice.chosen), set(trainer.selector.cost.names)  # type: ignore[union-attr]
    times: dict[bool, list[float]] = {True: [], False: []}
    batches = list(itertools.islice(trainer.batches(1), num_steps + 2))
    trainer.core.train()
    for (step, step_arguments), full in itertools.product(enumerate(batches), (False, True)):
        train_only(trainer, candidates if full else chosen)
        began_s = _now(trainer)
        loop._step(trainer, *step_arguments, 0.0)
        if step >= 2:  # those before allocate
            times[full].append(_now(trainer) - began_s)
    measured = statistics.median(a / b for a, b in zip(times[False], times[True], strict=True))
    predicted = choice.predicted_cost
    return {
        "predicted": predicted,
        "measured": measured,
        "off": measured / predicted - 1,
        "trained_share": choice.trained_share,
        "rates": choice.rates,
        "full_step_s": statistics.median(times[True]),
        "chosen": sorted(chosen),
    }


def train_only(trainer: Trainer, names: Set[str]) -> None:
    """Make exactly these tensors trainable."""
    for name, parameter in trainer.core.model.named_parameters():
        parameter.requires_grad_(name in names)


def _now(trainer: Trainer) -> float:
    trainer.place.synchronize()
    return time.process_time() if trainer.place.device.type == "cpu" else time.perf_counter()
