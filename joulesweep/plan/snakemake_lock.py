"""Remove the lock that a killed Snakemake leaves behind; tell what was interrupted, and whether a workflow is alive."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joulesweep.core import files, processes
from joulesweep.core.errors import UserError

OWNER = "joulesweep-owner-"  # begins the name of files that name processes
FILE = "joulesweep.lock"  # in .snakemake; every workflow shares a file lock on it as long as it lives
LOCKS = Path("/proc/locks")  # proc(5): a line per lock, with device and inode of its file

_owned: list[int] = []  # descriptors that hold the claim until this process ends


def clear_dead_lock(folder: Path) -> bool:
    """Remove the lock of a workflow that was killed; keep that of a running one.

    Snakemake's lock files do not name their process. So every Joulesweep workflow also holds a shared file lock, which
    the kernel releases when the process exits. A workflow that gets this lock exclusively knows that no other one runs.
    On a file system without locks it leaves a file that names its process instead: where all that are named lived on
    this machine and are gone, no other one runs.

    Args:
        folder: the working directory's `.snakemake`.

    Returns:
        Whether a dead lock was removed.
    """
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    _owned.append(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_alone = True
    except OSError as error:  # another workflow is alive, or there are no locks
        is_alone = error.errno in files.NO_LOCKS and _alone_by_name(folder)
    stale = list((folder / "locks").glob("*.lock")) if is_alone else []
    for path in stale:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return bool(stale)


def _alone_by_name(folder: Path) -> bool:
    """Leave a file that names this process as long as it lives. Returns whether all that others left name dead ones.

    Where nobody left one, nobody can tell whose Snakemake's lock is.
    """
    me = processes.identity()
    own = folder / f"{OWNER}{me['host']}-{me['pid']}.json"
    others = [path for path in folder.glob(f"{OWNER}*.json") if path != own]
    dead = [path for path in others if processes.is_alive(_named(path)) is False]
    for path in dead:
        path.unlink(missing_ok=True)
    files.write_json(own, me)
    atexit.register(own.unlink, missing_ok=True)
    return bool(others) and len(dead) == len(others)


def _named(path: Path) -> Mapping[str, Any]:
    """The process that a file names; none if it cannot be read."""
    try:
        return files.read_json(path, "name of a process")
    except UserError:
        return {}


def is_alive(folder: Path) -> bool | None:
    """Whether a workflow works in a folder on this machine; takes no lock. None if the kernel does not say.

    Args:
        folder: the working directory's `.snakemake`.
    """
    try:
        inode = str((folder / FILE).stat().st_ino)
    except OSError:
        return False
    try:
        rows = [line.split() for line in LOCKS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    return any(
        row[1:2] in (["FLOCK"], ["POSIX"]) and row[5].rpartition(":")[2] == inode for row in rows if len(row) > 5
    )
