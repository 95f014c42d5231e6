"""Start processes that end with their parent, and end them with their whole group."""

# changes no number: how processes begin and end
from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
#: Loaded before any thread starts: between fork and exec a thread may hold the loader's lock.
LIBC = ctypes.CDLL(None)
LISTENS = "listens"  # in the folder of a run's results: a file per rank that can be asked to stop, with its pid
HAS_STOPPED = "has-stopped"  # likewise, of a rank that stops: it is asked no more
KILL_S = 10.0  # a process that hangs in the kernel, as in a faulty driver, dies when the call returns, if ever
PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO, the namespace of the machine
#: Where the kernel counts its out-of-memory kills, cgroup v2 and v1: root of the groups, and the file in each.
OOM_COUNTS = (("/sys/fs/cgroup", "memory.events"), ("/sys/fs/cgroup/memory", "memory.oom_control"))


def seldom_look_for_cycles() -> None:
    """Let Python look for cycles seldom, and not at the end of the process.

    What libraries and Snakemake make are up to millions of objects that stay: looking at each 700 new ones, as Python
    does by default, takes a quarter of the time of fetching a model and a fifth of that of a plan of 10,000 runs.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt(orphans: bool) -> None:
    """Ask the kernel to make this process the parent of its descendants' orphans, or to stop doing so (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(orphans))


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        LIBC.prctl(option, value)


def start(
    command: list[str], environment: dict[str, str], log: int | None, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a new process group.

    Args:
        command: program and arguments.
        environment: the whole environment.
        log: file descriptor for stdout and stderr, or None to inherit this process's.
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
    """Kill a command started by `start` with its process group; do not wait for one that hangs in the kernel."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(KILL_S)
    except subprocess.TimeoutExpired:
        print(f"process {child.pid} does not die: it hangs in the kernel", file=sys.stderr, flush=True)


def children() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    return {pid for pid in _pids() if _parent_of(pid) == os.getpid()}


def kill_children(but: set[int]) -> None:
    """Kill this process's children and, if orphans are adopted, their descendants.

    Killing one process group is not enough: each rank leads its own, and compilation starts helpers in new sessions.

    Args:
        but: pids to spare.
    """
    until_s = time.monotonic() + KILL_S
    while (pids := children() - but) and time.monotonic() < until_s:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reaped = [pid for pid in pids if _reaped(pid)]
        if not reaped:
            time.sleep(0.01)


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def oom_kills() -> int | None:
    """Return the number of OOM kills in this process's control group, or None if the kernel does not report it."""
    # In a container the path may be the one that the host sees, while the group itself is mounted at the root.
    paths = [Path(root, group, file) for root, file in OOM_COUNTS for group in (*_groups(), "")]
    counts = (_count(path) for path in paths)
    return next((count for count in counts if count is not None), None)


def _groups() -> list[str]:
    """Return the paths of this process's control groups that may count memory."""
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
    """Return the pids of the parent and the grandparent: under Snakemake, the job's shell and Snakemake itself."""
    parent = os.getppid()
    return parent, _parent_of(parent)


def parent_watch(with_snakemake: bool) -> Callable[[], None]:
    """Return a check to call while waiting: it ends this process when the workflow that started it is gone.

    Args:
        with_snakemake: whether there is a workflow; otherwise the check never ends anything.
    """
    began = ancestry()

    def check() -> None:
        if with_snakemake and ancestry() != began:
            raise SystemExit("the workflow that started this run is gone")

    return check


def is_below(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or descends from it."""
    while pid > 1 and pid != ancestor:
        pid = _parent_of(pid)
    return pid == ancestor


def sees_whole_machine() -> bool:
    """Whether this process sees all processes of the machine, which it does not inside a container."""
    return _namespace() == PID_NAMESPACE


def _parent_of(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def _fields(pid: int) -> list[str]:
    """The kernel's facts of a process, from its state on (proc(5), /proc/PID/stat); none if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()


def identity() -> dict[str, str | int | None]:
    """What tells this process from all others: host, namespace of pids, pid, and when it began; and its user."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of another machine's list, as in containers
        user = str(uid)
    pid = os.getpid()
    return {"host": socket.gethostname(), "user": user, "namespace": _namespace(), "pid": pid, "began": _began(pid)}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether a process is alive; None if it cannot be told: it is on another machine or in another container.

    Args:
        process: as `identity` gave it.
    """
    if process.get("host") != socket.gethostname() or process.get("namespace") != _namespace():
        return None
    pid = process.get("pid")
    return isinstance(pid, int) and _began(pid) == process.get("began") is not None


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the machine started; None if it is gone."""
    fields = _fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _namespace() -> int | None:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None


def in_container() -> bool:
    """Whether this process lives in a container: what it reads of a board includes its co-tenants."""
    if any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv")):
        return True
    return "container" in os.environ
