"""Check the rows of a sweep's tables, and write and read the tables.

A missing value is null, never 0 or NaN. A column has the same dtype in every sweep. Estimated joules have columns of
their own. `columns` has a row for each column.
"""

from __future__ import annotations

import functools
import io
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from joulesweep.analyse.columns import ABOUT, FLAG, REAL, TABLES, TEXT, TEXTS, WHOLE, Column, Table
from joulesweep.core.errors import UserError, brief_repr, one_of

LARGEST = 1e300  # of all numbers, so that results computed from them are finite too
#: Numbers whose names end like this cannot be negative.
COUNTS = ("_s", "_j", "_w", "_bytes", "_flops", "_macs", "loss", "perplexity", "accuracy")
DTYPES: dict[str, pl.DataType] = {
    TEXT: pl.String(),
    WHOLE: pl.Int64(),
    REAL: pl.Float64(),
    FLAG: pl.Boolean(),
    TEXTS: pl.List(pl.String()),
}
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    TEXT: (str,),
    WHOLE: (int,),
    REAL: (int, float),
    FLAG: (bool,),
    TEXTS: (list,),
}
Row = dict[str, Any]  # a row of a table or a part of one: values by column
DESCRIPTION = "joulesweep"  # key of the column descriptions in a parquet file's metadata


class ColumnError(Exception):
    """A row does not fit the columns of its table: a bug in the code, whatever the input."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a sweep. `columns.ABOUT` describes the rows of each, `columns.TABLES` its columns."""

    runs: pl.DataFrame
    cells: pl.DataFrame
    epochs: pl.DataFrame
    selections: pl.DataFrame
    devices: pl.DataFrame
    power: pl.DataFrame
    anchors: pl.DataFrame
    effects: pl.DataFrame
    attempts: pl.DataFrame
    evaluations: pl.DataFrame
    evaluation_items: pl.DataFrame


NAMES = tuple(field.name for field in fields(Tables))


def write(tables: Tables, folder: Path) -> None:
    """Write every table as `<name>.parquet`, atomically; equal tables give equal bytes.

    The file's metadata describe its columns: `described` reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        buffer = io.BytesIO()
        getattr(tables, name).write_parquet(buffer, metadata={DESCRIPTION: _description(name)})
        temporary = folder / f".{name}.parquet.{os.getpid()}"
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(folder / f"{name}.parquet")


def _description(name: str) -> str:
    columns = {
        column.name: {"unit": column.unit, "about": column.about, "null": column.null}
        for column in TABLES[name].values()
    }
    return json.dumps({"about": ABOUT[name], "columns": columns}, ensure_ascii=False)


def described(path: Path) -> Table:
    """The columns of a parquet file, from its metadata.

    Args:
        path: of a file that `write` wrote.

    Raises:
        UserError: the file cannot be read, or does not describe its columns.
    """
    try:
        dtypes, metadata = pl.read_parquet_schema(path), pl.read_parquet_metadata(path)
        columns = json.loads(metadata[DESCRIPTION])["columns"]
        return {name: Column(name, str(dtype), **columns[name]) for name, dtype in dtypes.items()}
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: no table of a sweep: {str(error).splitlines()[0]}") from None
    except LookupError:
        raise UserError(f"{path}: its columns are not described: run the sweep's analysis again") from None


def read(folder: Path) -> Tables:
    """Read back what `write` wrote.

    Raises:
        UserError: a table is missing, is not a parquet file, or lacks a column.
    """
    frames = {}
    for name in NAMES:
        path = folder / f"{name}.parquet"
        try:
            frames[name] = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{path}: no table of a sweep: {str(error).splitlines()[0]}") from None
        if lacking := [key for key in TABLES[name] if key not in frames[name].columns]:
            raise UserError(f"{path}: of another version, without {', '.join(lacking[:3])}: run the analysis again")
    return Tables(**frames)


def combined(table: Table, *parts: Row) -> Row:
    """Merge parts with different columns into one row of a table, or a part of one.

    Raises:
        ColumnError: a part names an unknown column, or two parts name the same one.
    """
    row: Row = {}
    for part in parts:
        number = len(row) + len(part)
        row.update(part)
        if len(row) < number:
            names = [key for part in parts for key in part]
            raise ColumnError(f"column {next(key for key in names if names.count(key) > 1)} is filled twice")
    _known(row, table)
    return row


def _known(part: Row, table: Table) -> None:
    """Refuse a part of a row that names an unknown column.

    Raises:
        ColumnError: it does.
    """
    if not part.keys() <= table.keys():
        raise ColumnError(one_of("column", next(key for key in part if key not in table), table))


def check(row: Row, table: Table) -> Row:
    """Return a row of a table unchanged if its values fit.

    Raises:
        ColumnError: the row names an unknown column.
        TypeError: a value has the wrong type.
        ValueError: a number is impossible: NaN, beyond `LARGEST`, or negative where it counts something.
    """
    _known(row, table)
    for key, value in row.items():
        if value is None:
            continue
        dtype = table[key].dtype
        types, smallest, largest = _limits(key, dtype)
        if type(value) not in types:
            raise TypeError(f"{key} is {brief_repr(value)}")
        if dtype == TEXT:
            value.encode()  # raises on half a surrogate pair
        elif dtype == TEXTS:
            if not all(isinstance(text, str) for text in value):
                raise TypeError(f"{key} is {brief_repr(value)}")
        elif not smallest <= value <= largest:  # as NaN is not
            raise ValueError(f"{key} is {brief_repr(value)}")
    return row


@functools.cache
def _limits(key: str, dtype: str) -> tuple[tuple[type, ...], float, float]:
    """Python's types of a column's values, and the smallest and the largest that a quantity of this name can have."""
    largest = LARGEST if dtype == REAL else 2**63 - 1
    return PYTHON_TYPES[dtype], 0 if key.endswith(COUNTS) or key.startswith("num_") else -largest, largest


def frame(rows: list[Row], table: Table) -> pl.DataFrame:
    """Build a table with all its columns; a column that a row lacks is null.

    Raises:
        ColumnError: a row names an unknown column, or lacks one that always has a value.
    """
    always = {column.name for column in table.values() if column.null is None}
    for row in rows:
        _known(row, table)
        if lacking := always - row.keys():
            raise ColumnError(f"nothing fills column {', '.join(sorted(lacking))}")
    dtypes = {key: DTYPES[column.dtype] for key, column in table.items()}
    return pl.DataFrame(rows, schema=dtypes, orient="row", strict=False) if rows else pl.DataFrame(schema=dtypes)
