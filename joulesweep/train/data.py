"""Make training batches from texts: steps, shares of ranks, padding or packing.

Masks and order depend on (seed, epoch), on a text's index in the token file and on the texts as `max_length` cuts
them, but not on batch size, number of devices, batching, precision or method. Runs with the same seed therefore mask
the same words, and their differences are paired. Sweeps whose lengths cut different texts have different masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from joulesweep.axes.layout import BATCHINGS, HEADS
from joulesweep.core.work import COUNTED
from joulesweep.nets.language_model import IGNORED
from joulesweep.train.corpus import Corpus, offsets_of, texts_and_positions
from joulesweep.train.labels import MaskedInputs
from joulesweep.train.packing import pack, round_up

CHOSEN_MULTIPLE = 16  # to which numbers of predicted positions are rounded up, at least


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Layout of the texts of an optimizer step.

    Attributes:
        batching: "fixed" pads every text to max_length, "dynamic" to the longest text of the micro-batch; "packed"
            puts several texts into each row of max_length tokens.
        size: texts per optimizer step over all ranks.
        micro: texts of a rank per forward pass, or None for all at once.
        max_length: tokens per text at most.
        max_target_length: tokens per target of an encoder-decoder at most.
        head: "masked" computes the head at predicted positions only, "dense" everywhere.
        parts: GPUs over which DataParallel scatters the rows; predicted positions are then those of each part.
        few_shapes: whether empty rows are added to packed ones, see `round_up`, and the micro-batches of a step are
            padded to equal numbers of rows and of predicted positions.
    """

    batching: str
    size: int
    micro: int | None
    max_length: int
    max_target_length: int = 64
    head: str
    parts: int = 1
    few_shapes: bool = False

    @property
    def packs(self) -> bool:
        """Whether several texts share a row."""
        return BATCHINGS[self.batching].packs


