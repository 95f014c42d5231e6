"""CSV with a header."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator

from joulesweep.errors import UserError, one_of
from joulesweep.readers import Fields, InputFile, Reader, Row, decoded, row


def read(file: InputFile, fields: Fields, delimiter: str = ",") -> list[Row]:
    """The rows of a file whose cells the delimiter separates.

    Raises:
        UserError: it is no such file, or has not each field once.
    """
    rows = _cells(file, delimiter)
    header = next(rows, [])
    first = next(rows, None)
    if first is None:
        return []
    for field in fields.named:
        if field not in header:
            raise UserError(f"{file.name}: {one_of('field', field, header)}")
        if header.count(field) > 1:
            raise UserError(f"{file.name}:1: two columns are named {field!r}")
    columns = {field: header.index(field) for field in fields.named}
    every = itertools.chain([first], rows)
    return [row({field: cells[at] for field, at in columns.items()}, fields) for cells in every]


READER = Reader(needs_field=True, options=("target",), read=read)


def _cells(file: InputFile, delimiter: str) -> Iterator[list[str]]:
    """The header and the rows of a CSV file, all of as many cells; lines without any character do not count."""
    text = decoded(file)
    # A text may be longer than the 128 KiB that the module allows; the limit is the process's, so it only ever grows.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    num_cells = 0
    try:
        for cells in rows:
            num_cells = num_cells or len(cells)
            if cells and len(cells) != num_cells:
                raise UserError(f"{file.name}:{rows.line_num}: {len(cells)} cells, the header has {num_cells}")
            if cells:
                yield cells
    except csv.Error as error:
        raise UserError(f"{file.name}:{rows.line_num}: not CSV: {error}") from None
