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
        about="torch.compile of forward and backward pass; compiled before the window opens",
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


def refusal(engine: str, accelerator: str) -> str | None:
    """Say why this machine cannot run the engine, or None if it can.

    Args:
        engine: a key of `ENGINES`.
        accelerator: "cpu" or "cuda".
    """
    if accelerator == "cpu" and not ENGINES[engine].cpu:
        return f"engine {engine} needs an NVIDIA GPU; this run uses the CPU"
    compiler = os.environ.get("CXX", "g++")
    if engine == "compile" and shutil.which(compiler) is None:
        return f"engine compile needs a C++ compiler; no {compiler} found"
    return None


Inputs = Sequence[Sequence["torch.Tensor | None"]]


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
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}
        self.pool: Any = None

    def knows(self, inputs: Inputs) -> bool:
        """Whether the shapes were captured."""
        return _shapes(inputs) in self.graphs

    def __call__(self, inputs: Inputs, factor: torch.Tensor) -> torch.Tensor:
        """Copy the inputs to where the graph reads them, and replay it."""
        if not self.knows(inputs):
            self._capture(inputs, factor)
        graph, places, loss = self.graphs[_shapes(inputs)]
        for place, value in zip(places, [*_flat(inputs), factor], strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return loss.clone()

    def _capture(self, inputs: Inputs, factor: torch.Tensor) -> None:
        import torch

        static = [[None if t is None else t.to(self.device, copy=True) for t in tensors] for tensors in inputs]
        static_factor = factor.to(self.device, copy=True)
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
        self.graphs[_shapes(inputs)] = (graph, [*_flat(static), static_factor], loss)


def _flat(inputs: Inputs) -> list[torch.Tensor]:
    return [tensor for tensors in inputs for tensor in tensors if tensor is not None]


def _shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in _flat(inputs))
