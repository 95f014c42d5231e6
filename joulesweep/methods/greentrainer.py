"""GreenTrainer: train the tensors that matter most for the loss, within a share of full training's cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulesweep import methods
from joulesweep.methods import lora

if TYPE_CHECKING:
    import torch

    from joulesweep.methods import Rating

OBJECTIVES = ("flops", "time")
NOISE = 1e-6  # of the largest importance; sums in float32


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    rho: what a step may cost, as a share of full training's forward and backward pass, in (0, 1].
    objective: "flops", or "time": FLOPs at the rate, and AdamW's bytes at the bandwidth, that the device shows.
    reselect_epochs: choose anew every so many epochs; 0 chooses once.
    importance_batches: optimizer steps' worth of texts that the importances are evaluated on.
    lora: parameters of method lora, whose adapters are then what is chosen from; null for the model's own tensors.
    """

    rho: float = 0.7
    objective: str = "flops"
    reselect_epochs: int = 2
    importance_batches: int = 1
    lora: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho must lie above 0 and be at most 1, got {self.rho}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be flops or time, got {self.objective!r}")
        if self.reselect_epochs < 0:
            raise ValueError(f"reselect_epochs must be at least 0, got {self.reselect_epochs}")
        if self.importance_batches < 1:
            raise ValueError(f"importance_batches must be at least 1, got {self.importance_batches}")
        if self.lora is not None:
            methods.parameters("lora", self.lora)


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Leave every parameter trainable, or every adapter; `joulesweep.train.adaptive.choosing` chooses among them."""
    return model if params.lora is None else lora.apply(model, methods.parameters("lora", params.lora))


def described(model: torch.nn.Module) -> dict[str, list[str]]:
    """What a record says of the adapters, if there are any; see `lora.described`."""
    return lora.described(model)


def merge(model: torch.nn.Module) -> None:
    """Take adapters out again, if there are any; see `lora.merge`."""
    lora.merge(model)


def importances(rating: Rating, params: Params, parameters: Mapping[str, torch.nn.Parameter]) -> list[float]:
    """How much the loss falls by each tensor's part of one optimizer step: I = -sum(dw · g), g after the step.

    Huang et al. 2024 (arXiv 2309.13192), section 3.2, as a share of the largest. The step is that of a fresh AdamW
    at the learning rate that the epoch begins with, dropout is off, and the epoch's first texts are used, of all ranks.
    Weights, gradients, optimizer and random state are afterwards as they were.

    Args:
        rating: what the run tells, before an epoch.
        params: of the method.
        parameters: the tensors to be rated, all requiring a gradient.
    """
    import torch

    lr = rating.learning_rate
    first = rating.gradients(parameters, params.importance_batches)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            decay = rating.weight_decay if parameter.ndim > 1 else 0.0
            # AdamW's first step: both moments are the gradient's own, so it moves by lr in the gradient's direction.
            first[name] = -lr * (first[name] / (first[name].abs() + 1e-8) + decay * parameter.float())
            parameter.add_(first[name].to(parameter.dtype))
    second = rating.gradients(parameters, params.importance_batches)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    found = torch.stack([-(first[name] * second[name]).sum() for name in parameters]).double()
    found /= found.abs().max().clamp_min(1e-300)
    # What is nothing but rounding has no sign: an attention's key biases would be chosen by lot.
    return found.masked_fill(found.abs() < NOISE, 0.0).tolist()
