"""A data set of the Hugging Face hub.

`datasets` locates the files of each split, and reads typed ones (Parquet, Arrow). CSV and JSON files are read like
local files, so that a file yields the same texts from either source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from joulesweep.core.errors import UserError, one_of
from joulesweep.readers import OPTIONS, BadRowError, Fields, InputFile, Reader, Row, Snapshot, row
from joulesweep.readers import csv as csv_reader
from joulesweep.readers import jsonl as jsonl_reader

PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4")
#: Options of `datasets` that do not change how a file is read here.
HARMLESS = ("name", "version", "data_dir", "data_files", "description", "sep", "delimiter")


def read_snapshot(snapshot: Snapshot, fields: Fields) -> list[Row]:
    """The rows of the requested splits.

    Raises:
        UserError: there is no such subset, split or field, or a file cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    cache = str(snapshot.scratch / "datasets")
    try:
        builder = datasets.load_dataset_builder(str(snapshot.folder), snapshot.subset, cache_dir=cache)
    except Exception as error:  # errors of `datasets` and of the file formats
        raise UserError(f"{snapshot.name}: {' '.join(str(error).split())}") from error
    parts = (part.strip() for split in snapshot.splits for part in split.split("+"))
    return [row for part in parts for row in _part(snapshot, builder, part, fields)]


READER = Reader(needs_field=True, options=OPTIONS, read_snapshot=read_snapshot)


def _part(snapshot: Snapshot, builder: Any, part: str, fields: Fields) -> list[Row]:  # noqa: ANN401 - of datasets
    """The rows of a split, or of the part `train[:10%]` of one."""
    split = part.partition("[")[0]
    if split not in builder.config.data_files:
        raise UserError(f"{snapshot.name}: {one_of('split', split, map(str, builder.config.data_files))}")
    paths = [Path(path) for path in builder.config.data_files[split]]
    read = _own_reader(builder, paths)
    if read is None:
        where = f"{snapshot.name}: split {split}"
        rows = _rows(_load(builder, split, fields.named, where), fields, where)
    else:
        files = [InputFile(name=f"{snapshot.name}: {_below(path, snapshot.folder)}", path=path) for path in paths]
        rows = [row for file in files for row in read(file, fields)]
    return _sliced(rows, part, snapshot.name)


def _own_reader(builder: Any, paths: list[Path]) -> Callable[[InputFile, Fields], list[Row]] | None:  # noqa: ANN401
    """Our own reader for a split of a hub data set; None for files that are typed, compressed, or need options."""
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    usual = type(builder.config)()
    if any(value != getattr(usual, key) for key, value in vars(builder.config).items() if key not in HARMLESS):
        return None
    if any(path.suffix in PACKED for path in paths):
        return None
    if isinstance(builder, Csv):
        return partial(csv_reader.read, delimiter=builder.config.sep)
    return jsonl_reader.read if isinstance(builder, Json) else None


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _sliced(rows: list[Row], part: str, name: str) -> list[Row]:
    """The part of a split's rows that a name such as `train[:10%]` selects."""
    import datasets

    if "[" not in part:
        return rows
    try:
        (kept,) = datasets.ReadInstruction.from_spec(part).to_absolute({part.partition("[")[0]: len(rows)})
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name}: split {part!r}: {error}") from None
    return rows[kept.from_ : kept.to]


def _rows(columns: dict[str, list[Any]], fields: Fields, name: str) -> list[Row]:
    """The rows of columns of equal length."""
    rows: list[Row] = []
    for values in zip(*columns.values(), strict=True):
        try:
            rows.append(row(dict(zip(columns, values, strict=True)), fields))
        except BadRowError as error:
            raise BadRowError(f"{name}: row {len(rows)}: {error}") from None
    return rows


def _load(builder: Any, split: str, fields: list[str], name: str) -> dict[str, list[Any]]:  # noqa: ANN401
    """The values of a split's fields, read by `datasets`.

    Raises:
        UserError: there is no such field, or the split cannot be read.
    """
    try:
        builder.download_and_prepare()
        data = builder.as_dataset(split=split, in_memory=True)
    except Exception as error:  # pyarrow's, pandas' and its own, wrapped or not
        raise UserError(f"{name}: {' '.join(str(error.__cause__ or error).split())}") from error
    for field in fields:
        if field not in data.column_names:
            raise UserError(f"{name}: {one_of('field', field, data.column_names)}")
    return {field: list(data[field]) for field in fields}
