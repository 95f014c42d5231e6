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
PR_SET_CHILD_SUBREAPER = 36
#: Where the kernel counts its out-of-memory kills, cgroup v2 and v1: the place of the groups, and the file in each.
OOM_COUNTS = (("/sys/fs/cgroup", "memory.events"), ("/sys/fs/cgroup/memory", "memory.oom_control"))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt(orphans: bool) -> None:
    """Ask the kernel to make this process the parent of whatever its children leave behind, or no longer (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(orphans))


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)


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
    """Kill a command started by `start` and its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def children() -> set[int]:
    """This process's children, dead ones that nobody waited for included."""
    return {pid for pid in _pids() if _parent_of(pid) == os.getpid()}


def kill_children(but: set[int]) -> None:
    """Kill this process's children, and what they leave behind if orphans are adopted.

    A rank leads a group of its own, and so may what it starts: compiling takes helpers in sessions of their own.

    Args:
        but: those to spare.
    """
    while found := children() - but:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def oom_kills() -> int | None:
    """How often the kernel's out-of-memory killer struck in this process's control group; None where it is not told."""
    # In a container the group's path may be the host's, and the group itself lies at the root.
    paths = [Path(root, group, file) for root, file in OOM_COUNTS for group in (*_groups(), "")]
    counts = (_count(path) for path in paths)
    return next((count for count in counts if count is not None), None)


def _groups() -> list[str]:
    """Paths of this process's control groups that may count memory."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split(":", 2)[2].lstrip("/") for line in lines if line.split(":")[1] in ("", "memory")]


def _count(path: Path) -> int | None:
    try:
        words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    return next((int(line[1]) for line in words if line[:1] == ["oom_kill"]), None)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


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
