"""State of the training loop: process, model, data, optimizer, phases, and the start to restore."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from joulesweep.axes import engine, strategy
from joulesweep.axes.optimizer import OPTIMIZERS
from joulesweep.core.outcome import ChosenPhase, Ending, PlainPhase, Stopped, TensorChoice, Work
from joulesweep.core.spec import RunSpec
from joulesweep.core.work import COUNTED
from joulesweep.nets.anatomy import stacks
from joulesweep.nets.language_model import LanguageModel
from joulesweep.train import ahead, data, labels
from joulesweep.train.adaptive import cost
from joulesweep.train.caching import Cache
from joulesweep.train.corpus import Corpus
from joulesweep.train.memory import copy_weights, load_weights


class RunEnded(Exception):  # noqa: N818 - an outcome, not an error
    """The run ends early with a result: unsupported, oom or diverged."""

    def __init__(self, status: Ending, reason: str, oom_bytes: int | None = None) -> None:
        super().__init__(reason)
        self.outcome = Stopped(status=status, reason=reason, oom_bytes=oom_bytes)


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """Rank and device of this process.

    Attributes:
        device: of this process; with DataParallel, the first of several.
        rank: of this process, from 0.
        world: number of processes.
        local_rank: of this process on its machine.
        ranks_per_text: number of processes that compute a text together; the others compute other texts.
    """

    device: torch.device
    rank: int
    world: int
    local_rank: int
    ranks_per_text: int = 1

    @property
    def data_parallel(self) -> int:
        """Number of shares into which the processes divide the texts of a step."""
        return self.world // self.ranks_per_text

    @property
    def data_rank(self) -> int:
        """Index of this process's share, from 0."""
        return self.rank // self.ranks_per_text

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reduced(self, values: torch.Tensor, largest: bool = False) -> torch.Tensor:
        """Reduce values in place to the sum over shares of the texts, or the maximum over ranks, on every rank."""
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
        return values if largest or self.ranks_per_text == 1 else values.div_(self.ranks_per_text)


#: Parameters, and the number of optimizer steps of each, one tensor [parameters].
Counters = tuple[list[torch.Tensor], torch.Tensor]


@dataclass(kw_only=True)
class Tally:
    """Counters of a phase of the training.

    Attributes:
        kind: as in `outcome.Phase`, like all attributes that are not listed here.
        choice: of the tensors that train in it, or None.
        counts: of its batches, by name.
        begun: AdamW's counters at its begin.
        ended: AdamW's counters at the end of its last epoch so far.
    """

    kind: str
    epoch: int
    choice: TensorChoice | None
    begun: Counters
    ended: Counters
    elapsed_s: float = 0.0
    num_steps: int = 0
    num_skipped_steps: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def phase(self, work: Work, facts: dict[str, object]) -> PlainPhase | ChosenPhase:
        """Return the phase for the record, with the work of a step and the method's facts."""
        same: dict[str, Any] = {
            **{name: getattr(self, name) for name in ("kind", "epoch", "elapsed_s", "num_steps", "num_skipped_steps")},
            **self.counts,
            **vars(work),
        }
        return (
            PlainPhase(**same, facts=facts)
            if self.choice is None
            else ChosenPhase(**same, **vars(self.choice), facts=facts)
        )


