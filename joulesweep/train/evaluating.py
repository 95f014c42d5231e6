"""Carry out the spec's evaluations by the present weights, before and after the training, outside the measured window.

All ranks take their share of the texts, and have all scores afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from joulesweep.axes.task import TASKS
from joulesweep.core import late_imports
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import EvaluationItems, EvaluationScore, ItemScores
from joulesweep.core.spec import RunSpec
from joulesweep.nets.anatomy import num_positions, stacks
from joulesweep.nets.language_model import IGNORED
from joulesweep.readers import Row
from joulesweep.train import evaluations, labels, scoring
from joulesweep.train.corpus import Corpus, load, offsets_of, split
from joulesweep.train.evaluations import Metric, Question, Scores
from joulesweep.train.memory import Weights, load_weights
from joulesweep.train.seeds import generator
from joulesweep.train.trainer import RunEnded, Trainer

SIGNIFICANT = 7  # digits of an item's score that are kept


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What evaluations read.

    Attributes:
        model_folder: has the tokenizer.
        tokens: of the run's own texts; the file beside it describes the tokenizer.
        paths: for each entry of the spec's `evaluate` its items (JSON lines), or the tokens of its data set.
    """

    model_folder: Path
    tokens: Path
    paths: Sequence[Path]


@torch.no_grad()
def evaluate(trainer: Trainer, inputs: Inputs, weights: Weights | None = None) -> list[Scores]:
    """Score the items of every evaluation of the spec.

    Args:
        trainer: of the run.
        inputs: of its evaluations.
        weights: of this rank, which the module keeps afterwards; None for its present ones.

    Raises:
        RunEnded: a score is not finite, or an item is too long for the model.
        UserError: what an evaluation reads is missing or corrupt.
    """
    if not trainer.spec.evaluate:
        return []
    if weights is not None:
        load_weights(trainer.core, weights)
    trainer.core.eval()
    tokenizer = late_imports.transformers().AutoTokenizer.from_pretrained(inputs.model_folder, local_files_only=True)
    about = json.loads(inputs.tokens.with_suffix(".json").read_text(encoding="utf-8"))
    every = []
    for entry, path in zip(trainer.spec.evaluate, inputs.paths, strict=True):
        name, values = str(entry["name"]), {key: value for key, value in entry.items() if key not in OWN}
        module = evaluations.load(name)
        reader = _Reader(trainer, evaluations.label(entry), dict(entry), path, tokenizer, about)
        params = evaluations.parameters(name, values)
        every.append(module.scores(reader, params))
        if not all(math.isfinite(value) for values in every[-1].by_name.values() for value in values):
            raise RunEnded("diverged", f"evaluation {reader.label}: a score was not finite")
    return every


#: Keys of an entry of the spec's `evaluate` that are no parameters.
OWN = ("name", "source")


