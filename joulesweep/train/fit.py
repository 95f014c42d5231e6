"""Whether a model can be trained as a spec wants: tried on a few texts before anything is measured.

Hugging Face's models differ in what their interfaces do not say: some count positions over a whole row, some mix in
what a row is filled up with, some cannot be checkpointed. Each try leaves the module as it was, and says in one line
why not. Forward passes are in float32, in which results that should agree do.

What a model is proven to do, its first layers are proven to do, as long as every kind of layer is among them: the rest
is left out of the proof, and asked only where that fails.
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
AGREE = 2e-5  #: of the largest hidden state: what different sizes of a batch may change
#: How a config calls the number of tokens that a local attention sees.
WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_window", "attention_window_size")
LEAST_LAYERS = 2  #: of a stack that are tried: what a layer gives is also what the next one is given
#: How modules call the number of the layer that they lie in, by which layers of one kind differ.
PLACES = re.compile(r"((layer|block)_?)?(id|idx|index|number|num)")
Refusal = Callable[[LanguageModel, Corpus, data.Layout], str | None]


@contextlib.contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turn an error of the model's own code into the reason why it cannot be trained so.

    What arises in this package is a bug and stays one; out of memory is an outcome of its own.

    Args:
        what: was tried.

    Raises:
        Unfit: the model cannot do it.
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
    """Kind and first line of an error."""
    said = " ".join(next(iter(str(error).strip().splitlines()), "").split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _is_ours(error: Exception) -> bool:
    """Whether an error arose where PyTorch was called from this package, or in the machine, and not within a model."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or "captur" in str(error):
        return False  # a model that cannot be compiled, or captured
    if isinstance(error, TypeError) and ".forward() " in str(error):
        return False  # a model of another interface
    if any(word in str(error) for word in ("CUDA error", "NCCL", "gloo")):
        return True  # the machine's, of a kernel that cannot be told, or of a rank whose peer has gone
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    # A backward pass is the model's, called by us.
    telling = [path for path, name in frames if TORCH not in path.parents or name == "_engine_run_backward"]
    return PACKAGE in telling[-1].parents


@contextlib.contextmanager
def _unchanged(core: LanguageModel) -> Iterator[None]:
    """Leave the module, its buffers and the random state as they were."""
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
    """The same, without dropout, gradients and autocast."""
    with _unchanged(core), torch.no_grad():
        core.eval()
        core.precision_name = "fp32"
        yield


