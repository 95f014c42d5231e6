"""Processes that end when they should: with their parent, whole groups at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: list[str], environment: dict[str, str], log: int | None, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a process group of its own.

    Args:
        command: program and arguments.
        environment: the whole environment.
        log: file descriptor for stdout and stderr, or None for this process's own.
        inherited: further descriptors that the command keeps open.
    """
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        pass_fds=inherited,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a command started by `start` and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def ancestry() -> tuple[int, int]:
    """This process's parent and the parent's parent: under Snakemake, the job's shell and Snakemake itself."""
    parent = os.getppid()
    return parent, _parent_of(parent)


def still_wanted(with_snakemake: bool) -> Callable[[], None]:
    """A check to be called while waiting: it ends this process when the workflow that started it is gone.

    Args:
        with_snakemake: whether there is a workflow; otherwise the check never ends anything.
    """
    began = ancestry()

    def check() -> None:
        if with_snakemake and ancestry() != began:
            raise SystemExit("the workflow that started this run is gone")

    return check


def _parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
