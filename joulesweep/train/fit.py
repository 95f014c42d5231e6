"""Check on a few texts, before anything is measured, that a model can be trained as its spec requires.

Hugging Face's models differ in ways that their interfaces do not show: some count positions over a whole row, some
attend to padding, some cannot be checkpointed. Each check restores the module and returns a reason in one line.
Forward passes are in float32, in which results that should agree do.

A check runs on the first layers of a model, with every kind of layer among them; only if it fails there, it runs on
the whole model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from joulesweep.axes.layout import HEADS
from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError
from joulesweep.core.places import PACKAGE
from joulesweep.nets.anatomy import stacks
from joulesweep.nets.language_model import MASK_FORMS, LanguageModel, Unfit, attributes_kept
from joulesweep.train import data, labels, memory
from joulesweep.train.corpus import Corpus

TORCH = Path(torch.__file__).parent
AGREE = 2e-5  #: tolerance for batches of different sizes, relative to the largest hidden state
#: Names in a config for the number of tokens that a local attention sees.
WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_window", "attention_window_size")
LEAST_LAYERS = 2  #: of a stack to check: one passes its output to the next
#: Names of attributes with the index of a module's layer, in which layers of one kind differ.
PLACES = re.compile(r"((layer|block)_?)?(id|idx|index|number|num)")
Refusal = Callable[[LanguageModel, Corpus, data.BatchLayout], str | None]


@contextlib.contextmanager
def foreign(what: str) -> Iterator[None]:
    """Convert an error in the model's code to `Unfit`, with the reason why the model cannot be trained.

    Other errors pass through: those of this package are bugs, and out of memory is a separate outcome.

    Args:
        what: name of the attempted thing, for the message.

    Raises:
        Unfit: the model's code failed.
    """
    try:
        yield
    except (UserError, Unfit):
        raise
    except Exception as error:
        if memory.is_lacking(error) or _is_ours(error):
            raise
        raise Unfit(f"{what}: this model fails: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """Format the class and the first line of an error."""
    line = " ".join(next(iter(str(error).strip().splitlines()), "").split())[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _is_ours(error: Exception) -> bool:
    """Whether an error arose in this package's calls of PyTorch, or in the machine, and not within a model."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or "captur" in str(error):
        return False  # the model cannot be compiled, or captured
    if isinstance(error, TypeError) and ".forward() " in str(error):
        return False  # the model has another interface
    if any(word in str(error) for word in ("CUDA error", "NCCL", "gloo")):
        return True  # of the machine, of an unknown kernel, or of a rank whose peer is gone
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    # A backward pass runs the model's code, although this package starts it.
    ours_or_model = [path for path, name in frames if TORCH not in path.parents or name == "_engine_run_backward"]
    return PACKAGE in ours_or_model[-1].parents


@contextlib.contextmanager
def _unchanged(core: LanguageModel) -> Iterator[None]:
    """Restore the module, its buffers and the random state after the block."""
    device = _device(core)
    buffers = {name: buffer.clone() for name, buffer in core.named_buffers()}
    try:
        with attributes_kept(core), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in core.named_buffers():
                buffer.copy_(buffers[name])


@contextlib.contextmanager
def _plain(core: LanguageModel) -> Iterator[None]:
    """Like `_unchanged`, and without dropout, gradients and autocast."""
    with _unchanged(core), torch.no_grad():
        core.eval()
        core.precision_name = "fp32"
        yield


