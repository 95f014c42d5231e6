"""Compute the cost of training each tensor, in FLOPs or in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from joulesweep.nets import flops, products
from joulesweep.train.adaptive.knapsack import Choice, floor, select

if TYPE_CHECKING:
    from joulesweep.nets.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of the parts of a full-training step, measured on this device.

    Attributes:
        forward_s: forward pass.
        chain_s: backward pass down to the deepest tensor, without weight gradients of the other tensors.
        backward_s: backward pass with every tensor's gradient.
        optimizer_s: optimizer step.
        calibration_s: duration of the measurement, before the window.
    """

    forward_s: float
    chain_s: float
    backward_s: float
    optimizer_s: float
    calibration_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of training each tensor in a step, in FLOPs or in seconds.

    Attributes:
        names: tensors from the output to the input.
        weight_costs: cost of each tensor's weight gradient; in seconds, its optimizer step is included.
        reach: cost of the activation gradients down to each tensor, never decreasing.
        forward: cost of the forward pass.
    """

    names: tuple[str, ...]
    weight_costs: tuple[float, ...]
    reach: tuple[float, ...]
    forward: float

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """Iterate over name, weight cost and reach of each tensor."""
        return zip(self.names, self.weight_costs, self.reach, strict=True)

    @property
    def full(self) -> float:
        """Cost of training every tensor."""
        return self.forward + self.reach[-1] + sum(self.weight_costs)

    @property
    def floor(self) -> float:
        """Cost of the cheapest choice, as a share of training every tensor."""
        return (self.forward + floor(self.weight_costs, self.reach)) / self.full

    def share(self, chosen: Sequence[bool]) -> float:
        """Return the cost of a choice, as a share of training every tensor."""
        places = [k for k, taken in enumerate(chosen) if taken]
        reach = self.reach[places[-1]] if places else 0.0
        return (self.forward + reach + sum(self.weight_costs[k] for k in places)) / self.full

    def choose(self, importances: Sequence[float], rho: float) -> Choice:
        """Choose the most important tensors that cost at most a share rho of training every tensor.

        If no affordable tensor is expected to lower the loss, pick the least harmful one, so that something trains. A
        rho below the floor leaves nothing affordable.
        """
        most = math.fsum([self.reach[-1], *self.weight_costs])  # exact, for rho 1
        budget = min(most, rho * self.full - self.forward) if rho < 1 else most
        if rho >= self.floor:
            budget = max(budget, floor(self.weight_costs, self.reach))  # exact, for a rho that equals the floor
        selected = select(importances, self.weight_costs, self.reach, budget)
        costs = [math.fsum(both) for both in zip(self.weight_costs, self.reach, strict=True)]
        fitting = [k for k, cost in enumerate(costs) if cost <= budget]
        if any(selected.chosen) or not fitting:
            return selected
        best = max(fitting, key=importances.__getitem__)
        chosen = tuple(k == best for k in range(len(costs)))
        return Choice(chosen=chosen, cost=costs[best], importance=importances[best], bound=selected.bound)

    def in_seconds(self, rates: Rates, num_bytes: Mapping[str, int]) -> Cost:
        """Convert to seconds: divide measured parts of a step among tensors by FLOPs, the optimizer's part by bytes.

        This counts operations other than products (normalisation, activations, softmax) with the activation gradients,
        which is right: they are computed down to the deepest tensor that trains.

        Args:
            rates: of the device.
            num_bytes: of each tensor.
        """
        weights_s, total = rates.backward_s - rates.chain_s, sum(self.weight_costs)
        all_bytes = sum(num_bytes[name] for name in self.names)
        return Cost(
            names=self.names,
            weight_costs=tuple(
                weights_s * weight_cost / total + rates.optimizer_s * num_bytes[name] / all_bytes
                for name, weight_cost in zip(self.names, self.weight_costs, strict=True)
            ),
            reach=tuple(rates.chain_s * reach / self.reach[-1] for reach in self.reach),
            forward=rates.forward_s,
        )


def cost(core: LanguageModel, units: Mapping[str, float]) -> Cost:
    """Count the FLOPs of the tensors that train.

    Args:
        core: the module after its method was applied.
        units: number of each unit of a product in a step.

    Raises:
        ValueError: the model's products cannot be counted.
    """
    try:
        trace = products.traced(core)
    except Exception as error:  # foreign models raise anything
        raise ValueError(flops.uncounted(error)) from error
    trained = {name for name, parameter in core.model.named_parameters() if parameter.requires_grad}
    weight_costs = {name: 0.0 for name in trace.reached_by if name in trained}
    forward = 0.0
    activations: list[
        tuple[int, float]
    ] = []  # for each operand with a gradient: the latest parameter behind it, and its work
    recomputed: dict[int, float] = {}  # FLOPs that checkpointing repeats, by layer: each as a whole
    for product in trace.products:
        work = product.flops * units[product.unit]
        forward += work
        activations += [(behind, work) for behind in product.behind]
        if product.weight in weight_costs:
            weight_costs[product.weight] += work
        if product.layer is not None:
            recomputed[product.layer] = recomputed.get(product.layer, 0.0) + work
    reach = {}
    for name in weight_costs:
        place, within = trace.reached_by[name], trace.layers[name]
        layers = {p.layer for p in trace.products if max(p.behind, default=-1) >= place} | {within}
        reach[name] = sum(work for behind, work in activations if behind >= place)
        reach[name] += sum(recomputed[layer] for layer in layers if layer is not None)
    names = list(weight_costs)
    names.reverse()  # among tensors of equal reach, the one executed last comes first
    names.sort(key=reach.__getitem__)
    return Cost(
        names=tuple(names),
        weight_costs=tuple(weight_costs[name] for name in names),
        reach=tuple(reach[name] for name in names),
        forward=forward,
    )


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A method that chooses tensors, with their costs.

    Attributes:
        method: a module of `joulesweep.methods` with `importances`.
        params: its parameters, of which `rho`, `objective` and `reselect_epochs` are read here.
        cost: of the tensors.
        rates: the measured rates that costs in seconds are based on, or None.
    """

    method: ModuleType
    params: Any
    cost: Cost
    rates: Rates | None

    def due(self, epoch: int) -> bool:
        """Whether the tensors are chosen before this epoch, counted from 1."""
        every = self.params.reselect_epochs
        return epoch == 1 or (every > 0 and (epoch - 1) % every == 0)
