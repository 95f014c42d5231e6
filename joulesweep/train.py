"""One run, readable top to bottom: build, warm up, train inside the measured window, score outside it.

    process   | imports · model · data | idle | score | warm-up, undone | training, perhaps repeated | score, save |
    window    |                        |      |       |                 |############################|             |

The first pass through the training is the real one. Where it is shorter than the spec's min_seconds it is repeated
inside the window, from the same start, and what the repetitions learn is thrown away: joules are per pass.

The same loop serves every method, strategy and precision: those are transforms of the model and rows of tables.
Started by `joulesweep.launch` through `joulesweep.worker`, once, or once per rank under torchrun; each process leaves
`rank<r>.json` behind.
This process imports torch, transformers and zeus, nothing of the reporting side.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from joulesweep import data, memory, methods, precision, strategy
from joulesweep.errors import UserError
from joulesweep.meter import Meter
from joulesweep.model import MaskedLanguageModel, build
from joulesweep.record import write_json
from joulesweep.spec import RunSpec, from_mapping


class Stop(Exception):  # noqa: N818 - an outcome, not an error
    """A run that ends early with a result: unsupported, oom or diverged."""

    def __init__(self, status: str, reason: str, oom_bytes: int | None = None) -> None:
        super().__init__(reason)
        self.outcome = {"status": status, "reason": reason, "oom_bytes": oom_bytes}


@dataclass(kw_only=True)
class Trainer:
    """Everything the loop needs, built once per process.

    Attributes:
        spec: the run's inputs.
        core: the bare module, for scoring and saving.
        model: the same module as the strategy wrapped it, for training.
        corpus: all texts.
        train_texts: indices of the training texts.
        validation_texts: indices of the validation texts.
        device: where this process computes.
        rank: this process.
        world: number of processes.
        losses: loss of every step on this rank's share, kept on the device until the window has closed.
    """

    spec: RunSpec
    core: MaskedLanguageModel
    model: torch.nn.Module
    corpus: data.Corpus
    train_texts: torch.Tensor
    validation_texts: torch.Tensor
    device: torch.device
    rank: int
    world: int
    losses: list[torch.Tensor] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training texts."""
        return math.ceil(len(self.train_texts) / self.spec.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.spec.max_steps or (self.spec.epochs or 0) * self.steps_per_epoch


def train(
    spec: RunSpec, model_folder: Path, tokens: Path, folder: Path, boards: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Carry out one run and return what this rank saw.

    Args:
        spec: the run's inputs.
        model_folder: a Hugging Face model folder.
        tokens: the token file.
        folder: the run's folder; a kept model is saved in its `model/`.
        boards: the run's boards in the order of CUDA_VISIBLE_DEVICES, as `devices.Board.described` gives them.

    Returns:
        status "ok", measurement, epochs (scored on rank 0 only), losses (one per step) and num_train_texts.

    Raises:
        Stop: the run is a result, but not a training.
    """
    began_s = time.monotonic()
    rank, world, local_rank = (int(os.environ.get(name, default)) for name, default in _RANKS)
    device = _prepare_process(spec, local_rank, world)
    trainer = _build(spec, model_folder, tokens, device, rank, world, local_rank)
    measured = _measured_boards(spec, boards, local_rank, world)
    meter = Meter(measured, host=local_rank == 0, synchronize=lambda: _synchronize(device))
    gc.freeze()  # what was imported and built stays; the collector, off until now, need not walk it again
    gc.enable()
    idle = _idle(trainer)
    epochs = [
        {"epoch": 0, "elapsed_s": 0.0, "cpu_s": 0.0, "num_steps": 0, **_score(trainer, trainer.core.state_dict())}
    ]
    start = _warm_up(trainer)
    peaks = memory.Peaks(device, spec.devices if strategy.STRATEGIES[spec.strategy].wrapper == "DataParallel" else 1)
    optimizer, scaler = _optimizer(trainer), precision.scaler(spec.precision, device.type)
    startup_s = time.monotonic() - began_s

    kept: list[dict[str, torch.Tensor]] = []
    counts = dict.fromkeys(_COUNTED, 0)
    _barrier(world)
    began_cpu_s = time.process_time()
    with meter.window():
        for epoch, num_steps in _run_epochs(trainer, optimizer, scaler, counts):
            peaks.note([start.weights, *kept] if start else kept)
            if rank == 0:
                kept.append(memory.copy_weights(trainer.core, kept))
            elapsed_s, cpu_s = time.monotonic() - meter.begin_s, time.process_time() - began_cpu_s
            epochs.append({"epoch": epoch, "elapsed_s": elapsed_s, "cpu_s": cpu_s, "num_steps": num_steps})
        skipped = _num_skipped(trainer, optimizer) if scaler.is_enabled() else 0
        losses, trainer.losses = trainer.losses, []
        num_passes = 1
        while start and _is_short(trainer, time.monotonic() - meter.begin_s):
            _repeat(trainer, start)
            num_passes += 1
        _barrier(world)
    cpu_s = (time.process_time() - began_cpu_s) / num_passes
    span = {"begin_s": meter.begin_s, "end_s": meter.end_s, "meter_s": meter.calls_s, **idle}
    measurement = {"total_window_s": meter.window_s, "num_passes": num_passes, "energy": meter.rows(), "span": span}
    measurement |= {"cpu_s": cpu_s, "startup_s": startup_s, **counts, "peak_memory": peaks.peak()}
    measurement |= {"num_steps": trainer.num_steps, "num_skipped_steps": skipped}

    by_step = _reduced(torch.stack(losses), world).tolist()
    for row, before, weights in zip(epochs[1:], epochs, kept, strict=False):  # ranks but the first kept nothing
        of_epoch = by_step[int(before["num_steps"]) : int(row["num_steps"])]
        row.update(_score(trainer, weights), train_loss=sum(of_epoch) / len(of_epoch))
    if rank == 0 and spec.keep_model != "none":
        best = min(range(len(kept)), key=lambda i: epochs[i + 1]["validation_loss"])
        _save(trainer, kept[best if spec.keep_model == "best" else -1], model_folder, folder / "model")
    return {
        "status": "ok",
        "measurement": measurement,
        "epochs": epochs,
        "losses": by_step,
        "num_train_texts": len(trainer.train_texts),
    }


_COUNTED = ("num_texts", "num_tokens", "num_padded_tokens")
_RANKS = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


def _prepare_process(spec: RunSpec, local_rank: int, world: int) -> torch.device:
    """Threads, seed, device and process group; refuse what this machine cannot do."""
    torch.set_num_threads(spec.threads_per_device)
    num_gpus = torch.cuda.device_count() if spec.accelerator == "cuda" else 0
    if spec.accelerator == "cuda" and num_gpus == 0:
        raise Stop("unsupported", "accelerator cuda: PyTorch sees no GPU here")
    capability = torch.cuda.get_device_capability(0) if num_gpus else None
    reason = strategy.refusal(spec.strategy, spec.devices, spec.accelerator, num_gpus)
    reason = reason or precision.refusal(spec.precision, spec.accelerator, capability)
    if reason:
        raise Stop("unsupported", reason)
    device = torch.device("cuda", local_rank) if num_gpus else torch.device("cpu")
    if num_gpus:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if num_gpus else "gloo", device_id=device if num_gpus else None)
    torch.manual_seed(spec.repeat)
    return device


def _build(
    spec: RunSpec, model_folder: Path, tokens: Path, device: torch.device, rank: int, world: int, local_rank: int
) -> Trainer:
    """Model and data. The transforms come in this order, since each one fixes what the next one sees."""
    model = build(model_folder)
    model = methods.load(spec.method).apply(model, methods.parameters(spec.method, spec.method_params))
    core = MaskedLanguageModel(precision.cast(model, spec.precision), spec.precision).to(device)
    if not any(parameter.requires_grad for parameter in core.parameters()):
        raise UserError(f"method {spec.method}: no parameter of the model is left to train")
    wrapped = strategy.wrap(core, spec.strategy, spec.devices, spec.accelerator, local_rank)
    torch.manual_seed(spec.repeat * 1000 + rank)  # each rank its own dropout
    corpus = data.load(tokens, spec.max_length)
    source = spec.dataset_source
    parts = data.split(
        corpus,
        source.get("split", "random"),
        source.get("validation_fraction", 0.2),
        source.get("split_seed", 0),
    )
    if not all(len(part) for part in parts):
        raise UserError(f"data set {spec.dataset}: too few texts to hold some out: {len(corpus.group)} in all")
    return Trainer(
        spec=spec,
        core=core,
        model=wrapped,
        corpus=corpus,
        train_texts=parts[0],
        validation_texts=parts[1],
        device=device,
        rank=rank,
        world=world,
    )


def _optimizer(trainer: Trainer) -> torch.optim.AdamW:
    """AdamW, one fused kernel; biases and normalisation weights (one dimension) do not decay."""
    trained = [parameter for parameter in trainer.core.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": trainer.spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=trainer.spec.lr, fused=True)


def learning_rate(spec: RunSpec, step: int, num_steps: int) -> float:
    """Learning rate of a step, counted from 0, out of num_steps."""
    num_warmup = round(spec.lr_warmup_fraction * num_steps)
    if step < num_warmup:
        return spec.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if spec.schedule == "linear":
        return spec.lr * (1 - progress)
    if spec.schedule == "cosine":
        return spec.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return spec.lr


def _run_epochs(
    trainer: Trainer, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler, counts: dict[str, int]
) -> Iterator[tuple[int, int]]:
    """The training loop. Yields (epoch, steps so far) after each epoch, the device being idle."""
    spec, num_steps, step = trainer.spec, trainer.num_steps, 0
    trainer.model.train()
    bar = tqdm(total=num_steps, unit="step", mininterval=1.0, disable=trainer.rank != 0, file=sys.stderr)
    for epoch in range(1, math.ceil(num_steps / trainer.steps_per_epoch) + 1):
        for batch in _batches(trainer, epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, step, num_steps)
            trainer.losses.append(_step(trainer, optimizer, scaler, batch))
            counts["num_texts"] += batch.num_texts
            counts["num_tokens"] += batch.num_tokens
            counts["num_padded_tokens"] += batch.input_ids.numel()
            step += 1
            bar.update()
            if step == num_steps:
                break
        _synchronize(trainer.device)
        _check_finite(trainer, step)
        yield epoch, step
    bar.close()


def _batches(trainer: Trainer, epoch: int) -> Iterator[data.Batch]:
    spec = trainer.spec
    masked = data.mask(trainer.corpus, spec.mask_probability, spec.repeat, epoch)
    texts = data.order(trainer.train_texts, spec.repeat, epoch)
    fixed = spec.max_length if spec.batching == "fixed" else None
    return data.batches(trainer.corpus, masked, texts, spec.global_batch_size, trainer.rank, trainer.world, fixed)


def _step(
    trainer: Trainer, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler, batch: data.Batch
) -> torch.Tensor:
    """One optimizer step. Returns this rank's part of the loss (the parts add up), still on the device."""
    inputs = [t.to(trainer.device, non_blocking=True) for t in (batch.input_ids, batch.attention_mask, batch.labels)]
    loss: torch.Tensor = trainer.model(*inputs)[:, 0].sum() / batch.num_predicted
    torch.autograd.backward(scaler.scale(loss * trainer.world))  # DDP averages the gradients; the sum is meant
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _check_finite(trainer: Trainer, step: int) -> None:
    finite = torch.isfinite(torch.stack(trainer.losses)).all().to(torch.float32).reshape(1)
    if trainer.world > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)  # all ranks stop together
    if not finite.item():
        raise Stop("diverged", f"the loss was not finite by step {step}")


@dataclass(kw_only=True)
class _Start:
    """Weights and random state before the first step."""

    weights: dict[str, torch.Tensor]
    rng: torch.Tensor
    cuda_rng: list[torch.Tensor]

    def restore(self, trainer: Trainer) -> None:
        trainer.core.load_state_dict(self.weights)
        torch.set_rng_state(self.rng)
        if self.cuda_rng:
            torch.cuda.set_rng_state_all(self.cuda_rng)


def _warm_up(trainer: Trainer) -> _Start | None:
    """A few whole steps (allocator, caches, kernel choice), undone. Returns the start, if it is needed again."""
    start = _Start(
        weights=memory.copy_weights(trainer.core, []),
        rng=torch.get_rng_state(),
        cuda_rng=torch.cuda.get_rng_state_all() if trainer.device.type == "cuda" else [],
    )
    optimizer, scaler = _optimizer(trainer), precision.scaler(trainer.spec.precision, trainer.device.type)
    trainer.model.train()
    for _, batch in zip(range(trainer.spec.warmup_steps), _batches(trainer, epoch=1), strict=False):
        _step(trainer, optimizer, scaler, batch)
    start.restore(trainer)
    return start if trainer.spec.min_seconds else None


def _is_short(trainer: Trainer, elapsed_s: float) -> bool:
    """Whether the window still lacks seconds; all ranks agree, by the slowest."""
    seconds = torch.tensor([elapsed_s], dtype=torch.float64, device=trainer.device)
    if trainer.world > 1:
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return seconds.item() < trainer.spec.min_seconds


def _repeat(trainer: Trainer, start: _Start) -> None:
    """The same training once more, from the same start; nothing of it is kept."""
    start.restore(trainer)
    optimizer, scaler = _optimizer(trainer), precision.scaler(trainer.spec.precision, trainer.device.type)
    for _ in _run_epochs(trainer, optimizer, scaler, dict.fromkeys(_COUNTED, 0)):
        trainer.losses.clear()


def _idle(trainer: Trainer) -> dict[str, float]:
    """Rest, all ranks at once, with the context up and the model resident. Returns when that began and ended."""
    if not trainer.spec.idle_s:
        return {"idle_begin_s": 0.0, "idle_end_s": 0.0}
    _barrier(trainer.world)
    _synchronize(trainer.device)
    begin_s = time.monotonic()
    time.sleep(trainer.spec.idle_s)
    return {"idle_begin_s": begin_s, "idle_end_s": time.monotonic()}


@torch.no_grad()
def _score(trainer: Trainer, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Loss and accuracy on the validation texts under fixed masks, by rank 0 alone."""
    if trainer.rank != 0:
        return {}
    core, spec = trainer.core, trainer.spec
    before = copy.deepcopy(core.state_dict())
    core.load_state_dict(weights)
    core.eval()
    masked = data.mask(trainer.corpus, spec.mask_probability, "validation", spec.dataset_source.get("split_seed", 0))
    sums, num_predicted = torch.zeros(2, dtype=torch.float64), 0
    by_length = trainer.validation_texts[trainer.corpus.lengths[trainer.validation_texts].argsort(stable=True)]
    for batch in data.batches(trainer.corpus, masked, by_length, 128, 0, 1, None):
        inputs = [t.to(trainer.device) for t in (batch.input_ids, batch.attention_mask, batch.labels)]
        sums += core(*inputs, score=True)[0].double().cpu()
        num_predicted += int((batch.labels != data.IGNORED).sum())
    core.load_state_dict(before)
    if not num_predicted:
        raise UserError("the validation texts have no masked token; use more texts or a higher mask_probability")
    loss = float(sums[0]) / num_predicted
    if not math.isfinite(loss):
        raise Stop("diverged", "the validation loss was not finite")
    return {
        "train_loss": None,
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "masked_accuracy": float(sums[1]) / num_predicted,
        "num_masked": num_predicted,
        "num_validation_texts": len(trainer.validation_texts),
    }


def _measured_boards(
    spec: RunSpec, boards: Sequence[dict[str, Any]], local_rank: int, world: int
) -> list[dict[str, Any]]:
    """The boards that this process counts: its own, and the first one those left over; of one process all.

    Raises:
        UserError: PyTorch computes on another board than the one to be metered.
    """
    placed = [{**board, "position": position} for position, board in enumerate(boards)]
    for board in placed[: spec.devices] if spec.accelerator == "cuda" else ():
        found = str(getattr(torch.cuda.get_device_properties(board["position"]), "uuid", ""))
        if found and not board["mig"] and found not in board["uuid"]:
            raise UserError(f"PyTorch computes on GPU {found}, and the run was given {board['uuid']}")
    own = placed[local_rank : local_rank + 1]
    return own + (placed[world:] if local_rank == 0 else []) if world > 1 else placed


def _num_skipped(trainer: Trainer, optimizer: torch.optim.AdamW) -> int:
    """Steps that the loss scaler left out: AdamW's own counter does not advance in them."""
    taken = max(int(state["step"]) for state in optimizer.state.values()) if optimizer.state else 0
    return trainer.num_steps - taken


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()


def _reduced(losses: torch.Tensor, world: int) -> torch.Tensor:
    """Each step's loss over all ranks."""
    losses = losses.float()
    if world > 1:
        dist.all_reduce(losses)
    return losses


def _save(trainer: Trainer, weights: dict[str, torch.Tensor], model_folder: Path, folder: Path) -> None:
    """Save the adapted model in the Hugging Face form, tokenizer files included."""
    trainer.core.load_state_dict(weights)
    trainer.core.model.save_pretrained(folder)  # type: ignore[operator]
    for path in model_folder.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())


def main(argv: list[str]) -> int:
    """Run the job described in a file and leave `rank<r>.json` beside it; 3 if the run stopped with a result."""
    job_path = Path(argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    rank = os.environ.get("RANK", "0")
    try:
        paths = [Path(job[key]) for key in ("model_folder", "tokens", "folder")]
        outcome = train(from_mapping(job["spec"]), paths[0], paths[1], paths[2], job["boards"])
    except Stop as stop:
        outcome = stop.outcome
    except UserError as error:
        outcome = {"status": "error", "reason": str(error)}
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        lines = [line for line in str(error).splitlines() if re.search(memory.OUT_OF_MEMORY, line)]
        if not lines and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        reason = lines[0] if lines else "out of host memory"
        outcome = {"status": "oom", "reason": reason, "oom_bytes": memory.bytes_asked(str(error))}
    write_json(job_path.parent / f"rank{rank}.json", outcome)
    if outcome["status"] != "ok":
        return 3
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0
