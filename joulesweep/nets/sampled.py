"""Linear layers whose backward pass is computed for a sample of the positions, with unbiased gradients.

A layer's two backward products, `input gradients = G W` and `weight gradient = Gᵀ X`, are sums over the rows of the
output's gradient G, one per position. Rows are drawn with chances in proportion to their norms, and a drawn one is
divided by its chance (Horvitz and Thompson 1952): each product is then a smaller one whose expectation is the exact
product. As the backward pass is linear in G, the gradients of all layers are unbiased together. A position that is not
drawn sends nothing through this layer, but its gradient still passes through the connection around it.

The number of rows is fixed and none is drawn twice (systematic sampling, Madow 1949), so the work is known before.
Nothing here waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

LEAST = 1e-30  # added to norms: rows without any are drawn alike if others are too few
RAREST = 1e-20  # chance below which a row's weight grows no further: it would be infinite


def num_rows(share: float, rows: int) -> int:
    """Return how many of the rows are drawn: the share of them, rounded up."""
    return math.ceil(share * rows - 1e-9)


def chances(sizes: torch.Tensor, number: int) -> torch.Tensor:
    """Return chances in proportion to sizes, but at most 1, whose sum is the number of rows to draw.

    Args:
        sizes: at least 0, float [rows].
        number: from 1 to the number of rows.

    Returns:
        float64 [rows].
    """
    sizes = sizes.double() + LEAST
    largest_first = sizes.sort(descending=True).values
    rest = largest_first.flip(0).cumsum(0).flip(0)
    # If the first m rows are certain, the others share what is left by this factor; m is the least that suffices.
    factors = (number - torch.arange(len(sizes), device=sizes.device)) / rest
    suffices = (factors * largest_first <= 1 + 1e-12).to(torch.uint8)
    return (sizes * factors[suffices.argmax()]).clamp(max=1.0)


def drawn(gradient: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw rows of a gradient by their norms, from PyTorch's random state of the device.

    Args:
        gradient: [rows, width].
        share: of the rows, above 0.

    Returns:
        Indices in ascending order, int64 [drawn], and what to multiply these rows by, of the gradient's dtype, [drawn].
    """
    number = num_rows(share, len(gradient))
    by_row = chances(torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float32), number)
    ends = by_row.cumsum(0)
    begin = torch.rand((), device=gradient.device)
    points = torch.arange(number, dtype=torch.float64, device=gradient.device) + begin
    chosen = torch.searchsorted(ends, points * (ends[-1] / number), right=True).clamp(max=len(gradient) - 1)
    return chosen, (1 / by_row[chosen].clamp(min=RAREST)).to(gradient.dtype)


#: Computes `left @ right.T + bias` for [rows, k] and [n, k].
Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class _Product(torch.autograd.Function):
    """inputs [rows, in] times weight [out, in], plus bias."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch's
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        share: float,
        multiply: Multiply,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.share, ctx.multiply = share, multiply
        return multiply(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401 - as above
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        chosen, weights = drawn(gradient, ctx.share)
        few = gradient.index_select(0, chosen) * weights[:, None]
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.zeros_like(inputs).index_copy_(0, chosen, ctx.multiply(few, weight.t(), None))
        if ctx.needs_input_grad[1]:
            of_weight = ctx.multiply(few.t(), inputs.index_select(0, chosen).t(), None)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)  # exact: no product
        return of_inputs, of_weight, of_bias, None, None


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` with a sampled backward pass while it trains.

    Attributes:
        share: of the positions that the backward pass is computed for.
        multiply: computes the products while it trains; see `onednn.assign`.
    """

    share: float
    multiply: Multiply

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if not self.training or not torch.is_grad_enabled():
            return super().forward(inputs)
        factors, kind = (inputs.reshape(-1, inputs.shape[-1]), self.weight, self.bias), inputs.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            factors = tuple(None if factor is None else factor.to(dtype) for factor in factors)  # type: ignore[assignment]
        # Reshape out here, as in `onednn.Linear`.
        result: torch.Tensor = _Product.apply(*factors, self.share, self.multiply)  # type: ignore[no-untyped-call]
        return result.view(*inputs.shape[:-1], result.shape[-1])


def adopt(model: torch.nn.Module, share: float) -> int:
    """Sample the backward pass of every plain linear layer, in place. Returns their number."""
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for layer in layers:
        layer.__class__ = Linear
        layer.share, layer.multiply = share, functional.linear  # type: ignore[assignment] # PyTorch's may be anything
    return len(layers)


def shares(model: torch.nn.Module) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield each weight whose layer has a sampled backward pass, and the share of its positions."""
    for module in model.modules():
        if isinstance(module, Linear):
            yield module.weight, module.share
