"""Number formats of training: one table row per precision, in PyTorch's terms.

Names say what they do: `-mixed` is autocast over fp32 weights, `-true` holds the weights themselves in that format,
`-kahan` too, with what rounding takes from them kept beside them. dtypes are names, so validating a config imports no
torch.

With `bf16-true` changes below about 2^-8 of a number are lost in AdamW's state too: its second moment, of which a step
takes a thousandth, does not decay and stays near the largest gradients that were seen. With `-kahan` it is in float32.
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
        peak_rate: what bounds the matrix products: the column `<peak_rate>_tflops` of `resources/gpus.csv`.
        weights: dtype of parameters, gradients and optimizer state (with kahan but for the second moment).
        autocast: dtype of `torch.autocast`, or None for no autocast.
        scale_loss: whether a GradScaler guards against fp16 underflow.
        tf32: whether fp32 matrix products and convolutions may use TF32 (Ampere or newer).
        kahan: whether what rounding takes from a weight is kept beside it: see `joulesweep.kahan`.
        cpu: whether it exists on the CPU.
        min_capability: the least compute capability of a GPU that computes in it; None for any.
        convert: replaces modules of the model, in place, or None: see `convert`.
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
    # Before Ampere PyTorch computes bfloat16 too, through float32: slower, and not what the name says.
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


def refusal(precision: str, accelerator: str, compute_capability: tuple[int, int] | None) -> str | None:
    """Say why this device cannot compute in the precision, or None if it can.

    Args:
        precision: a key of `PRECISIONS`.
        accelerator: "cpu" or "cuda".
        compute_capability: of the GPU, e.g. (8, 0); None on CPU.
    """
    row = PRECISIONS[precision]
    if accelerator == "cpu" or compute_capability is None:
        return None if row.cpu else f"{precision} exists on NVIDIA GPUs only; this run uses the CPU"
    if row.min_capability is not None and compute_capability < row.min_capability:
        needed, present = (".".join(map(str, one)) for one in (row.min_capability, compute_capability))
        return f"{precision} needs compute capability {needed} or newer; this GPU has {present}"
    return None


def cast(model: torch.nn.Module, precision: str) -> torch.nn.Module:
    """Bring the weights to the row's dtype, in place, and let the process use TF32 or not.

    Buffers keep theirs, as they do where transformers loads a model in that dtype: rotary frequencies in bfloat16 would
    turn a late token by a wrong angle, and a saved model, which holds none, would be read back with the right ones.
    """
    import torch

    row = PRECISIONS[precision]
    allow_tf32(row.tf32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, row.weights))
    return model


def convert(model: torch.nn.Module, precision: str) -> None:
    """Let the row replace modules, in place, after the weights have its dtype and before anything wraps the model.

    A converter keeps the names of parameters: a kept model is saved under them.
    """
    row = PRECISIONS[precision]
    if row.convert is not None:
        row.convert(model)


def allow_tf32(allowed: bool) -> None:
    """Say for the whole process whether fp32 matrix products and convolutions may be computed in TF32.

    PyTorch allows it to convolutions on its own accord.
    """
    import torch

    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def computes_in_fp32(precision: str) -> bool:
    """Whether matrix products take and give float32."""
    row = PRECISIONS[precision]
    return row.weights == "float32" and row.autocast is None and row.convert is None


def autocast(precision: str, accelerator: str) -> contextlib.AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    import torch

    name = PRECISIONS[precision].autocast
    if name is None:
        return contextlib.nullcontext()
    return torch.autocast(accelerator, dtype=getattr(torch, name))


def scaler(precision: str, accelerator: str) -> torch.amp.GradScaler:
    """The gradient scaler; a disabled one passes everything through unchanged."""
    import torch

    return torch.amp.GradScaler(accelerator, enabled=PRECISIONS[precision].scale_loss)
