"""LoRA: freeze the model and train a low-rank addition to some of its matrices, through peft."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulesweep.core.errors import UserError, one_of

if TYPE_CHECKING:
    import torch


#: Names of the layers that compute queries and values, or both in one, by family.
USUAL = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_proj", "value_proj"),
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
    ("Wq", "Wv"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
    ("qkv",),
    ("in_proj",),
)


@dataclass(frozen=True, kw_only=True)
class Params:
    """Attributes, those of Hu et al. 2021 (arXiv 2106.09685); the defaults are those of arXiv 2309.13192.

    r: rank of the addition.
    alpha: the addition is scaled by alpha / r.
    dropout: of the addition's input.
    targets: names of the linear layers that get one; null for peft's defaults for the model, or else the layers with
        usual names of queries and values, or else all linear layers in the model's layers.
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
    """Freeze the model and add the adapters, in place.

    Raises:
        UserError: the model lacks a target or has no linear layer, or a target shares its matrix with another module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = _linear(model)
    shared = _shared(model, layers)
    targets = params.targets or _usual_targets(model, [name for name in layers if name not in shared])
    for target in targets:
        matches = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not matches:
            raise UserError(one_of("target of method lora", target, sorted({_last(name) for name in layers})))
        other = next((shared[name] for name in matches if name in shared), None)
        if other is not None:
            raise UserError(f"target {matches[0]} of method lora: its matrix is also that of {other}")
    dropout = params.dropout
    config = LoraConfig(r=params.r, lora_alpha=params.alpha, lora_dropout=dropout, target_modules=list(targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns when it detects a transposed matrix
        inject_adapter_in_model(config, model)
    return model


def describe(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return `lora_targets`, the names of the layers that have an adapter, or nothing if there are none."""
    names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    adapted = sorted({_last(name.partition(".lora_A.")[0]) for name in names})
    return {"lora_targets": adapted} if adapted else {}


def _linear(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the linear layers of a model, by name."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, whose matrix is transposed

    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}


def _shared(model: torch.nn.Module, layers: dict[str, torch.nn.Module]) -> dict[str, str]:
    """Return, for each layer that shares its matrix with another module, the name of that module."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        holders.setdefault(id(getattr(module, "weight", None)), []).append(name)
    others = {name: [other for other in holders[id(part.weight)] if other != name] for name, part in layers.items()}
    return {name: names[0] for name, names in others.items() if names}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _usual_targets(model: Any, names: list[str]) -> list[str]:  # noqa: ANN401 - of any family
    """Return the default targets: peft's, or layers with usual names, or all linear layers in the model's layers.

    Args:
        model: a Hugging Face model.
        names: of its linear layers that share their matrix with no other module.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    from joulesweep.nets.anatomy import stacks

    last = {_last(name) for name in names}
    halves = [model.config, getattr(model.config, "encoder", None), getattr(model.config, "decoder", None)]
    known = [KNOWN.get(getattr(half, "model_type", "")) for half in halves]
    # A few kinds have a pattern instead of names.
    of_peft = tuple(dict.fromkeys(name for listed in known if isinstance(listed, list) for name in listed))
    for usual in (of_peft, *USUAL):
        if usual and last.issuperset(usual):
            return list(usual)
    inside = {id(part) for _, stack in stacks(model) for layer in stack for part in layer.modules()}
    targets = [name for name in names if id(model.get_submodule(name)) in inside]
    if not targets:
        raise UserError("method lora: the model has no linear layer of its own in its layers")
    return targets


def merge(model: torch.nn.Module) -> None:
    """Merge the adapters into their matrices and remove them, in place, so that the model has its original form."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
