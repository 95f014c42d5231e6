"""Freeze the embeddings and the lowest share of the layers; train the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    fraction: share of the layers to freeze, in (0, 1); rounded to whole layers.
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share that freezes nothing or everything."""
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Freeze the input embeddings and the first `fraction` of the layers, an encoder's first; see `model.freeze_below`.

    Raises:
        UserError: the model has no list of layers.
    """
    from joulesweep.model import freeze_below

    if not freeze_below(model, fraction=params.fraction):
        raise UserError("method freeze-bottom: the model has no list of layers")
    return model
