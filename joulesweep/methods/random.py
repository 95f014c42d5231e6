"""Random tensors within a share of full training's cost: the baseline for GreenTrainer's importances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.methods import greentrainer

if TYPE_CHECKING:
    import torch

    from joulesweep.methods import Rating


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes, as of `greentrainer.Params`: rho, objective, reselect_epochs."""

    rho: float = 0.7
    objective: str = "flops"
    reselect_epochs: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        greentrainer.Params(rho=self.rho, objective=self.objective, reselect_epochs=self.reselect_epochs)


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Leave every parameter trainable; `joulesweep.train.adaptive.choosing` chooses among them."""
    return model


def importances(rating: Rating, params: Params, parameters: Mapping[str, torch.nn.Parameter]) -> list[float]:
    """Draw a number between 0 and 1 for each tensor, from seed and epoch: the same on every rank and machine."""
    import torch

    return torch.rand(len(parameters), generator=rating.generator("random")).tolist()
