"""Exclusive access to GPUs and to the machine, by file locks that the kernel releases when the process exits.

Snakemake counts GPUs but does not assign them (its issue 281). So a run locks one file per board, named by UUID; all
sweeps and users of a machine share these files. A run that must be alone holds the node's lock exclusively, all others
share it.

Runs are served in order of arrival. Every run has a ticket, a numbered file that it keeps locked while it waits, and
takes nothing that a run ahead of it could use. An unlocked ticket belongs to a dead process and is removed.
"""

# changes no number: which boards a run gets, and when
from __future__ import annotations

import contextlib
import datetime
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
from typing import ClassVar

from joulesweep.core import files, processes
from joulesweep.core.errors import UserError
from joulesweep.launch import stage
from joulesweep.measure.devices import Board

POLL_S = 0.2
EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
DEFAULT = "/tmp/joulesweep-locks"
AGAIN_S = 60.0  # from one line that says what a run waits for to the next
MACHINE = "the machine"
TURN_POLL_S = 0.002  # the allocator's lock is held only briefly
PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # do not follow symbolic links, do not wait for pipes
MAX_TRIES = 100  # a file that vanishes this often while it is opened is being removed on purpose
MAX_CLAIM_BYTES = 65536
#: Types of file systems that several machines share (proc(5), mountinfo).
NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "panfs", "afs", "fuse.sshfs", "wekafs"}
MOUNTS, BOOT = Path("/proc/self/mountinfo"), Path("/proc/sys/kernel/random/boot_id")


def folder() -> Path:
    """The folder of the lock files: the same for all users of a machine, independent of TMPDIR.

    Raises:
        UserError: the folder cannot be created.
    """
    configured = os.environ.get("JOULESWEEP_LOCKS")
    path = _folder()
    try:
        if not configured and path.is_symlink():
            raise UserError(f"{path}: a symbolic link where the lock files' folder should be; remove it")
        for place in dict.fromkeys((_configured(), path)):
            if not place.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):
                    place.chmod(0o1777)
    except OSError as error:
        raise UserError(
            f"{path}: no folder for lock files ({error.strerror}); set JOULESWEEP_LOCKS to another"
        ) from None
    return path


def _folder() -> Path:
    """The folder that is configured, with one of its own for each machine where several machines share it."""
    path = _configured()
    return path / BOOT.read_text(encoding="ascii").strip() if _type_of(path) in NETWORK else path


def _configured() -> Path:
    return Path(os.environ.get("JOULESWEEP_LOCKS") or DEFAULT)


def _type_of(path: Path) -> str | None:
    """The type of the file system that a path is on; None if the kernel does not say."""
    try:
        rows = [line.split() for line in MOUNTS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    place, types = path.resolve(), {row[4]: row[row.index("-") + 1] for row in rows}
    return next((types[str(folder)] for folder in (place, *place.parents) if str(folder) in types), None)


def _path(name: str) -> Path:
    return folder() / f"{name.replace('/', '_')}.lock"


def open_lock(name: str) -> int:
    """Open a lock file, creating it if it is missing, and return its descriptor.

    An existing file is opened without O_CREAT: the kernel (fs.protected_regular) refuses it for another user's file.
    A file that was deleted while a process holds its lock is opened through that process.

    Raises:
        UserError: the path is not a plain file, or cannot be opened.
    """
    return _open_lock(name)[0]


def _open_lock(name: str) -> tuple[int, bool]:
    """A descriptor of a lock file, and whether the file was deleted while a process holds its lock."""
    path = _path(name)
    for _ in range(MAX_TRIES):
        with contextlib.suppress(FileNotFoundError):
            descriptor = _open_plain(path, os.O_RDWR)
            os.utime(descriptor)  # keep it fresh, or tmp cleaners remove it
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
    """Open a plain file.

    Raises:
        FileNotFoundError, FileExistsError: as `os.open` does.
        UserError: it is not a plain file, or cannot be opened.
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
    """A descriptor of the deleted file of this path, if a visible process still holds its lock; else None."""
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
    """Take a lock (fcntl.LOCK_EX or LOCK_SH) if it is free. Returns whether it was taken.

    Raises:
        UserError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in files.NO_LOCKS:  # nothing else keeps two runs apart as surely: there is no substitute
            raise
        raise UserError(
            f"{_folder()}: no locks on this file system ({error.strerror}), so runs could share a board; "
            "set JOULESWEEP_LOCKS to a folder on a disk of this machine, as /dev/shm/joulesweep"
        ) from None
    return True


def acquire(name: str, kind: int) -> int | None:
    """Take a named lock if it is free. Returns the descriptor that holds it, or None if another process has it."""
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
    """Wait for a lock and hold it in the block; yields its descriptor."""
    while (descriptor := acquire(name, EXCLUSIVE)) is None:
        time.sleep(TURN_POLL_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds the machine or a board.

    Attributes:
        what: "node", or the UUID of a board.
        run: id of its run; None if it is none of a sweep.
        folder: of the run.
        user: who started it.
        host: the machine.
        pid: of the process.
        since: UTC, ISO 8601.
    """

    what: str
    run: str | None
    folder: str | None
    user: str
    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        """`results/default/runs/single-fp32-bs32-r1 of ana since 14:02:11`."""
        folder = Path(self.folder or f"process {self.pid}")
        name = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return f"{name} of {self.user} since {clock(self.since)}"


def clock(time: str) -> str:
    """The local time of day of a UTC time (ISO 8601), with the day if it is not today."""
    try:
        local = datetime.datetime.fromisoformat(time).astimezone()
    except ValueError:
        return time
    is_today = local.date() == datetime.datetime.now().astimezone().date()
    return local.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M")


def holders() -> list[Holder]:
    """Who holds the machine or boards of it now. Takes no lock and writes nothing.

    A holder in another container is believed, since its process cannot be looked at from here.
    """
    rows = {path.stem: stage.read(path) for path in sorted(_folder().glob("*.lock"))}
    return [
        Holder(
            what=name,
            run=row.get("run"),
            folder=row.get("folder"),
            user=row["user"],
            host=row["host"],
            pid=row["pid"],
            since=row["since"],
        )
        for name, row in rows.items()
        if row is not None and processes.is_alive(row) is not False
    ]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The resources that a waiting run asks for.

    Attributes:
        node: how it wants the machine: EXCLUSIVE, SHARED, or 0 if it does not ask.
        boards: UUIDs of the boards that it may use; empty if it needs none.
    """

    node: int
    boards: frozenset[str]


class Ticket:
    """A place in the queue of waiting runs. Create it and call `ahead` only under the allocator's lock."""

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
        """The claims of live runs ahead in the queue."""
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
    """A waiting run's claim; None if it is malformed or its process is dead. A dead process's ticket is removed."""
    try:
        descriptor = _open_plain(path, os.O_RDONLY)
    except (OSError, UserError):
        return None
    try:
        if try_lock(descriptor, SHARED):
            with contextlib.suppress(OSError):  # another user's file in a sticky folder
                path.unlink()
            return None
        content = json.loads(os.pread(descriptor, MAX_CLAIM_BYTES, 0))
        return Claim(node=int(content["node"]), boards=frozenset(map(str, content["boards"])))
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    finally:
        os.close(descriptor)


class Lease:
    """Context manager that holds a run's boards, and the machine if requested.

    Args:
        boards: those to choose from, best first.
        needed: how many; all or none are taken.
        exclusive: "gpu": the boards are exclusive; "node": the machine too; "none": as "gpu", but it and runs that want
            the machine alone do not wait for each other.
        ensure_parent_alive: called while waiting; raises if the run's parent has died.

    Attributes:
        boards: those taken.
        descriptors: of the locks; processes that inherit them keep the boards locked.
        watchers: called with the lease, and whether its hold begins or is about to end.
    """

    watchers: ClassVar[list[Callable[[Lease, bool], None]]] = []

    def __init__(
        self, boards: Sequence[Board], needed: int, exclusive: str, ensure_parent_alive: Callable[[], None]
    ) -> None:
        self.candidates, self.needed, self.exclusive, self.ensure_parent_alive = (
            boards,
            needed,
            exclusive,
            ensure_parent_alive,
        )
        self.boards: list[Board] = []
        self.descriptors: list[int] = []
        self._running: int | None = None  # not inherited: it counts launching parents
        self._signed: list[int] = []
        self._met_others = False
        self._starts = 0

    def __enter__(self) -> Lease:
        try:
            self._queue()
            self._sign()
            self._join_the_running()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for watcher in self.watchers:
            watcher(self, True)
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for watcher in self.watchers:
            watcher(self, False)
        self._let_go()
        if self._running is not None:
            os.close(self._running)
        self._running = None

    def _sign(self) -> None:
        """Write into the locks that this run alone holds who it is, for those that wait and for who looks."""
        told = json.dumps({**stage.identity(), "since": stage.now()}).encode()
        is_shared = self.exclusive != "node" and len(self.descriptors) > len(self.boards)
        self._signed = self.descriptors[is_shared:]  # the machine's comes first
        for descriptor in self._signed:
            _write(descriptor, told)

    def _let_go(self) -> None:
        for descriptor in self._signed:
            _write(descriptor, b"")
        self._signed.clear()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.boards = []

    def shared_host(self) -> bool:
        """Whether other runs worked on the machine at any time since the lease began."""
        return self._met_others or _count_start(0) != self._starts

    def _queue(self) -> None:
        """Wait for the run's turn and take what it claims."""
        kind = {"node": EXCLUSIVE, "gpu": SHARED}.get(self.exclusive, 0)
        claim = Claim(node=kind, boards=frozenset(board.uuid for board in self.candidates if self.needed))
        with _alone("allocator"):
            ticket = Ticket(claim)
        try:
            self._until(lambda: self._take(claim, ticket))
        finally:
            ticket.give_up()

    def _take(self, claim: Claim, ticket: Ticket) -> str | None:
        """Take the machine and boards that no run ahead could use. Returns what is missing; then it holds nothing."""
        with _alone("allocator"):  # else two runs that need two boards each could take one each forever
            ahead = ticket.ahead()
            if not self._take_node(claim.node, {other.node for other in ahead}):
                return MACHINE
            if not self._take_boards(frozenset().union(*(other.boards for other in ahead))):
                self._let_go()
                return "a free GPU"
        return None

    def _take_node(self, kind: int, ahead: set[int]) -> bool:
        """Take the node's lock, if it is requested and does not conflict with the request of a run ahead."""
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
        """Record whether other runs are active, and register as active."""
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
        """Retry until nothing is missing; tell what it waits for, for whom, and now and then for how long already."""
        began_s, again_s, printed = time.monotonic(), AGAIN_S, set[str]()
        while (missing := attempt()) is not None:
            waited_s = time.monotonic() - began_s
            if missing not in printed or waited_s >= again_s:
                again_s = waited_s + AGAIN_S
                so_far = f", {waited_s / 60:.0f} min so far" if missing in printed else ""
                printed.add(missing)
                whom = _whom(missing)
                stage.info("waits", waits_for=missing, whom=whom or None)
                print(f"waiting for {missing}{so_far}" + (f": {whom}" if whom else ""), file=sys.stderr, flush=True)
            self.ensure_parent_alive()
            time.sleep(POLL_S)


def _whom(missing: str) -> str:
    """Who holds what is missing; empty if nobody says."""
    rows = holders()
    of_machine = [row for row in rows if row.what == "node" and missing == MACHINE]
    return "; ".join(map(str, of_machine or [row for row in rows if row.what != "node"]))


def _write(descriptor: int, content: bytes) -> None:
    """Replace the content of a lock's file; who looks at it can do without."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)


def _count_start(step: int) -> int:
    """Add to the count of leases and return it: reveals runs that started and ended meanwhile."""
    with _alone("starts") as descriptor:
        digits = os.pread(descriptor, 20, 0).strip()
        count = int(digits if re.fullmatch(rb"[0-9]{1,15}", digits) else 0) + step  # garbage is no count
        if step:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d" % count, 0)
    return count
