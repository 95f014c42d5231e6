"""Write files atomically, read and check JSON files, and compute checksums."""

# changes no number: how files are written and read
from __future__ import annotations

import contextlib
import errno
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


#: What `flock` answers on a file system that has no locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
CORRUPT = ".corrupt"  # suffix of a file that was moved aside


#: Exceptions that reading a value of an unexpected shape can raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's 0600 would lock colleagues out
        Path(temporary).replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # where nothing may be written, nothing may be removed
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk is told when bytes are written
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON atomically. NaN and infinity are refused: missing is null.

    Raises:
        ValueError: the value contains NaN or infinity.
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
        UserError: the file cannot be read.
        Corrupt: the file does not contain a JSON object.
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
    """Whether all strings of a JSON value can be encoded in UTF-8, which excludes halves of surrogate pairs."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_deep(value: object) -> bool:
    """Whether lists and objects are nested more than `MOST_DEPTH` levels deep."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def mark_corrupt(path: Path) -> None:
    """Link a corrupt file to `NAME.corrupt` and print its name; `set_aside` removes the original later.

    Removing it at once would make Snakemake, which has it as an input, fail although all other files are good.
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
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
