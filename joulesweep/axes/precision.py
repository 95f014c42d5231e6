"""Number formats of training: one table row per precision, in PyTorch's terms.

`-mixed` is autocast over fp32 weights, `-true` stores the weights in that format, and `-kahan` does so too but keeps
the rounding error of each weight beside it. dtypes are names, so validating a config does not import torch.

With `bf16-true`, changes below about 2^-8 of a number are lost in AdamW's state too: its second moment should decay by
a thousandth per step, but stays near the largest gradients so far. With `-kahan` it is in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        peak_rate: upper bound for matrix products: the column `<peak_rate>_tflops` of `resources/gpus.csv`.
        weights: dtype of parameters, gradients and optimizer state (except the second moment if kahan).
        autocast: dtype of `torch.autocast`, or None for no autocast.
        scale_loss: whether a GradScaler guards against fp16 underflow.
        tf32: whether fp32 matrix products and convolutions may use TF32 (Ampere or newer).
        kahan: whether the rounding error of a weight is kept beside it, see `joulesweep.train.kahan`.
        cpu: whether the CPU supports it.
        min_capability: lowest compute capability of a GPU that supports it; None for any.
        convert: replaces modules of the model, in place, see `convert`; None for no replacement.
    """

    about: str
    peak_rate: str
    weights: str = "float32"
    autocast: str | None = None
    scale_loss: bool = False
    tf32: bool = False
    kahan: bool = False
    cpu: bool = True
    min_capability: tuple[int, int] | None = None
    convert: Callable[[torch.nn.Module], None] | None = None


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(about="IEEE single precision throughout", peak_rate="fp32"),
    "tf32": Precision(
        about="fp32 storage, matrix products and convolutions in TensorFloat-32",
        peak_rate="tf32",
        tf32=True,
        cpu=False,
        min_capability=(8, 0),
    ),
    "fp16-mixed": Precision(
        about="fp32 weights, float16 autocast with loss scaling",
        peak_rate="fp16",
        autocast="float16",
        scale_loss=True,
    ),
    # Before Ampere, PyTorch emulates bfloat16 through float32: slower, and not what the name says.
    "bf16-mixed": Precision(
        about="fp32 weights, bfloat16 autocast",
        peak_rate="bf16",
        autocast="bfloat16",
        min_capability=(8, 0),
    ),
    "bf16-true": Precision(
        about="weights, gradients and optimizer state in bfloat16",
        peak_rate="bf16",
        weights="bfloat16",
        min_capability=(8, 0),
    ),
    "bf16-kahan": Precision(
        about="bf16-true with Kahan summation of the weights, second moment in fp32: no step is too small",
        peak_rate="bf16",
        weights="bfloat16",
        kahan=True,
        min_capability=(8, 0),
    ),
}


def unsupported_reason(precision: str, accelerator: str, compute_capability: tuple[int, int] | None) -> str | None:
    """Return the reason why this device cannot compute in the precision, or None.

    Args:
        precision: a key of `PRECISIONS`.
        accelerator: "cpu" or "cuda".
        compute_capability: of the GPU, e.g. (8, 0); None on CPU.
    """
    row = PRECISIONS[precision]
    if accelerator == "cpu" or compute_capability is None:
        return None if row.cpu else f"{precision} exists on NVIDIA GPUs only; this run uses the CPU"
    if row.min_capability is not None and compute_capability < row.min_capability:
        needed, present = (".".join(map(str, capability)) for capability in (row.min_capability, compute_capability))
        return f"{precision} needs compute capability {needed} or newer; this GPU has {present}"
    return None


def cast(model: torch.nn.Module, precision: str) -> torch.nn.Module:
    """Cast the weights to the row's dtype, in place, and allow or forbid TF32 for the process.

    A layer whose matrix is quantised (bitsandbytes) decodes it to the dtype in which the row multiplies.

    Buffers keep their dtype, as when transformers loads a model in that dtype: rotary frequencies in bfloat16 would
    give late tokens wrong angles, and a saved model, which contains no buffers, would be loaded with the right ones.
    """
    import torch

    row = PRECISIONS[precision]
    allow_tf32(row.tf32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, row.weights))
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype = getattr(torch, row.autocast or row.weights)
            module.compute_type_is_set = True  # type: ignore[assignment]
    return model


def convert(model: torch.nn.Module, precision: str) -> None:
    """Let the row replace modules, in place, after the weights are cast and before the model is wrapped.

    A converter keeps the names of parameters, under which a model is saved.
    """
    row = PRECISIONS[precision]
    if row.convert is not None:
        row.convert(model)


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 for fp32 matrix products and convolutions in the whole process.

    By default PyTorch allows it for convolutions.
    """
    import torch

    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def computes_in_fp32(precision: str) -> bool:
    """Whether matrix products have float32 inputs and outputs."""
    row = PRECISIONS[precision]
    return row.weights == "float32" and row.autocast is None and row.convert is None


def autocast(precision: str, accelerator: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a forward pass runs."""
    import torch

    name = PRECISIONS[precision].autocast
    if name is None:
        return contextlib.nullcontext()
    return torch.autocast(accelerator, dtype=getattr(torch, name))


def scaler(precision: str, accelerator: str) -> torch.amp.GradScaler:
    """Return the gradient scaler; a disabled one changes nothing."""
    import torch

    return torch.amp.GradScaler(accelerator, enabled=PRECISIONS[precision].scale_loss)
