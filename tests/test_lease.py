"""No two runs share a board, a run that must be alone is, and however a process ends its locks go with it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tiny_run

from joulesweep import lease, process
from joulesweep.devices import Board
from joulesweep.lease import Lease

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


def started(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=tiny_run.REPOSITORY,
        env=dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


#: Takes and gives back boards many times. While it has one it owns a file of the board's name, which must be new.
CONTENDER = """
import random, sys, time
from pathlib import Path
from joulesweep import lease
from joulesweep.devices import Board
lease.POLL_S = 0.001
folder, needed, total = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
about = dict(name="", memory_bytes=None, has_counter=True, mig=False)
boards = [Board(index=i, uuid=f"GPU-{i}", **about) for i in range(total)]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    with lease.Lease(boards, needed, "gpu", lambda: None) as held:
        owned = [folder / board.uuid for board in held.boards]
        assert len(set(owned)) == needed
        for path in owned:
            path.touch(exist_ok=False)
        time.sleep(random.uniform(0.001, 0.004))
        with (folder / "together").open("a") as file:
            file.write(f"{len(list(folder.glob('GPU-*')))}\\n")
        for path in owned:
            path.unlink()
    time.sleep(0.001)
"""


@pytest.mark.parametrize(("contenders", "needed", "boards"), [(3, 1, 2), (3, 2, 3)])
def test_processes_that_compete_never_share_a_board(tmp_path, contenders, needed, boards):
    children = [started(CONTENDER, tmp_path, needed, boards) for _ in range(contenders)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * contenders
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    failures = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [0] * contenders, failures
    held = [int(line) for line in (tmp_path / "together").read_text().split()]
    assert len(held) == 20 * contenders
    assert max(held) <= boards // needed * needed
    assert max(held) > needed or boards < 2 * needed, "they never worked at the same time: nothing was proved"


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


def test_all_boards_or_none_are_taken(capfd):
    """A run that wants two boards, of which one is held, leaves the other to those who want one."""
    with leased([board(1)]):
        attempts = []

        def wanted():
            attempts.append(1)
            with leased([board(0)]) as other:
                assert indices(other) == [0]
            if len(attempts) == 3:
                raise GaveUp

        assert refused(needed=2, wanted=wanted)
    assert capfd.readouterr().err == "waiting for a free GPU\n"  # once
    with leased(needed=2) as both:
        assert len(both.descriptors) == 3  # and the node's


def test_one_run_at_a_time_chooses_its_boards(monkeypatch):
    """Else two runs that want two boards each could take one each, again and again."""
    try_lock, found = lease.try_lock, []

    def choosing(descriptor, kind):
        other = lease.open_lock("allocator")
        found.append(try_lock(other, fcntl.LOCK_EX))
        os.close(other)
        return try_lock(descriptor, kind)

    with leased(needed=2) as held:
        monkeypatch.setattr(lease, "try_lock", choosing)
        assert not held._take()
    assert found == [False, False]


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
from joulesweep.devices import Board
from joulesweep.lease import Lease
board = Board(index=0, uuid="GPU-0", name="", memory_bytes=None, has_counter=True, mig=False)
with Lease([board], 1, sys.argv[1], lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("exclusive", ["gpu", "node"])
def test_a_killed_holder_gives_everything_back(exclusive):
    child = started(HOLDER, exclusive)
    assert child.stdout.readline() == "held\n"
    assert refused([board(0)], exclusive=exclusive)
    child.kill()
    child.communicate()
    assert not refused([board(0)], exclusive="node")


def test_a_process_that_inherited_the_descriptors_keeps_the_boards():
    """As when the launching parent is killed and its workers have yet to die."""
    with leased([board(0)]) as held:
        child = process.start(SLEEP, dict(os.environ), None, held.descriptors)
    try:
        assert refused([board(0)])
        assert refused([], needed=0, exclusive="node")
        assert not refused([board(1)])
    finally:
        process.kill_group(child)
    assert not refused([board(0)], exclusive="node")


def test_a_process_that_inherited_nothing_keeps_nothing():
    """Else the test above proves nothing."""
    with leased([board(0)]):
        child = process.start(SLEEP, dict(os.environ), None)
    try:
        assert not refused([board(0)], exclusive="node")
    finally:
        process.kill_group(child)


def test_a_run_alone_on_the_node_waits_for_others_and_keeps_them_out(capfd):
    with leased([board(0)]), leased([board(1)]):
        assert refused([], needed=0, exclusive="node")
    with leased([], needed=0, exclusive="node"):
        assert refused([board(0)])
        assert refused([], needed=0, exclusive="node")
    assert capfd.readouterr().err == "waiting for the machine to be free\n" * 3
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
from joulesweep.devices import Board
from joulesweep.lease import Lease
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


def test_another_users_lock_files_are_respected_and_usable(everyones):
    with leased([board(0)]):
        taken = started(OTHER_USER, NOBODY)
        assert "waiting for a free GPU\ntaken\n" in taken.communicate(timeout=60)[1]
    assert (everyones / "GPU-0.lock").stat().st_uid == 0
    done = started(OTHER_USER, NOBODY)
    assert done.communicate(timeout=60) == (f"{NOBODY} ['GPU-0']\n", "")


def test_what_another_user_made_first_can_be_used(everyones):
    done = started(OTHER_USER, NOBODY)
    assert done.communicate(timeout=60) == (f"{NOBODY} ['GPU-0']\n", "")
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
    assert flags == [os.O_RDWR]


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
