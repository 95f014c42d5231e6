"""What the training loop needs, built once per process: device, model, data, optimizer; and where it began."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from joulesweep import adaptive, ahead, data, devices, engine, fit, flops, kernels, methods, precision, strategy
from joulesweep.anatomy import num_embeddings, num_positions, stacks
from joulesweep.build import build
from joulesweep.errors import UserError
from joulesweep.kahan import KahanAdamW
from joulesweep.memory import copy_weights, load_weights
from joulesweep.model import LanguageModel, Unfit
from joulesweep.spec import RunSpec
from joulesweep.units import COUNTED


class Stop(Exception):  # noqa: N818 - an outcome, not an error
    """A run that ends early with a result: unsupported, oom or diverged."""

    def __init__(self, status: str, reason: str, oom_bytes: int | None = None) -> None:
        super().__init__(reason)
        self.outcome = {"status": status, "reason": reason, "oom_bytes": oom_bytes}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which process this is, and where it computes.

    Attributes:
        device: of this process; with DataParallel, the first of several.
        rank: of this process, from 0.
        world: number of processes.
        local_rank: of this process on its machine.
    """

    device: torch.device
    rank: int
    world: int
    local_rank: int

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reduced(self, values: torch.Tensor, largest: bool = False) -> torch.Tensor:
        """The sum over the ranks, or the largest, in place: every rank gets the same."""
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
        return values


#: PyTorch's kernels of attention.
KERNELS = ("flash", "mem_efficient", "cudnn", "math")
#: Parameters, and how many optimizer steps each has taken, one tensor [parameters].
Counters = tuple[list[torch.Tensor], torch.Tensor]


