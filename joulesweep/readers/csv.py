"""CSV: delimited cells, with a header or without."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator

from joulesweep.core.errors import UserError, one_of
from joulesweep.readers import Fields, InputFile, Reader, Row, decoded, row


def read(file: InputFile, fields: Fields, delimiter: str = ",") -> list[Row]:
    """The rows of a file with delimited cells.

    Raises:
        UserError: it is not such a file, or a field is missing or occurs twice.
    """
    rows = _cells(file, delimiter, "header" if fields.header else "first row")
    header = next(rows, [])
    first = next(rows, None) if fields.header else header or None
    if first is None:
        return []
    header = header if fields.header else [str(number) for number in range(len(header))]
    for field in fields.named:
        if field not in header:
            raise UserError(f"{file.name}: {one_of('field', field, header)}")
        if header.count(field) > 1:
            raise UserError(f"{file.name}:1: two columns are named {field!r}")
    columns = {field: header.index(field) for field in fields.named}
    every = itertools.chain([first], rows)
    return [row({field: cells[at] for field, at in columns.items()}, fields) for cells in every]


READER = Reader(needs_field=True, options=("target",), headerless=True, read=read)


def _cells(file: InputFile, delimiter: str, first: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, which have as many cells as the first one; empty lines are skipped."""
    text = decoded(file)
    # A text may be longer than the module's limit of 128 KiB, which is global to the process: never lower it.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    num_cells = 0
    try:
        for cells in rows:
            num_cells = num_cells or len(cells)
            if cells and len(cells) != num_cells:
                raise UserError(f"{file.name}:{rows.line_num}: {len(cells)} cells, the {first} has {num_cells}")
            if cells:
                yield cells
    except csv.Error as error:
        raise UserError(f"{file.name}:{rows.line_num}: not CSV: {error}") from None