#: Tensors of a batch, in the order of the arguments of `language_model.LanguageModel.forward`.
TENSORS = ("input_ids", "segments", "answers", "position_ids", "chosen", "target_ids")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Input of one forward pass on one rank.

    Attributes:
        input_ids: int64 [rows, length].
        segments: int64 [rows, length], number of the text, from 1; 0 at padding.
        position_ids: int64 [rows, length], counted from 0 in each text; None if each row is one text.
        answers: int64 [rows, length], for an encoder-decoder [rows, target length], or the shape of `chosen` if that
            is not None; `IGNORED` where nothing is predicted.
        chosen: int64 [chosen], predicted positions in the flattened rows, padded (`round_up`) with positions whose
            answer is `IGNORED`. None with a dense head. [rows, chosen per row] if DataParallel scatters the rows, see
            `_choose_in_parts`.
        target_ids: int64 [rows, target length], targets of an encoder-decoder; else None.
        counts: work of the pass, see `work.COUNTED`.
        source: int64 [tokens], indices of the tokens in the corpus; stays in host memory.
        places: int64 [tokens], their positions in the flattened rows; likewise.
    """

    input_ids: torch.Tensor
    segments: torch.Tensor
    position_ids: torch.Tensor | None
    answers: torch.Tensor
    chosen: torch.Tensor | None
    target_ids: torch.Tensor | None
    counts: dict[str, int]
    source: torch.Tensor
    places: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """The tensors, in the order of `TENSORS`."""
        return [getattr(self, name) for name in TENSORS]

    def pinned(self) -> Batch:
        """Return a copy in pinned host memory, from which a GPU copies while the host continues."""
        tensors = zip(TENSORS, self.tensors, strict=True)
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors if tensor is not None}
        return replace(self, **pinned)

    def on(self, device: torch.device) -> list[Any]:
        """Return the tensors on a device."""
        return [None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self.tensors]


def steps(
    corpus: Corpus, shown: MaskedInputs, texts: torch.Tensor, layout: BatchLayout, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[Batch], int]]:
    """Cut texts into optimizer steps and give each rank its share; the last step may be smaller.

    Args:
        corpus: all texts.
        shown: their inputs and labels.
        texts: indices of the texts, in order, int64 [n].
        layout: of the texts.
        rank: of this process.
        world: number of processes.

    Yields:
        The rank's micro-batches, the same number on every rank, and the number of predicted tokens of the whole step
        over all ranks, at least 1: every micro-batch's summed loss is divided by it.
    """
    per_text = _num_predicted(corpus, shown)
    for whole, parts in _shares(texts, layout, rank, world):
        least = [NO_OUTLINE] * len(parts)
        if layout.few_shapes and len(parts) > 1:
            least = _outlines(corpus, per_text, parts, layout)
        batches = [_collate(corpus, shown, *part, layout, outline) for part, outline in zip(parts, least, strict=True)]
        yield batches, max(1, int(per_text[whole].sum()))


#: Sizes of a batch: rows, their length, length of targets, positions that the head computes; 0 for none or unknown.
Outline = tuple[int, int, int, int]
NO_OUTLINE = (0, 0, 0, 0)
#: Texts of a micro-batch, and whether they are counted.
Part = tuple[torch.Tensor, bool]


def outlines(
    corpus: Corpus, shown: MaskedInputs | None, texts: torch.Tensor, layout: BatchLayout, rank: int = 0, world: int = 1
) -> Iterator[tuple[Outline, ...]]:
    """Yield the sizes of each step's micro-batches without building them; arguments as in `steps`.

    Batches have tensors of equal shapes if and only if their outlines are equal; except for the head's positions, which
    are not counted without `shown`, with a dense head, or if DataParallel scatters the rows.
    """
    per_text = None if shown is None else _num_predicted(corpus, shown)
    for _, parts in _shares(texts, layout, rank, world):
        yield tuple(_outlines(corpus, per_text, parts, layout))


def _outlines(
    corpus: Corpus, per_text: torch.Tensor | None, parts: Sequence[Part], layout: BatchLayout
) -> list[Outline]:
    """Return the outlines of the micro-batches of a step; see `Layout.few_shapes`."""
    sizes = []
    for texts, counted in parts:
        num_rows, length = _placed(corpus.lengths_of(texts), layout, layout.max_length)[2]
        target_length = num_chosen = 0
        if corpus.targets is not None:
            target_length = _placed(corpus.targets.lengths_of(texts), layout, layout.max_target_length)[2][1]
        if per_text is not None and not HEADS[layout.head].everywhere and layout.parts == 1:
            num_chosen = round_up(int(per_text[texts].sum()) * counted, CHOSEN_MULTIPLE)
        sizes.append((num_rows, length, target_length, num_chosen))
    if not layout.few_shapes:
        return sizes
    most_rows, *_, most_chosen = (max(values) for values in zip(*sizes, strict=True))
    # No rows are added to padded ones: an empty row would attend to nothing.
    return [(most_rows if layout.packs else rows, length, target, most_chosen) for rows, length, target, _ in sizes]


def _num_predicted(corpus: Corpus, shown: MaskedInputs) -> torch.Tensor:
    """Count the predicted tokens of each text, int64 [texts]."""
    predicted = offsets_of((shown.labels != IGNORED).long())
    offsets = corpus.written.offsets
    return predicted[offsets[1:]] - predicted[offsets[:-1]]


def _shares(
    texts: torch.Tensor, layout: BatchLayout, rank: int, world: int
) -> Iterator[tuple[torch.Tensor, list[Part]]]:
    """Yield the texts of each step, and the micro-batches of a rank."""
    for whole in torch.split(texts, layout.size):
        num_micro = math.ceil(math.ceil(len(whole) / world) / layout.micro) if layout.micro else 1
        parts = whole[rank::world].tensor_split(num_micro)
        # A rank with no texts runs a dummy one (not counted), so that collectives stay in step.
        yield whole, [(part, True) if len(part) else (whole[:1], False) for part in parts]


def _placed(
    lengths: torch.Tensor, layout: BatchLayout, max_length: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Return row and first column of texts of these lengths, int64 [texts] each, and the shape of the rows."""
    if layout.packs:
        row, column = pack(lengths, max_length)
        num_rows = int(row.max()) + 1
        return row, column, (round_up(num_rows) if layout.few_shapes else num_rows, max_length)
    longest = max_length if BATCHINGS[layout.batching].pads_fully else int(lengths.max())
    return torch.arange(len(lengths)), torch.zeros_like(lengths), (len(lengths), longest)


