"""Train under a budget: every few epochs a method rates the tensors, and the best ones that fit are trained.

Adaptive backpropagation of GreenTrainer (Huang et al. 2024, arXiv 2309.13192, section 3). The cost of a choice is

    forward + activation gradients down to its deepest tensor + the chosen tensors' weight gradients

computed from the products that the model's forward pass really executes (`products.traced`), in their order, for the
numbers of tokens of the run's batches. Tensors form a chain in that order: an activation gradient counts if its operand
depends on the deepest chosen tensor or on any later one. The real cost is the same, or a little less if the operand
depends only on tensors that were not chosen. A method takes part if it has a function `importances` beside `apply`.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from joulesweep import methods
from joulesweep.axes.optimizer import OPTIMIZERS
from joulesweep.core.outcome import ChosenPhase, PlainPhase, TensorChoice
from joulesweep.core.work import UNITS, USEFUL
from joulesweep.nets import flops, products
from joulesweep.train import seeds
from joulesweep.train.adaptive.calibration import calibrate
from joulesweep.train.adaptive.cost import Selector, cost

if TYPE_CHECKING:
    from joulesweep.train.trainer import Tally, Trainer

#: Steps of the first epoch whose mean numbers of tokens are used for costs.
STEPS = 16


class Diverged(ArithmeticError):  # noqa: N818 - an outcome, not an error
    """The importances of the tensors are not finite."""


def selector(trainer: Trainer) -> Selector | None:
    """Return the selector of a run's method, or None if the method does not choose. Calibrates objective "time".

    Raises:
        ValueError: the model's products cannot be counted, or every choice costs more than the method's rho allows.
    """
    spec = trainer.spec
    if not methods.chooses(spec.method):
        return None
    params = methods.parameters(spec.method, spec.method_params)
    steps = [batches for batches, _ in itertools.islice(trainer.batches(epoch=1), STEPS)]
    counts = [names[USEFUL] for names in UNITS.values()]
    means = [sum(batch.counts[name] for step in steps for batch in step) / len(steps) for name in counts]
    of_all_ranks = trainer.place.reduced(torch.tensor(means, dtype=torch.float64, device=trainer.place.device))
    costs, rates = cost(trainer.core, dict(zip(UNITS, of_all_ranks.tolist(), strict=True))), None
    if params.objective == "time":
        num_bytes = {name: parameter.nbytes for name, parameter in trainer.core.model.named_parameters()}
        deepest = [(weight_cost, num_bytes[n], n) for n, weight_cost, r in costs.rows() if r == costs.reach[-1]]
        rates = calibrate(trainer, min(deepest)[2])
        costs = costs.in_seconds(rates, num_bytes)
    if params.rho < costs.floor:
        floor_text = f"the forward pass and the cheapest tensor of this model take {costs.floor:.3f} of full training"
        raise ValueError(f"method {spec.method}: rho {params.rho} is below the floor: {floor_text}")
    return Selector(method=methods.load(spec.method), params=params, cost=costs, rates=rates)


def choose(trainer: Trainer, epoch: int) -> TensorChoice:
    """Choose the tensors that train from this epoch on, and train no others."""
    selector, core = trainer.selector, trainer.core
    assert selector is not None
    _unwrap(trainer)
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
        torch.distributed.broadcast(chosen, src=0)  # ranks may round differently
    taken = [bool(flag) for flag in chosen.tolist()]
    for parameter, trains in zip(parameters.values(), taken, strict=True):
        parameter.requires_grad_(trains)
        parameter.grad = None
        if not trains:
            trainer.optimizer.state.pop(parameter, None)
    trainer.wrap()
    num_trained = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    total = sum(value for value in importances if value > 0)
    return TensorChoice(
        chosen=[name for name, trains in zip(parameters, taken, strict=True) if trains],
        candidates=list(parameters),
        num_candidates=len(parameters),
        trained_share=num_trained / sum(parameter.numel() for parameter in named.values()),
        importance_share=choice.importance / total if total else None,
        objective=selector.params.objective,
        rho=selector.params.rho,
        predicted_cost=selector.cost.share(taken),
        floor=selector.cost.floor,
        gap=choice.gap,
        rates=None if selector.rates is None else asdict(selector.rates),
    )


def _unwrap(trainer: Trainer) -> None:
    trainer.model = trainer.core
    gc.collect()  # DDP's hooks on the parameters live as long as their wrapper, which has reference cycles


def train_only(trainer: Trainer, names: Collection[str]) -> None:
    """Train the tensors of these names and no others, as chosen before."""
    _unwrap(trainer)
    for name, parameter in trainer.core.model.named_parameters():
        parameter.requires_grad_(name in names)
    trainer.wrap()


@dataclass(frozen=True)
class Rating:
    """Facts about a run for the method that rates its tensors; implements `methods.Rating`.

    Args:
        trainer: of the run.
        epoch: the one that is about to begin, from 1.
    """

    trainer: Trainer
    epoch: int

    @property
    def learning_rate(self) -> float:
        """Learning rate at the begin of the epoch."""
        return self.trainer.learning_rate((self.epoch - 1) * self.trainer.steps_per_epoch)

    @property
    def weight_decay(self) -> float:
        """Weight decay of the run's AdamW."""
        return self.trainer.spec.weight_decay

    def gradients(self, parameters: Mapping[str, torch.nn.Parameter], num_steps: int) -> dict[str, torch.Tensor]:
        """Compute gradients for this epoch, see the function `gradients`."""
        return gradients(self.trainer, parameters, self.epoch, num_steps)

    def generator(self, name: str) -> torch.Generator:
        """Return a generator seeded by the run's seed and the epoch."""
        return seeds.generator(name, self.trainer.spec.repeat, self.epoch)