def unsupported_reason(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str | None:
    """Return the reason why a model's results are not those that a run assumes, or None.

    Args:
        core: the module after its method was applied, in float32.
        corpus: the texts.
        layout: of the texts.
    """
    with _shortened(core) as is_shorter:
        if is_shorter and _passes(_refusal, core, corpus, layout):
            return None
    return _refusal(core, corpus, layout)


def _passes(refusal: Refusal, core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> bool:
    """Whether a check finds no reason. An error counts as a failure: the whole model decides then."""
    try:
        return refusal(core, corpus, layout) is None
    except Exception:
        return False


def _refusal(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str | None:
    if TASKS[core.task].causal and not is_causal(core, corpus):
        return "task clm: this model sees the tokens that it is to predict; choose a decoder, or task mlm"
    return layout_refusal(core, corpus, layout) or _head_refusal(core, corpus, layout)


@contextlib.contextmanager
def _shortened(core: LanguageModel) -> Iterator[bool]:
    """Shorten each stack to its first layers, with every kind of layer among them. Yields whether any are left out."""
    lists = [module_list for module_list in core.model.modules() if isinstance(module_list, torch.nn.ModuleList)]
    replaced: dict[torch.nn.ModuleList, dict[str, torch.nn.Module]] = {}
    for half, layers in stacks(core.model):
        kinds = _kinds(half, layers)
        num_kept = max([LEAST_LAYERS, *(kinds.index(kind) + 1 for kind in kinds)])
        for module_list in lists:
            if list(module_list) == layers and num_kept < len(layers):
                replaced[module_list] = module_list._modules
                module_list._modules = dict(list(module_list._modules.items())[:num_kept])
    try:
        yield bool(replaced)
    finally:
        for module_list, parts in replaced.items():
            module_list._modules = parts


def _kinds(half: torch.nn.Module, layers: list[torch.nn.Module]) -> list[str]:
    """Describe each layer by its structure, apart from the values of its weights and its index.

    Values that the config lists per layer are included: a model may read them in its forward pass.
    """
    about = getattr(getattr(half, "config", None), "__dict__", {})
    listed = [value for value in about.values() if isinstance(value, list | tuple) and len(value) == len(layers)]
    return [repr((_made_of(layer), [value[i] for value in listed])) for i, layer in enumerate(layers)]


def _made_of(layer: torch.nn.Module) -> list[object]:
    """Describe each module in a layer: name, class, plain attributes, shapes of weights, buffers, hooks."""
    return [
        (
            name,
            f"{type(module).__module__}.{type(module).__qualname__}",
            [
                (key, _comparable(value))
                for key, value in vars(module).items()
                if key[0] != "_" and not PLACES.fullmatch(key)
            ],
            [(key, _comparable(value.shape)) for key, value in module.named_parameters(recurse=False)],
            [(key, _comparable(value)) for key, value in module.named_buffers(recurse=False)],
            [id(hook) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())],
        )
        for name, module in layer.named_modules()
    ]


def _comparable(value: object) -> object:
    """Return an object that is equal for equal values; for values that cannot be compared, their identity."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), float(value.double().sum())
    if isinstance(value, functools.partial):
        return _comparable(value.func), repr(value.args), repr(value.keywords)
    named = getattr(value, "__qualname__", "<")
    if "<" not in named:  # a function or class of a module, or a method of such a class
        return getattr(value, "__module__", ""), named
    is_plain = value is None or isinstance(value, bool | int | float | str | list | tuple | set | dict | torch.dtype)
    return repr(value) if is_plain else id(value)


def is_causal(core: LanguageModel, corpus: Corpus) -> bool:
    """Whether a model predicts a token only from those before it: the last token of a text changes no other's state.

    An encoder that transformers builds as a decoder sees all tokens unless its config says otherwise, and learns
    nothing.
    """
    ids = corpus.ids[None, : min(16, len(corpus.ids))].to(_device(core))
    other = torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % corpus.vocab_size), 1)
    with _plain(core), foreign("task clm"):
        states = [_hidden(core, core.inputs(some, torch.ones_like(some), None))[:, :-1] for some in (ids, other)]
    return _agree(*states)


def mask_form(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str:
    """Return the first of `MASK_FORMS` with which a model's results for padded texts equal those with the last one.

    Args:
        core: the module after its method was applied, in float32.
        corpus: the texts.
        layout: of the texts.
    """
    corpus = replace(corpus, pad_id=int(corpus.ids.max()))
    layout = replace(layout, batching="dynamic" if layout.packs else layout.batching)
    texts = corpus.lengths.argsort(stable=True)[[0, -1]]
    *whole, last = MASK_FORMS
    if getattr(core.model, "num_virtual_tokens", 0):
        return last  # peft prepends its prefix to this form only
    with _plain(core), contextlib.suppress(Unfit):  # `unsupported_reason` reports a model that fails here
        core.mask_form = last
        with foreign(f"task {core.task}"):
            expected = _states(core, corpus, texts, layout)
        for form in whole:
            core.mask_form = form
            with contextlib.suppress(Unfit), foreign(f"a mask of {form}"):
                states = _states(core, corpus, texts, layout)
                if all(bool(state.isfinite().all()) for state in states) and all(map(_agree, states, expected)):
                    return form
    return last


def layout_refusal(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str | None:
    """Return the reason why results for texts in a batch differ from those for single texts, or None.

    Uses the shortest texts, many of which share a packed row, and the longest, which may exceed a sliding window of
    attention. Rows are padded with a token that occurs, since the embedding of the padding token may still be zero.
    """
    corpus = replace(corpus, pad_id=int(corpus.ids.max()))
    by_length = corpus.lengths.argsort(stable=True)
    most = 8 if layout.packs else 2
    texts = torch.cat((by_length[:most], by_length[most:][-most:]))
    with _plain(core):
        numbers = _numbers(core)
        with foreign(f"task {core.task}"):
            alone = [_states(core, corpus, text, replace(layout, batching="dynamic"))[0] for text in texts[:, None]]
        changed = [name for name, value in _numbers(core).items() if numbers.get(name, value) != value]
        noted = sorted({name.rpartition(".")[2] for name in changed})
        if noted:
            return f"this model stores {', '.join(noted)} in a forward pass: its results depend on earlier texts"
        try:
            with foreign(f"batching {layout.batching}"):
                together = _states(core, corpus, texts, layout)
        except Unfit as unfit:
            return f"{unfit}; use batching: [dynamic]"
        differ = [
            i for i, (state, expected) in enumerate(zip(together, alone, strict=True)) if not _agree(state, expected)
        ]
        if not differ:
            return None
        if not layout.packs:
            return f"batching {layout.batching}: this model's result depends on how far a text is padded"
        return f"batching packed: {_packed_reason(core, corpus, texts, layout, alone, differ)}; use batching: [dynamic]"


def _numbers(core: LanguageModel) -> dict[str, float]:
    """Return the plain numbers among the attributes of modules."""
    return {
        f"{name}.{key}": value
        for name, module in core.named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float) and not key.startswith("_")
    }


def _packed_reason(
    core: LanguageModel,
    corpus: Corpus,
    texts: torch.Tensor,
    layout: data.BatchLayout,
    alone: list[torch.Tensor],
    differ: list[int],
) -> str:
    """Return why results differ in packed rows: pack a text alone, and beside other words."""
    first = differ[0]
    (single,) = _states(core, corpus, texts[first : first + 1], layout)
    other = replace(corpus, pad_id=int(corpus.ids.min()))
    if not _agree(single, _states(core, other, texts[first : first + 1], layout)[0]):
        return "this model ignores the mask that separates packed texts"
    if not _agree(single, alone[first]):
        length = int(corpus.lengths[texts[first]])
        config = getattr(core.model, "config", None)
        sizes = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int)]
        if any(size < 2 * length for size in sizes):  # some windows count both sides
            return f"texts of {length} tokens exceed this model's window of {min(sizes)}, which packed rows do not have"
        return f"this model's result for a text of {length} tokens differs in a longer row"
    changed = corpus.ids.clone()
    for i, text in enumerate(texts.tolist()):
        if i != first:
            place = slice(int(corpus.offsets[text]), int(corpus.offsets[text + 1]))
            changed[place] = changed[place].flip(0).roll(1)
    beside = _states(core, replace(corpus, ids=changed), texts, layout)[first]
    if _agree(beside, _states(core, corpus, texts, layout)[first]):
        return "this model counts positions over a whole row"
    return "this model's result depends on the other texts of a row"


def _head_refusal(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str | None:
    """Return the reason why the output layer at chosen positions differs from that at all, or None."""
    if HEADS[core.head].everywhere:
        return None
    batch = _batch(corpus, _shortest_and_longest(corpus), layout, core.task)
    tensors = batch.on(_device(core))
    ids, segments, answers, positions, _, targets = tensors
    with _plain(core):
        try:
            with foreign("head masked"):
                logits, _, places = core.logits(*tensors)
        except Unfit as unfit:
            return f"{unfit}; use head: [dense]"
        core.head = "dense"
        with foreign("head dense"):
            every, _, _ = core.logits(ids, segments, answers, positions, None, targets)
    assert places is not None
    if len(every) > int(places.max()) and _agree(logits, every[places]):
        return None
    return "head masked: this model's output layer depends on other positions; use head: [dense]"


def step_unsupported_reason(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str | None:
    """Take a step as in the run, without the optimizer. Returns the reason why the model cannot be trained, or None.

    Args:
        core: the module, in the dtype of the training, on its device.
        corpus: the texts.
        layout: of the texts.
    """
    with _shortened(core) as is_shorter:
        if is_shorter and _passes(_step_refusal, core, corpus, layout):
            return None
    return _step_refusal(core, corpus, layout)


def _step_refusal(core: LanguageModel, corpus: Corpus, layout: data.BatchLayout) -> str | None:
    batch = _batch(corpus, _shortest_and_longest(corpus), layout, core.task).on(_device(core))
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    try:
        with _unchanged(core), foreign("a training step"):
            core.train()
            torch.autograd.backward(core(*batch)[0, 0])
        if not any(bool(p.grad.any()) for p in trained if p.grad is not None):
            return "the loss of this model depends on no parameter that trains"
    except Unfit as unfit:
        return str(unfit)
    finally:
        core.zero_grad(set_to_none=True)
    return None


def _shortest_and_longest(corpus: Corpus) -> torch.Tensor:
    by_length = corpus.written.lengths.argsort(stable=True)
    return by_length[[0, -1]]


def _batch(corpus: Corpus, texts: torch.Tensor, layout: data.BatchLayout, task: str) -> data.Batch:
    """Build one batch of a few texts; a task that hides words hides half of them."""
    shown = labels.labelled(corpus, task, 0.5, "tried")
    (batch,), _ = next(data.steps(corpus, shown, texts, replace(layout, size=len(texts), micro=None)))
    return batch


def _states(core: LanguageModel, corpus: Corpus, texts: torch.Tensor, layout: data.BatchLayout) -> list[torch.Tensor]:
    """Compute the states of each text, [its length, width]; for an encoder-decoder, of its target.

    States are the last hidden states, since the output layer is checked separately; or logits if the head is dense.
    """
    shown = labels.MaskedInputs(inputs=corpus.ids, labels=corpus.written.ids)
    layout = replace(layout, size=len(texts), micro=None, head="dense")
    (batch,), _ = next(data.steps(corpus, shown, texts, layout))
    ids, segments, _, positions, _, targets = batch.on(_device(core))
    inputs = core.inputs(ids, segments, positions, targets)
    hidden: torch.Tensor = core.model(**inputs).logits if HEADS[core.head].everywhere else _hidden(core, inputs)
    lengths = corpus.written.lengths[texts].tolist()
    if corpus.targets is not None:
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    text = segments.flatten()
    order = text.argsort(stable=True)[int((text == 0).sum()) :]  # within a row, a text's tokens are in order
    return list(torch.split(hidden.flatten(0, 1)[order], lengths))


def _hidden(core: LanguageModel, inputs: Mapping[str, object]) -> torch.Tensor:
    """Return the last hidden states, [rows, length, width]."""
    inner: Any = core.model.base_model
    if "input_ids" not in inspect.signature(inner.forward).parameters:
        inner = core.model  # Perceiver's inner model does not read ids: use its logits
    hidden: torch.Tensor = inner(**inputs)[0]
    return hidden


def _device(core: torch.nn.Module) -> torch.device:
    return next(core.parameters()).device


def _agree(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether results are equal up to rounding. NaN and infinity pass: the training diverges later."""
    if result.shape != expected.shape:
        return False
    difference = (result - expected).abs().max()
    return not bool(difference.isfinite()) or bool(difference <= AGREE * expected.abs().max())
