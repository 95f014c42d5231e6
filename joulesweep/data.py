"""Token files to training batches: the split, the masks, the order, the padding.

Masks and order are functions of (seed, epoch) and of a text's place in the token file alone: not of the batch size,
the number of devices, the precision or the method. Runs of one seed therefore see the same words masked, and their
differences are paired.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from joulesweep.errors import UserError

IGNORED = -100  # the label of a position that is not predicted


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
    room = max_length - len(prefix) - len(suffix)
    bodies = [body[:room] for body in tensors["ids"].long().tensor_split(tensors["offsets"].long()[1:-1])]
    special = torch.zeros(1, dtype=torch.bool)
    texts = [torch.cat((prefix, body, suffix)) for body in bodies]
    maskable = [
        torch.cat((special.expand(len(prefix)), torch.ones(len(body), dtype=torch.bool), special.expand(len(suffix))))
        for body in bodies
    ]
    lengths = torch.tensor([0, *(len(text) for text in texts)])
    return Corpus(
        ids=torch.cat(texts),
        offsets=lengths.cumsum(0),
        maskable=torch.cat(maskable),
        group=tensors["group"].long(),
        mask_id=about["mask_id"],
        pad_id=about["pad_id"],
        vocab_size=about["vocab_size"],
    )


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
    swapped = chosen & (fate >= 0.9)
    inputs[swapped] = other[swapped]
    return Masked(inputs=inputs, labels=corpus.ids.masked_fill(~chosen, IGNORED))


def order(indices: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """The order in which an epoch takes the training texts."""
    return indices[torch.randperm(len(indices), generator=generator("order", seed, epoch))]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One device's share of a batch.

    Attributes:
        input_ids: int64 [texts, length].
        attention_mask: int64 [texts, length], 1 at real tokens.
        labels: int64 [texts, length], `IGNORED` where nothing is predicted.
        num_predicted: predicted tokens of the whole batch over all devices, at least 1: the loss is divided by it.
        num_texts: texts of this share.
        num_tokens: real tokens of this share.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    num_predicted: int
    num_texts: int
    num_tokens: int


def batches(
    corpus: Corpus, masked: Masked, texts: torch.Tensor, size: int, rank: int, world: int, fixed_length: int | None
) -> Iterator[Batch]:
    """Cut texts into batches and give each rank its share; the last batch may be smaller.

    Args:
        corpus: the texts.
        masked: the same with tokens hidden.
        texts: which texts, in which order, int64 [n].
        size: texts per batch over all ranks.
        rank: this process.
        world: number of processes.
        fixed_length: pad to this length, or None for the longest text of the share.
    """
    predicted = (masked.labels != IGNORED).long().cumsum(0)
    predicted = torch.cat((predicted.new_zeros(1), predicted))
    per_text = predicted[corpus.offsets[1:]] - predicted[corpus.offsets[:-1]]
    for whole in torch.split(texts, size):
        share = whole[rank::world]
        num_predicted = max(1, int(per_text[whole].sum()))
        yield _collate(corpus, masked, share, whole, num_predicted, fixed_length)


def _collate(
    corpus: Corpus, masked: Masked, share: torch.Tensor, whole: torch.Tensor, num_predicted: int, fixed: int | None
) -> Batch:
    rows = share if len(share) else whole[:1]  # a rank without a text computes on one that does not count
    starts, lengths = corpus.offsets[rows], corpus.lengths[rows]
    columns = torch.arange(fixed or int(lengths.max()))
    real = columns < lengths[:, None]
    at = (starts[:, None] + columns).where(real, starts[:, None])
    labels = masked.labels[at].masked_fill(~real, IGNORED)
    return Batch(
        input_ids=masked.inputs[at].masked_fill(~real, corpus.pad_id),
        attention_mask=real.long(),
        labels=labels if len(share) else torch.full_like(labels, IGNORED),
        num_predicted=num_predicted,
        num_texts=len(share),
        num_tokens=int(lengths.sum()) if len(share) else 0,
    )