class _Rows:
    """Positions of the tokens of some texts in padded or packed rows."""

    def __init__(
        self, corpus: Corpus, texts: torch.Tensor, layout: BatchLayout, max_length: int, least_rows: int = 0
    ) -> None:
        self.lengths = corpus.lengths_of(texts)
        row, column, (num_rows, length) = _placed(self.lengths, layout, max_length)
        self.shape = (max(num_rows, least_rows), length)
        # For each token: its text and position in the text; its index in the corpus and in the flattened rows.
        self.text, self.position = texts_and_positions(self.lengths)
        self.source = corpus.offsets[texts][self.text] + self.position
        self.target = (row * self.shape[1] + column)[self.text] + self.position

    def fill(self, values: torch.Tensor, filler: int) -> torch.Tensor:
        """Place values, [tokens], in rows, [rows, length]."""
        return torch.full((self.shape[0] * self.shape[1],), filler).index_put_((self.target,), values).view(self.shape)


def _collate(
    corpus: Corpus, shown: MaskedInputs, texts: torch.Tensor, counted: bool, layout: BatchLayout, least: Outline
) -> Batch:
    """Build a micro-batch, with at least as many rows and positions of the head as its outline says."""
    rows = _Rows(corpus, texts, layout, layout.max_length, least[0])
    written = rows if corpus.targets is None else _Rows(corpus.targets, texts, layout, layout.max_target_length)
    labels = written.fill(shown.labels[written.source], IGNORED) if counted else torch.full(written.shape, IGNORED)
    num_predicted = int((labels != IGNORED).sum())
    chosen, answers = _choose(labels, layout.parts, least[3]) if not HEADS[layout.head].everywhere else (None, labels)
    counts = {
        "num_texts": len(texts) * counted,
        "num_tokens": int(rows.lengths.sum()) * counted,
        "num_padded_tokens": rows.shape[0] * rows.shape[1],
        "num_predicted": num_predicted,
        "num_head_positions": answers.numel(),
        "num_token_pairs": int((rows.lengths**2).sum()) * counted,
        "num_padded_token_pairs": rows.shape[0] * rows.shape[1] ** 2,
    }
    if corpus.targets is not None:
        counts |= {
            "num_target_tokens": int(written.lengths.sum()) * counted,
            "num_padded_target_tokens": written.shape[0] * written.shape[1],
            "num_target_pairs": int((written.lengths**2).sum()) * counted,
            "num_padded_target_pairs": written.shape[0] * written.shape[1] ** 2,
            "num_cross_pairs": int((written.lengths * rows.lengths).sum()) * counted,
            "num_padded_cross_pairs": rows.shape[0] * rows.shape[1] * written.shape[1],
        }
    return Batch(
        input_ids=rows.fill(shown.inputs[rows.source], corpus.pad_id),
        segments=rows.fill(rows.text + 1, 0),
        position_ids=rows.fill(rows.position, 0) if layout.packs else None,
        answers=answers,
        chosen=chosen,
        target_ids=None if corpus.targets is None else written.fill(corpus.targets.ids[written.source], corpus.pad_id),
        counts={name: counts.get(name, 0) for name in COUNTED},
        source=rows.source,
        places=rows.target,
    )


def _choose(labels: torch.Tensor, parts: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted positions of flattened rows and their answers, padded to a few different lengths."""
    if parts > 1:
        return _choose_in_parts(labels, parts)
    chosen = torch.nonzero(labels.flatten() != IGNORED).flatten()
    return _filled(labels, chosen, max(least, round_up(len(chosen), CHOSEN_MULTIPLE)))


def _choose_in_parts(labels: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose positions for rows that DataParallel scatters: it splits every tensor along its rows.

    The positions, counted within each part, are laid out in as many rows as the part has, [rows, width]: otherwise
    every replica would have to find them, and wait for its GPU to know how many there are.
    """
    shares = labels.chunk(parts)
    places = [torch.nonzero(share.flatten() != IGNORED).flatten() for share in shares]
    width = max(1, *(math.ceil(len(predicted) / len(share)) for predicted, share in zip(places, shares, strict=True)))
    filled = [_filled(share, predicted, len(share) * width) for predicted, share in zip(places, shares, strict=True)]
    chosen, answers = (torch.cat(tensors).view(-1, width) for tensors in zip(*filled, strict=True))
    return chosen, answers


def _filled(labels: torch.Tensor, chosen: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad positions and their answers to a number of positions."""
    missing = number - len(chosen)
    answers = torch.nn.functional.pad(labels.flatten()[chosen], (0, missing), value=IGNORED)
    return torch.nn.functional.pad(chosen, (0, missing)), answers
