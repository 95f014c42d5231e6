"""AdamW for weights in bfloat16 that keeps small steps: the rounding error of each weight is stored beside it.

A weight of 1 in bfloat16 has its neighbours 2^-8 below and 2^-7 above: steps of a usual learning rate round to zero.
Kahan summation (Kahan 1965, Communications of the ACM 8(1); for optimizers Zamirai et al. 2020, arXiv 2010.06192,
section 4.2) adds them to a compensation until they move the weight. Weight and compensation together have 16 bits of
mantissa, for 2 bytes more per weight. The second moment is in float32: a step lets it decay by a thousandth, which
bfloat16 rounds away, so it would stay at the largest gradient so far. Weight, gradient and state take 12 bytes per
weight; fp32 takes 16, and bfloat16 alone 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from joulesweep.train.memory import local

MOST = 2**24  #: elements of weights that are updated together, to limit the memory of float32 intermediates

Tensors = list[torch.Tensor]


class KahanAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` for 16-bit weights and gradients; each step is computed in float32.

    State: `exp_avg` and `compensation`, to be added to the weight, in the weight's dtype; `exp_avg_sq` in float32;
    `step`, a counter on the device that weights with the same steps share. Operations process many weights at once.
    Nothing waits for the device; with `capturable` and a learning rate on the device, a step can be captured.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        if closure is not None:
            raise ValueError("a step of KahanAdamW takes no closure")
        for group in self.param_groups:
            for weights in self._by_counter(group["params"]):
                counter = self.state[weights[0]]["step"]
                counter += 1
                for some in _portions(weights):
                    _update(some, [self.state[weight] for weight in some], counter, group)

    def _by_counter(self, weights: Tensors) -> list[Tensors]:
        """Group the weights that have gradients by counter, which weights without a gradient no longer share."""
        moved = [weight for weight in weights if weight.grad is not None]
        fresh = [weight for weight in moved if not self.state[weight]]
        counter = torch.zeros((), dtype=torch.float32, device=fresh[0].device) if fresh else None
        for weight in fresh:
            self.state[weight].update(_fresh(weight), step=counter)
        groups: dict[int, Tensors] = {}
        for weight in moved:
            groups.setdefault(id(self.state[weight]["step"]), []).append(weight)
        left = {id(self.state[weight]["step"]) for weight in weights if weight.grad is None and weight in self.state}
        for some in (groups[shared] for shared in left & groups.keys()):
            counter_copy = self.state[some[0]]["step"].clone()
            for weight in some:
                self.state[weight]["step"] = counter_copy
        return list(groups.values())


def _fresh(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the initial state of a weight, without its counter; of a sharded weight, for this rank's part."""
    part = local(weight)
    state = {name: torch.zeros_like(part) for name in ("exp_avg", "compensation")}
    return {**state, "exp_avg_sq": torch.zeros_like(part, dtype=torch.float32)}


def _portions(weights: Tensors) -> Iterator[Tensors]:
    """Yield weights in order, in portions of at most `MOST` elements where possible."""
    some: Tensors = []
    size = 0
    for weight in weights:
        if some and size + weight.numel() > MOST:
            yield some
            some, size = [], 0
        some.append(weight)
        size += weight.numel()
    yield some


def _update(
    parameters: Tensors, states: list[dict[str, torch.Tensor]], counter: torch.Tensor, group: Mapping[str, Any]
) -> None:
    """Update several weights, with decoupled decay: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2."""
    weights = [local(weight) for weight in parameters]
    gradients = _float([local(weight.grad) for weight in parameters if weight.grad is not None])
    means, squares, rests = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "compensation"))
    (beta1, beta2), lr = group["betas"], group["lr"]
    steps = _float(means)
    torch._foreach_lerp_(steps, gradients, 1 - beta1)
    torch._foreach_copy_(means, steps)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    torch._foreach_copy_(gradients, squares)  # reuse the gradients' memory for the scales of the steps
    torch._foreach_div_(gradients, 1 - beta2**counter)
    torch._foreach_sqrt_(gradients)
    torch._foreach_add_(gradients, group["eps"])
    torch._foreach_div_(steps, gradients)
    torch._foreach_mul_(steps, lr / (1 - beta1**counter))
    exact = _float(weights)
    torch._foreach_add_(exact, _float(rests))
    if group["weight_decay"]:
        torch._foreach_mul_(exact, 1 - lr * group["weight_decay"])
    torch._foreach_sub_(exact, steps)
    torch._foreach_copy_(weights, exact)
    torch._foreach_sub_(exact, _float(weights))
    torch._foreach_copy_(rests, exact)


def _float(tensors: Tensors) -> Tensors:
    """Return copies in float32."""
    copies = [torch.empty_like(tensor, dtype=torch.float32) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies
