"""Who gets which GPU, and who has the machine to itself: kernel file locks, released however a process ends.

Snakemake counts GPUs and never says which (its issue 281). So a run locks one file per board, named by UUID; runs of
several sweeps and several users of one machine see the same files. A run that must be alone holds the node's lock
exclusively, all others share it.

Who comes first is served first. Every run has a ticket, a numbered file that it keeps locked while it waits, and takes
nothing that a run ahead of it could use. A ticket that nobody has locked is a dead process's, and is removed.
"""

# changes no number: which boards a run gets, and when
from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from joulesweep.core.errors import UserError
from joulesweep.measure.devices import Board

POLL_S = 0.2
EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
DEFAULT = "/tmp/joulesweep-locks"
TURN_POLL_S = 0.002  # whoever has the allocator has it for a moment
PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # no symbolic link is followed, no pipe is waited for
MAX_TRIES = 100  # a file that vanishes so often while it is opened is being removed on purpose
MAX_CLAIM_BYTES = 65536


def folder() -> Path:
    """Where the lock files lie: one place for all users of a machine, wherever their TMPDIR is.

    Raises:
        UserError: there can be no such folder.
    """
    given = os.environ.get("JOULESWEEP_LOCKS")
    path = Path(given or DEFAULT)
    try:
        if not given and path.is_symlink():
            raise UserError(f"{path}: a symbolic link where the lock files' folder should be; remove it")
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(PermissionError):
                path.chmod(0o1777)
    except OSError as error:
        raise UserError(
            f"{path}: no folder for lock files ({error.strerror}); set JOULESWEEP_LOCKS to another"
        ) from None
    return path


def _path(name: str) -> Path:
    return folder() / f"{name.replace('/', '_')}.lock"


def open_lock(name: str) -> int:
    """A descriptor of a lock file, made if it is not there.

    An existing file is opened without O_CREAT: the kernel (fs.protected_regular) refuses it for another user's file.
    One that was deleted while somebody holds its lock is opened all the same.

    Raises:
        UserError: what lies there is no plain file, or cannot be opened.
    """
    return _open_lock(name)[0]


def _open_lock(name: str) -> tuple[int, bool]:
    """A descriptor of a lock file, and whether the file was deleted while somebody holds its lock."""
    path = _path(name)
    for _ in range(MAX_TRIES):
        with contextlib.suppress(FileNotFoundError):
            descriptor = _open_plain(path, os.O_RDWR)
            os.utime(descriptor)  # what cleans /tmp takes old files
            return descriptor, False
        held = _held_though_deleted(path)
        if held is not None:
            return held, True
        with contextlib.suppress(FileExistsError):
            descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.fchmod(descriptor, 0o666)
            return descriptor, False
    raise UserError(f"{path}: somebody keeps removing this lock file")


def _open_plain(path: Path, flags: int) -> int:
    """Open a file that is one.

    Raises:
        FileNotFoundError, FileExistsError: as `os.open` does.
        UserError: it is no plain file, or cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | PLAIN, 0o666)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        why = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UserError(f"{path}: not usable as a lock file ({why}); remove it") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: not usable as a lock file (not a plain file); remove it")
    return descriptor


def _held_though_deleted(path: Path) -> int | None:
    """A descriptor of the file that lay here, was deleted, and whose lock a process holds that this user may see."""
    name = f"{path.parent.resolve() / path.name} (deleted)"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()) == name:
                        descriptor = os.open(link, os.O_RDWR | os.O_CLOEXEC)
                        if not try_lock(descriptor, EXCLUSIVE):
                            return descriptor
                        os.close(descriptor)
    return None


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock (fcntl.LOCK_EX or LOCK_SH) if it is free; otherwise hold none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def acquire(name: str, kind: int) -> int | None:
    """A descriptor that holds a lock, and whose file is the one that others find; None if somebody else has it."""
    for _ in range(MAX_TRIES):
        descriptor, deleted = _open_lock(name)
        if not try_lock(descriptor, kind):
            os.close(descriptor)
            return None
        if deleted or _lies_at(descriptor, _path(name)):
            return descriptor
        os.close(descriptor)  # it was deleted before it was locked
    raise UserError(f"{_path(name)}: somebody keeps removing this lock file")


def _lies_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


@contextlib.contextmanager
def _alone(name: str) -> Iterator[int]:
    """Hold a lock for a moment, once it is free; gives its descriptor."""
    while (descriptor := acquire(name, EXCLUSIVE)) is None:
        time.sleep(TURN_POLL_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a waiting run wants.

    Attributes:
        node: how it wants the machine: EXCLUSIVE, SHARED, or 0 if it does not ask.
        boards: UUIDs of the boards that it may use; empty if it needs none.
    """

    node: int
    boards: frozenset[str]


