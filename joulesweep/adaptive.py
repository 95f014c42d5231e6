"""Training under a budget: every few epochs a method rates the tensors, and the best ones that fit are trained.

Adaptive backpropagation of GreenTrainer (Huang et al. 2024, arXiv 2309.13192, section 3). What a choice costs is

    forward + activation gradients down to its deepest tensor + the chosen tensors' own gradients

taken from the products that the model's forward pass really executes (`flops.traced`), in their order, and counted for
the numbers of tokens of the run's own batches. Tensors form a chain in that order: a gradient counts where the deepest
chosen tensor or any later one stands behind its operand. What is trained costs as much or, if no such one was chosen,
a little less. A method takes part by a function `importances` beside its `apply`.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from joulesweep import data, flops, methods
from joulesweep.selection import Choice, floor, select
from joulesweep.units import UNITS, USEFUL

if TYPE_CHECKING:
    from joulesweep.model import LanguageModel
    from joulesweep.trainer import Place, Trainer

#: Of the first epoch, for the mean numbers of tokens that costs are counted for.
STEPS = 16


class Diverged(ArithmeticError):  # noqa: N818 - an outcome, not an error
    """What is computed of a model is no number any more."""


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
        trace = flops.traced(core)
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


def calibrate(trainer: Trainer, deepest: str) -> Rates:
    """Seconds of a step's parts, each the least of five, on the run's own model, batches and device.

    Weights and random state are left as they were, the optimizer without state.

    Args:
        trainer: before its first step.
        deepest: a tensor whose gradient needs every activation gradient, and next to nothing else.
    """
    core, place = trainer.core, trainer.place
    parameters = {name: parameter for name, parameter in core.model.named_parameters() if parameter.requires_grad}
    began_s = time.perf_counter()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    batches, num_predicted = next(trainer.batches(epoch=1))
    inputs = [batch.on(place.device) for batch in batches]
    core.train()
    found: dict[bool, list[list[float]]] = {True: [], False: []}
    with torch.random.fork_rng(range(torch.cuda.device_count()) if place.device.type == "cuda" else []):
        for _, whole in itertools.product(range(6), (True, False)):
            for name, parameter in parameters.items():
                parameter.requires_grad_(whole or name == deepest)
            marks = [0.0, 0.0, 0.0]
            for tensors in inputs:
                marks[0] -= _now(place)
                loss = core(*tensors)[:, 0].sum() / num_predicted
                middle_s = _now(place)
                torch.autograd.backward(loss)
                marks[0], marks[1] = marks[0] + middle_s, marks[1] + _now(place) - middle_s
            marks[2] -= _now(place)
            trainer.optimizer.step()
            marks[2] += _now(place)
            trainer.optimizer.zero_grad(set_to_none=True)
            found[whole].append(marks)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    trainer.optimizer.state.clear()
    least = torch.tensor([[min(values) for values in zip(*found[whole][1:], strict=True)] for whole in (True, False)])
    least = place.reduced(least.to(place.device)) / place.world  # every rank predicts the same
    (forward_s, backward_s, optimizer_s), (_, chain_s, _) = least.tolist()
    return Rates(
        forward_s=forward_s,
        chain_s=min(chain_s, backward_s),
        backward_s=backward_s,
        optimizer_s=optimizer_s,
        calibration_s=time.perf_counter() - began_s,
    )


def _now(place: Place) -> float:
    place.synchronize()
    return time.perf_counter()


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


def selector(trainer: Trainer) -> Selector | None:
    """The selector of a run's method, or None if the method does not choose. Objective "time" is calibrated here.

    Raises:
        ValueError: the model's products cannot be counted, or every choice costs more than the method's rho allows.
    """
    spec = trainer.spec
    if not methods.chooses(spec.method):
        return None
    params = methods.parameters(spec.method, spec.method_params)
    steps = [batches for batches, _ in itertools.islice(trainer.batches(epoch=1), STEPS)]
    counts = [names[USEFUL] for names in UNITS.values()]
    own = [sum(batch.counts[name] for step in steps for batch in step) / len(steps) for name in counts]
    of_all_ranks = trainer.place.reduced(torch.tensor(own, dtype=torch.float64, device=trainer.place.device))
    found, rates = cost(trainer.core, dict(zip(UNITS, of_all_ranks.tolist(), strict=True))), None
    if params.objective == "time":
        num_bytes = {name: parameter.nbytes for name, parameter in trainer.core.model.named_parameters()}
        cheap = [(own, num_bytes[n], n) for n, own, r in found.rows() if r == found.reach[-1]]
        rates = calibrate(trainer, min(cheap)[2])
        found = found.in_seconds(rates, num_bytes)
    if params.rho < found.floor:
        floor_text = f"the forward pass and the cheapest tensor of this model take {found.floor:.3f} of full training"
        raise ValueError(f"method {spec.method}: rho {params.rho} is below the floor: {floor_text}")
    return Selector(method=methods.load(spec.method), params=params, cost=found, rates=rates)


def choose(trainer: Trainer, epoch: int) -> dict[str, Any]:
    """Choose the tensors that train from this epoch on, and train no others.

    Returns:
        What the record says of it: which tensors, what they should cost, how good the choice is.
    """
    selector, core = trainer.selector, trainer.core
    assert selector is not None
    trainer.model = core
    gc.collect()  # DDP's hooks on the parameters end with their wrapper, which has cycles
    named = dict(core.model.named_parameters())
    parameters = {name: named[name] for name in selector.cost.names}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    importances = selector.method.importances(Rating(trainer, epoch), selector.params, parameters)
    if not all(map(math.isfinite, importances)):  # the same on every rank
        raise Diverged(f"the importances of the tensors were not finite before epoch {epoch}")
    choice = selector.cost.choose(importances, selector.params.rho)
    chosen = torch.tensor(choice.chosen, dtype=torch.uint8, device=trainer.place.device)
    if trainer.place.world > 1:
        torch.distributed.broadcast(chosen, src=0)  # one choice, whatever the ranks' rounding
    taken = [bool(one) for one in chosen.tolist()]
    for parameter, trains in zip(parameters.values(), taken, strict=True):
        parameter.requires_grad_(trains)
        parameter.grad = None
        if not trains:
            trainer.optimizer.state.pop(parameter, None)
    trainer.wrap()
    num_trained = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    total = sum(value for value in importances if value > 0)
    return {
        "chosen": [name for name, trains in zip(parameters, taken, strict=True) if trains],
        "candidates": list(parameters),
        "num_candidates": len(parameters),
        "trained_share": num_trained / sum(parameter.numel() for parameter in named.values()),
        "importance_share": choice.importance / total if total else None,
        "objective": selector.params.objective,
        "rho": selector.params.rho,
        "predicted_cost": selector.cost.share(taken),
        "floor": selector.cost.floor,
        "gap": choice.gap,
        "rates": selector.rates and asdict(selector.rates),
    }


@dataclass(frozen=True)
class Rating:
    """What a run tells the method that rates its tensors: `methods.Rating`.

    Args:
        trainer: of the run.
        epoch: that is about to begin, from 1.
    """

    trainer: Trainer
    epoch: int

    @property
    def learning_rate(self) -> float:
        """With which the epoch begins."""
        return self.trainer.learning_rate((self.epoch - 1) * self.trainer.steps_per_epoch)

    @property
    def weight_decay(self) -> float:
        """Of the run's AdamW."""
        return self.trainer.spec.weight_decay

    def gradients(self, parameters: Mapping[str, torch.nn.Parameter], num_steps: int) -> dict[str, torch.Tensor]:
        """See the function of that name."""
        return gradients(self.trainer, parameters, self.epoch, num_steps)

    def generator(self, name: str) -> torch.Generator:
        """Random numbers from the run's seed and the epoch."""
        return data.generator(name, self.trainer.spec.repeat, self.epoch)


