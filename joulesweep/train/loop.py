"""One run, readable top to bottom: build, warm up, train inside the measured window, score outside it.

    process   | imports · model · data | idle | score | warm-up, undone | training, perhaps repeated | score, save |
    window    |                        |      |       |                 |############################|             |

The window also contains copies of weights: after each epoch but the last, to be scored later, and back before a
repetition. They go to memory that was allocated before, and their time is counted separately (`weights_s`).

The first pass through the training is the real one. If it is shorter than the spec's min_seconds, it is repeated
inside the window from the same start, and the repeated weights are discarded: joules are per pass.

The same loop serves every method, strategy, precision, batching and engine: those are transforms of the model, rows
of tables, and the layout of a batch.
`launch.node` starts it through `train.worker`, once, or once per rank under torchrun; each process writes
`rank<r>.json`.
This process imports torch, transformers and zeus, nothing of the reporting side.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from joulesweep.axes import engine, strategy
from joulesweep.core.errors import UserError
from joulesweep.core.files import write_json
from joulesweep.core.outcome import (
    BadInput,
    Epoch,
    EpochEnd,
    Preempted,
    Quality,
    RankResult,
    Span,
    Stopped,
    Windowed,
    as_json,
)
from joulesweep.core.spec import RunSpec, from_mapping
from joulesweep.measure.devices import Board
from joulesweep.measure.window import Meter
from joulesweep.nets.language_model import Unfit
from joulesweep.train import checkpoint, evaluating, fit, generation, memory, wording
from joulesweep.train.adaptive import choosing
from joulesweep.train.assembly import assemble, attention, measured_boards, prepare_process
from joulesweep.train.checkpoint import Checkpoints, Stop
from joulesweep.train.data import Batch
from joulesweep.train.scoring import save, score
from joulesweep.train.trainer import InitialState, RankContext, RunEnded, Trainer, read_counters

BEGIN = EpochEnd(epoch=0, elapsed_s=0.0, cpu_s=0.0, num_steps=0)
ROOMS_AHEAD = 16  # epochs whose copies are allocated before the window; a longer training may end early


def train(
    spec: RunSpec,
    model_folder: Path,
    tokens: Path,
    folder: Path,
    boards: Sequence[Board] = (),
    checkpoints: Checkpoints | None = None,
    evaluations: Sequence[Path] = (),
) -> RankResult | Preempted:
    """Carry out one run and return the result of this rank.

    Args:
        spec: the run's inputs.
        model_folder: a Hugging Face model folder.
        tokens: the token file.
        folder: the run's folder; the model, if kept, is saved in its `model/`.
        boards: the run's boards in the order of CUDA_VISIBLE_DEVICES.
        checkpoints: where the training goes on, and where it is kept if it is asked to stop; None if it cannot be.
        evaluations: what the spec's evaluations read, see `evaluating.Inputs`.

    Raises:
        Stop: the run ends early with a result.
    """
    began_s = time.monotonic()
    place = prepare_process(spec)
    saved = checkpoint.load(checkpoints, place)  # None if the training begins
    trainer = assemble(spec, model_folder, tokens, place)
    meter = Meter(
        measured_boards(spec, boards, place), host=place.local_rank == 0, synchronize=trainer.place.synchronize
    )
    gc.freeze()  # the collector, off until now, skips what is imported and built so far
    gc.enable()
    idle_begin_s, idle_end_s = _idle(spec, place)
    untrained = Quality(**saved.untrained) if saved else score(trainer)
    evaluated = evaluating.Inputs(model_folder=model_folder, tokens=tokens, paths=evaluations)
    before = evaluating.evaluate(trainer, evaluated)
    memory.give_back(place.device)
    peaks = memory.Peaks(place.device, trainer.layout.parts)
    start = _warm_up(trainer, peaks)

    kept: list[memory.Weights] = []
    for _ in range(min(trainer.num_epochs, ROOMS_AHEAD)):
        kept.append(memory.room_for(trainer.core, kept))
    ends = checkpoint.restore(saved, trainer, kept, peaks) if saved else [BEGIN]
    earlier_s, earlier_cpu_s = checkpoints.elapsed_s if checkpoints else 0.0, saved.cpu_s if saved else 0.0
    first_step, saved = len(trainer.losses), None
    peaks.reset()  # without what was read to go on
    startup_s = time.monotonic() - began_s
    weights_s, num_passes = 0.0, 1
    stop = Stop(place, checkpoints)
    place.barrier()
    num_compilations = -engine.num_compilations()
    began_cpu_s = time.process_time()
    with meter.window():
        with contextlib.closing(_run_epochs(trainer, stop, first_step)) as ended:
            for epoch, num_steps in ended:
                elapsed_s, cpu_s = time.monotonic() - meter.begin_s, time.process_time() - began_cpu_s
                elapsed_s, cpu_s = earlier_s + elapsed_s, earlier_cpu_s + cpu_s
                ends.append(EpochEnd(epoch=epoch, elapsed_s=elapsed_s, cpu_s=cpu_s, num_steps=num_steps))
                if epoch > len(kept):
                    kept.append(memory.room_for(trainer.core, kept))
                peaks.note([start.weights, *kept] if start else kept)
                if epoch < trainer.num_epochs:
                    weights_s += _keep(trainer, kept[epoch - 1])
        stop.close()
        losses, tallies = trainer.losses, trainer.phases
        while start and not stop.reached and _is_short(trainer, earlier_s + time.monotonic() - meter.begin_s):
            weights_s += _keep(trainer, kept[-1]) if num_passes == 1 else 0.0
            weights_s += _repeat(trainer, start)
            num_passes += 1
        place.barrier()
    num_compilations += engine.num_compilations()
    cpu_s = time.process_time() - began_cpu_s
    if stop.reached:
        peaks.note([start.weights, *kept] if start else kept)
    window = Windowed(
        total_window_s=meter.window_s,
        num_passes=num_passes,
        span=Span(
            begin_s=meter.begin_s,
            end_s=meter.end_s,
            idle_begin_s=idle_begin_s,
            idle_end_s=idle_end_s,
            meter_s=meter.calls_s,
            clock_step_s=meter.clock_step_s,
            weights_s=weights_s,
        ),
        energy=meter.readings(),
        cpu_s=cpu_s / num_passes,
        startup_s=startup_s,
        peak_memory=peaks.peak(),
        num_steps=trainer.num_steps,
        num_compilations_in_window=num_compilations,
    )
    if checkpoints and stop.reached:
        finished = kept[: len(ends) - 1]
        file = checkpoint.save(
            checkpoints,
            trainer,
            untrained=untrained,
            kept=finished,
            ends=ends,
            cpu_s=earlier_cpu_s + cpu_s,
            peaks=peaks,
        )
        return Preempted(**vars(window), step=len(losses), epochs=ends, files=[file])
    if num_passes == 1:  # the module still has the last weights: copy them outside the window
        _keep(trainer, kept[-1])
    read_counters(tallies)
    phases, kernels = choosing.phases(trainer, tallies), attention(trainer.core.model)
    by_step = place.reduced(torch.stack(losses).float()).tolist()
    qualities = [untrained, *(score(trainer, weights) for weights in kept[: len(ends) - 1])]
    epochs = [_epoch(*of_epoch, by_step) for of_epoch in zip([BEGIN, *ends], ends, qualities, strict=False)]
    summaries = generation.generate(trainer, kept[-1], model_folder)
    scores, items = evaluating.compared(spec, before, evaluating.evaluate(trainer, evaluated, kept[-1]))
    if spec.keep_model != "none":
        best = min(range(len(kept)), key=lambda i: epochs[i + 1].validation_loss)
        save(trainer, kept[best if spec.keep_model == "best" else -1], model_folder, folder / "model")
    return RankResult(
        **vars(window),
        phases=phases,
        products=trainer.products,
        attention=kernels,
        epochs=epochs,
        quality=qualities[-1],
        losses=by_step,
        summaries=summaries,
        num_train_texts=len(trainer.train_texts),
        evaluations=scores,
        evaluation_items=items,
        texts=wording.count(trainer, tokens, qualities[-1].num_masked),
    )


def _epoch(before: EpochEnd, end: EpochEnd, quality: Quality, losses: Sequence[float]) -> Epoch:
    of_epoch = losses[before.num_steps : end.num_steps]
    return Epoch(
        **vars(end),
        train_loss=sum(of_epoch) / len(of_epoch) if of_epoch else None,
        validation_loss=quality.validation_loss,
        perplexity=quality.perplexity,
        masked_accuracy=quality.masked_accuracy,
        choice_accuracy=quality.choice_accuracy,
    )


def _run_epochs(trainer: Trainer, stop: Stop | None = None, step: int = 0) -> Generator[tuple[int, int], None, None]:
    """Run the training loop, after `step` steps. Yields (epoch, steps so far) after each epoch, the device being idle.

    It ends early where `stop` says so.
    """
    num_steps, per_epoch, place = trainer.num_steps, trainer.steps_per_epoch, trainer.place
    trainer.core.train()
    bar = tqdm(total=num_steps, initial=step, unit="step", mininterval=1.0, disable=place.rank != 0, file=sys.stderr)
    if step:
        trainer.reopen_phase()
    else:
        trainer.phases = []
    with contextlib.closing(bar), contextlib.closing(trainer.steps(step)) as steps:
        for epoch in range(math.ceil(step / per_epoch) or 1, trainer.num_epochs + 1):
            begun = (epoch - 1) * per_epoch
            if trainer.cache is not None:
                trainer.cache.fills = epoch == 1
            if step == begun:
                _begin(trainer, epoch)
            for batches, num_predicted in itertools.islice(steps, begun + per_epoch - step):
                lr = trainer.learning_rate(step)
                trainer.losses.append(_step(trainer, batches, num_predicted, lr))
                trainer.count(batches)
                step += 1
                bar.update()
                if stop and stop.asked and step < num_steps and stop.is_at(step):
                    trainer.close_epoch()
                    return
            place.synchronize()
            _check_finite(place, trainer.losses[begun:], step)
            trainer.close_epoch()
            yield epoch, step


def _begin(trainer: Trainer, epoch: int) -> None:
    """Open a phase if one begins with this epoch; a method that chooses tensors does so first."""
    if trainer.selector is None:
        if epoch == 1 or (epoch == 2 and trainer.cache is not None):  # from then on a step is less work
            trainer.open_phase("training", epoch)
    elif trainer.selector.due(epoch):
        trainer.open_phase("rating", epoch)
        try:
            chosen = choosing.choose(trainer, epoch)
        except choosing.Diverged as error:
            raise RunEnded("diverged", str(error)) from None
        trainer.close_epoch()
        trainer.open_phase("training", epoch, chosen)


def _step(trainer: Trainer, batches: Sequence[Batch], num_predicted: int, lr: float) -> torch.Tensor:
    """Take one optimizer step. Returns this rank's part of the loss (the parts add up), still on the device."""
    for group in trainer.optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    if trainer.graphed is not None:
        return trainer.graphed([batch.tensors for batch in batches], 1 / num_predicted)
    device = trainer.place.device
    inputs = [batch.on(device) for batch in batches]
    if trainer.cache is not None:
        trainer.cache.prepare(trainer.core, batches, inputs)
    factor = torch.full((), 1 / num_predicted, device=device)
    return _forward_backward_update(trainer, inputs, factor)


