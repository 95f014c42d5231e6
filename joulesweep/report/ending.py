"""The answer of a sweep as lines for a terminal."""

from __future__ import annotations

from pathlib import Path

from joulesweep.analyse import tables
from joulesweep.analyse.studies import recommendation


def lines(folder: Path) -> list[str]:
    """A sentence per group of comparable configurations.

    Args:
        folder: of the sweep, or of its partial report.

    Raises:
        UserError: the tables cannot be read.
    """
    answers = recommendation.answers(tables.read(folder / "tables"))
    return [_sentence(answer) for answer in answers] or ["No run has finished: there is no answer yet."]


def _sentence(answer: recommendation.Answer) -> str:
    cost = "least measured energy" if answer.by == "energy_j" else "least time"
    group = f"{answer.panel}: use" if answer.panel else "Use"
    within = f"{answer.num_within} of {answer.num_cells} configurations within {recommendation.MARGIN:.0%} of the loss"
    return f"{group} {answer.chosen['name']}: {cost} of the {within}."
