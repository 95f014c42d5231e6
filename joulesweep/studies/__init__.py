"""Studies, questions that a sweep answers in one sentence: one file per study, found by its name.

A study is a module `joulesweep/studies/<name>.py` (underscores for the hyphens of its name) with

* a docstring, whose first line says what the study answers;
* `QUESTION`: the question, one sentence;
* `PROTOCOL`: what is varied, what is held, what is compared, and what counts as an answer;
* `SOURCE`: who asks it;
* `answer(tables, config)`: an `Answer`, from the tables of any sweep, finished or not.

Its sweep is `config/studies/<name>.yaml`, and `config/studies/<name>-small.yaml` on any machine in minutes. A config
names the studies that its report answers under `studies:`. No other file needs an edit.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from joulesweep.analyse.tables import Tables
from joulesweep.core.errors import UserError, one_of

Entry = str | tuple[str, str]  # a text, or a number with its interval or remark


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table below an answer.

    Attributes:
        title: what it shows.
        headings: each with the kind of its column: "" for numbers, "text", or "text wrap" for long texts.
        rows: an entry per heading; the first names the row.
    """

    title: str
    headings: Mapping[str, str]
    rows: Sequence[Sequence[Entry]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a study's question.

    Attributes:
        sentence: the answer with its numbers; or why there is none, and what it takes.
        answered: whether it is an answer.
        findings: what else the study shows, a sentence each.
        tables: the numbers behind it.
    """

    sentence: str
    answered: bool
    findings: Sequence[str] = ()
    tables: Sequence[Table] = ()


def names() -> list[str]:
    """The names of all studies, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """Import one study's module.

    Raises:
        UserError: the study does not exist.
    """
    if name not in names():
        raise UserError(one_of("study", name, names()))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def answers(tables: Tables, config: Mapping[str, Any]) -> dict[str, Answer]:
    """The answers to the studies that a config names, in its order.

    Args:
        tables: of the sweep.
        config: in its manifest.
    """
    return {name: load(name).answer(tables, config) for name in config.get("studies") or ()}
