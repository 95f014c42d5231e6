"""Matrix products of fp32 training on CPUs, through oneDNN.

PyTorch hands fp32 products on x86 to MKL, which keeps to AVX2 on chips that are not Intel's: 86 against 200 GFLOP/s on
one core of an AMD EPYC with AVX-512 (measured 2026-11-21, 384 × 384 × 1536). oneDNN, which PyTorch carries too and
uses for bf16, chooses by what the chip can do. The arithmetic is the same IEEE fp32; only the order of sums differs.
"""

from __future__ import annotations

from typing import Any

import torch


def product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`left @ right.T + bias` for fp32 tensors on the CPU, of any strides: [..., k] and [n, k] give [..., n]."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


class _Product(torch.autograd.Function):
    """The same with its gradients, of [positions, k]."""

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
    """`torch.nn.Linear` for fp32 on the CPU, its products by oneDNN."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features], both float32."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        # A view is taken outside: what leaves a custom function as one cannot be changed in place, and some models do.
        result: torch.Tensor = _Product.apply(flat, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result.view(*inputs.shape[:-1], result.shape[-1])


def available() -> bool:
    """Whether this build of PyTorch has the product."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def adopt(model: torch.nn.Module) -> bool:
    """Let every plain linear layer compute by oneDNN, in place. Returns whether it does."""
    if available():
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = Linear
    return available()
