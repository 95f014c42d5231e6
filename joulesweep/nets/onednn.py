"""Choose the faster library for fp32 matrix products on this CPU: PyTorch's default or oneDNN.

On x86 PyTorch calls MKL for fp32 products, which uses only AVX2 on chips not made by Intel: 86 against 200 GFLOP/s on
one core of an AMD EPYC with AVX-512 (measured 2026-11-21, 384 × 384 × 1536). oneDNN, which PyTorch includes and uses
for bf16, uses what the chip supports; but on an Intel Xeon with AMX it made whole steps 7 % slower. So both are timed
before the window, once per run and shape, and the faster one computes. The arithmetic is the same IEEE fp32; only the
order of sums differs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from joulesweep.nets import sampled

MOST_MACS = 2**25  # multiply-adds of a timed product: about half a millisecond on one core
BUDGET_S = 0.15  # after which no round begins
LEAST_ROUNDS, MOST_ROUNDS = 3, 9
TIE = 0.03  # relative margin by which oneDNN must be faster: rounds differ by as much
UNTIMED = {"pytorch_s": None, "onednn_s": None}


def clock() -> float:
    """Read a clock in seconds: the CPU time of a single thread, which excludes other load; else wall time."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `left @ right.T + bias` for fp32 CPU tensors of any strides: [..., k] and [n, k] give [..., n]."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


class _Product(torch.autograd.Function):
    """`product` with gradients, for a left factor of [positions, k]."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(left, right)
        return product(left, right, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        left, right = ctx.saved_tensors
        gradient = gradients[0]
        needs_left, needs_right, needs_bias = ctx.needs_input_grad
        return (
            product(gradient, right.t()) if needs_left else None,
            product(gradient.t(), left.t()) if needs_right else None,
            gradient.sum(0) if needs_bias else None,
        )


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` for fp32 on the CPU, computed by oneDNN."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [..., in_features] to [..., out_features], both float32."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        # Reshape out here: a view returned by a custom function cannot be changed in place, which some models do.
        result: torch.Tensor = _Product.apply(flat, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result.view(*inputs.shape[:-1], result.shape[-1])


def available() -> bool:
    """Whether this build of PyTorch has oneDNN's product."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def adopt(modules: Iterable[torch.nn.Module]) -> None:
    """Let oneDNN compute every linear layer among the modules, in place."""
    for module in modules:
        assign(module, True)


def assign(module: torch.nn.Module, is_ours: bool) -> None:
    """Let oneDNN compute a linear layer, or PyTorch's default library; other modules stay as they are."""
    if type(module) in (torch.nn.Linear, Linear):
        module.__class__ = Linear if is_ours else torch.nn.Linear
    elif type(module) is sampled.Linear:
        module.multiply = product if is_ours else functional.linear


def computes(module: torch.nn.Module) -> bool:
    """Whether oneDNN computes a module."""
    return type(module) is Linear or (type(module) is sampled.Linear and module.multiply is product)


@dataclass(frozen=True, order=True, kw_only=True)
class Shape:
    """Rounded shape of linear layers, so similar that the same library is the faster one for all of them.

    Attributes:
        rows: positions, as the nearest power of two; sizes of a large product are halved down to `MOST_MACS`.
        inputs: features of a position, likewise.
        outputs: features of the result, likewise.
        bias: whether a bias is added.
        trains: whether the weight trains, which costs one more product.
    """

    rows: int
    inputs: int
    outputs: int
    bias: bool
    trains: bool

    @classmethod
    def of(cls, layer: torch.nn.Linear, rows: int) -> Shape:
        """Return the shape of a layer for a number of rows."""
        exact = (rows, layer.in_features, layer.out_features)
        sizes = [2 ** round(math.log2(max(1, size))) for size in exact]
        while math.prod(sizes) > MOST_MACS:
            sizes[sizes.index(max(sizes))] //= 2
        bias, trains = layer.bias is not None, layer.weight.requires_grad
        return cls(rows=sizes[0], inputs=sizes[1], outputs=sizes[2], bias=bias, trains=trains)