class Ticket:
    """A place in the queue of those that wait. To be made, and asked for those ahead, by one process at a time."""

    def __init__(self, claim: Claim) -> None:
        while True:
            self.number = 1 + max((number for number, _ in _tickets()), default=0)
            self.path = folder() / f"{self.number:09}.ticket"
            with contextlib.suppress(FileExistsError):
                self.descriptor = _open_plain(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                break
        os.fchmod(self.descriptor, 0o666)
        fcntl.flock(self.descriptor, EXCLUSIVE)
        os.pwrite(self.descriptor, json.dumps({"node": claim.node, "boards": sorted(claim.boards)}).encode(), 0)

    def ahead(self) -> list[Claim]:
        """The claims of living runs that came before."""
        return [claim for number, path in _tickets() if number < self.number and (claim := _claim(path)) is not None]

    def give_up(self) -> None:
        """Leave the queue."""
        if _lies_at(self.descriptor, self.path):
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self.descriptor)


def _tickets() -> list[tuple[int, Path]]:
    return sorted((int(path.stem), path) for path in folder().glob("*.ticket") if re.fullmatch(r"[0-9]+", path.stem))


def _claim(path: Path) -> Claim | None:
    """A waiting run's claim. None if nobody waits with it, after which it is removed, or it is no claim."""
    try:
        descriptor = _open_plain(path, os.O_RDONLY)
    except (OSError, UserError):
        return None
    try:
        if try_lock(descriptor, SHARED):
            with contextlib.suppress(OSError):  # another user's, in a folder where each removes his own
                path.unlink()
            return None
        found = json.loads(os.pread(descriptor, MAX_CLAIM_BYTES, 0))
        return Claim(node=int(found["node"]), boards=frozenset(map(str, found["boards"])))
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    finally:
        os.close(descriptor)


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
            self._queue()
            self._join_the_running()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._let_go()
        if self._running is not None:
            os.close(self._running)
        self._running = None

    def _let_go(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.boards = []

    def shared_host(self) -> bool:
        """Whether other runs worked on the machine at any time since the lease began."""
        return self._met_others or _count_start(0) != self._starts

    def _queue(self) -> None:
        """Wait for the run's turn, and take all that it wants."""
        kind = {"node": EXCLUSIVE, "gpu": SHARED}.get(self.exclusive, 0)
        claim = Claim(node=kind, boards=frozenset(board.uuid for board in self.candidates if self.needed))
        with _alone("allocator"):
            ticket = Ticket(claim)
        try:
            self._until(lambda: self._take(claim, ticket))
        finally:
            ticket.give_up()

    def _take(self, claim: Claim, ticket: Ticket) -> str | None:
        """Take the machine and the boards, as far as nobody ahead could use them. Returns what lacks, then has none."""
        with _alone("allocator"):  # else two that want two boards each could take one each, again and again
            ahead = ticket.ahead()
            if not self._take_node(claim.node, {other.node for other in ahead}):
                return "the machine to be free"
            if not self._take_boards(frozenset().union(*(other.boards for other in ahead))):
                self._let_go()
                return "a free GPU"
        return None

    def _take_node(self, kind: int, ahead: set[int]) -> bool:
        """Take the node's lock, if one is wanted and no run ahead wants it in a way that does not go with this one."""
        if not kind:
            return True
        kept_for_others = EXCLUSIVE in ahead or (kind == EXCLUSIVE and SHARED in ahead)
        descriptor = None if kept_for_others else acquire("node", kind)
        self.descriptors += [] if descriptor is None else [descriptor]
        return descriptor is not None

    def _take_boards(self, kept_for_others: frozenset[str]) -> bool:
        for board in self.candidates:
            if len(self.boards) < self.needed and board.uuid not in kept_for_others:
                descriptor = acquire(board.uuid, EXCLUSIVE)
                if descriptor is not None:
                    self.boards.append(board)
                    self.descriptors.append(descriptor)
        return len(self.boards) == self.needed

    def _join_the_running(self) -> None:
        """Note whether others are at work, and be counted by them."""
        self._running = acquire("running", EXCLUSIVE)
        self._met_others = self._running is None
        self._starts = _count_start(1)
        if self._running is None:
            self._until(self._share_running)
        else:
            fcntl.flock(self._running, SHARED)

    def _share_running(self) -> str | None:
        self._running = acquire("running", SHARED)
        return "the other runs" if self._running is None else None

    def _until(self, attempt: Callable[[], str | None]) -> None:
        """Try until nothing lacks; say once what is waited for."""
        told: set[str] = set()
        while (lacking := attempt()) is not None:
            if lacking not in told:
                print(f"waiting for {lacking}", file=sys.stderr, flush=True)
            told.add(lacking)
            self.wanted()
            time.sleep(POLL_S)


def _count_start(step: int) -> int:
    """The number of leases so far, this one added: shows a run that came and went meanwhile."""
    with _alone("starts") as descriptor:
        found = os.pread(descriptor, 20, 0).strip()
        count = int(found if re.fullmatch(rb"[0-9]{1,15}", found) else 0) + step  # garbage is no count
        if step:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d" % count, 0)
    return count
