"""Token files to training batches: the split, the masks, the order, the padding or packing.

Masks and order are functions of (seed, epoch), of a text's place in the token file and of the texts as `max_length`
cuts them: not of the batch size, the number of devices, the batching, the precision or the method. Runs of one seed
therefore see the same words masked, and their differences are paired. Two sweeps whose lengths cut different texts do
not: their masks differ.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from joulesweep.errors import UserError
from joulesweep.model import IGNORED
from joulesweep.seeds import generator
from joulesweep.units import COUNTED

CHOSEN_MULTIPLE = 16  # of predicted positions, at least


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts of one token file, cut to a length, special tokens in place.

    Attributes:
        ids: int64 [tokens], all texts one after another.
        offsets: int64 [texts + 1], where each text begins.
        learned: bool [tokens], what may be predicted: in masked language modelling a text without special tokens, be
            they around it or inside, as for an unknown word; else a text and what ends it, and of a text with a target
            the target alone.
        group: int64 [texts], equal for equal texts.
        mask_id: the token that stands for a hidden one, or None.
        pad_id: the token that fills a row up.
        vocab_size: number of tokens in the vocabulary.
        targets: what an encoder-decoder writes, a corpus of as many texts; None with other tasks.
        start_id: the token that writing begins with.
        end_id: the token that ends what is written, or None.
        prompts: int64 [texts], with task clm and targets: tokens of each text before its target; else None.
        choices: of a multiple-choice set, every text with each of its choices, one after another; else None.
        choice_text: int64 [choices], the text that each belongs to.
        answer: int64 [texts], which of a text's choices is right.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    learned: torch.Tensor
    group: torch.Tensor
    mask_id: int | None
    pad_id: int
    vocab_size: int
    targets: Corpus | None = None
    start_id: int | None = None
    end_id: int | None = None
    prompts: torch.Tensor | None = None
    choices: Corpus | None = None
    choice_text: torch.Tensor | None = None
    answer: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each text, int64 [texts]."""
        return self.offsets.diff()

    def lengths_of(self, texts: torch.Tensor) -> torch.Tensor:
        """Tokens of some texts, int64 as they are."""
        return self.offsets[texts + 1] - self.offsets[texts]

    @property
    def written(self) -> Corpus:
        """The corpus in which tokens are predicted: the targets, if they are texts of their own."""
        return self.targets or self


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Token ids of several texts, one after another."""

    ids: torch.Tensor
    offsets: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        return self.offsets.diff()

    def take(self, texts: torch.Tensor) -> _Texts:
        """Some of them, each perhaps several times."""
        return self._laid(self.offsets[texts], self.lengths[texts])

    def cut(self, length: int | torch.Tensor) -> _Texts:
        """The beginning of each: at most so many tokens, of all or of each."""
        most = torch.as_tensor(length).clamp(min=0)
        return self._laid(self.offsets[:-1], torch.minimum(self.lengths, most))

    def _laid(self, begins: torch.Tensor, lengths: torch.Tensor) -> _Texts:
        text, place = _places(lengths)
        return _Texts(ids=self.ids[begins[text] + place], offsets=_offsets(lengths))


def load(
    path: Path, max_length: int, task: str = "mlm", max_target_length: int = 64, start_id: int | None = None
) -> Corpus:
    """Read a token file written by `joulesweep.tokens`.

    Args:
        path: the `.safetensors` file; its description lies beside it as `.json`.
        max_length: tokens per text, special tokens included; longer texts are cut. With task clm prompt and target
            count, and the text between is cut.
        task: "mlm", "clm" or "seq2seq".
        max_target_length: tokens per target, what ends it included.
        start_id: what an encoder-decoder begins to write with; None for the tokenizer's first token, or padding.

    Raises:
        UserError: the tokenizer lacks a token that the task needs, the texts have no targets, or what stands around
            them leaves no room.
    """
    about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    needed = ("mask", "pad") if task == "mlm" else ("pad",) if task == "seq2seq" else ()
    for name in needed:
        if about[f"{name}_id"] is None:
            raise UserError(f"{path}: the tokenizer has no {name} token, which task {task} needs; choose another model")
    about["start_id"] = next((i for i in (start_id, about.get("bos_id")) if i is not None), None)
    tensors = {name: tensor.long() for name, tensor in load_file(path).items()}
    if task == "seq2seq" and "target_ids" not in tensors:
        raise UserError(f"{path}: the texts have no targets, which task seq2seq needs; choose another data set or task")

    def texts(name: str) -> _Texts | None:
        return _Texts(ids=tensors[f"{name}ids"], offsets=tensors[f"{name}offsets"]) if f"{name}ids" in tensors else None

    bodies, choices = texts(""), texts("choice_")
    assert bodies is not None
    max_lengths = max_length, max_target_length
    found = _corpus(about, task, max_lengths, bodies, texts("target_"), tensors["group"])
    if task == "mlm" or choices is None:
        return found
    text = tensors["choice_text"]
    with_choices = _corpus(about, task, max_lengths, bodies.take(text), choices, tensors["group"][text])
    return replace(found, choices=with_choices, choice_text=text, answer=tensors["answer"])


def _corpus(
    about: dict[str, Any],
    task: str,
    max_lengths: tuple[int, int],
    bodies: _Texts,
    targets: _Texts | None,
    group: torch.Tensor,
) -> Corpus:
    """Put together what the model reads, and what it writes."""
    prefix, suffix = about["prefix"], about["suffix"]
    before, after = about.get("prompt_before", []), about.get("prompt_after", [])
    end = about.get("eos_id")
    pad = next(i for i in (about["pad_id"], end, 0) if i is not None)
    start = pad if about["start_id"] is None else about["start_id"]
    # A tokenizer's end of text, where it adds one, comes once, at the very end.
    ending = suffix + ([end] if end is not None and suffix[-1:] != [end] else [])

    def joined(parts: list[list[int] | _Texts], max_length: int, learned: tuple[int, ...] = ()) -> Corpus:
        ids, offsets, is_learned = _joined(parts, max_length, learned)
        longest = int(offsets.diff().max())
        if longest > max_length:
            raise UserError(f"prompt and special tokens alone are {longest} tokens, not {max_length}; raise max_length")
        return Corpus(
            ids=ids,
            offsets=offsets,
            learned=is_learned,
            group=group,
            mask_id=about["mask_id"],
            pad_id=pad,
            vocab_size=about["vocab_size"],
            start_id=start,
            end_id=end,
        )

    if task == "mlm":
        found = joined([prefix, bodies, suffix], max_lengths[0], learned=(1,))
        special = torch.tensor(about.get("special_ids", []), dtype=torch.int64)
        return replace(found, learned=found.learned & ~torch.isin(found.ids, special))
    if task == "clm" and targets is None:
        return joined([prefix, bodies, ending], max_lengths[0], learned=(1, 2))
    assert targets is not None
    if task == "clm":
        room = max_lengths[0] - len(prefix + before + after + ending)
        answers = targets.cut(min(max_lengths[1] - len(ending), room))
        found = joined([prefix + before, bodies, after, answers, ending], max_lengths[0], learned=(3, 4))
        return replace(found, prompts=found.lengths - _offsets(found.learned.long())[found.offsets].diff())
    opening = [] if prefix == [start] else prefix  # what the writing starts with is not written again
    written = joined([opening, targets, ending], max_lengths[1], learned=(0, 1, 2))
    return replace(joined([prefix + before, bodies, after + suffix], max_lengths[0]), targets=written)


def _joined(
    parts: list[list[int] | _Texts], max_length: int, learned: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts put together of parts: the first of several texts is cut so that each whole has at most max_length tokens.

    Args:
        parts: ids that are the same in every text, or of each text its own.
        max_length: of the whole.
        learned: places of the parts that are learned.

    Returns:
        ids, offsets and learned, as of `Corpus`.
    """
    num_texts = next(len(part.lengths) for part in parts if isinstance(part, _Texts))
    texts = [part if isinstance(part, _Texts) else _repeated(part, num_texts) for part in parts]
    place_of_cut = next(i for i, part in enumerate(parts) if isinstance(part, _Texts))
    rest = torch.stack([part.lengths for i, part in enumerate(texts) if i != place_of_cut]).sum(0)
    texts[place_of_cut] = texts[place_of_cut].cut(max_length - rest)
    offsets = _offsets(torch.stack([part.lengths for part in texts]).sum(0))
    ids, is_learned = torch.empty(int(offsets[-1]), dtype=torch.int64), torch.zeros(int(offsets[-1]), dtype=torch.bool)
    begins = offsets[:-1].clone()
    for i, part in enumerate(texts):
        text, place = _places(part.lengths)
        ids[begins[text] + place] = part.ids
        is_learned[begins[text] + place] = i in learned
        begins += part.lengths
    return ids, offsets, is_learned


