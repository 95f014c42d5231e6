"""No two runs share a board, a run that must be alone is, and however a process ends its locks go with it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lock_files
import pytest
import tiers
import tiny_run
from patience import PATIENCE_S, wait_for

from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.launch import lease, stage
from joulesweep.launch.lease import Lease
from joulesweep.measure.devices import Board

pytestmark = pytest.mark.usefixtures("nothing_is_left")

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
NOBODY = 65534


def board(index):
    return Board(index=index, uuid=f"GPU-{index}", name="A100", memory_bytes=2**30, has_counter=True, mig=False)


TWO = [board(0), board(1)]


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    """Lock files of this test alone, and no pause between attempts."""
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(lease, "POLL_S", 0.001)
    return tmp_path / "locks"


class GaveUp(Exception):  # noqa: N818
    pass


def patience(attempts=3):
    """For `wanted`: gives up after some attempts, so a test never hangs."""
    left = [attempts]

    def wanted():
        left[0] -= 1
        if not left[0]:
            raise GaveUp

    return wanted


def leased(boards=TWO, needed=1, exclusive="gpu", wanted=None):
    return Lease(boards, needed, exclusive, wanted or patience())


def refused(*given, **named):
    try:
        with leased(*given, **named):
            return False
    except GaveUp:
        return True


def indices(held):
    return [board.index for board in held.boards]


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no paths wanted


def tickets(locks):
    return sorted(path.name for path in locks.glob("*.ticket"))


@pytest.fixture
def started():
    """Start a few lines of Python as a process, which ends with the test."""
    children = []

    def start(code, *arguments):
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tiny_run.REPOSITORY,
            env=dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


#: Takes and gives back boards many times. While it has one it owns a file of the board's name, which must be new.
CONTENDER = """
import random, sys, time
from pathlib import Path
from joulesweep.launch import lease, stage
from joulesweep.measure.devices import Board
lease.POLL_S = 0.001
folder, needed, total = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
about = dict(name="", memory_bytes=None, has_counter=True, mig=False)
boards = [Board(index=i, uuid=f"GPU-{i}", **about) for i in range(total)]
for turn in range(20):
    with lease.Lease(boards, needed, "gpu", lambda: None) as held:
        owned = [folder / board.uuid for board in held.boards]
        assert len(set(owned)) == needed
        for path in owned:
            path.touch(exist_ok=False)
        if not turn:
            sys.stdin.readline()  # the test has seen who holds what at the same time
        time.sleep(random.uniform(0.001, 0.004))
        with (folder / "together").open("a") as file:
            file.write(f"{len(list(folder.glob('GPU-*')))}\\n")
        for path in owned:
            path.unlink()
    time.sleep(0.001)
