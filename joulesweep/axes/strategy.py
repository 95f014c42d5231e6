"""How a model is spread over devices: one table row per strategy, one transform.

The table holds plain data so that a config is validated without importing torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a strategy must know of a run and of this process.

    Attributes:
        devices: how many the run has.
        accelerator: "cpu" or "cuda".
        local_rank: of this process on its machine.
        accumulates: whether a step has several micro-batches.
        layers: of the model, each of which is sharded apart, so that it is gathered when it is needed.
    """

    devices: int
    accelerator: str
    local_rank: int
    accumulates: bool = False
    layers: Sequence[torch.nn.Module] = ()


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        wrap: puts something around a model that is already on its device, or shards it in place; None leaves it bare.
        synchronise: says whether the next backward pass exchanges gradients; None where no process has others.
        multi_device: whether the axis `devices` applies (otherwise one device is used).
        multi_process: one process per device under torchrun; otherwise one process owns all devices.
        ranks_per_text: of several processes, how many compute a text together, 1 or None for all of them; the others
            compute other texts.
        shards_state: whether each process holds its part of gradients and optimizer state, and of tensors that train.
        synced_generation: whether processes write texts in step, since a forward pass of one needs the others.
        compiles: whether an engine may compile forward and backward pass.
        captures: whether an engine may capture the whole step in a CUDA graph.
        cpu: whether the strategy means anything on CPU processes.
    """

    about: str
    wrap: Callable[[torch.nn.Module, Setting], torch.nn.Module] | None = None
    synchronise: Callable[[torch.nn.Module, bool], None] | None = None
    multi_device: bool
    multi_process: bool
    ranks_per_text: int | None = 1
    shards_state: bool = False
    synced_generation: bool = False
    compiles: bool = False
    captures: bool = False
    cpu: bool = True


def _scatter(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    import torch

    return torch.nn.DataParallel(model, device_ids=list(range(setting.devices)))


def _copy(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    import torch

    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[setting.local_rank] if setting.accelerator == "cuda" else None,
        gradient_as_bucket_view=True,  # saves one copy of the gradients
        static_graph=not setting.accumulates,  # the same parameters in every step; it cannot leave out an exchange
        broadcast_buffers=False,  # these models' buffers are constants; sending them costs a collective per step
    )


def _synchronise_copies(model: torch.nn.Module, exchanges: bool) -> None:
    model.require_backward_grad_sync = exchanges  # type: ignore[assignment]


def _shard(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    """Shard each layer apart; then the rest."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(setting.accelerator, (dist.get_world_size(),))
    for layer in setting.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The root too is resharded after its forward: scoring changes the shards behind the back of a gathered copy.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def _synchronise_shards(model: torch.nn.Module, exchanges: bool) -> None:
    model.set_requires_gradient_sync(exchanges)  # type: ignore[operator]


STRATEGIES: dict[str, Strategy] = {
    "single": Strategy(
        about="one process on one device",
        multi_device=False,
        multi_process=False,
        compiles=True,
        captures=True,
    ),
    "dp": Strategy(
        about="torch.nn.DataParallel: one process, the batch scattered over its GPUs",
        wrap=_scatter,
        multi_device=True,
        multi_process=False,
        cpu=False,
    ),
    "ddp": Strategy(
        about="torch.nn.parallel.DistributedDataParallel: one process per device under torchrun",
        wrap=_copy,
        synchronise=_synchronise_copies,
        multi_device=True,
        multi_process=True,
        compiles=True,
    ),
    "fsdp": Strategy(
        about="torch.distributed.fsdp.fully_shard (FSDP2): as ddp, with weights and optimizer state divided",
        wrap=_shard,
        synchronise=_synchronise_shards,
        multi_device=True,
        multi_process=True,
        shards_state=True,
        synced_generation=True,
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


def on_one_device(strategy: str, devices: int) -> bool:
    """Whether a strategy for several devices has one: then a run shows what the wrapper costs."""
    return STRATEGIES[strategy].multi_device and devices == 1


def ranks_per_text(strategy: str, num_ranks: int) -> int:
    """How many of a run's processes compute a text together."""
    return STRATEGIES[strategy].ranks_per_text or num_ranks


def wrap(model: torch.nn.Module, strategy: str, setting: Setting) -> torch.nn.Module:
    """Wrap a model that is already on its device; process groups exist before this call.

    Args:
        model: to be wrapped, or to be sharded in place.
        strategy: a key of `STRATEGIES`.
        setting: of this process.
    """
    how = STRATEGIES[strategy].wrap
    return model if how is None else how(model, setting)


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


def synchronise(model: torch.nn.Module, strategy: str, exchanges: bool) -> None:
    """Say whether the next backward pass exchanges gradients: of several micro-batches only the last one does."""
    how = STRATEGIES[strategy].synchronise
    if how is not None:
        how(model, exchanges)
