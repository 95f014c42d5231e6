"""Plain text, one per line."""

from __future__ import annotations

import io

from joulesweep.readers import Fields, InputFile, Reader, Row, decoded


def read(file: InputFile, _: Fields) -> list[Row]:
    """The lines of a file."""
    return [{"text": line.removesuffix("\n")} for line in io.StringIO(decoded(file), newline=None)]


READER = Reader(read=read)
