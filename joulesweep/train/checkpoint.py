"""Stop a training between two steps when asked to, keep its state in a file per rank, and go on from it bit by bit.

The parent asks by SIGUSR1, a batch system perhaps by SIGTERM to every process. A training that nobody asks looks at one
attribute per step. Ranks agree without a collective, in which one that was not asked yet would never join: each that
was asked waits for its device after every step from then on, and posts its step once. When its device has done step n,
every rank has passed the end of step n - 1, since a step exchanges gradients. So by the end of the step after the last
posted one, every rank has posted, and sees all posts: there they stop.

    .checkpoint/step<n>-rank<r>.pt    a rank's weights, AdamW's state, random state, losses, phases, kept weights, …

Ranks write only these files; the parent, which reads no tensors, lists them with their checksums in a manifest, last.
"""

# changes no number: a training that goes on from a checkpoint ends as one that was never stopped, which tests compare
from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from joulesweep.axes import engine
from joulesweep.core.files import sha256_of
from joulesweep.core.outcome import CheckpointFile, EpochEnd, Quality, TensorChoice
from joulesweep.core.processes import HAS_STOPPED, LISTENS
from joulesweep.nets import onednn
from joulesweep.train.adaptive import choosing
from joulesweep.train.adaptive.cost import Cost, Rates
from joulesweep.train.memory import Peaks, Weights, copy_weights, load_weights, local, room_for
from joulesweep.train.trainer import Counters, RankContext, Tally, Trainer