def choose(
    model: torch.nn.Module, rows: Callable[[str], int], agreed: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, object]:
    """Time both libraries on the shapes of a model, and let the faster one compute each plain linear layer.

    The random state does not change.

    Args:
        model: in float32, on the CPU; changed in place.
        rows: returns the number of positions in a step for the layer of a name, the same on every rank.
        agreed: reduces seconds, float64 [shapes, 2], to those of the slowest rank, the same on every rank.

    Returns:
        Facts for the record. shapes: a row for each `Shape` with its num_layers, the library that computes them,
        "pytorch" or "onednn", and seconds of a forward and a backward pass by either: medians, null if not timed.
        num_rounds, spent_s: of this rank. reason: why nothing was timed, or null.
    """
    if not available():
        return unchosen("this build of PyTorch has no oneDNN")
    began_s = clock()
    layers: dict[Shape, list[torch.nn.Linear]] = {}
    for name, module in model.named_modules():
        if type(module) in (torch.nn.Linear, sampled.Linear):
            layers.setdefault(Shape.of(module, rows(name)), []).append(module)
    shapes = sorted(layers)
    with torch.random.fork_rng([]):
        medians, num_rounds = _medians(shapes, began_s)
    records = []
    for shape, seconds in zip(shapes, agreed(torch.tensor(medians, dtype=torch.float64)).tolist(), strict=True):
        pytorch_s, onednn_s = seconds
        library = "onednn" if onednn_s < (1 - TIE) * pytorch_s else "pytorch"
        if library == "onednn":
            adopt(layers[shape])
        times = {"pytorch_s": pytorch_s, "onednn_s": onednn_s} if math.isfinite(pytorch_s) else UNTIMED
        records.append({**asdict(shape), "num_layers": len(layers[shape]), "library": library, **times})
    return {"shapes": records, "num_rounds": num_rounds, "spent_s": clock() - began_s, "reason": None}


def unchosen(reason: str) -> dict[str, object]:
    """Return the facts for the record if nothing is timed and PyTorch's default library computes."""
    return {"shapes": [], "num_rounds": 0, "spent_s": 0.0, "reason": reason}


def _medians(shapes: list[Shape], began_s: float) -> tuple[list[list[float]], int]:
    """Return median seconds of each shape by PyTorch and oneDNN, infinite if time ran out; and the number of rounds.

    The two alternate within a round, and a round covers all shapes: a temporary slowdown affects all of them.
    """
    tries = [(_Try(shape, torch.nn.Linear), _Try(shape, Linear)) for shape in shapes]
    for pair in tries:  # kernels are built at the first call for a shape
        for attempt in pair:
            attempt.seconds()
    durations: list[tuple[list[float], list[float]]] = [([], []) for _ in shapes]
    num_rounds = 0
    while num_rounds < MOST_ROUNDS and (num_rounds < LEAST_ROUNDS or clock() - began_s < BUDGET_S):
        for pair, both in zip(tries, durations, strict=True):
            for attempt, seconds in zip(pair, both, strict=True):
                seconds.append(attempt.seconds())
        num_rounds += 1
        if clock() - began_s > 3 * BUDGET_S:  # the machine is too slow or too busy for a useful comparison
            break
    enough = num_rounds >= LEAST_ROUNDS
    return [[statistics.median(seconds) if enough else math.inf for seconds in both] for both in durations], num_rounds


class _Try:
    """A layer of a shape, with inputs of its forward and its backward pass."""

    def __init__(self, shape: Shape, kind: type[torch.nn.Linear]) -> None:
        self.layer = torch.nn.Linear(shape.inputs, shape.outputs, shape.bias)
        self.layer.weight.requires_grad_(shape.trains)
        self.layer.__class__ = kind
        self.inputs = torch.randn(shape.rows, shape.inputs, requires_grad=True)
        self.upstream = torch.randn(shape.rows, shape.outputs)

    def seconds(self) -> float:
        """Time a forward and a backward pass."""
        for tensor in (self.inputs, *self.layer.parameters()):
            tensor.grad = None
        begin_s = clock()
        torch.autograd.backward(self.layer(self.inputs), self.upstream)
        return clock() - begin_s
