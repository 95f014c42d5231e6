"""Token files to training batches: the split, the masks, the order, the padding or packing.

Masks and order are functions of (seed, epoch) and of a text's place in the token file alone: not of the batch size,
the number of devices, the batching, the precision or the method. Runs of one seed therefore see the same words
masked, and their differences are paired.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from joulesweep.errors import UserError

IGNORED = -100  # the label of a position that is not predicted
CHOSEN_MULTIPLE = 16  # of predicted positions, at least


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts of one token file, cut to a length, special tokens in place.

    Attributes:
        ids: int64 [tokens], all texts one after another.
        offsets: int64 [texts + 1], where each text begins.
        maskable: bool [tokens], false at the special tokens around a text.
        group: int64 [texts], equal for equal texts.
        mask_id: the token that stands for a hidden one.
        pad_id: the token that fills a row up.
        vocab_size: number of tokens in the vocabulary.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    maskable: torch.Tensor
    group: torch.Tensor
    mask_id: int
    pad_id: int
    vocab_size: int

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each text, int64 [texts]."""
        return self.offsets.diff()


def load(path: Path, max_length: int) -> Corpus:
    """Read a token file written by `joulesweep.tokens`.

    Args:
        path: the `.safetensors` file; its description lies beside it as `.json`.
        max_length: tokens per text, special tokens included; longer texts are cut.

    Raises:
        UserError: the tokenizer has no mask or padding token.
    """
    about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    for name in ("mask", "pad"):
        if about[f"{name}_id"] is None:
            raise UserError(f"{path}: the tokenizer has no {name} token, which task mlm needs; choose another model")
    tensors = load_file(path)
    prefix, suffix = (torch.tensor(about[key], dtype=torch.int64) for key in ("prefix", "suffix"))
    begins = tensors["offsets"].long()
    bodies = begins.diff().clamp(max=max_length - len(prefix) - len(suffix))
    offsets = torch.nn.functional.pad((bodies + len(prefix) + len(suffix)).cumsum(0), (1, 0))
    text, place = _places(bodies)
    target = offsets[text] + len(prefix) + place
    ids = torch.empty(int(offsets[-1]), dtype=torch.int64)
    ids[target] = tensors["ids"].long()[begins[text] + place]
    ids[(offsets[:-1, None] + torch.arange(len(prefix)))] = prefix
    ids[(offsets[1:, None] - len(suffix) + torch.arange(len(suffix)))] = suffix
    return Corpus(
        ids=ids,
        offsets=offsets,
        maskable=torch.zeros(len(ids), dtype=torch.bool).index_fill_(0, target, value=True),
        group=tensors["group"].long(),
        mask_id=about["mask_id"],
        pad_id=about["pad_id"],
        vocab_size=about["vocab_size"],
    )