@dataclass(kw_only=True)
class Trainer:
    """Everything that the training loop needs.

    Attributes:
        spec: the run's inputs.
        place: this process.
        core: the bare module, for scoring and saving.
        model: the same module as the strategy wrapped it, for training.
        corpus: all texts.
        train_texts: indices of the training texts.
        validation_texts: indices of the validation texts.
        optimizer: a kind of AdamW over the parameters that the method trains.
        scaler: of the loss, for float16.
        work: predicted work of a step, from `flops.model_work`.
        facts: facts about the method for the record, from `methods.describe`.
        products: facts about the library of matrix products for the record, from `onednn.choose`.
        selector: for a method that chooses tensors while it trains, else None.
        cache: for a method that keeps what frozen layers make of each text, else None.
        phases: of the training, in order: spans in which the same tensors trained or were rated.
        began_s: begin of the current phase on the monotonic clock, moved later by the time of copying weights.
        graphed: replays the step, with an engine that captures it.
        losses: loss of every step on this rank's share, on the device until the window is closed.
    """

    spec: RunSpec
    place: RankContext
    core: LanguageModel
    model: torch.nn.Module
    corpus: Corpus
    train_texts: torch.Tensor
    validation_texts: torch.Tensor
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    work: Work
    facts: dict[str, object] = field(default_factory=dict)
    products: dict[str, object] = field(default_factory=dict)
    selector: cost.Selector | None = None
    cache: Cache | None = None
    phases: list[Tally] = field(default_factory=list)
    graphed: engine.GraphedStep | None = None
    losses: list[torch.Tensor] = field(default_factory=list)
    began_s: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training texts."""
        return math.ceil(len(self.train_texts) / self.spec.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.spec.max_steps or (self.spec.epochs or 0) * self.steps_per_epoch

    @property
    def num_epochs(self) -> int:
        """Number of passes over the training texts, including one that ends early."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return learning_rate(self.spec, step, self.num_steps)

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[list[data.Batch], int]]:
        """Yield the steps of an epoch, from `data.steps`, without some first ones."""
        place, texts = self.place, self._order(epoch)[first * self.layout.size :]
        return data.steps(self.corpus, self._labelled(epoch), texts, self.layout, place.data_rank, place.data_parallel)

    def _labelled(self, epoch: int) -> labels.MaskedInputs:
        return labels.labelled(self.corpus, self.spec.task, self.spec.mask_probability, self.spec.repeat, epoch)

    def _order(self, epoch: int) -> torch.Tensor:
        return labels.order(self.train_texts, self.spec.repeat, epoch)

    def outlines(self, epoch: int, of_head: bool) -> Iterator[tuple[data.Outline, ...]]:
        """Yield the sizes of an epoch's batches, from `data.outlines`, with or without those of the head."""
        shown, place = self._labelled(epoch) if of_head else None, self.place
        return data.outlines(self.corpus, shown, self._order(epoch), self.layout, place.data_rank, place.data_parallel)

    def some_steps(self, numbers: Iterable[int]) -> Iterator[tuple[list[data.Batch], int]]:
        """Yield steps of the training by ascending numbers from 0, prepared in this thread and not pinned."""
        place, layout = self.place, self.layout
        for before, some in itertools.groupby(numbers, lambda number: number // self.steps_per_epoch):
            shown, texts = self._labelled(before + 1), torch.split(self._order(before + 1), layout.size)
            for number in some:
                step_texts = texts[number % self.steps_per_epoch]
                yield next(data.steps(self.corpus, shown, step_texts, layout, place.data_rank, place.data_parallel))

    def steps(self, first: int = 0) -> Generator[tuple[list[data.Batch], int], None, None]:
        """Yield the steps of the training from `first` on, counted from 0.

        Close it: on a GPU a thread prepares them ahead, see `ahead`.
        """
        return ahead.ahead(self._pinned_steps(first)) if self.place.device.type == "cuda" else self._steps(first)

    def _steps(self, first: int = 0) -> Generator[tuple[list[data.Batch], int], None, None]:
        before, step = divmod(first, self.steps_per_epoch)
        later = itertools.chain.from_iterable(map(self.batches, range(before + 2, self.num_epochs + 1)))
        yield from itertools.islice(itertools.chain(self.batches(before + 1, step), later), self.num_steps - first)

    def _pinned_steps(self, first: int = 0) -> Generator[tuple[list[data.Batch], int], None, None]:
        torch.cuda.set_device(self.place.device)  # each thread has its own current device, initially the first
        torch.set_num_threads(1)  # else this thread would start as many more as the training one
        for batches, num_predicted in self._steps(first):
            yield [batch.pinned() for batch in batches], num_predicted

    def wrap(self) -> None:
        """Wrap the module by the strategy, for the tensors that train now."""
        self.model = wrapped(self.core, self.spec, self.place)

    def open_phase(self, kind: str, epoch: int, choice: TensorChoice | None = None) -> None:
        """Begin a new phase."""
        taken = self._steps_taken()
        self.phases.append(Tally(kind=kind, epoch=epoch, choice=choice, begun=taken, ended=taken))
        self.began_s = time.monotonic()

    def reopen_phase(self) -> None:
        """Go on with a phase of an earlier attempt."""
        self.began_s = time.monotonic() - self.phases[-1].elapsed_s

    def count(self, batches: Sequence[data.Batch]) -> None:
        """Add the counts of a step's batches to the current phase."""
        phase = self.phases[-1]
        phase.num_steps += 1
        for batch in batches:
            for name in COUNTED:
                phase.counts[name] += batch.counts[name]

    def close_epoch(self) -> None:
        """Note the seconds and the steps of the current phase so far; call while the device is idle."""
        self.phases[-1].elapsed_s = time.monotonic() - self.began_s
        self.phases[-1].ended = self._steps_taken()

    def _steps_taken(self) -> Counters:
        """Return AdamW's current counters, on the device; none without loss scaling, which alone skips steps."""
        states = self.optimizer.state if self.scaler.is_enabled() else {}
        counters = [torch.as_tensor(state["step"], dtype=torch.float32) for state in states.values()]
        return list(states), torch.stack(counters) if counters else torch.empty(0)

    @property
    def layout(self) -> data.BatchLayout:
        """Layout of this process's texts."""
        return layout(self.spec)


def read_counters(phases: Sequence[Tally]) -> None:
    """Compute num_skipped_steps from AdamW's counters at the begin and end of each phase, after the window.

    The counters do not advance in steps that loss scaling skips.
    """
    for phase in phases:
        before, after = (dict(zip(names, steps.tolist(), strict=True)) for names, steps in (phase.begun, phase.ended))
        if after and phase.kind == "training":
            advanced = max(steps - before.get(parameter, 0) for parameter, steps in after.items())
            phase.num_skipped_steps = phase.num_steps - int(advanced)


def layout(spec: RunSpec) -> data.BatchLayout:
    """Return the layout of a process's texts."""
    row = strategy.STRATEGIES[spec.strategy]
    num_devices = 1 if row.multi_process else spec.devices  # of this process
    return data.BatchLayout(
        batching=spec.batching,
        size=spec.global_batch_size,
        micro=spec.micro_batch_size and spec.micro_batch_size * num_devices,
        max_length=spec.max_length,
        max_target_length=spec.max_target_length,
        head=spec.head,
        parts=num_devices,
        few_shapes=engine.ENGINES[spec.engine].captures,
    )


def learning_rate(spec: RunSpec, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0, out of num_steps."""
    num_warmup = round(spec.lr_warmup_fraction * num_steps)
    if step < num_warmup:
        return spec.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if spec.schedule == "linear":
        return spec.lr * (1 - progress)
    if spec.schedule == "cosine":
        return spec.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return spec.lr


def wrapped(core: LanguageModel, spec: RunSpec, place: RankContext) -> torch.nn.Module:
    """Wrap the module by the run's strategy."""
    setting = strategy.Setting(
        devices=spec.devices,
        accelerator=spec.accelerator,
        local_rank=place.local_rank,
        accumulates=spec.micro_batch_size is not None,
        layers=[layer for _, stack in stacks(core.model) for layer in stack],
    )
    return strategy.wrap(core, spec.strategy, setting)


@dataclass(kw_only=True)
class InitialState:
    """Weights, loss scale and random state before the first step, when the optimizer has no state.

    Everything is restored in place: a captured graph keeps reading and writing the same memory.
    """

    weights: dict[str, torch.Tensor]
    scale: dict[str, Any]
    rng: torch.Tensor
    cuda_rng: list[torch.Tensor]

    @classmethod
    def of(cls, trainer: Trainer) -> InitialState:
        """Copy the state of a trainer that has not taken a step."""
        return cls(
            weights=copy_weights(trainer.core, []),
            scale=trainer.scaler.state_dict(),
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state_all() if trainer.place.device.type == "cuda" else [],
        )

    def restore(self, trainer: Trainer) -> None:
        """Restore the trainer to its start."""
        load_weights(trainer.core, self.weights)
        if trainer.selector is not None or OPTIMIZERS[trainer.spec.optimizer].quantises:
            trainer.optimizer.state.clear()  # only chosen tensors have any; what codes stand for is not zero
        for state in trainer.optimizer.state.values():
            for value in state.values():
                value.zero_()  # AdamW's initial state: no steps, no moments
        if trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(self.scale)
        torch.set_rng_state(self.rng)
        if self.cuda_rng:
            torch.cuda.set_rng_state_all(self.cuda_rng)