"""


@pytest.mark.parametrize(("contenders", "needed", "boards"), tiers.first(1, [(3, 2, 4), (3, 1, 2), (3, 2, 3)]))
def test_processes_that_compete_never_share_a_board(tmp_path, started, locks, contenders, needed, boards):
    served = boards // needed
    at_once = served * needed
    children = [started(CONTENDER, tmp_path, needed, boards) for _ in range(contenders)]
    wait_for(lambda: len(list(tmp_path.glob("GPU-*"))) == at_once and len(tickets(locks)) == contenders - served)
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    failures = [child.communicate(timeout=PATIENCE_S)[1] for child in children]
    assert [child.returncode for child in children] == [0] * contenders, failures
    held = [int(line) for line in (tmp_path / "together").read_text().split()]
    assert len(held) == 20 * contenders
    assert max(held) == at_once
    assert tickets(locks) == []


def test_the_first_free_boards_are_taken_in_the_order_given():
    with leased([board(2), board(0), board(1)]) as first, leased([board(2), board(0), board(1)]) as second:
        assert (indices(first), indices(second)) == ([2], [0])
        assert refused([board(2), board(0)])
    with leased(needed=2) as both:
        assert indices(both) == [0, 1]


def test_boards_are_locked_by_uuid():
    moved = Board(index=5, uuid="GPU-0", name="A100", memory_bytes=None, has_counter=True, mig=False)
    with leased([board(0)]):
        assert refused([moved])


def test_all_boards_or_none_are_taken(capfd, locks):
    """A run that waits for two boards, of which one is held, holds none itself."""

    def wanted():
        assert lock_files.held(locks) == ["GPU-1", "node", "running"]
        give_up()

    give_up = patience()
    with leased([board(1)]):
        assert refused(needed=2, wanted=wanted)
    (line,) = capfd.readouterr().err.splitlines()  # once
    assert re.fullmatch(rf"waiting for a free GPU: process {os.getpid()} of \S+ since \d\d:\d\d:\d\d", line)
    with leased(needed=2) as both:
        assert len(both.descriptors) == 3  # and the node's


def test_one_run_at_a_time_chooses_its_boards(monkeypatch):
    """Else two runs that want two boards each could take one each, again and again."""
    acquire, found = lease.acquire, []

    def choosing(name, kind):
        if name.startswith("GPU"):
            found.append(acquire("allocator", fcntl.LOCK_EX))
        return acquire(name, kind)

    monkeypatch.setattr(lease, "acquire", choosing)
    with leased(needed=2):
        assert found == [None, None]


#: What a run ahead waits for while `held` is held, and whether a run behind it then waits too.
QUEUES = [
    # held                       ahead                                behind                           waits
    ({"boards": [board(1)]}, {"needed": 2}, {"boards": [board(0)]}, True),
    ({"boards": [board(1)]}, {"needed": 2}, {"boards": [board(2)]}, False),
    ({"boards": [board(1)]}, {"needed": 2}, {"boards": [board(0)], "exclusive": "none"}, True),
    ({"boards": [board(1)]}, {"needed": 2}, {"boards": [], "needed": 0}, False),
    ({"boards": [board(1)]}, {"needed": 2}, {"boards": [], "needed": 0, "exclusive": "node"}, True),
    ({"boards": [board(1)]}, {"boards": [board(1)]}, {"boards": [board(0)]}, False),
    ({"boards": [board(1)]}, {"boards": [], "needed": 0, "exclusive": "node"}, {"boards": [board(0)]}, True),
    ({"boards": [board(1)]}, {"boards": [], "needed": 0, "exclusive": "node"}, {"boards": [], "needed": 0}, True),
    ({"boards": [board(1)]}, {"boards": [], "needed": 0, "exclusive": "node"}, {"exclusive": "none"}, False),
    ({"boards": [board(1)]}, {"exclusive": "node"}, {"exclusive": "none"}, True),
    ({"boards": [], "needed": 0, "exclusive": "node"}, {}, {"boards": [], "needed": 0, "exclusive": "node"}, True),
]


@pytest.mark.parametrize(("held", "ahead", "behind", "waits"), QUEUES)
def test_nobody_overtakes_a_run_on_what_it_may_use(held, ahead, behind, waits):
    found = []

    def wanted():
        found.append(refused(**behind))
        raise GaveUp

    with leased(**held):
        assert refused(**ahead, wanted=wanted)
        assert found == [waits]


def test_a_run_of_two_boards_gets_them_between_two_streams_of_small_runs():
    """Each small run has its successor waiting before it ends, so that there never are two boards free by chance."""
    order = []

    def served(name, needed, wanted):
        with leased(needed=needed, wanted=wanted):
            order.append(name)

    first, second = (leased([one]).__enter__() for one in TWO)

    def large_waits():
        first.__exit__(None)
        served("small", 1, small_waits)
        raise AssertionError("the small run was served before the large one")

    def small_waits():
        raise GaveUp

    with pytest.raises(GaveUp):
        served("large", 2, large_waits)
    served("small", 1, patience())
    second.__exit__(None)
    served("large", 2, patience())
    assert order == ["small", "large"]


#: Waits for board 0, and says so.
WAITER = """
import sys
from joulesweep.launch import lease, stage
from joulesweep.measure.devices import Board
lease.POLL_S = 0.001
board = Board(index=0, uuid="GPU-0", name="", memory_bytes=None, has_counter=True, mig=False)
with lease.Lease([board], 1, "gpu", lambda: None):
    print(sys.argv[1], flush=True)
    sys.stdin.readline()