class _Reader:
    """The model and the inputs of one evaluation: an `evaluations.Reader`."""

    def __init__(
        self,
        trainer: Trainer,
        label: str,
        entry: dict[str, object],
        path: Path,
        tokenizer: Any,  # noqa: ANN401 - transformers has no type that fits all
        about: dict[str, Any],
    ) -> None:
        self.task, self.label = trainer.spec.task, label
        self._trainer, self._tokenizer, self._path = trainer, tokenizer, path
        self._source: Any = entry["source"]
        is_items = evaluations.load(str(entry["name"])).FORMAT is not None
        self.items: list[Row] = _items(path) if is_items else []
        begin = about["prefix"] or [i for i in (about.get("bos_id"),) if i is not None]
        self.around = (about["prefix"] if TASKS[self.task].hides else begin, about["suffix"])

    @property
    def mask(self) -> tuple[str, int]:
        """See `evaluations.Reader`, like the methods below."""
        return self._tokenizer.mask_token, self._tokenizer.mask_token_id

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def log_likelihoods(self, questions: Sequence[Question]) -> list[float]:
        lengths = torch.tensor([len(question.ids) for question in questions])
        self._check_length(int(lengths.max()))
        own = self._trainer.corpus
        corpus = Corpus(
            ids=torch.tensor([i for question in questions for i in question.ids]),
            offsets=offsets_of(lengths),
            learned=torch.zeros(int(lengths.sum()), dtype=torch.bool),
            group=torch.arange(len(questions)),
            mask_id=own.mask_id,
            pad_id=own.pad_id,
            vocab_size=own.vocab_size,
        )
        answers = torch.full_like(corpus.ids, IGNORED)
        begins = corpus.offsets.tolist()
        later = 1 if TASKS[self.task].causal else 0  # a decoder predicts a token at the position before it
        places = [
            begin + place - later
            for begin, question in zip(begins, questions, strict=False)
            for place in question.answers
        ]
        answers[places] = torch.tensor([token for question in questions for token in question.answers.values()])
        shown = labels.MaskedInputs(inputs=corpus.ids, labels=answers)
        losses, _ = scoring.text_losses(self._trainer, corpus, shown, corpus.group)
        return (-losses).tolist()

    def _check_length(self, length: int) -> None:
        most = num_positions(stacks(self._trainer.core.model)[0][0])
        if most is not None and length > most:
            reason = f"an item has {length} tokens, more than the {most} positions of this model"
            raise RunEnded("unsupported", f"evaluation {self.label}: {reason}")

    def text_losses(self, num_texts: int) -> tuple[list[float], list[float]]:
        spec, seed = self._trainer.spec, int(self._source.get("split_seed", 0))
        start_id = self._trainer.corpus.start_id if TASKS[spec.task].encoder_decoder else None
        corpus = load(self._path, spec.max_length, spec.task, spec.max_target_length, start_id)
        kind, fraction = self._source.get("split", "random"), float(self._source.get("validation_fraction", 0.2))
        _, texts = split(corpus, kind, fraction, seed)
        drawn = texts[torch.randperm(len(texts), generator=generator("held-out", seed))][:num_texts].sort().values
        self._check_length(int(corpus.lengths[drawn].max()) if len(drawn) else 0)
        shown = labels.labelled(corpus, spec.task, spec.mask_probability, "validation", seed)
        losses, counts = scoring.text_losses(self._trainer, corpus, shown, drawn)
        if not counts.sum():
            raise UserError(f"evaluation {self.label}: the held-out texts have no token to predict; use more texts")
        return losses[drawn].tolist(), counts[drawn].tolist()


def _items(path: Path) -> list[Row]:
    """Return the items that `scripts.fetch_dataset` wrote."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; expected the items of an evaluation; fetch them again") from None


def compared(
    spec: RunSpec, before: Sequence[Scores], after: Sequence[Scores]
) -> tuple[list[EvaluationScore], list[EvaluationItems]]:
    """Put the scores before and after the training side by side: metrics, and scores of single items.

    Args:
        spec: the run's inputs.
        before: from `evaluate`, of the untrained model.
        after: of the trained model.
    """
    scores: list[EvaluationScore] = []
    items: list[EvaluationItems] = []
    for entry, first, last in zip(spec.evaluate, before, after, strict=True):
        label, module = evaluations.label(entry), evaluations.load(str(entry["name"]))
        pairs = zip(module.metrics(first), module.metrics(last), strict=True)
        scores += [_score(label, one, other) for one, other in pairs]
        of_items = [
            ItemScores(score=name, before=_kept(values), after=_kept(last.by_name[name]))
            for name, values in first.by_name.items()
        ]
        items.append(EvaluationItems(evaluation=label, categories=first.categories, scores=of_items))
    return scores, items


def _score(label: str, before: Metric, after: Metric) -> EvaluationScore:
    return EvaluationScore(
        evaluation=label,
        category=after.category,
        metric=after.name,
        before=before.value,
        after=after.value,
        n=after.n,
    )


def _kept(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{SIGNIFICANT}g}") for value in values]
