"""Train the last layers and the output layer; freeze the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.core.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    layers: how many of the last layers train; the "FT-Top2" of Huang et al. 2024 (arXiv 2309.13192) has two.
    """

    layers: int = 2

    def __post_init__(self) -> None:
        """Refuse to train less than the output layer."""
        if self.layers < 0:
            raise ValueError(f"layers must be at least 0, got {self.layers}")


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Freeze everything before the last `layers` layers; see `freeze_below`.

    Raises:
        UserError: the layers of the model cannot be told apart, or it has fewer.
    """
    from joulesweep.nets.freezing import freeze_below, layers_of

    layers = layers_of(model, "last-k")
    if len(layers) < params.layers:
        raise UserError(f"method last-k: layers {params.layers} of a model that has {len(layers)}")
    freeze_below(model, layers, len(layers) - params.layers)
    return model


def describe(model: torch.nn.Module) -> dict[str, int]:
    """Return the numbers of layers and of frozen layers; see `freezing.frozen_layers`."""
    from joulesweep.nets.freezing import frozen_layers

    return frozen_layers(model)
