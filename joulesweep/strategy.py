"""How a model is spread over devices: one table row per strategy, one transform.

The table holds plain data so that a config is validated without importing torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        wrapper: the torch.nn.parallel class, or the function of torch.distributed.fsdp, applied to the model; or None.
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
    "fsdp": Strategy(
        about="torch.distributed.fsdp.fully_shard (FSDP2): as ddp, with weights and optimizer state divided",
        wrapper="fully_shard",
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


def wrap(
    model: torch.nn.Module,
    strategy: str,
    devices: int,
    accelerator: str,
    local_rank: int,
    accumulates: bool = False,
    layers: Sequence[torch.nn.Module] = (),
) -> torch.nn.Module:
    """Wrap a model that is already on its device; process groups exist before this call.

    Args:
        model: to be wrapped, or to be sharded in place.
        strategy: a key of `STRATEGIES`.
        devices: how many devices the run has.
        accelerator: "cpu" or "cuda".
        local_rank: of this process on its machine.
        accumulates: whether a step has several micro-batches.
        layers: of the model, each of which is sharded apart, so that it is gathered when it is needed.
    """
    import torch

    wrapper = STRATEGIES[strategy].wrapper
    if wrapper is None:
        return model
    if wrapper == "DataParallel":
        return torch.nn.DataParallel(model, device_ids=list(range(devices)))
    if wrapper == "fully_shard":
        return _shard(model, accelerator, layers)
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[local_rank] if accelerator == "cuda" else None,
        gradient_as_bucket_view=True,  # saves one copy of the gradients
        static_graph=not accumulates,  # the same parameters in every step; it cannot leave out an exchange
        broadcast_buffers=False,  # these models' buffers are constants; sending them costs a collective per step
    )


def _shard(model: torch.nn.Module, accelerator: str, layers: Sequence[torch.nn.Module]) -> torch.nn.Module:
    """Shard each layer apart; then the rest."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root too is resharded after its forward: scoring changes the shards behind the back of a gathered copy.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


@contextlib.contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """While a part of the model is called and not the model itself: FSDP's weights that lie in no layer are whole.

    All ranks come here together. Weights must not be changed meanwhile.
    """
    divided = hasattr(model, "unshard")
    if divided:
        model.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        if divided:
            model.reshard()  # type: ignore[operator]


def synchronise(model: torch.nn.Module, strategy: str, wanted: bool) -> None:
    """Say whether the next backward pass exchanges gradients: of several micro-batches only the last one does."""
    if STRATEGIES[strategy].wrapper == "fully_shard":
        model.set_requires_gradient_sync(wanted)  # type: ignore[operator]
    elif STRATEGIES[strategy].multi_process:
        model.require_backward_grad_sync = wanted  # type: ignore[assignment]
