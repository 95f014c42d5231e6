"""Files written whole or not at all, read with suspicion, and their checksums."""

# changes no number: how files are written and read
from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from joulesweep.core.errors import Corrupt, UserError

if TYPE_CHECKING:
    pass

MOST_DEPTH = 64  # of a JSON file


CORRUPT = ".corrupt"  # ending of a file that was moved aside


#: What reading something of another shape than expected raises.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's 0600 would lock colleagues out
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON atomically. NaN and infinity are refused: missing is null.

    Raises:
        ValueError: a number that JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, what: str) -> Mapping[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: what it should be, for the error.

    Raises:
        UserError: it cannot be read.
        Corrupt: it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected {what}") from None
    except RecursionError:
        raise Corrupt(path, f"corrupt {what}: too many levels of nesting") from None
    except ValueError as error:
        raise Corrupt(path, f"corrupt {what}: {error}") from None
    if not isinstance(value, dict):
        raise Corrupt(path, f"corrupt {what}: not a JSON object")
    if is_deep(value):
        raise Corrupt(path, f"corrupt {what}: too many levels of nesting")
    if not is_text(value):
        raise Corrupt(path, f"corrupt {what}: half of a surrogate pair is no text")
    return value


def is_text(value: object) -> bool:
    """Whether all texts in a JSON value can be written; JSON can name halves of surrogate pairs, UTF-8 has none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_deep(value: object) -> bool:
    """Whether lists and objects are nested deeper than what works with them would bear."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def mark_corrupt(path: Path) -> None:
    """Give a corrupt file a second name, `NAME.corrupt`, and say so; `set_aside` takes its first one away.

    Not at once: Snakemake, which named it as an input, would end with an error though all else is well.
    """
    second = path.with_name(f"{path.name}{CORRUPT}")
    print(f"corrupt: {path}", file=sys.stderr)
    try:
        second.unlink(missing_ok=True)
        os.link(path, second)
    except OSError as error:
        print(f"{second}: {error.strerror}; delete {path} to repeat its run", file=sys.stderr)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; missing is null")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
