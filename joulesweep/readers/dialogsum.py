"""DialogSum as published: dialogues, each with one summary, or three in the test file."""

from __future__ import annotations

from typing import Any

from joulesweep.readers import Fields, InputFile, Reader, Row, checked, is_text, with_targets
from joulesweep.readers.jsonl import objects

SUMMARIES = ("summary1", "summary2", "summary3")  # of the test file


def read(file: InputFile, _: Fields) -> list[Row]:
    """The rows of the lines `{"dialogue": …, "summary": …, …}`; the test file has summary1 to summary3."""
    return objects(file, _row, ["dialogue", "summary", *SUMMARIES])


def _row(values: dict[str, Any]) -> Row:
    names = SUMMARIES if SUMMARIES[0] in values else ("summary",)
    text, *targets = (checked(values, name, "text", is_text) for name in ("dialogue", *names))
    return with_targets(text, targets)


READER = Reader(has_targets=True, read=read)
