"""One run, readable top to bottom: build, warm up, train inside the measured window, score outside it.

    process   | imports · model · data | warm-up, undone | score | training passes over the texts | score, save |
    window    |                        |                 |       |################################|             |

The same loop serves every method, strategy and precision: those are transforms of the model and rows of tables.
Started by `joulesweep.launch` through `joulesweep.worker`, once, or once per rank under torchrun; each process leaves
`rank<r>.json` behind.
This process imports torch, transformers and zeus, nothing of the reporting side.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from joulesweep import data, methods, precision, strategy
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


def train(spec: RunSpec, model_folder: Path, tokens: Path, folder: Path) -> dict[str, Any]:
    """Carry out one run and return what this rank saw.

    Args:
        spec: the run's inputs.
        model_folder: a Hugging Face model folder.
        tokens: the token file.
        folder: the run's folder; a kept model is saved in its `model/`.

    Returns:
        status "ok", measurement, epochs (scored on rank 0 only), losses (one per step) and num_train_texts.

    Raises:
        Stop: the run is a result, but not a training.
    """
    began_s = time.monotonic()
    rank, world, local_rank = (int(os.environ.get(name, default)) for name, default in _RANKS)
    device = _prepare_process(spec, local_rank, world)
    trainer = _build(spec, model_folder, tokens, device, rank, world, local_rank)
    optimizer, scaler = _optimizer(trainer), precision.scaler(spec.precision, device.type)
    meter = Meter(_measured_gpus(spec, local_rank), host=local_rank == 0)
    gc.freeze()  # what was imported and built stays; the collector, off until now, need not walk it again
    gc.enable()
    _warm_up(trainer)
    epochs = [
        {"epoch": 0, "elapsed_s": 0.0, "cpu_s": 0.0, "num_steps": 0, **_score(trainer, trainer.core.state_dict())}
    ]
    memory = _Memory(device, spec.devices if strategy.STRATEGIES[spec.strategy].wrapper == "DataParallel" else 1)
    startup_s = time.monotonic() - began_s

    _barrier(world)
    meter.begin()
    began_cpu_s, began_window_s = time.process_time(), time.monotonic()
    kept: list[dict[str, torch.Tensor]] = []
    counts = {"num_texts": 0, "num_tokens": 0, "num_padded_tokens": 0}
    for epoch, num_steps in _run_epochs(trainer, optimizer, scaler, counts):
        memory.note(kept)
        if rank == 0:
            kept.append(_copy(trainer.core, kept))
        elapsed_s, cpu_s = time.monotonic() - began_window_s, time.process_time() - began_cpu_s
        epochs.append({"epoch": epoch, "elapsed_s": elapsed_s, "cpu_s": cpu_s, "num_steps": num_steps})
    _barrier(world)
    cpu_s = time.process_time() - began_cpu_s
    measurement = {**meter.end(), "cpu_s": cpu_s, "startup_s": startup_s, **counts, "peak_memory": memory.peak()}
    measurement["num_steps"] = trainer.num_steps
    measurement["num_skipped_steps"] = _num_skipped(trainer, optimizer) if scaler.is_enabled() else 0

    losses = _reduced(torch.stack(trainer.losses), world).tolist()
    for row, before, weights in zip(epochs[1:], epochs, kept, strict=False):  # ranks but the first kept nothing
        of_epoch = losses[int(before["num_steps"]) : int(row["num_steps"])]
        row.update(_score(trainer, weights), train_loss=sum(of_epoch) / len(of_epoch))
    if rank == 0 and spec.keep_model != "none":
        best = min(range(len(kept)), key=lambda i: epochs[i + 1]["validation_loss"])
        _save(trainer, kept[best if spec.keep_model == "best" else -1], model_folder, folder / "model")
    return {
        "status": "ok",
        "measurement": measurement,
        "epochs": epochs,
        "losses": losses,
        "num_train_texts": len(trainer.train_texts),
    }


CPU = torch.device("cpu")
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


def _warm_up(trainer: Trainer) -> None:
    """A few whole steps (allocator, caches, kernel choice), then put weights and random state back."""
    weights = copy.deepcopy(trainer.core.state_dict())
    rng = torch.get_rng_state(), torch.cuda.get_rng_state_all() if trainer.device.type == "cuda" else []
    optimizer, scaler = _optimizer(trainer), precision.scaler(trainer.spec.precision, trainer.device.type)
    trainer.model.train()
    for _, batch in zip(range(trainer.spec.warmup_steps), _batches(trainer, epoch=1), strict=False):
        _step(trainer, optimizer, scaler, batch)
    trainer.core.load_state_dict(weights)
    torch.set_rng_state(rng[0])
    if rng[1]:
        torch.cuda.set_rng_state_all(rng[1])


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


def _copy(core: torch.nn.Module, kept: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights as they are now; tied ones once. On a GPU that the copies would fill, they go to host memory."""
    weights = {name: value.detach() for name, value in core.state_dict().items()}
    device = next(iter(weights.values())).device
    held = sum(_nbytes(weights_before, device) for weights_before in kept) + _nbytes(weights, device)
    full = device.type == "cuda" and held > torch.cuda.get_device_properties(device).total_memory / 10
    copies = {value.data_ptr(): value.cpu() if full else value.clone() for value in weights.values()}
    return {name: copies[value.data_ptr()] for name, value in weights.items()}


