"""What training each tensor costs, in FLOPs or in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from joulesweep import flops, products
from joulesweep.selection import Choice, floor, select

if TYPE_CHECKING:
    from joulesweep.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds that the parts of a step of full training take, on this device.

    Attributes:
        forward_s: forward pass.
        chain_s: backward pass down to the deepest tensor, no other tensor having a gradient of its own.
        backward_s: backward pass with every tensor's gradient.
        optimizer_s: optimizer step.
        calibration_s: what measuring them took, before the window.
    """

    forward_s: float
    chain_s: float
    backward_s: float
    optimizer_s: float
    calibration_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training each tensor costs in a step, in FLOPs or in seconds.

    Attributes:
        names: tensors from the output to the input.
        own: of each tensor's own gradient, in seconds also of its optimizer step.
        reach: of the activation gradients down to each tensor, never decreasing.
        forward: of the forward pass.
    """

    names: tuple[str, ...]
    own: tuple[float, ...]
    reach: tuple[float, ...]
    forward: float

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """Name, own cost and reach of each tensor."""
        return zip(self.names, self.own, self.reach, strict=True)

    @property
    def full(self) -> float:
        """Training every tensor."""
        return self.forward + self.reach[-1] + sum(self.own)

    @property
    def floor(self) -> float:
        """The cheapest choice, as a share of training every tensor."""
        return (self.forward + floor(self.own, self.reach)) / self.full

    def share(self, chosen: Sequence[bool]) -> float:
        """A choice, as a share of training every tensor."""
        places = [k for k, taken in enumerate(chosen) if taken]
        reach = self.reach[places[-1]] if places else 0.0
        return (self.forward + reach + sum(self.own[k] for k in places)) / self.full

    def choose(self, importances: Sequence[float], rho: float) -> Choice:
        """The most important tensors that cost at most a share rho of training every tensor.

        Where none that fits promises a lower loss, the one that harms least: something must train. Nothing fits a rho
        below the floor.
        """
        most = math.fsum([self.reach[-1], *self.own])  # to the last bit, for rho 1
        budget = min(most, rho * self.full - self.forward) if rho < 1 else most
        if rho >= self.floor:
            budget = max(budget, floor(self.own, self.reach))  # and for a rho that is the floor
        found = select(importances, self.own, self.reach, budget)
        costs = [math.fsum(both) for both in zip(self.own, self.reach, strict=True)]
        fitting = [k for k, cost in enumerate(costs) if cost <= budget]
        if any(found.chosen) or not fitting:
            return found
        best = max(fitting, key=importances.__getitem__)
        chosen = tuple(k == best for k in range(len(costs)))
        return Choice(chosen=chosen, cost=costs[best], importance=importances[best], bound=found.bound)

    def in_seconds(self, rates: Rates, num_bytes: Mapping[str, int]) -> Cost:
        """The same tensors' seconds: measured parts of a step, divided by FLOPs, the optimizer's part by bytes.

        What is no product (normalisation, activations, softmax) goes along with the activation gradients so, where it
        belongs: it is computed down to the deepest tensor that trains.

        Args:
            rates: of the device.
            num_bytes: of each tensor.
        """
        own_s, total, all_bytes = rates.backward_s - rates.chain_s, sum(self.own), sum(num_bytes[n] for n in self.names)
        return Cost(
            names=self.names,
            own=tuple(
                own_s * own / total + rates.optimizer_s * num_bytes[name] / all_bytes
                for name, own in zip(self.names, self.own, strict=True)
            ),
            reach=tuple(rates.chain_s * reach / self.reach[-1] for reach in self.reach),
            forward=rates.forward_s,
        )


def cost(core: LanguageModel, units: Mapping[str, float]) -> Cost:
    """FLOPs of the tensors that train.

    Args:
        core: the module, its method applied.
        units: how many of each unit of a product there are in a step.

    Raises:
        ValueError: the model's products cannot be counted.
    """
    try:
        trace = products.traced(core)
    except Exception as error:  # whatever a foreign model does
        raise ValueError(flops.uncounted(error)) from error
    trained = {name for name, parameter in core.model.named_parameters() if parameter.requires_grad}
    own = {name: 0.0 for name in trace.reached_by if name in trained}
    forward = 0.0
    activations: list[tuple[int, float]] = []  # gradients of operands: of each, what is behind it, and its work
    again: dict[int, float] = {}  # what checkpointing computes a second time, by layer: each as a whole
    for product in trace.products:
        work = product.flops * units[product.unit]
        forward += work
        activations += [(behind, work) for behind in product.behind]
        if product.weight in own:
            own[product.weight] += work
        if product.layer is not None:
            again[product.layer] = again.get(product.layer, 0.0) + work
    reach = {}
    for name in own:
        place, within = trace.reached_by[name], trace.layers[name]
        layers = {p.layer for p in trace.products if max(p.behind, default=-1) >= place} | {within}
        reach[name] = sum(work for behind, work in activations if behind >= place)
        reach[name] += sum(again[layer] for layer in layers if layer is not None)
    names = list(own)
    names.reverse()  # of those with one reach the one that is executed last comes first
    names.sort(key=reach.__getitem__)
    return Cost(
        names=tuple(names),
        own=tuple(own[name] for name in names),
        reach=tuple(reach[name] for name in names),
        forward=forward,
    )


@dataclass(frozen=True, kw_only=True)
class Selector:
    """What a method that chooses needs.

    Attributes:
        method: a module of `joulesweep.methods` with `importances`.
        params: its parameters, of which `rho`, `objective` and `reselect_epochs` are read here.
        cost: of the tensors.
        rates: what seconds were predicted from, or None.
    """

    method: ModuleType
    params: Any
    cost: Cost
    rates: Rates | None

    def due(self, epoch: int) -> bool:
        """Whether the tensors are chosen before this epoch, counted from 1."""
        every = self.params.reselect_epochs
        return epoch == 1 or (every > 0 and (epoch - 1) % every == 0)
