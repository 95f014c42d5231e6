"""Every table as CSV, and the dictionary of their columns as CSV and as Markdown.

In a CSV file a missing value is empty, a text that is empty is `""`, true and false are words, and a list is JSON.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import polars as pl

from joulesweep.analyse.columns import ABOUT, FLAG, REAL, TABLES, TEXT, TEXTS, WHOLE, Column
from joulesweep.report.exports import COMPRESSED
from joulesweep.report.results import Results

#: The dtype in pandas that keeps a column's values, missing ones included; a list is text that is JSON.
PANDAS = {TEXT: "string", WHOLE: "Int64", REAL: "Float64", FLAG: "boolean", TEXTS: "string"}


def contents(results: Results) -> dict[str, str | bytes]:
    """The files of `FILES`: the dictionary, and a file per table."""
    dictionary = pl.DataFrame(list(_dictionary()))
    made: dict[str, str | bytes] = {"columns.csv": csv_text(dictionary), "columns.md": _markdown()}
    for name in TABLES:
        table = getattr(results.tables, name)
        if name in COMPRESSED:
            made[f"tables/{name}.csv.gz"] = _compressed(table)
        else:
            made[f"tables/{name}.csv"] = csv_text(table)
    return made


def _compressed(frame: pl.DataFrame) -> bytes:
    """A table without lists as compressed CSV, never whole in memory as text."""
    buffer = io.BytesIO()
    frame.write_csv(buffer, compression="gzip", compression_level=1)
    return buffer.getvalue()


def csv_text(frame: pl.DataFrame) -> str:
    """A table as CSV, with lists as JSON."""
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    texts = [pl.Series(name, map(_json, frame[name].to_list()), pl.String) for name in lists]
    buffer = io.BytesIO()
    frame.with_columns(texts).write_csv(buffer)
    return buffer.getvalue().decode()


def _json(values: list[str] | None) -> str | None:
    return None if values is None else json.dumps(values, ensure_ascii=False)


def _dictionary() -> Iterator[dict[str, str | None]]:
    """A row per table and column."""
    for name, table in TABLES.items():
        for column in table.values():
            yield {
                "table": name,
                "column": column.name,
                "dtype": column.dtype,
                "pandas": PANDAS[column.dtype],
                "unit": column.unit,
                "about": column.about,
                "null": column.null,
            }


def _markdown() -> str:
    """The dictionary as Markdown: a section per table."""
    parts = ["# Columns of the tables\n\nA missing value is null, never 0.\n"]
    for name, table in TABLES.items():
        head = "| column | dtype | unit | about | null |\n|---|---|---|---|---|\n"
        parts.append(f"## {name}\n\n{ABOUT[name]}\n\n{head}{''.join(map(_line, table.values()))}")
    return "\n".join(parts)


def _line(column: Column) -> str:
    entries = (f"`{column.name}`", column.dtype, column.unit or "", column.about, column.null or "never")
    return f"| {' | '.join(entry.replace('|', chr(92) + '|') for entry in entries)} |\n"