def refusal(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str | None:
    """Say why a model's results are not those that a run supposes, or None if they are.

    Args:
        core: the module, its method applied, in float32.
        corpus: the texts.
        layout: how they will be laid out.
    """
    with _shortened(core) as is_shorter:
        if is_shorter and _passes(_refusal, core, corpus, layout):
            return None
    return _refusal(core, corpus, layout)


def _passes(refusal: Refusal, core: LanguageModel, corpus: Corpus, layout: data.Layout) -> bool:
    """Whether nothing is refused. Whatever fails, the whole model fails at, or it does not matter."""
    try:
        return refusal(core, corpus, layout) is None
    except Exception:
        return False


def _refusal(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str | None:
    if TASKS[core.task].causal and not is_causal(core, corpus):
        return "task clm: this model sees the tokens that it is to predict; choose a decoder, or task mlm"
    return layout_refusal(core, corpus, layout) or _head_refusal(core, corpus, layout)


@contextlib.contextmanager
def _shortened(core: LanguageModel) -> Iterator[bool]:
    """Keep of each stack its first layers, so many that every kind is among them. Yields whether any are left out."""
    lists = [one for one in core.model.modules() if isinstance(one, torch.nn.ModuleList)]
    whole: dict[torch.nn.ModuleList, dict[str, torch.nn.Module]] = {}
    for half, layers in stacks(core.model):
        kinds = _kinds(half, layers)
        num_kept = max([LEAST_LAYERS, *(kinds.index(kind) + 1 for kind in kinds)])
        for one in lists:
            if list(one) == layers and num_kept < len(layers):
                whole[one] = one._modules
                one._modules = dict(list(one._modules.items())[:num_kept])
    try:
        yield bool(whole)
    finally:
        for one, parts in whole.items():
            one._modules = parts


def _kinds(half: torch.nn.Module, layers: list[torch.nn.Module]) -> list[str]:
    """What each layer is made of, apart from the values of its weights and from its place.

    What a config lists layer by layer belongs to them, since a model may read it there in its forward pass.
    """
    about = getattr(getattr(half, "config", None), "__dict__", {})
    listed = [value for value in about.values() if isinstance(value, list | tuple) and len(value) == len(layers)]
    return [repr((_made_of(layer), [value[i] for value in listed])) for i, layer in enumerate(layers)]


def _made_of(layer: torch.nn.Module) -> list[object]:
    """Of each module in a layer: name, class, plain attributes, shapes of weights, contents of buffers, hooks."""
    return [
        (
            name,
            f"{type(module).__module__}.{type(module).__qualname__}",
            [(key, _told(value)) for key, value in vars(module).items() if key[0] != "_" and not PLACES.fullmatch(key)],
            [(key, _told(value.shape)) for key, value in module.named_parameters(recurse=False)],
            [(key, _told(value)) for key, value in module.named_buffers(recurse=False)],
            [id(hook) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())],
        )
        for name, module in layer.named_modules()
    ]


def _told(value: object) -> object:
    """Something that is equal for equal values; of what cannot be compared, only for the same object."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), float(value.double().sum())
    if isinstance(value, functools.partial):
        return _told(value.func), repr(value.args), repr(value.keywords)
    named = getattr(value, "__qualname__", "<")
    if "<" not in named:  # a function or class that lies in a module, or a method of one
        return getattr(value, "__module__", ""), named
    is_plain = value is None or isinstance(value, bool | int | float | str | list | tuple | set | dict | torch.dtype)
    return repr(value) if is_plain else id(value)


def is_causal(core: LanguageModel, corpus: Corpus) -> bool:
    """Whether a model predicts a token from those before it alone: the last token of a text changes no other's state.

    An encoder built as a decoder by transformers sees all of them unless its config says otherwise, and learns nothing.
    """
    ids = corpus.ids[None, : min(16, len(corpus.ids))].to(_device(core))
    other = torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % corpus.vocab_size), 1)
    with _plain(core), foreign("task clm"):
        found = [_hidden(core, core.inputs(some, torch.ones_like(some), None))[:, :-1] for some in (ids, other)]
    return _agree(*found)


def mask_form(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str:
    """The first of `MASK_FORMS` under which a model computes of padded texts what it does under the last one.

    Args:
        core: the module, its method applied, in float32.
        corpus: the texts.
        layout: how they will be laid out.
    """
    corpus = replace(corpus, pad_id=int(corpus.ids.max()))
    layout = replace(layout, batching="dynamic" if layout.packs else layout.batching)
    texts = corpus.lengths.argsort(stable=True)[[0, -1]]
    *whole, last = MASK_FORMS
    if getattr(core.model, "num_virtual_tokens", 0):
        return last  # peft puts those of its prefix before it
    with _plain(core), contextlib.suppress(Unfit):  # what cannot be tried at all is said elsewhere
        core.mask_form = last
        with foreign(f"task {core.task}"):
            expected = _states(core, corpus, texts, layout)
        for form in whole:
            core.mask_form = form
            with contextlib.suppress(Unfit), foreign(f"a mask of {form}"):
                found = _states(core, corpus, texts, layout)
                if all(bool(one.isfinite().all()) for one in found) and all(map(_agree, found, expected)):
                    return form
    return last


def layout_refusal(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str | None:
    """Say why texts do not come out of a batch as they do alone, or None if they do.

    Tried with the shortest texts, of which many share a packed row, and the longest, which a sliding window of
    attention does not see whole. Rows are filled up with a token that occurs, since padding may be all zeros so far.
    """
    corpus = replace(corpus, pad_id=int(corpus.ids.max()))
    by_length = corpus.lengths.argsort(stable=True)
    most = 8 if layout.packs else 2
    texts = torch.cat((by_length[:most], by_length[most:][-most:]))
    with _plain(core):
        numbers = _numbers(core)
        with foreign(f"task {core.task}"):
            alone = [_states(core, corpus, one, replace(layout, batching="dynamic"))[0] for one in texts[:, None]]
        changed = [name for name, value in _numbers(core).items() if numbers.get(name, value) != value]
        noted = sorted({name.rpartition(".")[2] for name in changed})
        if noted:
            return f"this model notes {', '.join(noted)} in a forward pass: its results depend on the texts before"
        try:
            with foreign(f"batching {layout.batching}"):
                together = _states(core, corpus, texts, layout)
        except Unfit as unfit:
            return f"{unfit}; use batching: [dynamic]"
        differ = [i for i, (one, other) in enumerate(zip(alone, together, strict=True)) if not _agree(other, one)]
        if not differ:
            return None
        if not layout.packs:
            return f"batching {layout.batching}: this model's result depends on how far a text is padded"
        return f"batching packed: {_packed_reason(core, corpus, texts, layout, alone, differ)}; use batching: [dynamic]"


def _numbers(core: LanguageModel) -> dict[str, float]:
    """Plain numbers that modules hold."""
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
    layout: data.Layout,
    alone: list[torch.Tensor],
    differ: list[int],
) -> str:
    """Why some texts come out of packed rows otherwise, found by packing one alone, and beside other words."""
    first = differ[0]
    (single,) = _states(core, corpus, texts[first : first + 1], layout)
    other = replace(corpus, pad_id=int(corpus.ids.min()))
    if not _agree(single, _states(core, other, texts[first : first + 1], layout)[0]):
        return "this model does not keep to the mask that keeps packed texts apart"
    if not _agree(single, alone[first]):
        length = int(corpus.lengths[texts[first]])
        config = getattr(core.model, "config", None)
        sizes = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int)]
        if any(size < 2 * length for size in sizes):  # some count both sides
            return f"texts of {length} tokens exceed this model's window of {min(sizes)}, which packed rows do not have"
        return f"this model's result for a text of {length} tokens is another one in a longer row"
    changed = corpus.ids.clone()
    for i, text in enumerate(texts.tolist()):
        if i != first:
            place = slice(int(corpus.offsets[text]), int(corpus.offsets[text + 1]))
            changed[place] = changed[place].flip(0).roll(1)
    beside = _states(core, replace(corpus, ids=changed), texts, layout)[first]
    if _agree(beside, _states(core, corpus, texts, layout)[first]):
        return "this model counts positions over a whole row"
    return "this model's result depends on the other texts of a row"


def _head_refusal(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str | None:
    """Say why the output layer at chosen places is not what it is there among all, or None if it is."""
    if HEADS[core.head].everywhere:
        return None
    batch = _batch(corpus, _shortest_and_longest(corpus), layout, core.task)
    tensors = batch.on(_device(core))
    ids, segments, answers, positions, _, targets = tensors
    with _plain(core):
        try:
            with foreign("head masked"):
                found, _, places = core.logits(*tensors)
        except Unfit as unfit:
            return f"{unfit}; use head: [dense]"
        core.head = "dense"
        with foreign("head dense"):
            every, _, _ = core.logits(ids, segments, answers, positions, None, targets)
    assert places is not None
    if len(every) > int(places.max()) and _agree(found, every[places]):
        return None
    return "head masked: this model's output layer does not stand on each position alone; use head: [dense]"


def step_refusal(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str | None:
    """Take a step without the optimizer, as the run will. Say why a model cannot be trained so, or None if it can.

    Args:
        core: the module, in the dtype that trains, on its device.
        corpus: the texts.
        layout: how they will be laid out.
    """
    with _shortened(core) as is_shorter:
        if is_shorter and _passes(_step_refusal, core, corpus, layout):
            return None
    return _step_refusal(core, corpus, layout)


def _step_refusal(core: LanguageModel, corpus: Corpus, layout: data.Layout) -> str | None:
    batch = _batch(corpus, _shortest_and_longest(corpus), layout, core.task).on(_device(core))
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    try:
        with _unchanged(core), foreign("a training step"):
            core.train()
            torch.autograd.backward(core(*batch)[0, 0])
        if not any(bool(p.grad.any()) for p in trained if p.grad is not None):
            return "no parameter that is to be trained has a part in the loss of this model"
    except Unfit as unfit:
        return str(unfit)
    finally:
        core.zero_grad(set_to_none=True)
    return None


def _shortest_and_longest(corpus: Corpus) -> torch.Tensor:
    by_length = corpus.written.lengths.argsort(stable=True)
    return by_length[[0, -1]]


def _batch(corpus: Corpus, texts: torch.Tensor, layout: data.Layout, task: str) -> data.Batch:
    """A few texts in one batch, half of their words hidden if words are hidden."""
    shown = labels.labelled(corpus, task, 0.5, "tried")
    (batch,), _ = next(data.steps(corpus, shown, texts, replace(layout, size=len(texts), micro=None)))
    return batch


def _states(core: LanguageModel, corpus: Corpus, texts: torch.Tensor, layout: data.Layout) -> list[torch.Tensor]:
    """What is computed of each text, [its length, width]: of an encoder-decoder of its target.

    The last hidden states, of which the output layer is tried apart; or logits, if it is computed everywhere.
    """
    shown = labels.Labelled(inputs=corpus.ids, labels=corpus.written.ids)
    layout = replace(layout, size=len(texts), micro=None, head="dense")
    (batch,), _ = next(data.steps(corpus, shown, texts, layout))
    ids, segments, _, positions, _, targets = batch.on(_device(core))
    inputs = core.inputs(ids, segments, positions, targets)
    hidden: torch.Tensor = core.model(**inputs).logits if HEADS[core.head].everywhere else _hidden(core, inputs)
    lengths = corpus.written.lengths[texts].tolist()
    if corpus.targets is not None:
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    text = segments.flatten()
    order = text.argsort(stable=True)[int((text == 0).sum()) :]  # within a row, a text's tokens stand in order
    return list(torch.split(hidden.flatten(0, 1)[order], lengths))


def _hidden(core: LanguageModel, inputs: Mapping[str, object]) -> torch.Tensor:
    """The last hidden states, [rows, length, width]."""
    inner: Any = core.model.base_model
    if "input_ids" not in inspect.signature(inner.forward).parameters:
        inner = core.model  # Perceiver's inner model is no language model: its logits will do
    hidden: torch.Tensor = inner(**inputs)[0]
    return hidden


def _device(core: torch.nn.Module) -> torch.device:
    return next(core.parameters()).device


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether results are the same but for rounding. Of what is no number nothing can be told: that diverges later."""
    if found.shape != expected.shape:
        return False
    difference = (found - expected).abs().max()
    return not bool(difference.isfinite()) or bool(difference <= AGREE * expected.abs().max())