"""


def test_runs_are_served_in_the_order_in_which_they_came(started, locks):
    waiting = []
    with leased([board(0)]):
        for name in range(4):
            waiting.append(started(WAITER, name))
            wait_for(lambda: len(tickets(locks)) == len(waiting))
    for left in range(4):  # each is served only after the one before it
        child = waiting[left]
        assert child.stdout.readline() == f"{left}\n"
        assert len(tickets(locks)) == 3 - left
        child.stdin.write("go\n")
        child.stdin.flush()
        child.wait(timeout=PATIENCE_S)


def test_a_killed_waiter_keeps_nobody_waiting_and_its_ticket_is_removed(started, locks):
    with leased([board(0)]):
        dead = started(WAITER, "dead")
        wait_for(lambda: len(tickets(locks)) == 1)
        dead.kill()
        dead.wait()
        assert len(tickets(locks)) == 1
    assert not refused([board(0)])
    assert tickets(locks) == []


@pytest.mark.parametrize("text", ["", "garbage", "[]", "{}", '{"node": "x", "boards": 3}', "[" * 5000, "\0"])
def test_a_ticket_that_says_nothing_keeps_nobody_waiting(locks, text):
    locks.mkdir()
    path = locks / "000000001.ticket"
    path.write_text(text)
    with path.open() as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert not refused()
    (locks / "000000002.ticket").mkdir()
    (locks / "000000003.ticket").symlink_to(path)
    assert not refused()


def test_a_wait_ends_when_the_board_is_given_back():
    holder = leased([board(0)]).__enter__()
    with leased([board(0)], wanted=lambda: holder.__exit__(None, None, None)) as held:
        assert indices(held) == [0]


def test_who_is_no_longer_wanted_stops_waiting_and_leaves_no_lock():
    with leased([board(0)]):
        before = open_descriptors()
        assert refused([board(0), board(1)], needed=2)
        assert open_descriptors() == before
    with leased(exclusive="node"):
        before = open_descriptors()
        assert refused()
        assert open_descriptors() == before
    with leased(needed=2, exclusive="node") as alone:
        assert indices(alone) == [0, 1]


def test_a_lease_that_ends_by_an_error_gives_everything_back():
    before = open_descriptors()
    with pytest.raises(ZeroDivisionError), leased(needed=2):
        raise ZeroDivisionError
    assert open_descriptors() == before
    assert not refused(needed=2, exclusive="node")


HOLDER = """
import sys, time
from joulesweep.measure.devices import Board
from joulesweep.launch.lease import Lease
board = Board(index=0, uuid="GPU-0", name="", memory_bytes=None, has_counter=True, mig=False)
with Lease([board], 1, sys.argv[1], lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("exclusive", ["gpu", "node"])
def test_a_killed_holder_gives_everything_back(started, exclusive):
    child = started(HOLDER, exclusive)
    assert child.stdout.readline() == "held\n"
    assert refused([board(0)], exclusive=exclusive)
    child.kill()
    child.communicate()
    assert not refused([board(0)], exclusive="node")


def test_a_process_that_inherited_the_descriptors_keeps_the_boards():
    """As when the launching parent is killed and its workers have yet to die."""
    with leased([board(0)]) as held:
        child = processes.start(SLEEP, dict(os.environ), None, held.descriptors)
    try:
        assert refused([board(0)])
        assert refused([], needed=0, exclusive="node")
        assert not refused([board(1)])
    finally:
        processes.kill_group(child)
    assert not refused([board(0)], exclusive="node")


def test_a_process_that_inherited_nothing_keeps_nothing():
    """Else the test above proves nothing."""
    with leased([board(0)]):
        child = processes.start(SLEEP, dict(os.environ), None)
    try:
        assert not refused([board(0)], exclusive="node")
    finally:
        processes.kill_group(child)


def test_a_run_alone_on_the_node_waits_for_others_and_keeps_them_out(capfd):
    with leased([board(0)]), leased([board(1)]):
        assert refused([], needed=0, exclusive="node")
    with leased([], needed=0, exclusive="node"):
        assert refused([board(0)])
        assert refused([], needed=0, exclusive="node")
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" of ")[0] for line in lines] == [
        f"waiting for the machine: process {os.getpid()}",
        f"waiting for the machine: process {os.getpid()}",
        f"waiting for the machine: process {os.getpid()}",
    ]
    assert not refused([board(0)])