def _places(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token of texts of these lengths, one text after another: which text, and where in it."""
    text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return text, torch.arange(len(text)) - (lengths.cumsum(0) - lengths)[text]


def split(corpus: Corpus, kind: str, validation_fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the texts into training and validation.

    Args:
        corpus: the texts.
        kind: "random" draws texts one by one; "unique" draws distinct texts, all copies going to the same side.
        validation_fraction: share of the texts (or of the distinct texts) held out.
        seed: of the draw.

    Returns:
        Indices of the training and of the validation texts, both int64 and sorted.
    """
    unit = corpus.group if kind == "unique" else torch.arange(len(corpus.group))
    num_units = int(unit.max()) + 1
    held_out = torch.zeros(num_units, dtype=torch.bool)
    num_held_out = min(num_units - 1, max(1, round(validation_fraction * num_units)))
    held_out[torch.randperm(num_units, generator=generator("split", seed))[:num_held_out]] = True
    validation = held_out[unit]
    return torch.nonzero(~validation).flatten(), torch.nonzero(validation).flatten()


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator whose stream is fixed by the key, the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A corpus with some tokens hidden: 80 % as the mask token, 10 % as any token, 10 % as themselves.

    The shares are BERT's (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

    Attributes:
        inputs: int64 [tokens], what the model sees.
        labels: int64 [tokens], the hidden token, `IGNORED` elsewhere.
    """

    inputs: torch.Tensor
    labels: torch.Tensor


def mask(corpus: Corpus, probability: float, *key: str | int) -> Masked:
    """Hide tokens of every text; the key (seed and epoch) fixes which."""
    draw = generator("mask", *key)
    size = corpus.ids.shape
    chosen = (torch.rand(size, generator=draw) < probability) & corpus.maskable
    fate = torch.rand(size, generator=draw)
    other = torch.randint(corpus.vocab_size, size, generator=draw)
    inputs = corpus.ids.clone()
    inputs[chosen & (fate < 0.8)] = corpus.mask_id
    swapped = chosen & (fate >= 0.9) & (other != corpus.pad_id)  # RoBERTa's own positions leave out padding tokens
    inputs[swapped] = other[swapped]
    return Masked(inputs=inputs, labels=corpus.ids.masked_fill(~chosen, IGNORED))


def order(indices: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """The order in which an epoch takes the training texts."""
    return indices[torch.randperm(len(indices), generator=generator("order", seed, epoch))]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the texts of an optimizer step are laid out.

    Attributes:
        batching: "fixed" pads every text to max_length, "dynamic" to the longest one of the micro-batch; "packed" puts
            several texts into each row of max_length tokens.
        size: texts per optimizer step over all ranks.
        micro: texts of a rank per forward pass, or None for all of them at once.
        max_length: tokens per text at most.
        head: "masked" computes the head at predicted positions only, "dense" everywhere.
        scattered: DataParallel will scatter the rows: predicted positions are then found behind it.
        few_shapes: packed rows are filled up with empty ones, see `round_up`.
    """

    batching: str
    size: int
    micro: int | None
    max_length: int
    head: str
    scattered: bool = False
    few_shapes: bool = False


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass on one rank gets.

    Attributes:
        input_ids: int64 [rows, length].
        segments: int64 [rows, length], the number of the text, from 1; 0 where a row is filled up.
        position_ids: int64 [rows, length], counted from 0 in each text; None where each row is one text.
        answers: int64 [rows, length], `IGNORED` where nothing is predicted; or [chosen] if positions were chosen.
        chosen: int64 [chosen], places in the flattened rows that are predicted; filled up (`round_up`)
            with places whose answer is `IGNORED`. None with a dense head, and with scattered rows.
        counts: what the pass computes; see `measurement.COUNTED`.
    """

    input_ids: torch.Tensor
    segments: torch.Tensor
    position_ids: torch.Tensor | None
    answers: torch.Tensor
    chosen: torch.Tensor | None
    counts: dict[str, int]

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """The arguments of `model.MaskedLanguageModel.forward`, in its order."""
        return [self.input_ids, self.segments, self.answers, self.position_ids, self.chosen]


def steps(
    corpus: Corpus, masked: Masked, texts: torch.Tensor, layout: Layout, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[Batch], int]]:
    """Cut texts into optimizer steps and give each rank its share; the last step may be smaller.

    Args:
        corpus: the texts.
        masked: the same with tokens hidden.
        texts: which texts, in which order, int64 [n].
        layout: how to lay them out.
        rank: this process.
        world: number of processes.

    Yields:
        The rank's micro-batches, as many on every rank, and the number of predicted tokens of the whole step over all
        ranks, at least 1: every micro-batch's summed loss is divided by it.
    """
    predicted = torch.nn.functional.pad((masked.labels != IGNORED).long().cumsum(0), (1, 0))
    per_text = predicted[corpus.offsets[1:]] - predicted[corpus.offsets[:-1]]
    for whole in torch.split(texts, layout.size):
        num_micro = math.ceil(math.ceil(len(whole) / world) / layout.micro) if layout.micro else 1
        parts = whole[rank::world].tensor_split(num_micro)
        # A rank without a text computes on one that does not count: the others wait for its gradients.
        batches = [_collate(corpus, masked, part if len(part) else whole[:1], layout, len(part) > 0) for part in parts]
        yield batches, max(1, int(per_text[whole].sum()))


def _collate(corpus: Corpus, masked: Masked, texts: torch.Tensor, layout: Layout, counted: bool) -> Batch:
    lengths = corpus.lengths[texts]
    packed = layout.batching == "packed"
    if packed:
        row, column = pack(lengths, layout.max_length)
        num_rows = int(row.max()) + 1
        shape = (round_up(num_rows) if layout.few_shapes else num_rows, layout.max_length)
    else:
        row, column = torch.arange(len(texts)), torch.zeros_like(lengths)
        shape = (len(texts), layout.max_length if layout.batching == "fixed" else int(lengths.max()))
    text, position = _places(lengths)  # of each token; then its place in the corpus, and in the flattened rows
    source = corpus.offsets[texts][text] + position
    target = (row * shape[1] + column)[text] + position

    def rows(values: torch.Tensor, filler: int) -> torch.Tensor:
        return torch.full((shape[0] * shape[1],), filler).index_put_((target,), values).view(shape)

    labels = rows(masked.labels[source], IGNORED) if counted else torch.full(shape, IGNORED)
    num_predicted = int((labels != IGNORED).sum())
    masked_head = layout.head == "masked"
    chosen, answers = _choose(labels) if masked_head and not layout.scattered else (None, labels)
    return Batch(
        input_ids=rows(masked.inputs[source], corpus.pad_id),
        segments=rows(text + 1, 0),
        position_ids=rows(position, 0) if packed else None,
        answers=answers,
        chosen=chosen,
        counts={
            "num_texts": len(texts) * counted,
            "num_tokens": int(lengths.sum()) * counted,
            "num_padded_tokens": shape[0] * shape[1],
            "num_predicted": num_predicted,
            "num_head_positions": num_predicted if masked_head and layout.scattered else answers.numel(),
            "num_token_pairs": int((lengths**2).sum()) * counted,
            "num_padded_token_pairs": shape[0] * shape[1] ** 2,
        },
    )


def _choose(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted places of flattened rows and their answers, filled up to few different lengths."""
    chosen = torch.nonzero(labels.flatten() != IGNORED).flatten()
    missing = round_up(len(chosen), CHOSEN_MULTIPLE) - len(chosen)
    answers = torch.nn.functional.pad(labels.flatten()[chosen], (0, missing), value=IGNORED)
    return torch.nn.functional.pad(chosen, (0, missing)), answers


def round_up(number: int, multiple: int = 1) -> int:
    """Round a size up to one of few, eight between a power of two and the next: each shape is prepared apart.

    By oneDNN, for one, and by CUDA graphs.

    Args:
        number: that is needed; at most an eighth is added, apart from what makes it a multiple.
        multiple: of which the result is one, and not none.
    """
    step = max(multiple, (1 << max(number - 1, 0).bit_length()) // 16)
    return max(step, -(-number // step) * step)


def pack(lengths: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Put texts into rows: the longest first, each into the fullest row that still has room (best fit decreasing).

    Args:
        lengths: int64 [texts], none above the capacity.
        capacity: tokens per row.

    Returns:
        Row and first column of each text, both int64 [texts].
    """
    row, column = torch.empty_like(lengths), torch.empty_like(lengths)
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    num_rows = 0
    placed: list[tuple[int, int, int]] = []
    sizes = lengths.tolist()
    for text in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        size = sizes[text]
        room = next((room for room in range(size, capacity) if rows_by_room[room]), capacity)
        if room == capacity:
            index, num_rows = num_rows, num_rows + 1
        else:
            index = rows_by_room[room].pop()
        rows_by_room[room - size].append(index)
        placed.append((text, index, capacity - room))
    texts, rows, columns = (torch.tensor(values) for values in zip(*placed, strict=True))
    row[texts], column[texts] = rows, columns
    return row, column