def gradients(
    trainer: Trainer, parameters: Mapping[str, torch.nn.Parameter], epoch: int, num_steps: int
) -> dict[str, torch.Tensor]:
    """Compute gradients of the loss on an epoch's first texts: float32, summed over ranks, without dropout.

    Args:
        trainer: its module is not wrapped; the batches are counted into the current phase.
        parameters: of which gradients are computed, by name.
        epoch: whose texts are used, from 1.
        num_steps: number of optimizer steps whose texts are used.
    """
    core, place = trainer.core, trainer.place
    scale = trainer.scaler.get_scale()  # 1 unless it is enabled
    core.eval()
    for module in core.modules():
        if products.is_checkpointed(module):
            module.training = True  # makes it checkpoint; dropout, in its children, stays off
    while True:
        for batches, num_predicted in itertools.islice(trainer.batches(epoch), num_steps):
            for batch in batches:
                loss = core(*batch.on(place.device))[:, 0].sum()
                torch.autograd.backward(loss * (scale / (num_predicted * num_steps)))
            trainer.count(batches)
        sums = {name: _taken(parameter, scale) for name, parameter in parameters.items()}
        for gradient in sums.values():
            place.reduced(gradient)
        if scale <= 1 or all(bool(gradient.isfinite().all()) for gradient in sums.values()):
            break
        scale /= 16  # float16 overflowed; a step would have been skipped
    core.train()
    return sums


def _taken(parameter: torch.nn.Parameter, scale: float) -> torch.Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    parameter.grad = None
    return gradient.float() / scale


def phases(trainer: Trainer, tallies: Sequence[Tally]) -> list[PlainPhase | ChosenPhase]:
    """Return the phases of a training with their work; call after the window, since this takes time."""
    selector = trainer.selector
    if selector is None:
        later = trainer.work if trainer.cache is None else trainer.cache.work
        return [tally.phase(trainer.work if tally.epoch == 1 else later, trainer.facts) for tally in tallies]
    named = dict(trainer.core.model.named_parameters())
    complete = []
    for tally in tallies:
        trained = selector.cost.names if tally.choice is None else tally.choice.chosen
        for name in selector.cost.names:
            named[name].requires_grad_(name in trained)
        moment_bytes = OPTIMIZERS[trainer.spec.optimizer].moment_bytes
        complete.append(tally.phase(flops.model_work(trainer.core, 1, moment_bytes), trainer.facts))
    return complete
