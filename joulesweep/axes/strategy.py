"""Strategies, which spread a model over devices: one table row and one transform per strategy.

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
    """Facts about a run and this process that a strategy needs.

    Attributes:
        devices: number of devices of the run.
        accelerator: "cpu" or "cuda".
        local_rank: of this process on its machine.
        accumulates: whether a step has several micro-batches.
        layers: of the model; each is sharded separately, so that it is gathered only when needed.
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
        wrap: wraps a model that is already on its device, or shards it in place; None leaves it bare.
        synchronise: sets whether the next backward pass exchanges gradients; None if there is a single process.
        multi_device: whether the axis `devices` applies (otherwise one device is used).
        multi_process: whether torchrun starts one process per device; otherwise one process owns all devices.
        ranks_per_text: number of processes that compute a text together; None for all of them.
        shards_state: whether gradients, optimizer state and trained tensors are sharded over the processes.
        synced_generation: whether processes generate texts in step, because each forward pass needs all of them.
        compiles: whether an engine may compile forward and backward pass.
        captures: whether an engine may capture the whole step in a CUDA graph.
        cpu: whether the strategy supports CPU processes.
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
        static_graph=not setting.accumulates,  # the same parameters in every step; incompatible with skipped exchanges
        broadcast_buffers=False,  # buffers of these models are constant; sending them costs a collective per step
    )


def _synchronise_copies(model: torch.nn.Module, exchanges: bool) -> None:
    model.require_backward_grad_sync = exchanges  # type: ignore[assignment]


def _shard(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    """Shard each layer separately, then the rest."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(setting.accelerator, (dist.get_world_size(),))
    for layer in setting.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Reshard the root too after its forward: scoring changes the shards, and a gathered copy would be stale.
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


def spread(strategy: str, devices: int, nodes: int | None = 1) -> str:
    """A strategy with its devices, as labels show it: `single`, `ddp2`, `ddp 2×4` on 2 nodes of 4 devices each.

    Args:
        strategy: a key of `STRATEGIES`.
        devices: number of devices of the run.
        nodes: number of nodes; None, of tables that are older than the axis, for one.
    """
    if nodes is not None and nodes > 1:
        return f"{strategy} {nodes}×{devices // nodes}"
    return strategy if devices == 1 else f"{strategy}{devices}"


def several_nodes_reason(strategy: str, nodes: int) -> str | None:
    """Return the reason why a strategy cannot use several nodes, or None."""
    if nodes == 1 or STRATEGIES[strategy].multi_process:
        return None
    able = " or ".join(name for name, row in STRATEGIES.items() if row.multi_process)
    return f"{strategy} is one process, which several nodes cannot share: use {able}"


def unsupported_reason(strategy: str, devices: int, accelerator: str, num_gpus: int, nodes: int = 1) -> str | None:
    """Return the reason why this machine cannot run the strategy, or None.

    Args:
        strategy: a key of `STRATEGIES`.
        devices: number of devices that the run requests.
        accelerator: "cpu" or "cuda".
        num_gpus: GPUs that the process can see.
        nodes: number of machines over which the devices are spread.
    """
    row = STRATEGIES[strategy]
    if nodes > 1 and not row.multi_process:
        return several_nodes_reason(strategy, nodes)
    if accelerator == "cpu":
        return None if row.cpu else f"{strategy} needs at least two GPUs; this run uses the CPU"
    if row.multi_device and not row.multi_process and devices < 2:
        return f"{strategy} on {devices} device trains the bare module; it needs at least two GPUs"
    if num_gpus < devices // nodes:
        return f"{strategy} asks for {devices // nodes} GPUs; {num_gpus} visible"
    return None


def on_one_device(strategy: str, devices: int) -> bool:
    """Whether a multi-device strategy runs on one device, which shows the cost of its wrapper."""
    return STRATEGIES[strategy].multi_device and devices == 1


def ranks_per_text(strategy: str, num_ranks: int) -> int:
    """Return how many of a run's processes compute a text together."""
    return STRATEGIES[strategy].ranks_per_text or num_ranks


def wrap(model: torch.nn.Module, strategy: str, setting: Setting) -> torch.nn.Module:
    """Wrap a model that is already on its device; process groups exist before this call.

    Args:
        model: the model to wrap, or to shard in place.
        strategy: a key of `STRATEGIES`.
        setting: of this process.
    """
    how = STRATEGIES[strategy].wrap
    return model if how is None else how(model, setting)


@contextlib.contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Gather FSDP's weights outside the layers, so that a part of the model can be called instead of the whole.

    All ranks enter the context together. Weights must not change inside it.
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
    """Set whether the next backward pass exchanges gradients; only the last micro-batch of a step does."""
    how = STRATEGIES[strategy].synchronise
    if how is not None:
        how(model, exchanges)