def _forward_backward_update(trainer: Trainer, inputs: engine.Inputs, factor: torch.Tensor) -> torch.Tensor:
    """Do the work of a step, on tensors on the device. Gradients of micro-batches add up."""
    loss = torch.zeros_like(factor)
    for i, tensors in enumerate(inputs):
        strategy.synchronise(trainer.model, trainer.spec.strategy, exchanges=i == len(inputs) - 1)
        part = trainer.model(*tensors)[:, 0].sum() * factor
        # DDP and FSDP average the gradients over the ranks, but the sum over the shares of the texts is needed.
        torch.autograd.backward(trainer.scaler.scale(part * trainer.place.data_parallel))
        loss += part.detach()
    if trainer.spec.max_grad_norm is not None:
        trainer.scaler.unscale_(trainer.optimizer)
        _clip(trainer, trainer.spec.max_grad_norm)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    return loss


def _clip(trainer: Trainer, max_norm: float) -> None:
    """Clip the step's gradient, of all tensors and shards together, without waiting for the device."""
    torch.nn.utils.clip_grad_norm_(trainer.core.parameters(), max_norm, foreach=True)


def _check_finite(place: RankContext, losses: Sequence[torch.Tensor], step: int) -> None:
    """Stop all ranks if a loss of the epoch is not finite; call while the device is idle."""
    bad = (~torch.isfinite(torch.stack(list(losses)))).any().to(torch.float32)
    if place.reduced(bad, largest=True).item():
        raise RunEnded("diverged", f"the loss was not finite by step {step}")


