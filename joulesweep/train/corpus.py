"""Load the texts of a data set as tokens in one tensor, and split off those that are held out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError
from joulesweep.train.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts of one token file, cut to a length, special tokens in place.

    Attributes:
        ids: int64 [tokens], all texts one after another.
        offsets: int64 [texts + 1], where each text begins.
        learned: bool [tokens], whether a token may be predicted: in masked language modelling all tokens but special
            ones, around a text or inside (as for an unknown word); else a text with its end token, or only the target
            of a text that has one.
        group: int64 [texts], equal for equal texts.
        mask_id: the token that replaces a hidden one, or None.
        pad_id: the padding token.
        vocab_size: number of tokens in the vocabulary.
        targets: targets of an encoder-decoder, one per text; None with other tasks.
        start_id: the token with which generation begins.
        end_id: the token that ends generation, or None.
        prompts: int64 [texts], with task clm and targets: tokens of each text before its target; else None.
        choices: for multiple choice, every text with each of its choices, in order; else None.
        choice_text: int64 [choices], the text of each choice.
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
        """Return the numbers of tokens of some texts, int64, in the shape of `texts`."""
        return self.offsets[texts + 1] - self.offsets[texts]

    @property
    def written(self) -> Corpus:
        """The corpus whose tokens are predicted: the targets of an encoder-decoder, else the texts."""
        return self.targets or self


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Token ids of several texts, concatenated."""

    ids: torch.Tensor
    offsets: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        return self.offsets.diff()

    def take(self, texts: torch.Tensor) -> _Texts:
        """Select texts by index, with repetition."""
        return self._laid(self.offsets[texts], self.lengths[texts])

    def cut(self, length: int | torch.Tensor) -> _Texts:
        """Truncate texts to a length, the same for all or one for each."""
        most = torch.as_tensor(length).clamp(min=0)
        return self._laid(self.offsets[:-1], torch.minimum(self.lengths, most))

    def _laid(self, begins: torch.Tensor, lengths: torch.Tensor) -> _Texts:
        text, place = texts_and_positions(lengths)
        return _Texts(ids=self.ids[begins[text] + place], offsets=offsets_of(lengths))


def load(
    path: Path, max_length: int, task: str = "mlm", max_target_length: int = 64, start_id: int | None = None
) -> Corpus:
    """Read a token file written by `joulesweep.prepare.tokens`.

    Args:
        path: the `.safetensors` file; its description is the `.json` file beside it.
        max_length: tokens per text, special tokens included; longer texts are cut. With task clm it includes prompt
            and target, and the text between them is cut.
        task: a row of `axes.task.TASKS`.
        max_target_length: tokens per target, end token included.
        start_id: first token of an encoder-decoder's targets; None for the tokenizer's first token, or padding.

    Raises:
        UserError: the tokenizer lacks a token that the task needs, the texts have no targets, or prompt and special
            tokens alone exceed max_length.
    """
    about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    row = TASKS[task]
    for name in row.special_tokens:
        if about[f"{name}_id"] is None:
            raise UserError(f"{path}: the tokenizer has no {name} token, which task {task} needs; choose another model")
    about["start_id"] = next((i for i in (start_id, about.get("bos_id")) if i is not None), None)
    tensors = {name: tensor.long() for name, tensor in load_file(path).items()}
    if row.encoder_decoder and "target_ids" not in tensors:
        raise UserError(f"{path}: the texts have no targets, which task {task} needs; choose another data set or task")

    def texts(name: str) -> _Texts | None:
        return _Texts(ids=tensors[f"{name}ids"], offsets=tensors[f"{name}offsets"]) if f"{name}ids" in tensors else None

    bodies, choices = texts(""), texts("choice_")
    assert bodies is not None
    max_lengths = max_length, max_target_length
    corpus = _corpus(about, task, max_lengths, bodies, texts("target_"), tensors["group"])
    if row.hides or choices is None:
        return corpus
    text = tensors["choice_text"]
    with_choices = _corpus(about, task, max_lengths, bodies.take(text), choices, tensors["group"][text])
    return replace(corpus, choices=with_choices, choice_text=text, answer=tensors["answer"])


