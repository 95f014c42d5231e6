"""LoRA: freeze the model and train a low-rank addition to some of its matrices, through peft."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulesweep.errors import UserError, one_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes, those of Hu et al. 2021 (arXiv 2106.09685); the defaults are those of arXiv 2309.13192.

    r: rank of the addition.
    alpha: the addition is scaled by alpha / r.
    dropout: of the addition's input.
    targets: names of the linear layers that get one; null for those that peft knows for the model: query and value.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.1
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.r < 1 or self.alpha < 1:
            raise ValueError(f"r and alpha must be at least 1, got {self.r} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        names = self.targets if isinstance(self.targets, list) else []
        if self.targets is not None and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError(f"targets must be names of layers, got {self.targets!r}")


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Add the adapters in place, the rest of the model being frozen.

    Raises:
        UserError: a target that the model has not, or whose matrix is also another module's; or none given for a model
            that peft does not know.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, whose matrix is the other way round

    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    linear = {name.rpartition(".")[2] for name in layers}
    targets = params.targets or _usual_targets(model.config)
    if not targets:
        kind = getattr(model.config, "model_type", "")
        raise UserError(
            f"method lora: no usual targets of a {kind} are known; give targets: {', '.join(sorted(linear))}"
        )
    for target in targets:
        if target not in linear:
            raise UserError(one_of("target of method lora", target, sorted(linear)))
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        holders.setdefault(id(getattr(module, "weight", None)), []).append(name)
    for name, module in layers.items():
        others = [other for other in holders[id(module.weight)] if other != name]
        if name.rpartition(".")[2] in targets and others:
            raise UserError(f"target {name} of method lora: its matrix is also that of {others[0]}")
    dropout = params.dropout
    config = LoraConfig(r=params.r, lora_alpha=params.alpha, lora_dropout=dropout, target_modules=list(targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft sees which way round a matrix is, and says so
        inject_adapter_in_model(config, model)
    return model


def _usual_targets(config: Any) -> list[str]:  # noqa: ANN401 - of any model
    """Names of the layers that usually get an adapter: of the model's kind, or of those of its halves."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    halves = [config, getattr(config, "encoder", None), getattr(config, "decoder", None)]
    found = [USUAL.get(getattr(half, "model_type", "")) for half in halves]
    # A few kinds have a pattern instead of names.
    return list(dict.fromkeys(name for names in found if isinstance(names, list) for name in names))


def merge(model: torch.nn.Module) -> None:
    """Add the adapters to the matrices they belong to and take them out: the model's own form again, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
