"""Clear the lock that a killed Snakemake leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

_owned: list[int] = []  # descriptors that hold the claim until this process ends


def clear_dead_lock(folder: Path) -> bool:
    """Remove the lock of a workflow that was killed; leave that of a living one alone.

    Snakemake's lock files do not say whose they are. So every Joulesweep workflow also holds a kernel file lock,
    which the kernel drops when the process ends, however it ends. All the living share it; whoever gets it alone
    knows that no other one lives.

    Args:
        folder: the working directory's `.snakemake`.

    Returns:
        Whether a dead lock was removed.
    """
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / "joulesweep.lock", os.O_RDWR | os.O_CREAT, 0o666)
    _owned.append(descriptor)
    stale: list[Path] = []
    with contextlib.suppress(OSError):  # somebody lives, or the file system has no locks: Snakemake's own decides
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stale = list((folder / "locks").glob("*.lock"))
        for path in stale:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return bool(stale)
