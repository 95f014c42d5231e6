"""What Joulesweep uses of bitsandbytes, in plain PyTorch and with its names: the library is not installed in CI."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

from joulesweep.axes import optimizer
from joulesweep.methods import qlora


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments are codes of 8 bits: what they stand for, a scale, and a step that is a plain number."""

    SIGNED, UNSIGNED = torch.linspace(-1, 1, 255), torch.linspace(0, 1, 256)

    def __init__(self, params: Iterable[Any], lr: float, min_8bit_size: int) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01})
        self.min_8bit_size = min_8bit_size

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            for i, levels in ((1, self.SIGNED), (2, self.UNSIGNED)):
                if weight.numel() < self.min_8bit_size:
                    state[f"state{i}"] = torch.zeros_like(weight, dtype=torch.float32)
                else:
                    zero = int(levels.abs().argmin())
                    codes = torch.full_like(weight, zero, dtype=torch.uint8)
                    state |= {f"state{i}": codes, f"qmap{i}": levels, f"absmax{i}": torch.zeros(1)}
        state["step"] += 1
        gradient, (beta1, beta2) = weight.grad.float(), group["betas"]
        first = self._read(state, 1).lerp_(gradient, 1 - beta1)
        second = self._read(state, 2).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_((first / scale * (group["lr"] / (1 - beta1 ** state["step"]))).to(weight.dtype))
        self._write(state, 1, first)
        self._write(state, 2, second)

    def _read(self, state: dict[str, Any], i: int) -> torch.Tensor:
        moments: torch.Tensor = state[f"state{i}"]
        return moments if f"qmap{i}" not in state else state[f"qmap{i}"][moments.long()] * state[f"absmax{i}"]

    def _write(self, state: dict[str, Any], i: int, moments: torch.Tensor) -> None:
        if f"qmap{i}" in state:
            levels, largest = state[f"qmap{i}"], moments.abs().max().reshape(1).clamp_min(1e-30)
            nearest = torch.bucketize(moments / largest, (levels[1:] + levels[:-1]) / 2)
            state[f"state{i}"].copy_(nearest.to(torch.uint8))
            state[f"absmax{i}"].copy_(largest)


#: The 16 numbers of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E), to three digits.
NF4 = [-1, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0, 0.080, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1]
BLOCK = 64


@dataclass
class QuantState:
    """What a quantised matrix needs to be decoded."""

    shape: torch.Size
    dtype: torch.dtype
    absmax: torch.Tensor


class Linear4bit(torch.nn.Linear):
    """A linear layer whose matrix becomes two codes of 4 bits per byte when it is moved to a device."""

    def __init__(self, *sizes: int, bias: bool, quant_type: str, compress_statistics: bool) -> None:
        assert quant_type == "nf4"
        super().__init__(*sizes, bias=bias)
        self.weight.requires_grad_(False)
        self.compute_dtype: torch.dtype | None = None
        self.compute_type_is_set = False

    def to(self, device: Any) -> Linear4bit:  # type: ignore[override]
        dense = self.weight.data
        blocks = dense.reshape(-1, BLOCK)
        absmax = blocks.abs().amax(1)
        codes = (blocks[..., None] / absmax[:, None, None] - torch.tensor(NF4)).abs().argmin(-1).reshape(-1, 2)
        packed = (codes[:, :1] * 16 + codes[:, 1:]).to(torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = QuantState(dense.shape, dense.dtype, absmax)  # type: ignore[attr-defined]
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = dequantize_4bit(self.weight, self.weight.quant_state).to(self.compute_dtype or x.dtype)  # type: ignore[attr-defined]
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def dequantize_4bit(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    codes = torch.cat((packed // 16, packed % 16), 1).long().reshape(-1, BLOCK)
    return (torch.tensor(NF4)[codes] * state.absmax[:, None]).reshape(state.shape).to(state.dtype)


def install(monkeypatch: pytest.MonkeyPatch, peft: bool = False) -> None:
    """Let `import bitsandbytes` find this, and the CPU run what needs it; peft may be told that there is none."""
    if peft:
        from peft.tuners.lora import model

        for name in ("is_bnb_available", "is_bnb_4bit_available"):
            monkeypatch.setattr(model, name, lambda: False)
    parts = {"optim": AdamW8bit, "nn": Linear4bit, "functional": dequantize_4bit}
    package = ModuleType("bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    for name, part in parts.items():
        module = ModuleType(f"bitsandbytes.{name}")
        setattr(module, part.__name__, part)
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for user in (optimizer, qlora):
        monkeypatch.setattr(user, "lacking_bitsandbytes", lambda what, accelerator: None)