def _warm_up(trainer: Trainer, peaks: memory.Peaks) -> InitialState | None:
    """Take a few whole steps (allocator, caches, compilation, capture) and undo them. Returns the start, if reused."""
    start = InitialState.of(trainer)
    trainer.core.train()
    _begin(trainer, epoch=1)
    # With eager, the model was tried before: errors of a step are bugs, or of peers.
    with _prepared_by(trainer.spec.engine) if trainer.spec.engine != "eager" else contextlib.nullcontext():
        with contextlib.closing(trainer.steps()) as steps:
            for batches, num_predicted in itertools.islice(steps, trainer.spec.warmup_steps):
                _step(trainer, batches, num_predicted, trainer.spec.lr)
        if trainer.spec.engine != "eager" or trainer.place.device.type == "cuda":
            _meet_every_shape(trainer)
    start.restore(trainer)
    if engine.ENGINES[trainer.spec.engine].captures:
        peaks.note_captured([start.weights])
    peaks.reset()
    return start if trainer.spec.min_seconds else None


@contextlib.contextmanager
def _prepared_by(name: str) -> Iterator[None]:
    """Turn a failure to compile or capture the model into a result of the run."""
    try:
        with fit.foreign(f"engine {name}"):
            yield
    except Unfit as unfit:
        raise RunEnded("unsupported", str(unfit)) from unfit


