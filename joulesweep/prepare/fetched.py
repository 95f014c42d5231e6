"""Read the texts of a fetched data set, one JSON object per line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from joulesweep.core.errors import UserError
from joulesweep.core.spec import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A row of a fetched data set.

    Attributes:
        text: the input.
        targets: reference outputs, the first of which is trained on; empty if the data set has no targets.
        choices: options of a multiple-choice set, else empty.
        answer: index of the right choice, or None.
    """

    text: str
    targets: list[str]
    choices: list[str]
    answer: int | None


def read_texts(path: Path) -> list[Text]:
    """Read the rows that `scripts.fetch_dataset` wrote.

    Raises:
        UserError: the file is missing or corrupt; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may contain U+2028
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a fetched data set") from None
    return [_text(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


# changes no number: references are the texts' own, and are compared in the analysis
def references(spec: RunSpec, path: Path) -> list[list[str]]:
    """Read the targets of each text, which a run's summaries are scored against; empty if the run writes none.

    Raises:
        UserError: as `read_texts`.
    """
    return [] if spec.generate is None else [row.targets for row in read_texts(path)]


def _text(line: str, where: str) -> Text:
    try:
        row = json.loads(line)
        targets, choices = ([str(item) for item in row.get(key, [])] for key in ("targets", "choices"))
        answer = int(row["answer"]) if choices else None
        return Text(text=str(row["text"]), targets=targets, choices=choices, answer=answer)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{where}: corrupt data set: expected {{"text": …}}; fetch it again') from None