def _nbytes(weights: dict[str, torch.Tensor], device: torch.device) -> int:
    """Bytes that weights take on a device; tied ones count once."""
    return sum({value.data_ptr(): value.nbytes for value in weights.values() if value.device == device}.values())


class _Memory:
    """Peak memory of training, without the copies of the weights that wait to be scored."""

    def __init__(self, device: torch.device, num_gpus: int) -> None:
        self.cuda = device.type == "cuda"
        own = [device] if self.cuda else []
        self.gpus = [torch.device("cuda", i) for i in range(num_gpus)] if self.cuda and num_gpus > 1 else own
        self.peaks: list[tuple[int, int, int]] = []
        self._reset()

    def _reset(self) -> None:
        with contextlib.suppress(OSError):  # some sandboxes lack the file; the peak is then the process's own
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)
        for gpu in self.gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def note(self, kept: list[dict[str, torch.Tensor]]) -> None:
        """Take the peak since the last call, less the copies held meanwhile."""
        held = {device: sum(_nbytes(weights, device) for weights in kept) for device in (*self.gpus, CPU)}
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        host = 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        allocated = max((torch.cuda.max_memory_allocated(gpu) - held[gpu] for gpu in self.gpus), default=0)
        reserved = max((torch.cuda.max_memory_reserved(gpu) - held[gpu] for gpu in self.gpus), default=0)
        self.peaks.append((host - held[CPU], allocated, reserved))
        self._reset()

    def peak(self) -> dict[str, int | None]:
        """The highest of the epochs, in bytes; GPU figures are those of the fullest GPU."""
        host, allocated, reserved = (max(values) for values in zip(*self.peaks, strict=True))
        return {
            "host_rss_bytes": host,
            "gpu_allocated_bytes": allocated if self.cuda else None,
            "gpu_reserved_bytes": reserved if self.cuda else None,
        }


def _measured_gpus(spec: RunSpec, local_rank: int) -> list[int]:
    """The GPUs that this process counts: its own, or all of them where one process owns several."""
    if spec.accelerator == "cpu":
        return []
    return [local_rank] if strategy.STRATEGIES[spec.strategy].multi_process else list(range(spec.devices))


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


#: How PyTorch, cuBLAS, NCCL and the CPU's allocator say it.
OUT_OF_MEMORY = r"out of memory|ALLOC_FAILED|allocate memory"


def _memory_asked(message: str) -> int | None:
    """Bytes named in PyTorch's out-of-memory messages, of the GPU's and of the CPU's allocator."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)?", message)
    if found is None:
        return None
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    return round(float(found[1].rstrip(".")) * units.get(found[2], 1))


def main(argv: list[str]) -> int:
    """Run the job described in a file and leave `rank<r>.json` beside it; 3 if the run stopped with a result."""
    job_path = Path(argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    rank = os.environ.get("RANK", "0")
    try:
        outcome = train(from_mapping(job["spec"]), Path(job["model_folder"]), Path(job["tokens"]), Path(job["folder"]))
    except Stop as stop:
        outcome = stop.outcome
    except UserError as error:
        outcome = {"status": "error", "reason": str(error)}
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        lines = [line for line in str(error).splitlines() if re.search(OUT_OF_MEMORY, line)]
        if not lines and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        reason = lines[0] if lines else "out of host memory"
        outcome = {"status": "oom", "reason": reason, "oom_bytes": _memory_asked(str(error))}
    write_json(job_path.parent / f"rank{rank}.json", outcome)
    if outcome["status"] != "ok":
        return 3
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0
