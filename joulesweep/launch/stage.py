"""Say what the run of this process is doing: in a file of its folder, for `joulesweep status`, and to a listener.

A process launches one run at a time. The file is written between the stages only, never while the run trains; how far
the training is stands in the run's log. It is removed at the end; a killed process leaves it, with a pid that is gone.
"""

# changes no number: what is told about a run in progress
from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.core import files, processes

FILE = ".stage.json"  # in the run's folder
MOST_BYTES = 65536  # of a file
#: Types of what every file says.
KINDS: dict[str, type] = {"host": str, "user": str, "pid": int, "since": str}
#: Stages of a run, in their order: imports; waits for boards or the machine; waits for these to settle; its processes
#: load, train and score; its files are written.
STAGES = ("starts", "waits", "settles", "trains", "writes")


@dataclass
class _Current:
    """The run of this process.

    Attributes:
        folder: of the run; None as long as there is none.
        listener: called with every new stage.
        told: content of the file.
    """

    folder: Path | None = None
    listener: Callable[[str], None] = print
    told: dict[str, Any] | None = None


_current = _Current()


@contextlib.contextmanager
def telling(folder: Path, listener: Callable[[str], None]) -> Iterator[None]:
    """Tell, in the block, the stages of the run of a folder."""
    _current.folder, _current.listener, _current.told = folder, listener, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        info("starts")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / FILE).unlink(missing_ok=True)
        _current.folder = None


def info(stage: str, **facts: object) -> None:
    """Tell that a stage begins, or new facts of the present one; without a run, do nothing.

    It is named like a logger's method: `plan.definitions` takes such calls for what they are.
    """
    if _current.folder is None:
        return
    earlier = _current.told or {}
    is_new = earlier.get("stage") != stage
    if not is_new and all(earlier.get(key) == value for key, value in facts.items()):
        return
    _current.told = {**identity(), "stage": stage, "since": now() if is_new else earlier["since"], **facts}
    with contextlib.suppress(OSError):
        files.write_json(_current.folder / FILE, _current.told)
    if is_new:
        _current.listener(stage)


def identity() -> dict[str, str | int | None]:
    """Who this is: run and folder if there is a run, the user, and the process."""
    folder = _current.folder
    run = {"run": folder.name, "folder": str(folder.resolve())} if folder else {"run": None, "folder": None}
    return {**run, **processes.identity()}


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(path: Path) -> Mapping[str, Any] | None:
    """What a file of `info`, or of a lease, says; None if there is none, or nothing legible.

    Anybody may write a lease's file: only short printable text counts.
    """
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in KINDS.items()):
        return None
    return {key: item for key, item in value.items() if not isinstance(item, str) or item.isprintable()}
