"""What Joulesweep uses of bitsandbytes, in plain PyTorch and with its names: the library is not installed in CI."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest
import torch

from joulesweep.axes import optimizer


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


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import bitsandbytes` find this, and let the CPU run what needs it."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    vars(optim).update(AdamW8bit=AdamW8bit)
    vars(package).update(optim=optim)
    for module in (package, optim):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(optimizer, "lacking_bitsandbytes", lambda what, accelerator: None)
