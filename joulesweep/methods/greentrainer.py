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

    rho: largest cost of a step, as a share of full training's forward and backward pass, in (0, 1].
    objective: unit of that cost: "flops", or "time" at the rate and bandwidth measured on the device.
    reselect_epochs: number of epochs between choices; 0 chooses once.
    importance_batches: number of optimizer steps whose texts the importances are evaluated on.
    lora: parameters of method lora, to choose among its adapters; null to choose among the model's tensors.
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
    """Leave all parameters, or all adapters, trainable; `joulesweep.train.adaptive.choosing` chooses among them."""
    return model if params.lora is None else lora.apply(model, methods.parameters("lora", params.lora))


def describe(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return the layers that have adapters, if there are any; see `lora.describe`."""
    return lora.describe(model)


def merge(model: torch.nn.Module) -> None:
    """Merge the adapters, if there are any; see `lora.merge`."""
    lora.merge(model)


def importances(rating: Rating, params: Params, parameters: Mapping[str, torch.nn.Parameter]) -> list[float]:
    """Estimate how much each tensor's part of an optimizer step lowers the loss: I = -sum(dw · g), g after the step.

    Huang et al. 2024 (arXiv 2309.13192), section 3.2, as a share of the largest. The step is the first one of AdamW
    at the epoch's first learning rate, without dropout, on the epoch's first texts of all ranks. Weights, gradients,
    optimizer and random state are restored.

    Args:
        rating: facts about the run before an epoch.
        params: of the method.
        parameters: the tensors to rate, all of which require a gradient.
    """
    import torch

    lr = rating.learning_rate
    first = rating.gradients(parameters, params.importance_batches)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            decay = rating.weight_decay if parameter.ndim > 1 else 0.0
            # AdamW's first step: both moments come from this gradient alone, so each weight moves by lr.
            first[name] = -lr * (first[name] / (first[name].abs() + 1e-8) + decay * parameter.float())
            parameter.add_(first[name].to(parameter.dtype))
    second = rating.gradients(parameters, params.importance_batches)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    shares = torch.stack([-(first[name] * second[name]).sum() for name in parameters]).double()
    shares /= shares.abs().max().clamp_min(1e-300)
    # Zero out values at rounding level; otherwise attention key biases would be selected at random.
    return shares.masked_fill(shares.abs() < NOISE, 0.0).tolist()
