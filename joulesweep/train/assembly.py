"""Build everything that the training loop needs: process, model, data, optimizer."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from joulesweep import methods
from joulesweep.axes import engine, optimizer, precision, strategy
from joulesweep.axes.layout import BATCHINGS
from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import Work
from joulesweep.core.spec import RunSpec
from joulesweep.measure import devices
from joulesweep.measure.devices import Board
from joulesweep.nets import flops, onednn
from joulesweep.nets.anatomy import num_embeddings, num_positions, stacks
from joulesweep.nets.build import build
from joulesweep.nets.language_model import LanguageModel, Unfit
from joulesweep.train import caching, data, fit, labels
from joulesweep.train.adaptive import choosing
from joulesweep.train.corpus import Corpus, load, split
from joulesweep.train.kahan import KahanAdamW
from joulesweep.train.trainer import RankContext, RunEnded, Trainer, layout, wrapped

#: PyTorch's attention kernels.
KERNELS = ("flash", "mem_efficient", "cudnn", "math")


def prepare_process(spec: RunSpec) -> RankContext:
    """Set up threads, seed, kernels, device and process group; refuse a spec that this machine cannot run.

    cuDNN's attention is disabled, although PyTorch prefers it for 16-bit numbers on Hopper and Blackwell: it makes a
    plan for every shape per thread, and batches have many shapes; and with a mask its gradients may be NaN on H100 and
    H200 (https://github.com/pytorch/pytorch/issues/196678, since torch 2.11).

    Raises:
        Stop: this machine cannot run the spec.
    """
    rank, world, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    torch.set_num_threads(spec.threads_per_device)
    num_gpus = torch.cuda.device_count() if spec.accelerator == "cuda" else 0
    if spec.accelerator == "cuda" and num_gpus == 0:
        raise RunEnded("unsupported", "accelerator cuda: PyTorch sees no GPU here")
    capability = torch.cuda.get_device_capability(0) if num_gpus else None
    reason = strategy.unsupported_reason(spec.strategy, spec.devices, spec.accelerator, num_gpus, spec.nodes)
    reason = reason or precision.unsupported_reason(spec.precision, spec.accelerator, capability)
    reason = reason or engine.incompatible_reason(spec) or optimizer.incompatible_reason(spec)
    reason = reason or methods.incompatible_reason(spec)
    reason = reason or engine.unsupported_reason(spec.engine, spec.accelerator, capability)
    reason = reason or optimizer.unsupported_reason(spec.optimizer, spec.accelerator)
    reason = reason or methods.unsupported_reason(spec.method, spec.accelerator)
    if reason:
        raise RunEnded("unsupported", reason)
    precision.allow_tf32(False)  # the model is tried in fp32; `cast` sets it as the spec says
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        torch.backends.cuda.enable_cudnn_sdp(False)
    device = torch.device("cuda", local_rank) if num_gpus else torch.device("cpu")
    if num_gpus:
        torch.cuda.set_device(device)
    if strategy.STRATEGIES[spec.strategy].multi_process and not dist.is_initialized():
        _join(device, world)
    torch.manual_seed(spec.repeat)
    together = strategy.ranks_per_text(spec.strategy, world)
    return RankContext(device=device, rank=rank, world=world, local_rank=local_rank, ranks_per_text=together)


def _join(device: torch.device, world: int) -> None:
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if world > 1:
        dist.init_process_group(backend, device_id=device_id)
    else:  # a single rank is started without torchrun
        dist.init_process_group(
            backend, device_id=device_id, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
        )


def assemble(spec: RunSpec, model_folder: Path, tokens: Path, place: RankContext) -> Trainer:
    """Build model, data and optimizer. The order of the transforms matters: each sees the result of the one before.

    Raises:
        Stop: the model cannot be trained as the spec requires.
        UserError: no parameter is left to train, or there are too few texts to hold some out.
    """
    try:
        corpus, core = _learning(spec, model_folder, tokens)
        work, products = _prepare(core, corpus, spec, place)
        facts = methods.describe(spec.method, core.model)
    except Unfit as unfit:
        raise RunEnded("unsupported", str(unfit)) from unfit
    if engine.ENGINES[spec.engine].compiles:
        _compile(core)
    torch.manual_seed(spec.repeat * 1000 + place.data_rank)  # each share of the texts has its own dropout
    source = spec.dataset_source
    parts = split(
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
        model=core if methods.chooses(spec.method) else wrapped(core, spec, place),
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
        trainer.selector = choosing.selector(trainer)
        trainer.cache = _cache(trainer)
    except ValueError as error:  # `Unfit` is one
        raise RunEnded("unsupported", str(error)) from None
    return trainer


def _cache(trainer: Trainer) -> caching.Cache | None:
    """Return the cache of a run's method, or None if it keeps nothing; adds its size to the method's facts.

    Raises:
        ValueError: the model's layers cannot be read from a cache, or it would be too large.
    """
    spec = trainer.spec
    method, params = methods.load(spec.method), methods.parameters(spec.method, spec.method_params)
    if not hasattr(method, "cached_layers"):
        return None
    layers = method.cached_layers(trainer.core.model)
    batches, _ = next(trainer.batches(epoch=1))
    cache = caching.cache(trainer.core, layers, batches[0], trainer.corpus, trainer.train_texts, params.max_gib)
    trainer.facts["cache_bytes"] = cache.states.nbytes
    return cache


def _compile(core: LanguageModel) -> None:
    """Compile in place, which keeps the names of weights. Code that cannot be compiled raises an error."""
    config: Any = importlib.import_module("torch._dynamo.config")
    config.fail_on_recompile_limit_hit, config.suppress_errors = True, False
    core.compile(dynamic=True)


def attention(model: Any) -> dict[str, object]:  # noqa: ANN401 - of any family
    """Return facts about attention: transformers' implementation (null if unknown), PyTorch's allowed kernels."""
    switches = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled", bool) for name in KERNELS}
    return {
        "implementation": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "kernels": [name for name, enabled in switches.items() if enabled()],
    }


def _prepare(core: LanguageModel, corpus: Corpus, spec: RunSpec, place: RankContext) -> tuple[Work, dict[str, object]]:
    """Try the model on its device and convert it to the form that trains. Returns its work and its products.

    Raises:
        Unfit: the model cannot be trained as the spec requires.
    """
    core.to(place.device)
    laid = replace(layout(spec), parts=1)  # tried on one device
    core.mask_form = fit.mask_form(core, corpus, laid)
    _check(fit.unsupported_reason(core, corpus, laid))
    precision.cast(core, spec.precision)
    if spec.checkpoint_activations:
        model: Any = core.model
        with fit.foreign("checkpoint_activations"):
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
            model.disable_input_require_grads()  # else the backward pass goes through frozen layers
    shards = spec.devices if strategy.STRATEGIES[spec.strategy].shards_state else 1
    work = flops.model_work(core, shards, optimizer.OPTIMIZERS[spec.optimizer].moment_bytes)
    precision.convert(core, spec.precision)  # after the count: converted modules compute the same products
    products = _products(core, corpus, spec, place)
    _check(fit.step_unsupported_reason(core, corpus, laid))
    return work, products


def _products(core: LanguageModel, corpus: Corpus, spec: RunSpec, place: RankContext) -> dict[str, object]:
    """Choose the library for the CPU's products by the sizes of a step of rank 0, the same on all ranks."""
    if spec.accelerator != "cpu" or spec.engine != "eager" or not precision.computes_in_fp32(spec.precision):
        return onednn.unchosen("the library is chosen only for fp32 with engine eager on the CPU")
    labelled_texts = labels.labelled(corpus, spec.task, spec.mask_probability, spec.repeat, 1)
    texts = labels.order(torch.arange(len(corpus.group)), spec.repeat, 1)
    (batch, *_), _ = next(data.steps(corpus, labelled_texts, texts, layout(spec), 0, place.data_parallel))

    def rows(name: str) -> int:
        if core.head_name is not None and f"{name}.".startswith(f"{core.head_name}."):
            return batch.counts["num_head_positions"]
        written = corpus.targets is not None and "decoder" in name.split(".")
        return batch.counts["num_padded_target_tokens" if written else "num_padded_tokens"]

    return onednn.choose(core.model, rows, lambda seconds: place.reduced(seconds, largest=True))


def _check(reason: str | None) -> None:
    if reason is not None:
        raise Unfit(reason)


def _learning(spec: RunSpec, model_folder: Path, tokens: Path) -> tuple[Corpus, LanguageModel]:
    """Return the texts and the model that learns from them, after its method was applied."""
    with fit.foreign(f"task {spec.task}"):
        model: Any = build(model_folder, spec.task, spec.model_source.get("new_weights", ()))
    start_id = getattr(model.config, "decoder_start_token_id", None) if TASKS[spec.task].encoder_decoder else None
    corpus = load(tokens, spec.max_length, spec.task, spec.max_target_length, start_id)
    rows = num_embeddings(model)
    if rows is not None and rows < corpus.vocab_size:
        raise UserError(f"the tokenizer has {corpus.vocab_size} tokens, the model embeddings for {rows}")
    if spec.generate is not None and corpus.targets is None and corpus.prompts is None:
        raise UserError(f"generate: data set {spec.dataset} has no targets; name their field, or leave generate out")
    if TASKS[spec.task].encoder_decoder:  # a saved model keeps these ids
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
    _check(core.refusal(BATCHINGS[spec.batching].packs))
    _check(_too_long(spec, corpus, model))
    return corpus, core


def _too_long(spec: RunSpec, corpus: Corpus, model: Any) -> str | None:  # noqa: ANN401 - of any family
    """Return for which texts a model has too few positions, or None: a later step would fail."""
    fixed, generates = BATCHINGS[spec.batching].pads_fully, spec.generate is not None
    every = [corpus, *filter(None, [corpus.choices])]
    needed = {"max_length": spec.max_length if fixed else max(int(part.lengths.max()) for part in every)}
    if corpus.targets is not None:
        longest = max(int(part.written.lengths.max()) for part in every)
        needed["max_target_length"] = spec.max_target_length if fixed or generates else longest
    elif corpus.prompts is not None and generates:
        whole = int(corpus.prompts.max()) + spec.max_target_length
        needed = {"max_length or max_target_length": max(whole, *needed.values())}
    num_virtual = getattr(model, "num_virtual_tokens", 0)  # before the text of a decoder
    # With one length both halves see the same text, as in BART when it learns hidden words.
    for (half, _), (name, length) in zip(stacks(model), needed.items(), strict=False):
        most, earlier = num_positions(half), num_virtual if name == list(needed)[-1] else 0
        if most is not None and earlier + length > most:
            both = f"{earlier} virtual tokens and {length}" if earlier else f"{length} tokens"
            return f"{both} of a text are more than the {most} positions of this model; use a smaller {name}"
    return None


def _optimizer(core: torch.nn.Module, spec: RunSpec, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer, of its own with Kahan summation; biases and normalisation weights (1-d) do not decay."""
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
    return optimizer.OPTIMIZERS[spec.optimizer].make(groups, lr, captured)


def measured_boards(spec: RunSpec, boards: Sequence[Board], place: RankContext) -> dict[int, Board]:
    """Return the boards that this process meters, by position: its own; the first process also meters those left over.

    Raises:
        UserError: PyTorch computes on another board than the one that is metered.
    """
    for position, board in enumerate(boards[: spec.node_devices] if spec.accelerator == "cuda" else ()):
        uuid = str(getattr(torch.cuda.get_device_properties(position), "uuid", ""))
        if uuid and not board.mig and not devices.is_board(uuid, board.uuid):
            raise UserError(f"PyTorch computes on GPU {uuid}, and the run was given {board.uuid}")
    placed = list(enumerate(boards))
    if place.world == 1:
        return dict(placed)
    assigned = placed[place.local_rank : place.local_rank + 1]
    return dict(assigned + (placed[spec.node_devices :] if place.local_rank == 0 else []))
