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
    """Freeze the input embeddings and the first `fraction` of the longest list of layers.

    An output projection tied to the embeddings freezes with them.

    Raises:
        UserError: the model has no list of layers.
    """
    import torch

    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not stacks:
        raise UserError("method freeze-bottom: the model has no list of layers")
    layers = max(stacks, key=len)
    frozen = [layers[i] for i in range(round(params.fraction * len(layers)))]
    base = getattr(model, "base_model", model)
    embeddings = [getattr(base, "embeddings", None) or model.get_input_embeddings()]  # type: ignore[operator]
    for module in [*embeddings, *frozen]:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    return model
