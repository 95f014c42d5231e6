"""Full training whose backward pass is computed for a sample of the positions, with unbiased gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from joulesweep.core.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    keep: share of the positions for which each linear layer computes its backward pass, above 0 and at most 1.
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share that means nothing."""
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie above 0 and be at most 1, got {self.keep}")


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why the method does not fit the rest of a spec, or None."""
    if spec.engine != "eager":
        return "method sampled-backward: its draws were never tried compiled or captured; use engine: [eager]"
    return None


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Let every linear layer draw the positions of its backward pass, in each step anew; see `joulesweep.nets.sampled`.

    In the manner of VCAS (Wang et al. 2024, arXiv 2402.17227), which draws whole texts between layers and positions
    for weights, and adapts the shares to the variance of the gradient. Here each layer draws positions for both of its
    products, and the share is fixed. Products within attention are exact.

    Raises:
        UserError: the layers of the model have no linear layer of PyTorch's.
    """
    from joulesweep.nets import sampled
    from joulesweep.nets.anatomy import stacks

    sampled.adopt(model, params.keep)
    inside = {id(module) for _, stack in stacks(model) for layer in stack for module in layer.modules()}
    if not any(id(module) in inside for module in model.modules() if isinstance(module, sampled.Linear)):
        raise UserError("method sampled-backward: the layers of this model have no linear layers of PyTorch's own")
    return model


def describe(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of layers whose backward pass is sampled."""
    from joulesweep.nets import sampled

    return {"num_sampled_layers": sum(1 for _ in sampled.shares(model))}