def gradients(
    trainer: Trainer, parameters: Mapping[str, torch.nn.Parameter], epoch: int, num_steps: int
) -> dict[str, torch.Tensor]:
    """Gradients of the loss on the texts that an epoch begins with, float32, summed over ranks, without dropout.

    Args:
        trainer: its module is not wrapped now; its batches are counted into the present phase.
        parameters: of which.
        epoch: whose texts, from 1.
        num_steps: how many optimizer steps' worth of them.
    """
    core, place = trainer.core, trainer.place
    scale = trainer.scaler.get_scale()  # 1 unless it is enabled
    core.eval()
    for module in core.modules():
        if flops.is_checkpointed(module):
            module.training = True  # its own, by which it checkpoints; its dropout stays off
    while True:
        for batches, num_predicted in itertools.islice(trainer.batches(epoch), num_steps):
            for batch in batches:
                loss = core(*batch.on(place.device))[:, 0].sum()
                torch.autograd.backward(loss * (scale / (num_predicted * num_steps)))
            trainer.count(batches)
        found = {name: _taken(parameter, scale) for name, parameter in parameters.items()}
        for gradient in found.values():
            place.reduced(gradient)
        if scale <= 1 or all(bool(gradient.isfinite().all()) for gradient in found.values()):
            break
        scale /= 16  # float16 overflowed; a step would have been skipped
    core.train()
    return found


def _taken(parameter: torch.nn.Parameter, scale: float) -> torch.Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    parameter.grad = None
    return gradient.float() / scale


def described(trainer: Trainer, phases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The phases with what `flops.described` says of their work; after the window, since this is bookkeeping."""
    if trainer.selector is None:
        return [{**phase, **trainer.facts, **trainer.work} for phase in phases]
    named = dict(trainer.core.model.named_parameters())
    found = []
    for phase in phases:
        for name in trainer.selector.cost.names:
            named[name].requires_grad_(name in phase.get("chosen", trainer.selector.cost.names))
        found.append({**phase, **trainer.facts, **flops.described(trainer.core)})
    return found