def _corpus(
    about: dict[str, Any],
    task: str,
    max_lengths: tuple[int, int],
    bodies: _Texts,
    targets: _Texts | None,
    group: torch.Tensor,
) -> Corpus:
    """Build the corpus that the model reads, with the targets that it writes."""
    prefix, suffix = about["prefix"], about["suffix"]
    before, after = about.get("prompt_before", []), about.get("prompt_after", [])
    end = about.get("eos_id")
    pad = next(i for i in (about["pad_id"], end, 0) if i is not None)
    start = pad if about["start_id"] is None else about["start_id"]
    # The tokenizer's end token is added once, at the very end.
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

    if TASKS[task].hides:
        corpus = joined([prefix, bodies, suffix], max_lengths[0], learned=(1,))
        special = torch.tensor(about.get("special_ids", []), dtype=torch.int64)
        return replace(corpus, learned=corpus.learned & ~torch.isin(corpus.ids, special))
    if TASKS[task].causal and targets is None:
        return joined([prefix, bodies, ending], max_lengths[0], learned=(1, 2))
    assert targets is not None
    if TASKS[task].causal:
        room = max_lengths[0] - len(prefix + before + after + ending)
        answers = targets.cut(min(max_lengths[1] - len(ending), room))
        corpus = joined([prefix + before, bodies, after, answers, ending], max_lengths[0], learned=(3, 4))
        return replace(corpus, prompts=corpus.lengths - offsets_of(corpus.learned.long())[corpus.offsets].diff())
    opening = [] if prefix == [start] else prefix  # the start token is not repeated
    written = joined([opening, targets, ending], max_lengths[1], learned=(0, 1, 2))
    return replace(joined([prefix + before, bodies, after + suffix], max_lengths[0]), targets=written)


def _joined(
    parts: list[list[int] | _Texts], max_length: int, learned: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Join parts into texts, and cut the first part that differs between texts to fit max_length tokens.

    Args:
        parts: ids that are the same in every text, or a part per text.
        max_length: of the joined text.
        learned: indices of the parts that are learned.

    Returns:
        ids, offsets and learned, as in `Corpus`.
    """
    num_texts = next(len(part.lengths) for part in parts if isinstance(part, _Texts))
    texts = [part if isinstance(part, _Texts) else _repeated(part, num_texts) for part in parts]
    place_of_cut = next(i for i, part in enumerate(parts) if isinstance(part, _Texts))
    rest = torch.stack([part.lengths for i, part in enumerate(texts) if i != place_of_cut]).sum(0)
    texts[place_of_cut] = texts[place_of_cut].cut(max_length - rest)
    offsets = offsets_of(torch.stack([part.lengths for part in texts]).sum(0))
    ids, is_learned = torch.empty(int(offsets[-1]), dtype=torch.int64), torch.zeros(int(offsets[-1]), dtype=torch.bool)
    begins = offsets[:-1].clone()
    for i, part in enumerate(texts):
        text, place = texts_and_positions(part.lengths)
        ids[begins[text] + place] = part.ids
        is_learned[begins[text] + place] = i in learned
        begins += part.lengths
    return ids, offsets, is_learned


def _repeated(ids: list[int], num_texts: int) -> _Texts:
    same = torch.tensor(ids, dtype=torch.int64).repeat(num_texts)
    return _Texts(ids=same, offsets=torch.arange(num_texts + 1) * len(ids))


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """Return where each text begins in the concatenation of all, and where it ends: int64 [texts + 1]."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def texts_and_positions(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every token of concatenated texts of these lengths, its text and its position in the text."""
    text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return text, torch.arange(len(text)) - (lengths.cumsum(0) - lengths)[text]


def split(corpus: Corpus, kind: str, validation_fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the texts into training and validation.

    Args:
        corpus: the texts.
        kind: "random" draws single texts; "unique" draws distinct texts, so that all copies are on the same side.
        validation_fraction: share of the texts (or of the distinct texts) held out.
        seed: for the random draw.

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