def test_a_run_that_need_not_be_alone_waits_for_boards_and_for_nothing_else():
    with leased(needed=0, exclusive="node"), leased(exclusive="none") as held, leased(exclusive="none") as other:
        assert (indices(held), indices(other), other.shared_host()) == ([0], [1], True)
        assert refused(exclusive="none")
    with leased(needed=0, exclusive="none"):
        assert not refused(needed=2, exclusive="node")


def test_a_run_that_was_alone_says_so():
    for _ in range(3):  # those before do not count
        with leased() as held:
            assert not held.shared_host()
    with leased(exclusive="node") as held:
        assert not held.shared_host()


def test_a_run_that_came_and_went_in_the_middle_is_seen():
    with leased() as held:
        with leased([board(1)]):
            pass
        assert held.shared_host()


def test_a_run_that_was_there_first_or_is_there_at_last_is_seen():
    first = leased().__enter__()
    with leased() as second:
        first.__exit__(None, None, None)
        assert second.shared_host()
    with leased() as first, leased():
        assert first.shared_host()


def test_runs_on_the_cpu_meet_in_the_same_files():
    with leased([], needed=0) as held:
        assert not refused([], needed=0)
        assert held.shared_host()


def test_a_name_with_a_slash_is_one_file(locks):
    os.close(lease.open_lock("MIG-GPU-1/1/0"))
    assert [path.name for path in locks.iterdir()] == ["MIG-GPU-1_1_0.lock"]


def test_locks_are_open_to_all_users_of_the_machine(locks):
    mask = os.umask(0o077)
    try:
        with leased():
            pass
    finally:
        os.umask(mask)
    assert locks.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in locks.iterdir()} == {0o666}


#: Becomes another user after its imports, which that user may not be allowed to read.
OTHER_USER = """
import os, sys, tempfile, random
from joulesweep.measure.devices import Board
from joulesweep.launch.lease import Lease
os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[1])] * 3)
board = Board(index=0, uuid="GPU-0", name="", memory_bytes=None, has_counter=True, mig=False)
def wanted(): raise SystemExit("taken")
with Lease([board], 1, "gpu", wanted) as held:
    print(os.getuid(), [board.uuid for board in held.boards], flush=True)
"""


@pytest.fixture
def everyones(monkeypatch):
    """A temporary folder like /tmp, which every user may enter: pytest's own may not be."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(folder / "locks"))
    yield folder / "locks"
    shutil.rmtree(folder)


def test_another_users_lock_files_are_respected_and_usable(started, everyones):
    with leased([board(0)]):
        taken = started(OTHER_USER, NOBODY)
        assert re.fullmatch(r"waiting for a free GPU: .*\ntaken\n", taken.communicate(timeout=PATIENCE_S)[1])
    assert (everyones / "GPU-0.lock").stat().st_uid == 0
    done = started(OTHER_USER, NOBODY)
    assert done.communicate(timeout=PATIENCE_S) == (f"{NOBODY} ['GPU-0']\n", "")


def test_what_another_user_made_first_can_be_used(started, everyones):
    done = started(OTHER_USER, NOBODY)
    assert done.communicate(timeout=PATIENCE_S) == (f"{NOBODY} ['GPU-0']\n", "")
    assert {path.stat().st_uid for path in (everyones, *everyones.iterdir())} == {NOBODY}
    with leased([board(0)]) as held:
        assert indices(held) == [0]


def test_an_existing_lock_file_is_opened_without_creating_it(monkeypatch):
    """The kernel refuses O_CREAT for another user's file in a sticky folder (fs.protected_regular), even to root."""
    os.close(lease.open_lock("GPU-0"))
    flags = []
    really = os.open
    monkeypatch.setattr(lease.os, "open", lambda path, flag, *mode: (flags.append(flag), really(path, flag, *mode))[1])
    os.close(lease.open_lock("GPU-0"))
    assert [flag & (os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) for flag in flags] == [os.O_RDWR | os.O_NOFOLLOW]