@dataclass(kw_only=True)
class Trainer:
    """Everything the loop needs.

    Attributes:
        spec: the run's inputs.
        place: this process.
        core: the bare module, for scoring and saving.
        model: the same module as the strategy wrapped it, for training.
        corpus: all texts.
        train_texts: indices of the training texts.
        validation_texts: indices of the validation texts.
        optimizer: AdamW over what the method trains.
        scaler: of the loss, for float16.
        work: what a step should cost by the model's shapes, from `flops.described`.
        facts: what a record says of the method, from `methods.described`.
        products: what a record says of the library of matrix products, from `kernels.choose`.
        selector: of a method that chooses tensors while it trains, else None.
        phases: of the training, in order: spans in which the same tensors trained or were rated. Each is a row of the
            record: kind "training" or "rating", the epoch that it began with, num_steps, the counts of
            `units.COUNTED`, and what `adaptive.choose` said of its choice. Until `read_counters` also `taken`.
        began_s: when the present phase began, on the monotonic clock, and since when weights were copied the later.
        graphed: replays the step, with an engine that captures it.
        losses: loss of every step on this rank's share, kept on the device until the window has closed.
    """

    spec: RunSpec
    place: Place
    core: LanguageModel
    model: torch.nn.Module
    corpus: data.Corpus
    train_texts: torch.Tensor
    validation_texts: torch.Tensor
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    work: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    products: dict[str, Any] = field(default_factory=dict)
    selector: adaptive.Selector | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)
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
        """Passes over the training texts that the training begins."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return learning_rate(self.spec, step, self.num_steps)

    def batches(self, epoch: int) -> Iterator[tuple[list[data.Batch], int]]:
        """The steps of an epoch, as `data.steps` gives them."""
        place = self.place
        return data.steps(self.corpus, self._labelled(epoch), self._order(epoch), self.layout, place.rank, place.world)

    def _labelled(self, epoch: int) -> data.Labelled:
        return data.labelled(self.corpus, self.spec.task, self.spec.mask_probability, self.spec.repeat, epoch)

    def _order(self, epoch: int) -> torch.Tensor:
        return data.order(self.train_texts, self.spec.repeat, epoch)

    def outlines(self, epoch: int, of_head: bool) -> Iterator[tuple[data.Outline, ...]]:
        """The sizes of an epoch's batches, as `data.outlines` gives them, with those of the head or without."""
        shown, place = self._labelled(epoch) if of_head else None, self.place
        return data.outlines(self.corpus, shown, self._order(epoch), self.layout, place.rank, place.world)

    def some_steps(self, numbers: Iterable[int]) -> Iterator[tuple[list[data.Batch], int]]:
        """Steps of the training by their numbers from 0, ascending. This thread lays them out; nothing is pinned."""
        place, layout = self.place, self.layout
        for before, some in itertools.groupby(numbers, lambda number: number // self.steps_per_epoch):
            shown, texts = self._labelled(before + 1), torch.split(self._order(before + 1), layout.size)
            for number in some:
                own = texts[number % self.steps_per_epoch]
                yield next(data.steps(self.corpus, shown, own, layout, place.rank, place.world))

    def steps(self) -> Generator[tuple[list[data.Batch], int], None, None]:
        """The steps of the whole training. To be closed: on a GPU a thread lays them out ahead, see `ahead`."""
        return ahead.ahead(self._pinned_steps()) if self.place.device.type == "cuda" else self._steps()

    def _steps(self) -> Generator[tuple[list[data.Batch], int], None, None]:
        every = itertools.chain.from_iterable(map(self.batches, range(1, self.num_epochs + 1)))
        yield from itertools.islice(every, self.num_steps)

    def _pinned_steps(self) -> Generator[tuple[list[data.Batch], int], None, None]:
        torch.cuda.set_device(self.place.device)  # each thread has its own, and begins with the first
        torch.set_num_threads(1)  # else this one would have as many beside it as the one that trains
        for batches, num_predicted in self._steps():
            yield [batch.pinned() for batch in batches], num_predicted

    def wrap(self) -> None:
        """Put the strategy's wrapper around the module, for the tensors that train now."""
        self.model = _wrapped(self.core, self.spec, self.place)

    def open_phase(self, kind: str, epoch: int, **more: Any) -> None:  # noqa: ANN401 - entries of a record
        """Count into a new phase from here on."""
        counts = dict.fromkeys(("num_steps", "num_skipped_steps", *COUNTED), 0)
        taken = [self._steps_taken()] * 2
        self.phases.append({"kind": kind, "epoch": epoch, "elapsed_s": 0.0, **counts, **more, "taken": taken})
        self.began_s = time.monotonic()

    def count(self, batches: Sequence[data.Batch]) -> None:
        """Add a step's batches to the present phase."""
        phase = self.phases[-1]
        phase["num_steps"] += 1
        for batch in batches:
            for name in COUNTED:
                phase[name] += batch.counts[name]

    def close_epoch(self) -> None:
        """Note the seconds of the present phase so far, the device being idle, and the steps that were taken."""
        self.phases[-1]["elapsed_s"] = time.monotonic() - self.began_s
        self.phases[-1]["taken"][1] = self._steps_taken()

    def _steps_taken(self) -> Counters:
        """AdamW's counters now, left on the device; none where no step is left out."""
        states = self.optimizer.state if self.scaler.is_enabled() else {}
        counters = [state["step"] for state in states.values()]
        return list(states), torch.stack(counters) if counters else torch.empty(0)

    @property
    def layout(self) -> data.Layout:
        """How this process's texts are laid out."""
        return layout(self.spec)


def read_counters(phases: Sequence[dict[str, Any]]) -> None:
    """Turn AdamW's counters at the begin and the end of each phase into num_skipped_steps, once the window has closed.

    They do not advance in steps that loss scaling leaves out.
    """
    for phase in phases:
        before, after = (dict(zip(names, steps.tolist(), strict=True)) for names, steps in phase.pop("taken"))
        if after and phase["kind"] == "training":
            advanced = max(steps - before.get(parameter, 0) for parameter, steps in after.items())
            phase["num_skipped_steps"] = phase["num_steps"] - int(advanced)


def layout(spec: RunSpec) -> data.Layout:
    """How a process's texts are laid out."""
    row = strategy.STRATEGIES[spec.strategy]
    num_devices = 1 if row.multi_process else spec.devices  # of this process
    return data.Layout(
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


def prepare_process(spec: RunSpec) -> Place:
    """Threads, seed, kernels, device and process group; refuse what this machine cannot do.

    Attention is not computed by cuDNN, which on Hopper and Blackwell comes first in PyTorch for 16-bit numbers: it
    makes a plan for every shape that a thread meets, and batches come in many shapes; and with a mask its gradients may
    be NaN on H100 and H200 (https://github.com/pytorch/pytorch/issues/196678, since torch 2.11).

    Raises:
        Stop: it cannot.
    """
    rank, world, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    torch.set_num_threads(spec.threads_per_device)
    num_gpus = torch.cuda.device_count() if spec.accelerator == "cuda" else 0
    if spec.accelerator == "cuda" and num_gpus == 0:
        raise Stop("unsupported", "accelerator cuda: PyTorch sees no GPU here")
    capability = torch.cuda.get_device_capability(0) if num_gpus else None
    reason = strategy.refusal(spec.strategy, spec.devices, spec.accelerator, num_gpus)
    reason = reason or precision.refusal(spec.precision, spec.accelerator, capability)
    reason = reason or engine.impossible(spec) or methods.impossible(spec)
    reason = reason or engine.refusal(spec.engine, spec.accelerator, capability)
    if reason:
        raise Stop("unsupported", reason)
    precision.allow_tf32(False)  # the model is tried in fp32; the spec's own is set when its weights are cast
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        torch.backends.cuda.enable_cudnn_sdp(False)
    device = torch.device("cuda", local_rank) if num_gpus else torch.device("cpu")
    if num_gpus:
        torch.cuda.set_device(device)
    if strategy.STRATEGIES[spec.strategy].multi_process and not dist.is_initialized():
        _join(device, world)
    torch.manual_seed(spec.repeat)
    return Place(device=device, rank=rank, world=world, local_rank=local_rank)


def _join(device: torch.device, world: int) -> None:
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if world > 1:
        dist.init_process_group(backend, device_id=device_id)
    else:  # torchrun starts no single rank
        dist.init_process_group(
            backend, device_id=device_id, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
        )


def assemble(spec: RunSpec, model_folder: Path, tokens: Path, place: Place) -> Trainer:
    """Model, data and optimizer. The transforms come in this order, since each one fixes what the next one sees.

    Raises:
        Stop: the model cannot be trained as the spec wants.
        UserError: nothing is left to train or to hold out.
    """
    try:
        corpus, core = _learning(spec, model_folder, tokens)
        work, products = _prepare(core, corpus, spec, place)
        facts = methods.described(spec.method, core.model)
    except Unfit as unfit:
        raise Stop("unsupported", str(unfit)) from unfit
    if engine.ENGINES[spec.engine].compiles:
        _compile(core)
    torch.manual_seed(spec.repeat * 1000 + place.rank)  # each rank its own dropout
    source = spec.dataset_source
    parts = data.split(
        corpus,
        source.get("split", "random"),
        source.get("validation_fraction", 0.2),
        source.get("split_seed", 0),
    )
    if not all(len(part) for part in parts):
        raise UserError(f"data set {spec.dataset}: too few texts to hold some out: {len(corpus.group)} in all")
    trainer = Trainer(
        spec=spec,
        place=place,
        core=core,
        model=core if methods.chooses(spec.method) else _wrapped(core, spec, place),
        corpus=corpus,
        train_texts=parts[0],
        validation_texts=parts[1],
        optimizer=_optimizer(core, spec, place.device),
        scaler=precision.scaler(spec.precision, place.device.type),
        work=work,
        facts=facts,
        products=products,
    )
    try:
        trainer.selector = adaptive.selector(trainer)
    except ValueError as error:
        raise Stop("unsupported", str(error)) from None
    return trainer


def _compile(core: LanguageModel) -> None:
    """Compile in place, so that names of weights stay. What is not compiled is an error, and never run as it is."""
    config: Any = importlib.import_module("torch._dynamo.config")
    config.fail_on_recompile_limit_hit, config.suppress_errors = True, False
    core.compile(dynamic=True)


def attention(model: Any) -> dict[str, Any]:  # noqa: ANN401 - of any family
    """What a record says of attention: transformers' implementation (null if unknown), PyTorch's allowed kernels."""
    switches = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled", bool) for name in KERNELS}
    return {
        "implementation": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "kernels": [name for name, enabled in switches.items() if enabled()],
    }


def _prepare(
    core: LanguageModel, corpus: data.Corpus, spec: RunSpec, place: Place
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Try the model, on its device, and bring it into the form that trains. Returns its work and its products.

    Raises:
        Unfit: it cannot be trained so.
    """
    core.to(place.device)
    laid = replace(layout(spec), parts=1)  # tried on one device
    core.mask_form = fit.mask_form(core, corpus, laid)
    _check(fit.refusal(core, corpus, laid))
    precision.cast(core, spec.precision)
    if spec.checkpoint_activations:
        model: Any = core.model
        with fit.foreign("checkpoint_activations"):
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
            model.disable_input_require_grads()  # else frozen layers are walked back through
    work = flops.described(core, spec.devices if spec.strategy == "fsdp" else 1)
    products = _products(core, corpus, spec, place)
    _check(fit.step_refusal(core, corpus, laid))
    return work, products


def _products(core: LanguageModel, corpus: data.Corpus, spec: RunSpec, place: Place) -> dict[str, Any]:
    """Choose the library of the CPU's products by the sizes of a step; all ranks take the same, by rank 0's texts."""
    if spec.accelerator != "cpu" or spec.engine != "eager" or not precision.computes_in_fp32(spec.precision):
        return kernels.unchosen("there is a choice for fp32 with engine eager on the CPU alone")
    shown = data.labelled(corpus, spec.task, spec.mask_probability, spec.repeat, 1)
    texts = data.order(torch.arange(len(corpus.group)), spec.repeat, 1)
    (batch, *_), _ = next(data.steps(corpus, shown, texts, layout(spec), 0, place.world))

    def rows(name: str) -> int:
        if core.head_name is not None and f"{name}.".startswith(f"{core.head_name}."):
            return batch.counts["num_head_positions"]
        written = corpus.targets is not None and "decoder" in name.split(".")
        return batch.counts["num_padded_target_tokens" if written else "num_padded_tokens"]

    return kernels.choose(core.model, rows, lambda seconds: place.reduced(seconds, largest=True))


def _check(reason: str | None) -> None:
    if reason is not None:
        raise Unfit(reason)


def _learning(spec: RunSpec, model_folder: Path, tokens: Path) -> tuple[data.Corpus, LanguageModel]:
    """The texts and the model that learns from them, its method applied."""
    with fit.foreign(f"task {spec.task}"):
        model: Any = build(model_folder, spec.task, spec.model_source.get("new_weights", ()))
    start_id = getattr(model.config, "decoder_start_token_id", None) if spec.task == "seq2seq" else None
    corpus = data.load(tokens, spec.max_length, spec.task, spec.max_target_length, start_id)
    rows = num_embeddings(model)
    if rows is not None and rows < corpus.vocab_size:
        raise UserError(f"the tokenizer has {corpus.vocab_size} tokens, the model embeddings for {rows}")
    if spec.generate is not None and corpus.targets is None and corpus.prompts is None:
        raise UserError(f"generate: data set {spec.dataset} has no targets; name their field, or leave generate out")
    if spec.task == "seq2seq":  # what was chosen goes along with a saved model
        for config in (model.config, model.generation_config):
            config.decoder_start_token_id = corpus.start_id
            config.pad_token_id = corpus.pad_id if config.pad_token_id is None else config.pad_token_id
    method = methods.load(spec.method)
    params = methods.parameters(spec.method, spec.method_params)
    with fit.foreign(f"method {spec.method}"):
        model = method.apply(model, params)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"method {spec.method}: no parameter of the model is left to train")
    core = LanguageModel(model, spec.precision, spec.head, spec.task)
    _check(core.refusal(spec.batching == "packed"))
    _check(_too_long(spec, corpus, model))
    return corpus, core


def _too_long(spec: RunSpec, corpus: data.Corpus, model: Any) -> str | None:  # noqa: ANN401 - of any family
    """Say which texts a model has too few positions for, or None if it has enough: it would fail in a later step."""
    fixed, generates = spec.batching == "fixed", spec.generate is not None
    every = [corpus, *filter(None, [corpus.choices])]
    needed = {"max_length": spec.max_length if fixed else max(int(one.lengths.max()) for one in every)}
    if corpus.targets is not None:
        longest = max(int(one.written.lengths.max()) for one in every)
        needed["max_target_length"] = spec.max_target_length if fixed or generates else longest
    elif corpus.prompts is not None and generates:
        whole = int(corpus.prompts.max()) + spec.max_target_length
        needed = {"max_length or max_target_length": max(whole, *needed.values())}
    num_virtual = getattr(model, "num_virtual_tokens", 0)  # before what a decoder reads or writes
    # Of one text both halves see the same: as of BART, where it learns hidden words.
    for (half, _), (name, length) in zip(stacks(model), needed.items(), strict=False):
        most, earlier = num_positions(half), num_virtual if name == list(needed)[-1] else 0
        if most is not None and earlier + length > most:
            both = f"{earlier} virtual tokens and {length}" if earlier else f"{length} tokens"
            return f"{both} of a text are more than the {most} positions of this model; use a smaller {name}"
    return None


def _wrapped(core: LanguageModel, spec: RunSpec, place: Place) -> torch.nn.Module:
    accumulates = spec.micro_batch_size is not None
    layers = [layer for _, stack in stacks(core.model) for layer in stack]
    return strategy.wrap(core, spec.strategy, spec.devices, spec.accelerator, place.local_rank, accumulates, layers)


def _optimizer(core: torch.nn.Module, spec: RunSpec, device: torch.device) -> torch.optim.AdamW:
    """AdamW, fused but for Kahan summation; biases and normalisation weights (one dimension) do not decay."""
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    captured = engine.ENGINES[spec.engine].captures
    lr = torch.tensor(spec.lr, device=device) if captured else spec.lr  # a captured step reads it from the device
    groups = [group for group in groups if group["params"]]
    if precision.PRECISIONS[spec.precision].kahan:
        return KahanAdamW(groups, lr=lr, capturable=captured)
    return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=captured)


def measured_boards(spec: RunSpec, boards: Sequence[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
    """The boards that this process counts: its own, and the first one those left over; of one process all.

    Raises:
        UserError: PyTorch computes on another board than the one to be metered.
    """
    placed = [{**board, "position": position} for position, board in enumerate(boards)]
    for board in placed[: spec.devices] if spec.accelerator == "cuda" else ():
        found = str(getattr(torch.cuda.get_device_properties(board["position"]), "uuid", ""))
        if found and not board["mig"] and not devices.is_board(found, board["uuid"]):
            raise UserError(f"PyTorch computes on GPU {found}, and the run was given {board['uuid']}")
    own = placed[place.local_rank : place.local_rank + 1]
    return own + (placed[place.world :] if place.local_rank == 0 else []) if place.world > 1 else placed


@dataclass(kw_only=True)
class Start:
    """Weights, optimizer, loss scale and random state before the first step.

    Everything is restored in place: a captured graph goes on reading and writing the same memory.
    """

    weights: dict[str, torch.Tensor]
    scale: dict[str, Any]
    rng: torch.Tensor
    cuda_rng: list[torch.Tensor]

    @classmethod
    def of(cls, trainer: Trainer) -> Start:
        """Take note of where a trainer stands that has not taken a step."""
        return cls(
            weights=copy_weights(trainer.core, []),
            scale=trainer.scaler.state_dict(),
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state_all() if trainer.place.device.type == "cuda" else [],
        )

    def restore(self, trainer: Trainer) -> None:
        """Put the trainer back to where it was."""
        load_weights(trainer.core, self.weights)
        if trainer.selector is not None:
            trainer.optimizer.state.clear()  # only what is chosen has any
        for state in trainer.optimizer.state.values():
            for value in state.values():
                value.zero_()  # what AdamW begins with: no steps, no moments
        if trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(self.scale)
        torch.set_rng_state(self.rng)
        if self.cuda_rng:
            torch.cuda.set_rng_state_all(self.cuda_rng)