Plain = dict[str, Any]  # values that torch.load reads without running code
_numbers = itertools.count()  # tells apart what ranks agree on: each makes the same stops in the same order


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run's checkpoints are, and how far the training was when the last one was written.

    Attributes:
        folder: of the files.
        work: of the ranks' results.
        step: steps taken before; 0 if the training begins.
        elapsed_s: seconds of the window before.
    """

    folder: Path
    work: Path
    step: int = 0
    elapsed_s: float = 0.0

    def file(self, step: int, rank: int) -> Path:
        """Return the file of a rank."""
        return self.folder / f"step{step}-rank{rank}.pt"


def of_job(job: Mapping[str, Any], work: Path) -> Checkpoints | None:
    """Return what a job file says of checkpoints.

    Args:
        job: the file.
        work: its folder.
    """
    row = job.get("checkpoint")
    return row and Checkpoints(**{**row, "folder": Path(row["folder"]), "work": work})


class Stop:
    """Whether and where the training is to stop; listens from the begin until it is closed.

    Args:
        place: this process.
        checkpoints: None for a training that cannot be stopped.

    Attributes:
        asked: whether a signal came.
        reached: whether the training stopped.
    """

    def __init__(self, place: RankContext, checkpoints: Checkpoints | None = None) -> None:
        self.asked = self.reached = False
        self._place, self._number = place, next(_numbers)
        self._step: int | None = None
        self._posted = False
        self._file = checkpoints.work / f"{LISTENS}{place.rank}" if checkpoints else None
        if self._file is not None:
            for signum in (signal.SIGUSR1, signal.SIGTERM):
                signal.signal(signum, self._ask)
                signal.siginterrupt(signum, False)
            self._file.write_text(str(os.getpid()), encoding="ascii")

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def close(self) -> None:
        """Listen no more: what follows the first pass is not worth keeping.

        A rank that stops says so: a batch system signals all processes, and the parent may be the last to hear of it.
        """
        if self._file is not None:
            if self.reached:
                self._file.rename(self._file.with_name(f"{HAS_STOPPED}{self._place.rank}"))
            else:
                self._file.unlink(missing_ok=True)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the parent may have seen the file
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.reached else signal.SIG_DFL)

    def is_at(self, step: int) -> bool:
        """Whether to stop after this step, counted from 1; call it after every step once asked. All ranks agree."""
        self._place.synchronize()
        self.reached = step == (step if self._place.world == 1 else self._agreed(step))
        return self.reached

    def _agreed(self, step: int) -> int | None:
        """Return the step after which all ranks stop; None as long as one has not been asked."""
        store = dist.distributed_c10d._get_default_store()  # PyTorch's key-value store, which every group has
        keys = [f"stop{self._number}-rank{rank}" for rank in range(self._place.world)]
        if not self._posted:
            store.set(keys[self._place.rank], str(step))
            self._posted = True
        if self._step is None and store.check(keys):
            self._step = 1 + max(int(store.get(key)) for key in keys)
        return self._step


@dataclass(frozen=True, kw_only=True)
class State:
    """What a rank needs to go on, besides what it builds anew from its inputs.

    Attributes:
        weights: of this rank.
        optimizer: for each parameter, by name: whether FSDP shards the value, and this rank's part of it. AdamW of 8
            bits counts its steps with plain numbers.
        scaler: of the loss.
        rng: PyTorch's random state.
        cuda_rng: of each GPU.
        losses: of every step.
        phases: see `_phase`.
        selector: costs and rates of the method that chooses tensors; None for other methods.
        trained: names of the tensors that train.
        products: facts for the record about the library of products.
        onednn: names of the layers that oneDNN computes.
        untrained: quality before the training.
        kept: weights after each finished epoch but the last.
        ends: of the finished epochs, the begin among them.
        cpu_s: CPU-seconds of this rank's windows so far.
        peaks: see `Peaks.peaks`.
        cached: what frozen layers make of the texts; None unless the method keeps it.
    """

    weights: Weights
    optimizer: list[dict[str, tuple[bool, torch.Tensor | int]]]
    scaler: Plain
    rng: torch.Tensor
    cuda_rng: list[torch.Tensor]
    losses: torch.Tensor
    phases: list[Plain]
    selector: Plain | None
    trained: list[str]
    products: Plain
    onednn: list[str]
    untrained: Plain
    kept: list[Weights]
    ends: list[Plain]
    cpu_s: float
    peaks: list[tuple[int, int, int]]
    cached: torch.Tensor | None = None


def save(
    checkpoints: Checkpoints,
    trainer: Trainer,
    *,
    untrained: Quality,
    kept: Sequence[Weights],
    ends: Sequence[EpochEnd],
    cpu_s: float,
    peaks: Peaks,
) -> CheckpointFile:
    """Write the state of this rank between two steps; call it outside the window.

    Args:
        checkpoints: of the run.
        trainer: of the run.
        untrained: as in `State`, like the next four.
        kept: see there.
        ends: see there.
        cpu_s: see there.
        peaks: see there.
    """
    began_s = time.monotonic()
    index = {id(parameter): i for i, parameter in enumerate(_parameters(trainer))}
    state = State(
        weights=copy_weights(trainer.core, []),
        optimizer=[_values(trainer, parameter) for parameter in _parameters(trainer)],
        scaler=trainer.scaler.state_dict(),
        rng=torch.get_rng_state(),
        cuda_rng=torch.cuda.get_rng_state_all() if trainer.place.device.type == "cuda" else [],
        losses=torch.stack(trainer.losses),
        phases=[_phase(tally, index) for tally in trainer.phases],
        selector=_selector(trainer),
        trained=[name for name, parameter in trainer.core.model.named_parameters() if parameter.requires_grad],
        products=trainer.products,
        onednn=[name for name, module in trainer.core.named_modules() if onednn.computes(module)],
        untrained=asdict(untrained),
        kept=list(kept),
        ends=[asdict(end) for end in ends],
        cpu_s=cpu_s,
        peaks=list(peaks.peaks),
        cached=None if trainer.cache is None else trainer.cache.states,
    )
    path = checkpoints.file(len(trainer.losses), trainer.place.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(vars(state), temporary)
    num_bytes, digest = temporary.stat().st_size, sha256_of(temporary)
    temporary.replace(path)
    return CheckpointFile(name=path.name, num_bytes=num_bytes, sha256=digest, write_s=time.monotonic() - began_s)


def load(checkpoints: Checkpoints | None, place: RankContext) -> State | None:
    """Read the state of this rank; None if the training begins."""
    if checkpoints is None or not checkpoints.step:
        return None
    path = checkpoints.file(checkpoints.step, place.rank)
    return State(**torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def restore(state: State, trainer: Trainer, kept: list[Weights], peaks: Peaks) -> list[EpochEnd]:
    """Bring a trainer, built anew and warmed up, to where it was stopped. Returns the ends of the finished epochs.

    A captured graph keeps reading and writing the same memory, as in `InitialState.restore`.

    Args:
        state: of this rank.
        trainer: of the run.
        kept: rooms for the weights of finished epochs, which are filled; more are added if needed.
        peaks: those of earlier attempts are added.
    """
    trainer.products = state.products
    for name, module in trainer.core.named_modules():
        onednn.assign(module, name in state.onednn)
    if trainer.selector is not None and state.selector is not None:
        cost, rates = state.selector["cost"], state.selector["rates"]
        trainer.selector = replace(trainer.selector, cost=Cost(**cost), rates=rates and Rates(**rates))
        choosing.train_only(trainer, state.trained)
    if trainer.cache is not None and state.cached is not None:
        trainer.cache.states.copy_(state.cached)
    load_weights(trainer.core, state.weights)
    _restore_optimizer(state, trainer)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(state.scaler)
    trainer.losses = list(state.losses.to(trainer.place.device, copy=True).unbind())
    trainer.phases = [_tally(row, _parameters(trainer)) for row in state.phases]
    while len(kept) < len(state.kept):
        kept.append(room_for(trainer.core, kept))
    for room, weights in zip(kept, state.kept, strict=False):
        for name, value in weights.items():
            room[name].copy_(value)
    peaks.peaks += state.peaks
    torch.set_rng_state(state.rng)
    if state.cuda_rng:
        torch.cuda.set_rng_state_all(state.cuda_rng)
    return [EpochEnd(**end) for end in state.ends]


def _parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def _values(trainer: Trainer, parameter: torch.Tensor) -> dict[str, tuple[bool, torch.Tensor | int]]:
    """Return AdamW's state of a parameter; a counter that parameters share stays one object, also in the file."""
    state = trainer.optimizer.state.get(parameter, {})
    return {
        name: (True, local(value)) if hasattr(value, "to_local") else (False, value) for name, value in state.items()
    }


