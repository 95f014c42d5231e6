"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Params:
    """Full fine-tuning has no parameters."""


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Leave every parameter trainable."""
    return model
