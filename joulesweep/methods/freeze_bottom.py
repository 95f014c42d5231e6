"""Freeze the embeddings and the lowest share of the layers; train the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.core.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    fraction: share of the layers to freeze, in (0, 1); rounded to whole layers, at least one and never all.
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share that freezes nothing or everything."""
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Freeze the input embeddings and the first `fraction` of the layers, encoder before decoder; see `freeze_below`.

    Raises:
        UserError: the layers of the model cannot be told apart, or it has only one.
    """
    from joulesweep.nets.freezing import freeze_below, layers_of

    layers = layers_of(model, "freeze-bottom")
    if len(layers) < 2:
        raise UserError("method freeze-bottom: the model has one layer; a share of it cannot be frozen")
    num_frozen = math.floor(params.fraction * len(layers) + 0.5)  # `round` rounds halves to the even number
    freeze_below(model, layers, min(max(num_frozen, 1), len(layers) - 1))
    return model


def describe(model: torch.nn.Module) -> dict[str, int]:
    """Return the numbers of layers and of frozen layers; see `freezing.frozen_layers`."""
    from joulesweep.nets.freezing import frozen_layers

    return frozen_layers(model)
