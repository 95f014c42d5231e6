"""Measure the seconds of the parts of a training step."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import torch

from joulesweep.train.adaptive.cost import Rates

if TYPE_CHECKING:
    from joulesweep.train.trainer import RankContext, Trainer


def calibrate(trainer: Trainer, deepest: str) -> Rates:
    """Measure the parts of a step, each as the minimum of five, on the run's model, batches and device.

    Weights and random state do not change; the optimizer has no state afterwards.

    Args:
        trainer: before its first step.
        deepest: a tensor whose gradient needs every activation gradient, and hardly more.
    """
    core, place = trainer.core, trainer.place
    parameters = {name: parameter for name, parameter in core.model.named_parameters() if parameter.requires_grad}
    began_s = time.perf_counter()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    batches, num_predicted = next(trainer.batches(epoch=1))
    inputs = [batch.on(place.device) for batch in batches]
    core.train()
    rounds: dict[bool, list[list[float]]] = {True: [], False: []}
    with torch.random.fork_rng(range(torch.cuda.device_count()) if place.device.type == "cuda" else []):
        for _, whole in itertools.product(range(6), (True, False)):
            for name, parameter in parameters.items():
                parameter.requires_grad_(whole or name == deepest)
            marks = [0.0, 0.0, 0.0]
            for tensors in inputs:
                marks[0] -= _now(place)
                loss = core(*tensors)[:, 0].sum() / num_predicted
                middle_s = _now(place)
                torch.autograd.backward(loss)
                marks[0], marks[1] = marks[0] + middle_s, marks[1] + _now(place) - middle_s
            marks[2] -= _now(place)
            trainer.optimizer.step()
            marks[2] += _now(place)
            trainer.optimizer.zero_grad(set_to_none=True)
            rounds[whole].append(marks)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    trainer.optimizer.state.clear()
    least = torch.tensor([[min(values) for values in zip(*rounds[whole][1:], strict=True)] for whole in (True, False)])
    least = place.reduced(least.to(place.device)) / place.data_parallel  # every rank predicts the same
    (forward_s, backward_s, optimizer_s), (_, chain_s, _) = least.tolist()
    return Rates(
        forward_s=forward_s,
        chain_s=min(chain_s, backward_s),
        backward_s=backward_s,
        optimizer_s=optimizer_s,
        calibration_s=time.perf_counter() - began_s,
    )


def _now(place: RankContext) -> float:
    place.synchronize()
    return time.perf_counter()