def _meet_every_shape(trainer: Trainer) -> None:
    """Take a step for each shape of the training, so that the window contains no first step of a shape.

    A first step compiles or captures; eagerly on a GPU it loads kernels and allocates memory, which do not depend on
    the head's many sizes. No other thread works meanwhile.
    """
    captures = engine.ENGINES[trainer.spec.engine].captures
    if captures:
        trainer.graphed = engine.GraphedStep(
            lambda inputs, factor: _forward_backward_update(trainer, inputs, factor), trainer.place.device
        )
    met: set[Any] = set()
    new: list[bool] = []
    of_head = trainer.spec.engine != "eager"
    for outlines in itertools.chain.from_iterable(trainer.outlines(i + 1, of_head) for i in range(trainer.num_epochs)):
        shapes = {outlines} if captures else set(outlines)  # a graph contains a whole step
        new.append(not shapes <= met)
        met |= shapes
    flags = torch.tensor(new[: trainer.num_steps], dtype=torch.float32, device=trainer.place.device)
    flags = trainer.place.reduced(flags, largest=True)  # every rank takes a step, or none does
    for batches, num_predicted in trainer.some_steps(torch.nonzero(flags).flatten().tolist()):
        _step(trainer, batches, num_predicted, trainer.spec.lr)


def _is_short(trainer: Trainer, elapsed_s: float) -> bool:
    """Whether the window is still too short; all ranks agree, by the slowest."""
    seconds = torch.tensor([elapsed_s], dtype=torch.float64, device=trainer.place.device)
    return trainer.place.reduced(seconds, largest=True).item() < trainer.spec.min_seconds


def _keep(trainer: Trainer, weights: memory.Weights) -> float:
    """Copy the weights while the device is idle. Returns the seconds, which count to no phase."""
    began_s = time.monotonic()
    memory.fill(weights, trainer.core)
    trainer.place.synchronize()
    copied_s = time.monotonic() - began_s
    trainer.began_s += copied_s
    return copied_s


def _repeat(trainer: Trainer, start: InitialState) -> float:
    """Repeat the training from the same start and discard its results. Returns the seconds of restoring the start."""
    began_s = time.monotonic()
    start.restore(trainer)
    trainer.place.synchronize()
    restored_s = time.monotonic() - began_s
    trainer.losses = []
    for _ in _run_epochs(trainer):
        pass
    return restored_s


def _idle(spec: RunSpec, place: RankContext) -> tuple[float, float]:
    """Idle on all ranks at once, with the model on the device. Returns when this began and ended."""
    if not spec.idle_s:
        return 0.0, 0.0
    place.barrier()
    place.synchronize()
    begin_s = time.monotonic()
    time.sleep(spec.idle_s)
    return begin_s, time.monotonic()


def main(argv: list[str]) -> int:
    """Run the job in a file and write `rank<r>.json` beside it; return 0, or 3 if the run ended early."""
    job_path = Path(argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    rank = os.environ.get("RANK", "0")
    try:
        paths = [Path(job[key]) for key in ("model_folder", "tokens", "folder")]
        boards = [Board(**board) for board in job["boards"]]
        outcome: RankResult | Preempted | Stopped | BadInput = train(
            from_mapping(job["spec"]),
            paths[0],
            paths[1],
            paths[2],
            boards,
            checkpoint.of_job(job, job_path.parent),
            [Path(path) for path in job.get("evaluations", ())],
        )
    except RunEnded as stop:
        outcome = stop.outcome
    except UserError as error:
        outcome = BadInput(reason=str(error))
    except (RuntimeError, MemoryError) as error:
        if not memory.is_lacking(error):
            raise
        lines = [line for line in str(error).splitlines() if re.search(memory.OUT_OF_MEMORY, line)]
        reason = lines[0] if lines else "out of host memory"
        outcome = Stopped(status="oom", reason=reason, oom_bytes=memory.bytes_asked(str(error)))
    write_json(job_path.parent / f"rank{rank}.json", as_json(outcome))
    if not isinstance(outcome, RankResult | Preempted):
        return 3
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0
