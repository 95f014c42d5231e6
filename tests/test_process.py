"""Processes end with their parent and as whole groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import tiny_run

from joulesweep import process

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 - one of the two may vanish
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int) -> None:
    deadline_s = time.monotonic() + 30
    while lives(pid):
        assert time.monotonic() < deadline_s, f"process {pid} lives"
        time.sleep(0.02)


def test_a_child_dies_with_its_parent_however_that_dies():
    code = (
        "import os, sys; from joulesweep import process\n"
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
    child = process.start([sys.executable, "-c", code], dict(os.environ), log)
    os.close(log)
    while not (tmp_path / "log").read_text().endswith("\n"):
        assert child.poll() is None
        time.sleep(0.02)
    grandchild = int((tmp_path / "log").read_text())
    assert lives(grandchild)
    process.kill_group(child)
    assert child.returncode == -9
    wait_until_dead(grandchild)


def test_a_group_that_has_ended_may_be_killed_again():
    child = process.start([sys.executable, "-c", "pass"], dict(os.environ), None)
    child.wait()
    process.kill_group(child)
    assert child.returncode == 0


@pytest.mark.parametrize("word", ["one", "another"])
def test_a_command_has_the_environment_that_is_given_and_nothing_else(tmp_path, word):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    code = (
        "import os, sys; print('x', file=sys.stderr)\n"
        "print(os.environ['WORD'], 'HOME' in os.environ, sys.stdin.read() == '')"
    )
    child = process.start([sys.executable, "-c", code], {"WORD": word}, log)
    os.close(log)
    assert child.wait() == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted([f"{word} False True", "x"])