def test_a_lock_that_is_not_free_is_not_held():
    one, other = lease.open_lock("GPU-0"), lease.open_lock("GPU-0")
    assert lease.try_lock(one, fcntl.LOCK_SH)
    assert lease.try_lock(other, fcntl.LOCK_SH)
    assert not lease.try_lock(other, fcntl.LOCK_EX)
    os.close(one)
    assert lease.try_lock(other, fcntl.LOCK_EX)
    os.close(other)


def test_a_run_that_waits_for_a_board_does_not_share_the_machine_yet():
    with leased([board(0)]) as held:
        assert refused([board(0)])
        assert not held.shared_host()


@pytest.mark.parametrize("text", ["garbage", "12 garbage", "-3", "9" * 400, "\0\0", ""])
def test_garbage_in_the_count_of_starts_is_no_obstacle(locks, text):
    locks.mkdir()
    (locks / "starts.lock").write_text(text)
    with leased() as held:
        assert not held.shared_host()
        with leased([board(1)]):
            pass
        assert held.shared_host()


@pytest.mark.parametrize("name", ["GPU-0", "node", "running", "starts", "allocator"])
def test_garbage_in_a_lock_file_is_no_obstacle(locks, name):
    locks.mkdir()
    (locks / f"{name}.lock").write_bytes(b"\xffgarbage")
    with leased([board(0)]):
        assert refused([board(0)])


@pytest.mark.parametrize("name", ["GPU-0", "node", "running", "starts", "allocator"])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_plain_file_is_refused_in_one_line(locks, tmp_path, name, kind):
    target, path = tmp_path / "target", locks / f"{name}.lock"
    locks.mkdir()
    if kind == "link":
        target.write_text("of somebody")
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}.get(kind, lambda: path.symlink_to(target))
    make()
    before = open_descriptors()
    with pytest.raises(UserError) as caught:
        leased([board(0)]).__enter__()
    assert str(caught.value).startswith(f"{path}: not usable as a lock file (")
    assert "\n" not in str(caught.value)
    assert open_descriptors() == before
    assert not target.exists() if kind == "dangling" else True
    assert target.read_text() == "of somebody" if kind == "link" else True
    assert tickets(locks) == []


def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "file" / "locks"))
    with pytest.raises(UserError, match=r"no folder for lock files .*set JOULESWEEP_LOCKS"):
        lease.folder()


@pytest.mark.parametrize("exclusive", ["gpu", "node"])
def test_a_lock_file_that_is_deleted_while_held_still_holds(locks, exclusive):
    with leased([board(0)], exclusive=exclusive):
        for path in locks.iterdir():
            path.unlink()
        assert refused([board(0)])
        assert refused([board(0)], exclusive="node")
        if exclusive == "gpu":
            with leased([board(1)]) as beside:  # the node's lock is shared, deleted as it is
                assert beside.shared_host()
    with leased([board(0)]):
        assert (locks / "GPU-0.lock").exists()
        assert refused([board(0)])


