"""Like freeze-bottom, but the frozen layers compute each text once: later epochs read what they made of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.axes.strategy import STRATEGIES
from joulesweep.axes.task import TASKS
from joulesweep.methods import freeze_bottom

if TYPE_CHECKING:
    import torch

    from joulesweep.core.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes.

    fraction: share of the layers to freeze, as of `freeze_bottom.Params`.
    max_gib: largest size of what is kept, in GiB of the device's memory; a larger one is refused before the training.
    """

    fraction: float = 0.5
    max_gib: float = 8.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        freeze_bottom.Params(fraction=self.fraction)
        if self.max_gib <= 0:
            raise ValueError(f"max_gib must lie above 0, got {self.max_gib}")


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why the method does not fit the rest of a spec, or None."""
    if TASKS[spec.task].hides:
        others = " or ".join(name for name, row in TASKS.items() if not row.hides)
        return f"method freeze-cache: each epoch hides other words, so no text comes back; use task {others}"
    if spec.strategy != next(iter(STRATEGIES)):
        return "method freeze-cache: a process meets other texts in each epoch; use strategy: [single]"
    if spec.engine != "eager":
        return "method freeze-cache: later epochs have another step to prepare; use engine: [eager]"
    return None


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Freeze as `freeze_bottom.apply` does; `joulesweep.train.caching` keeps what the frozen layers compute.

    The cache of AutoFreeze (Liu et al. 2021, arXiv 2102.01386), which also decides when to freeze more; here the share
    is fixed. The kept layers compute without dropout. Frozen layers of a decoder behind an encoder are not kept.

    Raises:
        UserError: the layers of the model cannot be told apart, or it has only one.
    """
    return freeze_bottom.apply(model, freeze_bottom.Params(fraction=params.fraction))


def cached_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the frozen layers of a model, or of its encoder."""
    from joulesweep.nets.anatomy import stacks

    _, layers = stacks(model)[0]
    return list(itertools.takewhile(lambda layer: not any(p.requires_grad for p in layer.parameters()), layers))


def describe(model: torch.nn.Module) -> dict[str, int]:
    """Return the numbers of layers, of frozen layers, and of those whose output is kept."""
    return {**freeze_bottom.describe(model), "num_cached_layers": len(cached_layers(model))}
