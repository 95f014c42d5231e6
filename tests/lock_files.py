"""The lock files of leases, as a test looks at them from outside."""

from __future__ import annotations

import fcntl
from pathlib import Path

from joulesweep.launch import lease


def held(folder: Path) -> list[str]:
    """Names of the locks that somebody holds."""
    found = []
    for path in sorted(folder.glob("*.lock")):
        with path.open("r+") as file:
            if not lease.try_lock(file.fileno(), fcntl.LOCK_EX):
                found.append(path.stem)
    return found
