"""What a model is to predict: masked tokens, targets, and the order of the texts, by seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from joulesweep.axes.task import TASKS
from joulesweep.nets.language_model import IGNORED
from joulesweep.train.corpus import Corpus
from joulesweep.train.seeds import generator


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
    if TASKS[task].hides:
        return mask(corpus, probability, *key)
    written = corpus.written
    labels = written.ids.masked_fill(~written.learned, IGNORED)
    if TASKS[task].causal:
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
