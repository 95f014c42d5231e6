"""SciTLDR as published: abstracts, each with one or several summaries."""

from __future__ import annotations

from typing import Any

from joulesweep.readers import Fields, InputFile, Reader, Row, are_texts, checked, with_targets
from joulesweep.readers.jsonl import objects


def read(file: InputFile, _: Fields) -> list[Row]:
    """The rows of the lines `{"source": [sentences], "target": [summaries], …}`."""
    return objects(file, _row, ["source", "target"])


def _row(values: dict[str, Any]) -> Row:
    source, target = (checked(values, name, "a list of texts", are_texts) for name in ("source", "target"))
    return with_targets(" ".join(source), target)


READER = Reader(has_targets=True, read=read)