def _repeated(ids: list[int], num_texts: int) -> _Texts:
    same = torch.tensor(ids, dtype=torch.int64).repeat(num_texts)
    return _Texts(ids=same, offsets=torch.arange(num_texts + 1) * len(ids))


def _offsets(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


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


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A corpus as the model sees it, and what it is to predict.

    Attributes:
        inputs: int64 [tokens], what the model sees.
        labels: int64 [tokens], of an encoder-decoder [tokens of the targets]: what is predicted there, `IGNORED` where
            nothing is.
    """

    inputs: torch.Tensor
    labels: torch.Tensor


def labelled(corpus: Corpus, task: str, probability: float, *key: str | int) -> Labelled:
    """What a task predicts; in masked language modelling the key (seed and epoch) fixes which tokens are hidden."""
    if task == "mlm":
        return mask(corpus, probability, *key)
    written = corpus.written
    labels = written.ids.masked_fill(~written.learned, IGNORED)
    if task == "clm":
        labels = labels.roll(-1)
        labels[corpus.offsets[1:] - 1] = IGNORED  # the next one is of another text
    return Labelled(inputs=corpus.ids, labels=labels)


def mask(corpus: Corpus, probability: float, *key: str | int) -> Labelled:
    """Hide tokens of every text: 80 % as the mask token, 10 % as any token, 10 % as themselves.

    The shares are BERT's (Devlin et al. 2019, arXiv 1810.04805, section 3.1). The key (seed and epoch) fixes which.
    """
    draw = generator("mask", *key)
    size = corpus.ids.shape
    chosen = (torch.rand(size, generator=draw) < probability) & corpus.learned
    fate = torch.rand(size, generator=draw)
    other = torch.randint(corpus.vocab_size, size, generator=draw)
    inputs = corpus.ids.clone()
    inputs[chosen & (fate < 0.8)] = corpus.mask_id  # type: ignore[assignment] # `load` has seen to it
    swapped = chosen & (fate >= 0.9) & (other != corpus.pad_id)  # RoBERTa's own positions leave out padding tokens
    inputs[swapped] = other[swapped]
    return Labelled(inputs=inputs, labels=corpus.ids.masked_fill(~chosen, IGNORED))


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
        max_target_length: tokens per target of an encoder-decoder at most.
        head: "masked" computes the head at predicted positions only, "dense" everywhere.
        parts: GPUs over which DataParallel will scatter the rows: predicted places are then those of each part.
        few_shapes: packed rows are filled up with empty ones, see `round_up`; and the micro-batches of a step to equal
            numbers of rows and of predicted places.
    """

    batching: str
    size: int
    micro: int | None
    max_length: int
    max_target_length: int = 64
    head: str
    parts: int = 1
    few_shapes: bool = False


#: Of a batch, in the order of the arguments of `model.LanguageModel.forward`.
TENSORS = ("input_ids", "segments", "answers", "position_ids", "chosen", "target_ids")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass on one rank gets.

    Attributes:
        input_ids: int64 [rows, length].
        segments: int64 [rows, length], the number of the text, from 1; 0 where a row is filled up.
        position_ids: int64 [rows, length], counted from 0 in each text; None where each row is one text.
        answers: int64 [rows, length], of an encoder-decoder [rows, target length]: `IGNORED` where nothing is
            predicted; or as many as positions were chosen.
        chosen: int64 [chosen], places in the flattened rows that are predicted; filled up (`round_up`)
            with places whose answer is `IGNORED`. None with a dense head. Of rows that will be scattered
            [rows, chosen per row], see `_choose_in_parts`.
        target_ids: int64 [rows, target length], what an encoder-decoder writes; else None.
        counts: what the pass computes; see `units.COUNTED`.
    """

    input_ids: torch.Tensor
    segments: torch.Tensor
    position_ids: torch.Tensor | None
    answers: torch.Tensor
    chosen: torch.Tensor | None
    target_ids: torch.Tensor | None
    counts: dict[str, int]

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """What `TENSORS` names."""
        return [getattr(self, name) for name in TENSORS]

    def pinned(self) -> Batch:
        """The same in host memory from which a GPU copies by itself, while the host goes on."""
        tensors = zip(TENSORS, self.tensors, strict=True)
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors if tensor is not None}
        return replace(self, **pinned)

    def on(self, device: torch.device) -> list[Any]:
        """The same on a device."""
        return [None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self.tensors]


def steps(
    corpus: Corpus, shown: Labelled, texts: torch.Tensor, layout: Layout, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[Batch], int]]:
    """Cut texts into optimizer steps and give each rank its share; the last step may be smaller.

    Args:
        corpus: the texts.
        shown: what is seen of them and predicted.
        texts: which texts, in which order, int64 [n].
        layout: how to lay them out.
        rank: this process.
        world: number of processes.

    Yields:
        The rank's micro-batches, as many on every rank, and the number of predicted tokens of the whole step over all
        ranks, at least 1: every micro-batch's summed loss is divided by it.
    """
    per_text = _num_predicted(corpus, shown)
    for whole, parts in _shares(texts, layout, rank, world):
        least = [NO_OUTLINE] * len(parts)
        if layout.few_shapes and len(parts) > 1:
            least = _outlines(corpus, per_text, parts, layout)
        batches = [_collate(corpus, shown, *part, layout, own) for part, own in zip(parts, least, strict=True)]
        yield batches, max(1, int(per_text[whole].sum()))


#: Sizes of a batch: rows, their length, that of targets, and places that the head computes: 0 where there are none, or
#: they are not known.
Outline = tuple[int, int, int, int]
NO_OUTLINE = (0, 0, 0, 0)
#: Texts of a micro-batch, and whether they count.
Part = tuple[torch.Tensor, bool]


def outlines(
    corpus: Corpus, shown: Labelled | None, texts: torch.Tensor, layout: Layout, rank: int = 0, world: int = 1
) -> Iterator[tuple[Outline, ...]]:
    """The sizes of each step's micro-batches, which are not laid out for that; arguments as of `steps`.

    Batches of equal outlines have tensors of equal shapes, and others have not: but for the head's places, which are
    not counted without `shown`, with a dense head, or of rows that will be scattered.
    """
    per_text = None if shown is None else _num_predicted(corpus, shown)
    for _, parts in _shares(texts, layout, rank, world):
        yield tuple(_outlines(corpus, per_text, parts, layout))


def _outlines(corpus: Corpus, per_text: torch.Tensor | None, parts: Sequence[Part], layout: Layout) -> list[Outline]:
    """Of the micro-batches of a step; see `Layout.few_shapes`."""
    found = []
    for texts, counted in parts:
        num_rows, length = _placed(corpus.lengths_of(texts), layout, layout.max_length)[2]
        target_length = num_chosen = 0
        if corpus.targets is not None:
            target_length = _placed(corpus.targets.lengths_of(texts), layout, layout.max_target_length)[2][1]
        if per_text is not None and layout.head == "masked" and layout.parts == 1:
            num_chosen = round_up(int(per_text[texts].sum()) * counted, CHOSEN_MULTIPLE)
        found.append((num_rows, length, target_length, num_chosen))
    if not layout.few_shapes:
        return found
    most_rows, *_, most_chosen = (max(sizes) for sizes in zip(*found, strict=True))
    # Padded rows are as they are: an empty one would see nothing.
    packed = layout.batching == "packed"
    return [(most_rows if packed else rows, length, target, most_chosen) for rows, length, target, _ in found]


def _num_predicted(corpus: Corpus, shown: Labelled) -> torch.Tensor:
    """Predicted tokens of each text, int64 [texts]."""
    predicted = _offsets((shown.labels != IGNORED).long())
    offsets = corpus.written.offsets
    return predicted[offsets[1:]] - predicted[offsets[:-1]]


def _shares(texts: torch.Tensor, layout: Layout, rank: int, world: int) -> Iterator[tuple[torch.Tensor, list[Part]]]:
    """The texts of each step, and the micro-batches of a rank."""
    for whole in torch.split(texts, layout.size):
        num_micro = math.ceil(math.ceil(len(whole) / world) / layout.micro) if layout.micro else 1
        parts = whole[rank::world].tensor_split(num_micro)
        # A rank without a text computes on one that does not count: the others wait for its gradients.
        yield whole, [(part, True) if len(part) else (whole[:1], False) for part in parts]


def _placed(
    lengths: torch.Tensor, layout: Layout, max_length: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Row and first column of texts of these lengths, int64 [texts] each, and the shape of the rows."""
    if layout.batching == "packed":
        row, column = pack(lengths, max_length)
        num_rows = int(row.max()) + 1
        return row, column, (round_up(num_rows) if layout.few_shapes else num_rows, max_length)
    longest = max_length if layout.batching == "fixed" else int(lengths.max())
    return torch.arange(len(lengths)), torch.zeros_like(lengths), (len(lengths), longest)


class _Rows:
    """Where the tokens of some texts stand in rows: one text each, padded, or several, packed."""

    def __init__(
        self, corpus: Corpus, texts: torch.Tensor, layout: Layout, max_length: int, least_rows: int = 0
    ) -> None:
        self.lengths = corpus.lengths_of(texts)
        row, column, (num_rows, length) = _placed(self.lengths, layout, max_length)
        self.shape = (max(num_rows, least_rows), length)
        # Of each token: which of the texts and where in it; its place in the corpus, and in the flattened rows.
        self.text, self.position = _places(self.lengths)
        self.source = corpus.offsets[texts][self.text] + self.position
        self.target = (row * self.shape[1] + column)[self.text] + self.position

    def fill(self, values: torch.Tensor, filler: int) -> torch.Tensor:
        """[tokens] to rows, [rows, length]."""
        return torch.full((self.shape[0] * self.shape[1],), filler).index_put_((self.target,), values).view(self.shape)


def _collate(
    corpus: Corpus, shown: Labelled, texts: torch.Tensor, counted: bool, layout: Layout, least: Outline
) -> Batch:
    """Lay out a micro-batch, with rows and places of the head as many as its outline says, or more."""
    rows = _Rows(corpus, texts, layout, layout.max_length, least[0])
    written = rows if corpus.targets is None else _Rows(corpus.targets, texts, layout, layout.max_target_length)
    labels = written.fill(shown.labels[written.source], IGNORED) if counted else torch.full(written.shape, IGNORED)
    num_predicted = int((labels != IGNORED).sum())
    chosen, answers = _choose(labels, layout.parts, least[3]) if layout.head == "masked" else (None, labels)
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
        position_ids=rows.fill(rows.position, 0) if layout.batching == "packed" else None,
        answers=answers,
        chosen=chosen,
        target_ids=None if corpus.targets is None else written.fill(corpus.targets.ids[written.source], corpus.pad_id),
        counts={name: counts.get(name, 0) for name in COUNTED},
    )


