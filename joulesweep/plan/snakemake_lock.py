"""Remove the lock that a killed Snakemake leaves behind; tell what was interrupted, and whether a workflow is alive."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
from pathlib import Path

FILE = "joulesweep.lock"  # in .snakemake; every workflow shares a file lock on it as long as it lives
LOCKS = Path("/proc/locks")  # proc(5): a line per lock, with device and inode of its file

_owned: list[int] = []  # descriptors that hold the claim until this process ends


def clear_dead_lock(folder: Path) -> bool:
    """Remove the lock of a workflow that was killed; keep that of a running one.

    Snakemake's lock files do not name their process. So every Joulesweep workflow also holds a shared file lock, which
    the kernel releases when the process exits. A workflow that gets this lock exclusively knows that no other one runs.

    Args:
        folder: the working directory's `.snakemake`.

    Returns:
        Whether a dead lock was removed.
    """
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    _owned.append(descriptor)
    stale: list[Path] = []
    with contextlib.suppress(OSError):  # another workflow is alive, or locking is unsupported: leave it to Snakemake
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stale = list((folder / "locks").glob("*.lock"))
        for path in stale:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return bool(stale)


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
    return any(row[1:2] == ["FLOCK"] and row[5].rpartition(":")[2] == inode for row in rows if len(row) > 5)


def interrupted(folder: Path) -> set[str]:
    """Outputs that Snakemake marks as incomplete: it noted the begin of their job, and not its end.

    Args:
        folder: the working directory's `.snakemake`. A marker's path there is the output's, in base 64, in pieces of
            which all but the last begin with @.
    """
    markers = folder / "incomplete"
    outputs: set[str] = set()
    for path in markers.rglob("*"):
        pieces = [piece.removeprefix("@") for piece in path.relative_to(markers).parts]
        with contextlib.suppress(ValueError):  # not a marker
            outputs.add(base64.urlsafe_b64decode("".join(pieces)).decode())
    return outputs
