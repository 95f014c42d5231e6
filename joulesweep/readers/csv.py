"""CSV with a header."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence

from joulesweep.core.errors import UserError, one_of
from joulesweep.readers import Fields, InputFile, Reader, Row, decoded, row


def read(file: InputFile, fields: Fields, delimiter: str = ",") -> list[Row]:
    """The rows of a file with delimited cells.

    Raises:
        UserError: it is not such a file, or a field is missing or occurs twice.
    """
    return [row(values, fields) for values in columns(file, fields.named, delimiter)]


READER = Reader(needs_field=True, options=("target",), read=read)


def columns(file: InputFile, names: Sequence[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield some named cells of every row of a file with delimited cells.

    Raises:
        UserError: it is not such a file, or a column is missing or occurs twice.
    """
    rows = _cells(file, delimiter)
    header = next(rows, [])
    first = next(rows, None)
    if first is None:
        return
    for name in names:
        if name not in header:
            raise UserError(f"{file.name}: {one_of('field', name, header)}")
        if header.count(name) > 1:
            raise UserError(f"{file.name}:1: two columns are named {name!r}")
    places = {name: header.index(name) for name in names}
    for cells in itertools.chain([first], rows):
        yield {name: cells[at] for name, at in places.items()}


def _cells(file: InputFile, delimiter: str) -> Iterator[list[str]]:
    """Yield the header and the rows of a CSV file, which have equally many cells; empty lines are skipped."""
    text = decoded(file)
    # A text may be longer than the module's limit of 128 KiB, which is global to the process: never lower it.
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
