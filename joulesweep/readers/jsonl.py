"""JSON lines, or one JSON array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from joulesweep.core.errors import UserError
from joulesweep.readers import OPTIONS, BadRowError, Fields, InputFile, Reader, Row, decoded, row


def read(file: InputFile, fields: Fields) -> list[Row]:
    """The rows of the objects of a file."""
    return objects(file, partial(row, fields=fields), fields.named)


READER = Reader(needs_field=True, options=OPTIONS, read=read)


def objects(file: InputFile, make: Callable[[dict[str, Any]], Row], fields: Sequence[str]) -> list[Row]:
    """The rows of a file of JSON lines (empty ones are skipped) or of one JSON array.

    Args:
        file: the file to read.
        make: turns an object into a row, or raises `BadRowError`.
        fields: names that an object may contain only once.

    Raises:
        UserError: the problem of the first bad line.
    """
    text = decoded(file)
    decoder = json.JSONDecoder(object_pairs_hook=partial(_object, fields=fields), parse_int=whole)
    if re.match(r"\s*\[", text):
        values = parsed(decoder, text, file.name)
        return [_made(value, make, f"{file.name}: row {number}") for number, value in enumerate(values)]
    lines = enumerate(text.split("\n"), 1)
    return [
        _made(parsed(decoder, line, file.name, number), make, f"{file.name}:{number}")
        for number, line in lines
        if line.strip()
    ]


def parsed(decoder: json.JSONDecoder, text: str, name: str, line: int = 1) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text that begins at a line of a file.

    Raises:
        UserError: it is not JSON; the message says where.
    """
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise UserError(f"{name}:{line}: corrupt JSON: {error.msg} at column {error.colno}") from None
    except BadRowError as error:
        raise UserError(f"{name}:{line}: {error}") from None
    except RecursionError:
        raise UserError(f"{name}:{line}: JSON nested too deep") from None


def whole(digits: str) -> int | float:
    """A whole number; infinity if it has more digits than Python parses."""
    return int(digits) if len(digits) < 4000 else float("inf")


def _made(value: object, make: Callable[[dict[str, Any]], Row], where: str) -> Row:
    try:
        if not isinstance(value, dict):
            raise BadRowError("not a JSON object")
        return make(value)
    except BadRowError as error:
        raise UserError(f"{where}: {error}") from None


def _object(pairs: list[tuple[str, Any]], fields: Sequence[str]) -> dict[str, Any]:
    """An object that has each of the fields at most once; `json` would silently keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next((field for field in fields if keys.count(field) > 1), None)
        if twice is not None:
            raise BadRowError(f"field {twice!r} is given twice")
    return values