def _choose(labels: torch.Tensor, parts: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted places of flattened rows and their answers, filled up to few different lengths."""
    if parts > 1:
        return _choose_in_parts(labels, parts)
    chosen = torch.nonzero(labels.flatten() != IGNORED).flatten()
    return _filled(labels, chosen, max(least, round_up(len(chosen), CHOSEN_MULTIPLE)))


def _choose_in_parts(labels: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for rows that DataParallel scatters, which cuts every tensor along its rows.

    Each part's places, counted in the part, stand in as many rows as the part has, [rows, width]: else every replica
    would have to look for them, and wait for its GPU to know how many there are.
    """
    shares = labels.chunk(parts)
    places = [torch.nonzero(share.flatten() != IGNORED).flatten() for share in shares]
    width = max(1, *(math.ceil(len(own) / len(share)) for own, share in zip(places, shares, strict=True)))
    filled = [_filled(share, own, len(share) * width) for own, share in zip(places, shares, strict=True)]
    chosen, answers = (torch.cat(tensors).view(-1, width) for tensors in zip(*filled, strict=True))
    return chosen, answers


def _filled(labels: torch.Tensor, chosen: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places and their answers, filled up to a number of them."""
    missing = number - len(chosen)
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
    texts = lengths.argsort(descending=True, stable=True)
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    num_rows = 0
    rows: list[int] = []
    columns: list[int] = []
    for size, left in sorted(collections.Counter(lengths.tolist()).items(), reverse=True):
        while left:
            room = next((room for room in range(size, capacity) if rows_by_room[room]), capacity)
            # While a row has room for another text of this size it stays the fullest one: it takes as many as go in.
            each = room // size if size else left
            wanted = -(-left // each)
            if room == capacity:
                taken, num_rows = list(range(num_rows, num_rows + wanted)), num_rows + wanted
            else:
                taken = rows_by_room[room][: -wanted - 1 : -1]
                del rows_by_room[room][-wanted:]
            placed = min(left, each * len(taken))
            rows += [row for row in taken for _ in range(each)][:placed]
            columns += ([capacity - room + size * i for i in range(each)] * len(taken))[:placed]
            rows_by_room[room - size * each] += taken[:-1]
            rows_by_room[room - size * (placed - each * (len(taken) - 1))].append(taken[-1])
            left -= placed
    row, column = torch.empty_like(lengths), torch.empty_like(lengths)
    row[texts], column[texts] = torch.tensor(rows), torch.tensor(columns)
    return row, column
