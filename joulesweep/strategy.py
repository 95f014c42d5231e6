"""How a model is spread over devices: one table row per strategy, one transform.

The table holds plain data so that a config is validated without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        wrapper: the torch.nn.parallel class put around the model, or None.
        multi_device: whether the axis `devices` applies (otherwise one device is used).
        multi_process: one process per device under torchrun; otherwise one process owns all devices.
        cpu: whether the strategy means anything on CPU processes.
    """

    about: str
    wrapper: str | None
    multi_device: bool
    multi_process: bool
    cpu: bool


STRATEGIES: dict[str, Strategy] = {
    "single": Strategy(
        about="one process on one device",
        wrapper=None,
        multi_device=False,
        multi_process=False,
        cpu=True,
    ),
    "dp": Strategy(
        about="torch.nn.DataParallel: one process, the batch scattered over its GPUs",
        wrapper="DataParallel",
        multi_device=True,
        multi_process=False,
        cpu=False,
    ),
    "ddp": Strategy(
        about="torch.nn.parallel.DistributedDataParallel: one process per device under torchrun",
        wrapper="DistributedDataParallel",
        multi_device=True,
        multi_process=True,
        cpu=True,
    ),
}


def refusal(strategy: str, devices: int, accelerator: str, num_gpus: int) -> str | None:
    """Say why this machine cannot run the strategy, or None if it can.

    Args:
        strategy: a key of `STRATEGIES`.
        devices: how many devices the run asks for.
        accelerator: "cpu" or "cuda".
        num_gpus: GPUs that the process can see.
    """
    row = STRATEGIES[strategy]
    if accelerator == "cpu":
        return None if row.cpu else f"{strategy} needs at least two GPUs; this run uses the CPU"
    if row.multi_device and not row.multi_process and devices < 2:
        return f"{strategy} on {devices} device trains the bare module; it needs at least two GPUs"
    if num_gpus < devices:
        return f"{strategy} asks for {devices} GPUs; {num_gpus} visible"
    return None


def wrap(model: torch.nn.Module, strategy: str, devices: int, accelerator: str, local_rank: int) -> torch.nn.Module:
    """Wrap a model that is already on its device; process groups exist before this call."""
    import torch

    wrapper = STRATEGIES[strategy].wrapper
    if wrapper is None:
        return model
    if wrapper == "DataParallel":
        return torch.nn.DataParallel(model, device_ids=list(range(devices)))
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[local_rank] if accelerator == "cuda" else None,
        gradient_as_bucket_view=True,  # saves one copy of the gradients
        static_graph=True,  # the same parameters take part in every step
        broadcast_buffers=False,  # these models' buffers are constants; sending them costs a collective per step
    )
