"""Who gets which GPU, and who has the machine to itself: kernel file locks, released however a process ends.

Snakemake counts GPUs and never says which (its issue 281). So a run locks one file per board, named by UUID; runs of
several sweeps and several users of one machine see the same files. A run that must be alone holds the node's lock
exclusively, all others share it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from joulesweep.devices import Board

POLL_S = 0.2
EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH


def folder() -> Path:
    """Where the lock files lie: one place for all users of a machine, wherever their TMPDIR is."""
    path = Path(os.environ.get("JOULESWEEP_LOCKS") or "/tmp/joulesweep-locks")
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            path.chmod(0o1777)
    return path


def open_lock(name: str) -> int:
    """A descriptor of a lock file, made if it is not there.

    An existing file is opened without O_CREAT: the kernel (fs.protected_regular) refuses it for another user's file.
    """
    path = folder() / f"{name.replace('/', '_')}.lock"
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            os.utime(descriptor)  # what cleans /tmp takes old files
            return descriptor
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)
            return descriptor
    raise FileNotFoundError(path)


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock (fcntl.LOCK_EX or LOCK_SH) if it is free; otherwise hold none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lease:
    """A context in which a run has its boards, and the machine if it asked for it.

    Args:
        boards: those to choose from, best first.
        needed: how many; all or none are taken.
        exclusive: "gpu": nobody else has the boards; "node": nor the machine; "none": as "gpu", but it does not wait
            for runs that want the machine alone, nor they for it.
        wanted: called while waiting; raises when nobody wants the run any more.

    Attributes:
        boards: those taken.
        descriptors: of the locks; processes that inherit them keep the boards locked.
    """

    def __init__(self, boards: Sequence[Board], needed: int, exclusive: str, wanted: Callable[[], None]) -> None:
        self.candidates, self.needed, self.exclusive, self.wanted = boards, needed, exclusive, wanted
        self.boards: list[Board] = []
        self.descriptors: list[int] = []
        self._running: int | None = None  # not inherited: it counts launching parents
        self._met_others = False
        self._starts = 0

    def __enter__(self) -> Lease:
        try:
            if self.exclusive != "none":
                self._enter_node()
            if self.needed:
                self._until("a free GPU", self._take)
            self._join_the_running()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for descriptor in [*self.descriptors, *([] if self._running is None else [self._running])]:
            os.close(descriptor)
        self.descriptors.clear()
        self._running = None

    def shared_host(self) -> bool:
        """Whether other runs worked on the machine at any time since the lease began."""
        return self._met_others or self._count_start(0) != self._starts

    def _enter_node(self) -> None:
        node, kind = open_lock("node"), EXCLUSIVE if self.exclusive == "node" else SHARED
        self.descriptors.append(node)
        self._until("the machine to be free", lambda: try_lock(node, kind))

    def _join_the_running(self) -> None:
        """Note whether others are at work, and be counted by them."""
        self._running = running = open_lock("running")
        self._met_others = not try_lock(running, EXCLUSIVE)
        self._starts = self._count_start(1)
        self._until("the other runs", lambda: try_lock(running, SHARED))

    def _until(self, what: str, attempt: Callable[[], bool]) -> None:
        """Try until it works; say once that there is something to wait for."""
        told = False
        while not attempt():
            if not told:
                print(f"waiting for {what}", file=sys.stderr, flush=True)
            told = True
            self.wanted()
            time.sleep(POLL_S)

    def _take(self) -> bool:
        """Lock as many boards as are needed, or none: one run at a time may try."""
        allocator = open_lock("allocator")
        taken: list[tuple[Board, int]] = []
        try:
            fcntl.flock(allocator, EXCLUSIVE)
            for board in self.candidates:
                descriptor = open_lock(board.uuid)
                if len(taken) < self.needed and try_lock(descriptor, EXCLUSIVE):
                    taken.append((board, descriptor))
                else:
                    os.close(descriptor)
        finally:
            os.close(allocator)
        if len(taken) < self.needed:
            for _, descriptor in taken:
                os.close(descriptor)
            return False
        self.boards = [board for board, _ in taken]
        self.descriptors += [descriptor for _, descriptor in taken]
        return True

    def _count_start(self, step: int) -> int:
        """The number of leases so far, this one added: shows a run that came and went meanwhile."""
        descriptor = open_lock("starts")
        try:
            fcntl.flock(descriptor, EXCLUSIVE)
            count = int(os.pread(descriptor, 20, 0) or b"0") + step
            os.pwrite(descriptor, b"%d" % count, 0)
        finally:
            os.close(descriptor)
        return count
