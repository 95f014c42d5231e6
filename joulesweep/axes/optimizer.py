"""Optimizers, which turn gradients into steps: one table row per optimizer, all of them AdamW.

The table holds plain data and functions that import torch when they are called: a config is validated without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulesweep.axes.engine import ENGINES
from joulesweep.axes.precision import PRECISIONS
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core.spec import RunSpec

if TYPE_CHECKING:
    import torch

Groups = Sequence[Mapping[str, object]]  # parameters with their weight decay, as PyTorch's optimizers take them

BITSANDBYTES = "bitsandbytes"  # the package, its module, and the extra that brings it
LEAST_8BIT = 4096  # numbers of the smallest tensor whose state has 8 bits; smaller ones have it in fp32


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        make: builds it from parameter groups, the learning rate, and whether steps are captured in a CUDA graph.
        moment_bytes: bytes of each of its two moments per weight; None for the bytes of the weight.
        quantises: whether its state is quantised by bitsandbytes: on a GPU, block by block of whole tensors, with the
            number of the step on the host.
    """

    about: str
    make: Callable[[Groups, float | torch.Tensor, bool], torch.optim.Optimizer]
    moment_bytes: float | None = None
    quantises: bool = False


def _adamw(groups: Groups, lr: float | torch.Tensor, captured: bool) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=captured)  # type: ignore[arg-type]


def _adamw_8bit(groups: Groups, lr: float | torch.Tensor, captured: bool) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits, in blocks of 256 (Dettmers et al. 2022, arXiv 2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, lr=lr, min_8bit_size=LEAST_8BIT)
    return made


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(about="PyTorch's fused AdamW: two moments per weight, in the weight's format", make=_adamw),
    # A block of 256 moments has one scale in fp32.
    "adamw-8bit": Optimizer(
        about="bitsandbytes' AdamW: two moments of 8 bits per weight, not paged; NVIDIA GPUs only",
        make=_adamw_8bit,
        moment_bytes=1 + 4 / 256,
        quantises=True,
    ),
}


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why a run's optimizer does not fit the rest of its spec on any machine, or None."""
    if not OPTIMIZERS[spec.optimizer].quantises:
        return None
    if PRECISIONS[spec.precision].kahan:
        return f"precision {spec.precision} has an AdamW of its own; use optimizer: [adamw]"
    if STRATEGIES[spec.strategy].shards_state:
        return f"optimizer {spec.optimizer} quantises whole tensors, which {spec.strategy} shards"
    if ENGINES[spec.engine].captures:
        return f"optimizer {spec.optimizer} counts its steps on the host, which engine {spec.engine} cannot capture"
    return None


def unsupported_reason(optimizer: str, accelerator: str) -> str | None:
    """Return the reason why this machine cannot run the optimizer, or None.

    Args:
        optimizer: a key of `OPTIMIZERS`.
        accelerator: "cpu" or "cuda".
    """
    if not OPTIMIZERS[optimizer].quantises:
        return None
    return lacking_bitsandbytes(f"optimizer {optimizer}", accelerator)


def lacking_bitsandbytes(what: str, accelerator: str) -> str | None:
    """Return what a machine lacks for quantised state or weights, or None.

    Args:
        what: needs them: `optimizer adamw-8bit`.
        accelerator: "cpu" or "cuda". On the CPU bitsandbytes is slow, and is not what the name of a run promises.
    """
    if accelerator != "cuda":
        return f"{what} needs an NVIDIA GPU; this run uses the CPU"
    if importlib.util.find_spec(BITSANDBYTES) is None:
        return (
            f"{what} needs {BITSANDBYTES}, which is not installed: pip install -c constraints.txt -e '.[bitsandbytes]'"
        )
    return None
