"""QLoRA: LoRA on a model whose matrices are kept in 4 bits (NF4), through bitsandbytes and peft, on NVIDIA GPUs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulesweep.axes.optimizer import lacking_bitsandbytes
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core.errors import UserError
from joulesweep.methods import lora

if TYPE_CHECKING:
    import torch

    from joulesweep.core.spec import RunSpec

#: `resources/published/formats.csv` has the figures with their source.
CAUTION = (
    "NF4 saves memory, not always energy: for models of 1 to 3 B parameters, inference in NF4 was published to take 25 "
    "to 56 % more joules than FP16 on an RTX 4090 and 12 to 29 % more on an RTX 5090 (Zhang 2026, "
    "doi:10.5281/zenodo.18900289); for training no figure is known"
)


@dataclass(frozen=True, kw_only=True)
class Params(lora.Params):
    """Attributes beside those of `lora.Params`.

    double_quant: whether the scales of blocks are quantised too (Dettmers et al. 2023, arXiv 2305.14314, section 3).
    """

    double_quant: bool = True


def unsupported_reason(accelerator: str) -> str | None:
    """Return what this machine lacks for the method, or None."""
    return lacking_bitsandbytes("method qlora", accelerator)


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why the method does not fit the rest of a spec, or None."""
    row = STRATEGIES[spec.strategy]
    if row.multi_device and (row.shards_state or not row.multi_process):
        return f"method qlora: {spec.strategy} divides or copies matrices without their scales; use single or ddp"
    if spec.engine != "eager":
        return "method qlora: what decodes 4 bits was tried with engine eager alone; use engine: [eager]"
    return None


def apply(model: torch.nn.Module, params: Params) -> torch.nn.Module:
    """Add the adapters as `lora.apply` does, then quantise the frozen matrices of the layers, in place.

    This happens on the host, so that a GPU never holds the whole matrices. Embeddings, the output layer, and matrices
    that two modules share stay as they are.

    Raises:
        UserError: as in `lora.apply`, or no layer has a matrix to quantise.
    """
    import torch

    from joulesweep.nets.anatomy import stacks

    lora.apply(model, params)
    inside = {id(part) for _, stack in stacks(model) for layer in stack for part in layer.modules()}
    holders = Counter(id(module._parameters["weight"]) for module in model.modules() if "weight" in module._parameters)
    frozen = [
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and id(module) in inside
        if holders[id(module.weight)] == 1 and not module.weight.requires_grad
    ]
    if not frozen:
        raise UserError("method qlora: the layers of this model have no linear layer to quantise")
    for name in frozen:
        _replace(model, name, _quantised(model.get_submodule(name), params.double_quant))
    return model


def _quantised(linear: Any, double_quant: bool) -> torch.nn.Module:  # noqa: ANN401 - torch.nn.Linear
    from bitsandbytes.nn import Linear4bit

    made: torch.nn.Module = Linear4bit(
        linear.in_features, linear.out_features, bias=False, quant_type="nf4", compress_statistics=double_quant
    )
    made.weight.data = linear.weight.detach()
    made.bias = linear.bias
    return made.to(linear.weight.device)  # quantises


def _replace(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def describe(model: torch.nn.Module) -> dict[str, object]:
    """Return the layers that have adapters, and how many matrices have 4 bits."""
    quantised = sum(hasattr(parameter, "quant_state") for parameter in model.parameters())
    return {**lora.describe(model), "num_quantised": quantised}


def merge(model: torch.nn.Module) -> None:
    """Decode the matrices and merge the adapters into them, in place, so that the model has its original form."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    for name, module in list(model.named_modules()):
        state = getattr(module._parameters.get("weight"), "quant_state", None)  # peft's wrapper has its base's weight
        if state is not None:
            weight = dequantize_4bit(module.weight.data, state)
            plain = torch.nn.Linear(
                weight.shape[1], weight.shape[0], bias=module.bias is not None, device=weight.device
            )
            plain.weight.data, plain.bias = weight, module.bias
            _replace(model, name, plain)
    lora.merge(model)