def test_a_lock_is_taken_on_the_file_that_others_find(locks, monkeypatch):
    """One that is deleted between opening and locking, and made anew by somebody else, is no lock."""
    try_lock, stolen = lease.try_lock, []

    def slow(descriptor, kind):
        path = locks / "GPU-0.lock"
        if not stolen and os.path.samestat(os.fstat(descriptor), path.lstat()):
            path.unlink()
            path.touch()
            stolen.append(path.stat().st_ino)
        return try_lock(descriptor, kind)

    os.close(lease.open_lock("GPU-0"))
    monkeypatch.setattr(lease, "try_lock", slow)
    descriptor = lease.acquire("GPU-0", lease.EXCLUSIVE)
    assert os.fstat(descriptor).st_ino == stolen[0]
    os.close(descriptor)


def test_who_holds_what_is_told_without_taking_a_lock(locks, tmp_path):
    assert lease.holders() == []
    with stage.telling(tmp_path / "runs" / "run1", lambda stage: None), leased([board(0)], exclusive="node"):
        before = {path: path.stat().st_mtime_ns for path in locks.iterdir()}
        by_what = {holder.what: holder for holder in lease.holders()}
        assert {path: path.stat().st_mtime_ns for path in locks.iterdir()} == before
        assert by_what.keys() == {"node", "GPU-0"}
        assert (by_what["node"].run, by_what["node"].pid) == ("run1", os.getpid())
        assert str(by_what["node"]).startswith(f"{tmp_path}/runs/run1 of ")
    assert lease.holders() == []


def test_a_shared_machine_has_no_holder_but_its_boards_have(locks):
    with leased([board(0)]), leased([board(1)]):
        assert [holder.what for holder in lease.holders()] == ["GPU-0", "GPU-1"]


def test_a_killed_process_holds_nothing(locks):
    locks.mkdir()
    dead = {**processes.identity(), "since": "2026-01-02T03:04:05+00:00", "run": None, "folder": None, "began": 1}
    (locks / "node.lock").write_text(json.dumps(dead), encoding="utf-8")
    assert lease.holders() == []


@pytest.mark.parametrize(
    "text", ["", "7", "[]", "{", '{"pid": "x"}', '{"host": "a", "user": "b", "pid": 1}', "[" * 9999]
)
def test_a_lock_file_with_something_else_in_it_names_nobody(locks, text):
    locks.mkdir()
    (locks / "node.lock").write_text(text, encoding="utf-8")
    assert lease.holders() == []


def test_control_characters_of_others_reach_no_terminal(locks):
    locks.mkdir()
    told = {**processes.identity(), "since": "now", "run": "a", "folder": "/x/\x1b[2J", "user": "me"}
    (locks / "node.lock").write_text(json.dumps(told), encoding="utf-8")
    (holder,) = lease.holders()
    assert str(holder).isprintable()


def test_a_long_wait_is_told_again_with_its_length(locks, monkeypatch, capfd):
    monkeypatch.setattr(lease, "AGAIN_S", 0.0)
    with leased([board(0)]):
        assert refused([board(0)], wanted=patience(3))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert [", 0 min so far" in line for line in lines] == [False, True, True]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_locks_there_is_no_lease_but_one_line(monkeypatch, locks, error):
    def refuse(descriptor, kind):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=f"^{re.escape(str(locks))}: no locks on this file system .*JOULESWEEP_LOCKS"):
        leased().__enter__()


@pytest.mark.parametrize(("kind", "is_shared"), [("nfs4", True), ("lustre", True), ("ext4", False), ("tmpfs", False)])
def test_machines_that_share_a_disk_do_not_wait_for_each_other(tmp_path, locks, monkeypatch, kind, is_shared):
    mounts = f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / {tmp_path} rw shared:3 - {kind} disk:/home rw\n"
    (tmp_path / "mounts").write_text(mounts)
    monkeypatch.setattr(lease, "MOUNTS", tmp_path / "mounts")
    for boot in ("first-machine", "second-machine"):
        (tmp_path / "boot").write_text(f"{boot}\n")
        monkeypatch.setattr(lease, "BOOT", tmp_path / "boot")
        assert lease.folder() == (locks / boot if is_shared else locks)
