"""Keep what frozen layers make of each text, and read it in later epochs instead of computing it again.

The lowest layers of a model and what lies below them are frozen, and a text's tokens are the same in each epoch: so is
what these layers make of them. In the first epoch a step computes it, without dropout, and keeps it, [tokens, width]
on the device; then the step, like all later ones, reads it: layers hand on what they are given, and the last one
returns what was kept. Positions of padding are zero, which nothing sees. The training is that of frozen layers without
dropout, up to rounding: a batch of other sizes rounds otherwise.
Cf. AutoFreeze (Liu et al. 2021, arXiv 2102.01386), which keeps activations in host memory and on disk.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from joulesweep.axes import precision
from joulesweep.core.outcome import Work
from joulesweep.nets import flops
from joulesweep.nets.language_model import IGNORED, LanguageModel
from joulesweep.train import fit
from joulesweep.train.corpus import Corpus, texts_and_positions
from joulesweep.train.data import Batch

GIB = 2**30
AGREE = 1e-4  #: tolerance for logits of one batch, relative to the largest: they differ by nothing, or by a lack


class _Reached(Exception):  # noqa: N818 - no error: ends a forward pass early
    """The last of the layers has computed its states."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


@dataclass(kw_only=True)
class Cache:
    """The kept states, and how the model's layers are made to return them.

    Attributes:
        rows: for each token of the corpus its row of `states`, int64; only those of training texts have one.
        states: of the tokens of the training texts, [tokens, width].
        work: of a step that only reads; the first epoch's is that of the frozen model.
        fills: whether steps compute the states before they read them.
    """

    rows: torch.Tensor
    states: torch.Tensor
    work: Work
    layers: _Layers
    fills: bool = True

    def prepare(self, core: LanguageModel, batches: Sequence[Batch], inputs: Sequence[Sequence[Any]]) -> None:
        """Have ready what the layers return in a step's forward passes, in their order.

        Args:
            core: the module, in training mode.
            batches: the step's micro-batches.
            inputs: their tensors on the device.
        """
        device = self.states.device
        for batch, tensors in zip(batches, inputs, strict=True):
            rows = self.rows[batch.source].to(device, non_blocking=True)
            places = batch.places.to(device, non_blocking=True)
            if self.fills:
                computed = self.layers.compute(core, tensors)
                self.states.index_copy_(0, rows, computed.flatten(0, 1).index_select(0, places))
            self.layers.ready.append(functools.partial(self._laid, rows, places))

    def _laid(self, rows: torch.Tensor, places: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Lay states out in rows of tokens, [rows, length, width]."""
        laid = self.states.new_zeros((shape.numel(), self.states.shape[1]))
        return laid.index_copy_(0, places, self.states.index_select(0, rows)).view(*shape, -1)


@dataclass
class _Layers:
    """The layers, with forward passes of their own.

    Attributes:
        layers: in order of execution; they begin with the lowest one.
        ready: makes the states of each coming forward pass in training mode, from the shape [rows, length] of the ids.
        lengths: of the tuple that each layer returns, states first; 0 for one that returns a tensor.
        mode: "own": forward passes are the layers' own but while the model trains; "stop": they are, and the last one
            ends the model's; "read": the last one returns what is ready; "skip": each returns what it is given.
    """

    layers: Sequence[torch.nn.Module]
    ready: deque[Callable[[torch.Size], torch.Tensor]] = field(default_factory=deque)
    lengths: dict[int, int] = field(default_factory=dict)
    mode: str = "own"

    def __post_init__(self) -> None:
        """Replace the forward passes."""
        for i, layer in enumerate(self.layers):
            layer.forward = functools.partial(self._forward, i, layer.forward)

    def compute(self, core: LanguageModel, tensors: Sequence[Any]) -> torch.Tensor:
        """Return the last layer's states, [rows, length, width], computed without dropout and gradients.

        Args:
            core: the module; it is in training mode afterwards.
            tensors: of a batch, on the device.
        """
        ids, segments, _, positions, _, targets = tensors
        core.eval()
        try:
            with self._as("stop"), torch.no_grad(), precision.autocast(core.precision_name, ids.device.type):
                core.model(**core.inputs(ids, segments, positions, targets))
        except _Reached as reached:
            return reached.states
        finally:
            core.train()
        raise ValueError("method freeze-cache: this model does not execute its frozen layers")

    @contextlib.contextmanager
    def _as(self, mode: str) -> Iterator[None]:
        self.mode = mode
        try:
            yield
        finally:
            self.mode = "own"

    def work(self, core: LanguageModel) -> Work:
        """Return the work of a step that computes the other layers alone."""
        with self._as("skip"):
            return flops.model_work(core)

    def suffice(self, core: LanguageModel, tensors: Sequence[Any], states: torch.Tensor) -> bool:
        """Whether the model predicts from the last layer's states, of real tokens, what it predicts from its texts.

        Args:
            core: the module.
            tensors: of a batch, on the device.
            states: of `compute`.
        """
        with torch.no_grad(), fit.foreign("method freeze-cache"):
            core.eval()
            logits, answers, _ = core.logits(*tensors)
            self.ready.append(lambda shape: states * (tensors[1] > 0).unsqueeze(-1))
            with self._as("read"):
                read, _, _ = core.logits(*tensors)
            core.train()
        differ = (read - logits)[answers != IGNORED].abs().max()
        return bool(differ <= AGREE * logits.abs().max())

    def _forward(self, i: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Forward pass of layer i: its own outside of the training."""
        is_last, trains = i == len(self.layers) - 1, self.layers[i].training
        if self.mode == "stop" or (self.mode == "own" and not trains):
            result = forward(*args, **kwargs)
            states = self._states(i, result)
            if self.mode == "stop" and is_last:
                raise _Reached(states)
            return result
        states = args[0] if args else kwargs["hidden_states"]
        if is_last and self.mode != "skip":
            states = self.ready.popleft()(states.shape[:2])
        return (states, *[None] * (self.lengths[i] - 1)) if self.lengths[i] else states

    def _states(self, i: int, result: Any) -> torch.Tensor:  # noqa: ANN401 - what a layer returns
        """Return the states in a layer's result, and note its form."""
        self.lengths[i] = len(result) if isinstance(result, tuple) else 0
        states: torch.Tensor = result[0] if self.lengths[i] else result
        return states


def cache(
    core: LanguageModel,
    layers: Sequence[torch.nn.Module],
    batch: Batch,
    corpus: Corpus,
    texts: torch.Tensor,
    max_gib: float,
) -> Cache:
    """Return an empty cache, after a try whether the model can do without its frozen layers.

    Args:
        core: the module, on its device.
        layers: the lowest ones, all frozen.
        batch: to try.
        corpus: all texts.
        texts: indices of the training texts.
        max_gib: largest size.

    Raises:
        Unfit: the model fails without its frozen layers.
        ValueError: it needs more than their states, or what would be kept is larger than allowed.
    """
    replaced, device = _Layers(layers), next(core.parameters()).device
    tensors = batch.on(device)
    tried = replaced.compute(core, tensors)
    if not replaced.suffice(core, tensors, tried):
        raise ValueError("method freeze-cache: later layers of this model need more than the states of the frozen ones")
    which, position = texts_and_positions(corpus.lengths_of(texts))
    tokens = corpus.offsets[texts][which] + position
    num_bytes = len(tokens) * tried.shape[-1] * tried.element_size()
    if num_bytes > max_gib * GIB:
        size = f"{num_bytes / GIB:.3g} GiB, more than max_gib {max_gib:g}"
        raise ValueError(f"method freeze-cache: what the frozen layers make of the training texts takes {size}")
    rows = torch.zeros(len(corpus.ids), dtype=torch.int64)
    rows[tokens] = torch.arange(len(tokens))
    states = torch.zeros((len(tokens), tried.shape[-1]), dtype=tried.dtype, device=device)
    return Cache(rows=rows, states=states, work=replaced.work(core), layers=replaced)
