"""Labels of a task (masked tokens, next tokens, targets) and the order of the texts, by seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from joulesweep.axes.task import TASKS
from joulesweep.nets.language_model import IGNORED
from joulesweep.train.corpus import Corpus
from joulesweep.train.seeds import generator


@dataclass(frozen=True, kw_only=True)
class MaskedInputs:
    """Inputs and labels of a corpus.

    Attributes:
        inputs: int64 [tokens], tokens that the model reads.
        labels: int64 [tokens], for an encoder-decoder [tokens of the targets]: the token to predict at each position,
            or `IGNORED`.
    """

    inputs: torch.Tensor
    labels: torch.Tensor


def labelled(corpus: Corpus, task: str, probability: float, *key: str | int) -> MaskedInputs:
    """Return inputs and labels of a task; in masked language modelling, the key (seed and epoch) fixes the mask."""
    if TASKS[task].hides:
        return mask(corpus, probability, *key)
    written = corpus.written
    labels = written.ids.masked_fill(~written.learned, IGNORED)
    if TASKS[task].causal:
        labels = labels.roll(-1)
        labels[corpus.offsets[1:] - 1] = IGNORED  # the next token is of another text
    return MaskedInputs(inputs=corpus.ids, labels=labels)


def mask(corpus: Corpus, probability: float, *key: str | int) -> MaskedInputs:
    """Hide tokens of every text: 80 % as the mask token, 10 % as a random token, 10 % as themselves.

    The shares are BERT's (Devlin et al. 2019, arXiv 1810.04805, section 3.1). The key (seed and epoch) fixes the mask.
    """
    draw = generator("mask", *key)
    size = corpus.ids.shape
    chosen = (torch.rand(size, generator=draw) < probability) & corpus.learned
    fate = torch.rand(size, generator=draw)
    other = torch.randint(corpus.vocab_size, size, generator=draw)
    inputs = corpus.ids.clone()
    inputs[chosen & (fate < 0.8)] = corpus.mask_id  # type: ignore[assignment] # `load` checks that there is one
    swapped = chosen & (fate >= 0.9) & (other != corpus.pad_id)  # RoBERTa skips padding tokens when it counts positions
    inputs[swapped] = other[swapped]
    return MaskedInputs(inputs=inputs, labels=corpus.ids.masked_fill(~chosen, IGNORED))


def order(indices: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Return the training texts in the order of an epoch."""
    return indices[torch.randperm(len(indices), generator=generator("order", seed, epoch))]
