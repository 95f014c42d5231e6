"""How the steps of a training are issued: one table row per engine.

The table holds plain data so that a config is validated without importing torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulesweep.spec import RunSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        strategies: the strategies it works under.
        cpu: whether it exists on the CPU.
    """

    about: str
    strategies: tuple[str, ...]
    cpu: bool = True


ENGINES: dict[str, Engine] = {
    "eager": Engine(
        about="PyTorch's own way: operations are issued one by one",
        strategies=("single", "dp", "ddp", "fsdp"),
    ),
    "compile": Engine(
        about="torch.compile of forward and backward pass, for every shape before the window opens",
        strategies=("single", "ddp"),
    ),
    "graph": Engine(
        about="the whole step, optimizer included, captured in a CUDA graph per shape and replayed",
        strategies=("single",),
        cpu=False,
    ),
}


def impossible(spec: RunSpec) -> str | None:
    """Say why a run can mean nothing on any machine, or None if it can."""
    allowed = ENGINES[spec.engine].strategies
    if spec.strategy not in allowed:
        return f"engine {spec.engine} works under strategy {' and '.join(allowed)} only"
    if spec.engine == "graph" and spec.batching == "dynamic":
        return "engine graph needs few different shapes: batching fixed or packed"
    if spec.engine == "graph" and spec.checkpoint_activations:
        return "checkpoint_activations reads the random state in the step, which engine graph cannot capture"
    return None


def refusal(engine: str, accelerator: str, compute_capability: tuple[int, int] | None = None) -> str | None:
    """Say why this machine cannot run the engine, or None if it can.

    Args:
        engine: a key of `ENGINES`.
        accelerator: "cpu" or "cuda".
        compute_capability: of the GPU, e.g. (8, 0); None on CPU.
    """
    if accelerator == "cpu" and not ENGINES[engine].cpu:
        return f"engine {engine} needs an NVIDIA GPU; this run uses the CPU"
    if engine == "compile" and compute_capability is not None and compute_capability < (7, 0):
        found = ".".join(map(str, compute_capability))
        return f"engine compile needs compute capability 7.0 or newer; this GPU has {found}"
    compiler = os.environ.get("CXX", "g++")
    if engine == "compile" and shutil.which(compiler) is None:
        return f"engine compile needs a C++ compiler; no {compiler} found"
    return None


Inputs = Sequence[Sequence["torch.Tensor | None"]]
Shapes = tuple[tuple[int, ...], ...]


class GraphedStep:
    """A step that is captured in a CUDA graph the first time its shapes appear, and replayed afterwards.

    What it trains on while it warms up and captures is real: call it for every shape before the measured window, and
    undo that. Follows PyTorch's notes on CUDA graphs, "Whole-network capture".

    Args:
        step: takes the micro-batches' tensors and the factor of the loss (a tensor of no dimension), returns the loss.
        device: the GPU.
    """

    def __init__(self, step: Callable[[Inputs, torch.Tensor], torch.Tensor], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor, torch.Tensor]] = {}
        self.pool: Any = None

    def __call__(self, inputs: Inputs, factor: float) -> torch.Tensor:
        """Copy the inputs, which may lie in host memory, to where the graph reads them, and replay it."""
        if shapes(inputs) not in self.graphs:
            self._capture(inputs, factor)
        graph, places, place_of_factor, loss = self.graphs[shapes(inputs)]
        for place, value in zip(places, _flat(inputs), strict=True):
            place.copy_(value, non_blocking=True)
        place_of_factor.fill_(factor)
        graph.replay()
        return loss.clone()

    def _capture(self, inputs: Inputs, factor: float) -> None:
        import torch

        static = [[None if t is None else t.to(self.device, copy=True) for t in tensors] for tensors in inputs]
        static_factor = torch.full((), factor, device=self.device)
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(static, static_factor)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = self.step(static, static_factor)
        self.pool = graph.pool()
        self.graphs[shapes(inputs)] = (graph, _flat(static), static_factor, loss)


def _flat(inputs: Inputs) -> list[torch.Tensor]:
    return [tensor for tensors in inputs for tensor in tensors if tensor is not None]


def shapes(inputs: Inputs) -> Shapes:
    """What a graph is captured for, and a compiled step may be specialised to."""
    return tuple(tuple(tensor.shape) for tensor in _flat(inputs))