def _selector(trainer: Trainer) -> Plain | None:
    if trainer.selector is None:
        return None
    rates = trainer.selector.rates
    return {"cost": asdict(trainer.selector.cost), "rates": rates and asdict(rates)}


def _restore_optimizer(state: State, trainer: Trainer) -> None:
    optimizer, device = trainer.optimizer, trainer.place.device
    captured = engine.ENGINES[trainer.spec.engine].captures
    moved: dict[int, torch.Tensor] = {}
    if not captured:
        optimizer.state.clear()
    for parameter, values in zip(_parameters(trainer), state.optimizer, strict=True):
        for name, (sharded, value) in values.items():
            if isinstance(value, int):
                optimizer.state[parameter][name] = value
            elif captured:
                optimizer.state[parameter][name].copy_(value)
            elif sharded:
                optimizer.state[parameter][name] = torch.zeros_like(parameter)
                local(optimizer.state[parameter][name]).copy_(value)
            else:
                optimizer.state[parameter][name] = moved.setdefault(id(value), value.to(device, copy=True))


def _phase(tally: Tally, index: dict[int, int]) -> Plain:
    """Return a phase as plain values: parameters by their index."""

    def plain(counters: Counters) -> tuple[list[int], torch.Tensor]:
        return [index[id(parameter)] for parameter in counters[0]], counters[1]

    row = {item.name: getattr(tally, item.name) for item in dataclasses.fields(tally)}
    choice = tally.choice and asdict(tally.choice)
    return {**row, "choice": choice, "begun": plain(tally.begun), "ended": plain(tally.ended)}


def _tally(row: Plain, parameters: Sequence[torch.Tensor]) -> Tally:
    def counters(plain: tuple[list[int], torch.Tensor]) -> Counters:
        return [parameters[i] for i in plain[0]], plain[1].to(parameters[0].device, copy=True)

    choice = row["choice"] and TensorChoice(**row["choice"])
    return Tally(**{**row, "choice": choice, "begun": counters(row["begun"]), "ended": counters(row["ended"])})
