"""Read the scores of the items of a run's evaluations, from its `evaluations.jsonl`, into one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from joulesweep.analyse.columns import EVALUATION_ITEMS
from joulesweep.analyse.tables import DTYPES, LARGEST
from joulesweep.core.errors import Corrupt
from joulesweep.core.files import MALFORMED
from joulesweep.core.outcome import EvaluationItems, read_items
from joulesweep.runs.record import ITEMS

SCHEMA = {name: DTYPES[column.dtype] for name, column in EVALUATION_ITEMS.items()}


def tabulate(of_runs: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Build the table of all runs, from what `read` returns of each."""
    return pl.concat([nothing(), *(frame for frame in of_runs if frame.height)], rechunk=True)


def nothing() -> pl.DataFrame:
    """A table without rows."""
    return pl.DataFrame(schema=SCHEMA)


def read(folder: Path) -> pl.DataFrame:
    """Read the items of a run: a row per score and item; no rows if it has no evaluations.

    Args:
        folder: of the run.

    Raises:
        Corrupt: a line is corrupt; the message names file and line.
    """
    path = folder / ITEMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return nothing()
    except (OSError, UnicodeDecodeError) as error:
        raise Corrupt(path, f"corrupt scores of items: {error}") from None
    parts = [nothing()]
    for number, line in enumerate(lines, 1):
        try:
            evaluated = read_items(json.loads(line))
            parts += [_frame(folder.name, evaluated, score) for score in range(len(evaluated.scores))]
        except (*MALFORMED, pl.exceptions.PolarsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Corrupt(path, f"line {number}: corrupt scores of items: {reason}") from None
    return pl.concat(parts)


def _frame(run: str, evaluated: EvaluationItems, number: int) -> pl.DataFrame:
    """The rows of one score of all items.

    Raises:
        ValueError: a number is none, or lists have different lengths.
    """
    score, num_items = evaluated.scores[number], len(evaluated.categories)
    for values in (score.before, score.after):
        if len(values) != num_items or not all(
            type(value) in (int, float) and abs(value) <= LARGEST for value in values
        ):
            raise ValueError(f"{score.score} needs a number for each of {num_items} items")
    return pl.DataFrame(
        {
            "run": [run] * num_items,
            "evaluation": [evaluated.evaluation] * num_items,
            "item": list(range(num_items)),
            "category": evaluated.categories,
            "score": [score.score] * num_items,
            "before": score.before,
            "after": score.after,
        },
        schema=SCHEMA,
        strict=False,
    )
