"""Evaluations of a model before and after its training: one file per evaluation, loaded by its name.

An evaluation is a module `joulesweep/train/evaluations/<name>.py` (underscores for the hyphens of its name) with

* a docstring, whose first line says what it scores;
* `Params`: a frozen dataclass of its parameters (raise ValueError in `__post_init__` for a bad value), which has
  `source`, where its items come from, or `dataset`, a name under `datasets:`;
* `FORMAT`: the format of its items, a file of `joulesweep/readers`; None if it reads the tokens of a data set;
* `TASKS`: the tasks to which it applies;
* `FROM`: where to download the items, if it has a `source`;
* `scores(reader, params)`: the scores of every item by the present weights;
* `metrics(scores)`: the metrics that follow from them, by category.

`joulesweep.train.evaluating` calls it before and after the training, outside of the measured window. An evaluation
does not import torch at module level: a config is validated without it. No other file needs a change.
"""

# changes no number: how an evaluation is loaded; its file enters the digest itself
from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from joulesweep import methods
from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError, one_of
from joulesweep.readers import Row

ALL = "all"  # the category of every item


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text of which the model gives some tokens a likelihood.

    Attributes:
        ids: the tokens that it reads, special ones included.
        answers: the token to predict, by its position in `ids`: there in masked language modelling, where `ids` has
            the mask; after the tokens before it for a decoder.
    """

    ids: Sequence[int]
    answers: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model scores on every item of an evaluation.

    Attributes:
        categories: [items], of each item.
        about: [items], what each item is about; empty if that does not matter.
        by_name: [items] per score; those that `metrics` needs among them.
    """

    categories: list[str]
    about: list[str]
    by_name: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that follows from the scores of the items of a category; None where they cannot tell."""

    category: str
    name: str
    value: float | None
    n: int


class Reader(Protocol):
    """What an evaluation may ask of the model and of its inputs."""

    @property
    def task(self) -> str:
        """The task that the model learns."""

    @property
    def items(self) -> Sequence[Row]:
        """The items of the evaluation's `FORMAT`; empty without one."""

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that the model expects before and after a text."""

    @property
    def mask(self) -> tuple[str, int]:
        """The token that hides another one, as text and as its id."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without those around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens."""

    def log_likelihoods(self, questions: Sequence[Question]) -> list[float]:
        """Return the sum of the log-likelihoods of each question's answers, in nats."""

    def text_losses(self, num_texts: int) -> tuple[list[float], list[float]]:
        """Return the loss in nats of held-out texts of the evaluation's data set, and the predicted tokens of each.

        Args:
            num_texts: how many, at most.
        """


def hides(reader: Reader) -> bool:
    """Return whether the model fills in hidden tokens; a decoder predicts the next one instead."""
    return TASKS[reader.task].hides


def whole(reader: Reader, text: str) -> Question:
    """Return the question for all tokens of a text, by a decoder, after the one with which a text begins.

    Without such a token nothing predicts the first one of the text, which then does not count.
    """
    begin, ids = reader.around[0], reader.encode(text)
    return Question(ids=[*begin, *ids], answers=dict(list(enumerate([*begin, *ids]))[max(1, len(begin)) :]))


def names() -> list[str]:
    """Return the names of all evaluations, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def path(name: str) -> Path:
    """Return the file of an evaluation."""
    return Path(__file__).parent / f"{name.replace('-', '_')}.py"


def load(name: str) -> ModuleType:
    """Import one evaluation's module.

    Raises:
        UserError: it does not exist.
    """
    if name not in names():
        raise UserError(one_of("evaluation", name, names()))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def parameters(name: str, values: Mapping[str, object]) -> Any:  # noqa: ANN401 - each has its own dataclass
    """Build an evaluation's `Params` from a mapping.

    Raises:
        UserError: the evaluation or a parameter is unknown, or a value is missing or invalid.
    """
    return methods.built(f"evaluation {name}", load(name).Params, values)


def label(entry: Mapping[str, object]) -> str:
    """Return how tables name an entry of the spec's `evaluate`: with its data set if it reads one."""
    return f"{entry['name']}({entry['dataset']})" if "dataset" in entry else str(entry["name"])


def by_category(scores: Scores) -> dict[str, list[int]]:
    """Return the items of each category, all of them first."""
    places: dict[str, list[int]] = {ALL: list(range(len(scores.categories)))}
    for i, category in enumerate(scores.categories):
        places.setdefault(category, []).append(i)
    return places


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of no values."""
    return math.fsum(values) / len(values) if values else None
