"""Engines, which issue the steps of a training: one table row per engine.

The table holds plain data so that a config is validated without importing torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulesweep.axes.layout import BATCHINGS
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.core.spec import RunSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        compiles: whether forward and backward pass are compiled.
        captures: whether the whole step is captured in a CUDA graph, which needs a GPU.
    """

    about: str
    compiles: bool = False
    captures: bool = False


ENGINES: dict[str, Engine] = {
    "eager": Engine(
        about="PyTorch's own way: operations are issued one by one",
    ),
    "compile": Engine(
        about="torch.compile of forward and backward pass, for every shape before the window opens",
        compiles=True,
    ),
    "graph": Engine(
        about="the whole step, optimizer included, captured in a CUDA graph per shape and replayed",
        captures=True,
    ),
    "compile-graph": Engine(
        about="both: compiled, then captured: fewer kernels, and no waiting for the host between them",
        compiles=True,
        captures=True,
    ),
}


def incompatible_reason(spec: RunSpec) -> str | None:
    """Return the reason why a run is invalid on every machine, or None."""
    row = ENGINES[spec.engine]
    under = [
        name for name, other in STRATEGIES.items() if row.compiles <= other.compiles and row.captures <= other.captures
    ]
    if spec.strategy not in under:
        return f"engine {spec.engine} works under strategy {' and '.join(under)} only"
    if row.captures and not BATCHINGS[spec.batching].few_shapes:
        few = " or ".join(name for name, batching in BATCHINGS.items() if batching.few_shapes)
        return f"engine {spec.engine} needs few different shapes: batching {few}"
    if row.captures and spec.checkpoint_activations:
        return f"checkpoint_activations reads the random state in the step, which engine {spec.engine} cannot capture"
    return None


def num_compilations() -> int:
    """Return how often this process has called PyTorch's compiler so far, successfully or not."""
    utils = sys.modules.get("torch._dynamo.utils")
    return int(utils.counters["frames"]["total"]) if utils else 0


def unsupported_reason(engine: str, accelerator: str, compute_capability: tuple[int, int] | None = None) -> str | None:
    """Return the reason why this machine cannot run the engine, or None.

    Args:
        engine: a key of `ENGINES`.
        accelerator: "cpu" or "cuda".
        compute_capability: of the GPU, e.g. (8, 0); None on CPU.
    """
    row = ENGINES[engine]
    if accelerator == "cpu" and row.captures:
        return f"engine {engine} needs an NVIDIA GPU; this run uses the CPU"
    if not row.compiles:
        return None
    if compute_capability is not None and compute_capability < (7, 0):
        present = ".".join(map(str, compute_capability))
        return f"engine {engine} needs compute capability 7.0 or newer; this GPU has {present}"
    lacking = _lacking_for_compilation(accelerator)
    return f"engine {engine} needs {lacking}" if lacking else None


def _lacking_for_compilation(accelerator: str) -> str | None:
    """Return what PyTorch's compiler needs and this machine lacks; for a GPU, Triton builds a C module."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler; no {compiler} found"
    if not (HEADERS / "Python.h").is_file():
        return f"Python's headers; no Python.h in {HEADERS}: install them (python3-dev)"
    if accelerator == "cpu":
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton, which PyTorch's builds for CUDA bring; it is not installed"
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"a C compiler for Triton; no {' and no '.join(compilers)} found"
    return None


HEADERS = Path(sysconfig.get_paths()["include"])  #: of Python's C API
Inputs = Sequence[Sequence["torch.Tensor | None"]]
Shapes = tuple[tuple[int, ...], ...]


class GraphedStep:
    """A step that is captured in a CUDA graph the first time its shapes appear, and replayed afterwards.

    Warming up and capturing change the weights: call it for every shape before the measured window, and restore the
    weights afterwards. Follows PyTorch's notes on CUDA graphs, "Whole-network capture".

    Args:
        step: takes the micro-batches' tensors and the factor of the loss (a 0-d tensor), returns the loss.
        device: the GPU.
    """

    def __init__(self, step: Callable[[Inputs, torch.Tensor], torch.Tensor], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor, torch.Tensor]] = {}
        self.pool: Any = None

    def __call__(self, inputs: Inputs, factor: float) -> torch.Tensor:
        """Copy the inputs, from the host or the device, to where the graph reads them, and replay it."""
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
        # thread_local: calls of other threads, such as pinning memory, do not enter or break the capture.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            loss = self.step(static, static_factor)
        self.pool = graph.pool()
        self.graphs[shapes(inputs)] = (graph, _flat(static), static_factor, loss)


def _flat(inputs: Inputs) -> list[torch.Tensor]:
    return [tensor for tensors in inputs for tensor in tensors if tensor is not None]


def shapes(inputs: Inputs) -> Shapes:
    """Return the shapes for which a graph is captured, or a compiled step may be specialised."""
    return tuple(tuple(tensor.shape) for tensor in _flat(inputs))
