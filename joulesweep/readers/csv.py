"""CSV: delimited cells, with a header or without."""

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
    return [row(values, fields) for values in columns(file, fields.named, delimiter, header=fields.header)]


READER = Reader(needs_field=True, options=("target",), headerless=True, read=read)


def names_in(file: InputFile) -> list[str]:
    """The names of the columns of a file with a header; none if it is empty."""
    return next(_cells(file, ",", "header"), [])


def columns(
    file: InputFile, names: Sequence[str], delimiter: str = ",", *, header: bool = True
) -> Iterator[dict[str, str]]:
    """Yield some named cells of every row of a file with delimited cells.

    Args:
        file: the file.
        names: of the columns, from the first line; without a header, their numbers from 0.
        delimiter: between cells.
        header: whether the first line names the columns.

    Raises:
        UserError: it is not such a file, or a column is missing or occurs twice.
    """
    rows = _cells(file, delimiter, "header" if header else "first row")
    top = next(rows, [])
    first = next(rows, None) if header else top or None
    if first is None:
        return
    known = top if header else [str(number) for number in range(len(top))]
    for name in names:
        if name not in known:
            raise UserError(f"{file.name}: {one_of('field', name, known)}")
        if known.count(name) > 1:
            raise UserError(f"{file.name}:1: two columns are named {name!r}")
    places = {name: known.index(name) for name in names}
    for cells in itertools.chain([first], rows):
        yield {name: cells[at] for name, at in places.items()}


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
