"""Processes end with their parent and as whole groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import tiny_run
from patience import wait_for

from joulesweep.core import processes

pytestmark = pytest.mark.usefixtures("nothing_is_left")

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 - one of the two may vanish
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int) -> None:
    wait_for(lambda: not lives(pid), f"the end of process {pid}")


def test_cycles_among_what_stays_are_not_looked_for():
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 50_000))\n"  # called last
        "from joulesweep.core import processes; processes.seldom_look_for_cycles()\n"
        "looks = []; gc.callbacks.append(lambda *about: looks.append(about))\n"
        "kept = [[] for _ in range(50_000)]; print(looks)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny_run.REPOSITORY)
    assert (done.stdout, done.stderr) == ("[]\nTrue\n", "")


def test_a_child_dies_with_its_parent_however_that_dies():
    code = (
        "import os, sys; from joulesweep.core import processes as process\n"
        f"child = process.start({SLEEP!r}, dict(os.environ), None)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -9
    wait_until_dead(int(done.stdout))


def test_without_being_asked_a_child_outlives_its_parent():
    """Else the test above proves nothing."""
    code = (
        f"import os, subprocess; child = subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    child = int(done.stdout)
    time.sleep(0.3)
    assert lives(child)
    os.kill(child, 9)


def test_killing_a_group_kills_what_its_leader_started(tmp_path):
    code = f"import subprocess, sys, time; print(subprocess.Popen({SLEEP!r}).pid, flush=True); time.sleep(600)"
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    child = processes.start([sys.executable, "-c", code], dict(os.environ), log)
    os.close(log)
    while not (tmp_path / "log").read_text().endswith("\n"):
        assert child.poll() is None
        time.sleep(0.02)
    grandchild = int((tmp_path / "log").read_text())
    assert lives(grandchild)
    processes.kill_group(child)
    assert child.returncode == -9
    wait_until_dead(grandchild)


def test_a_group_that_has_ended_may_be_killed_again():
    child = processes.start([sys.executable, "-c", "pass"], dict(os.environ), None)
    child.wait()
    processes.kill_group(child)
    assert child.returncode == 0


@pytest.mark.parametrize("word", ["one", "another"])
def test_a_command_has_the_environment_that_is_given_and_nothing_else(tmp_path, word):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    code = (
        "import os, sys; print('x', file=sys.stderr)\n"
        "print(os.environ['WORD'], 'HOME' in os.environ, sys.stdin.read() == '')"
    )
    child = processes.start([sys.executable, "-c", code], {"WORD": word}, log)
    os.close(log)
    assert child.wait() == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted([f"{word} False True", "x"])


def test_children_are_killed_with_what_they_leave_behind_and_others_are_spared():
    spared = subprocess.Popen(SLEEP)
    before = processes.children()
    assert spared.pid in before
    code = (
        "import subprocess, sys, time\n"
        f"print(subprocess.Popen({SLEEP!r}, start_new_session=True).pid, flush=True); time.sleep(600)"
    )
    processes.adopt(orphans=True)
    try:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        grandchild = int(child.stdout.readline())
        child.kill()
        processes.kill_children(but=before)
        assert not lives(child.pid) and not lives(grandchild)
        assert lives(spared.pid) and processes.children() == before
    finally:
        processes.adopt(orphans=False)
        spared.kill()
        spared.wait()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"v2/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"}, 2),  # in a container
        ({"v2/a/b/memory.events": "oom_kill 4\n", "v2/memory.events": "oom_kill 9\n"}, 4),
        ({"v1/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1),
        ({"v1/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, None),  # before Linux 4.13
        ({}, None),
    ],
)
def test_the_kernels_count_of_memory_kills_is_read_where_it_is(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    places = ((str(tmp_path / "v2"), "memory.events"), (str(tmp_path / "v1"), "memory.oom_control"))
    monkeypatch.setattr(processes, "OOM_COUNTS", places)
    monkeypatch.setattr(processes, "_groups", lambda: ["a/b"])
    assert processes.oom_kills() == expected


def test_this_process_has_a_group_or_none():
    assert all(isinstance(group, str) and not group.startswith("/") for group in processes._groups())


def test_a_process_that_does_not_die_is_left_behind(monkeypatch, capfd):
    """As one that hangs in the kernel: it is waited for, but not for ever."""
    monkeypatch.setattr(processes, "KILL_S", 0.05)
    before = processes.children()
    child = processes.start(SLEEP, dict(os.environ), None)
    kill, killpg = os.kill, os.killpg
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    processes.kill_group(child)
    processes.kill_children(but=before)
    assert lives(child.pid)
    assert capfd.readouterr().err == f"process {child.pid} does not die: it hangs in the kernel\n"
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os, "killpg", killpg)
    processes.kill_group(child)
    assert child.returncode == -9


def test_a_process_in_a_call_that_hangs_dies():
    """As one whose driver does not answer: no handler of Python's runs there."""
    code = "import ctypes; print('now', flush=True); ctypes.CDLL(None).pause()"
    reader, writer = os.pipe()
    child = processes.start([sys.executable, "-c", code], dict(os.environ), writer)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.readline() == "now\n"
    processes.kill_group(child)
    assert child.returncode == -9


def test_who_descends_from_whom():
    child = subprocess.Popen(SLEEP)
    assert processes.is_below(child.pid, os.getpid())
    assert processes.is_below(os.getpid(), os.getpid())
    assert not processes.is_below(os.getppid(), os.getpid())
    assert not processes.is_below(1, os.getpid())
    child.kill()
    child.wait()
    assert not processes.is_below(child.pid, os.getpid())


def test_a_process_knows_itself_and_nobody_else_is_it():
    me = processes.identity()
    assert processes.is_alive(me) is True
    assert processes.is_alive({**me, "began": me["began"] + 1}) is False  # the pid was used again
    assert processes.is_alive({**me, "pid": 2**22 + 1}) is False
    assert processes.is_alive({**me, "pid": "1"}) is False


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": 1}])
def test_a_process_elsewhere_is_neither_alive_nor_dead(change):
    assert processes.is_alive({**processes.identity(), **change}) is None


def test_a_process_that_ended_is_not_alive():
    code = "import json; from joulesweep.core import processes; print(json.dumps(processes.identity()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert processes.is_alive(json.loads(done.stdout)) is False
