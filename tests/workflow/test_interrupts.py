"""Ctrl-C at a terminal, and SIGTERM: what was on its way is named, with the command that goes on, and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Sequence

import pytest
from checkout import Checkout
from patience import PATIENCE_S, wait_for

from joulesweep.core import processes


class Terminal:
    """A command in the foreground of a terminal of its own."""

    def __init__(self, sweep: Checkout, command: Sequence[str]) -> None:
        self.keyboard, screen = pty.openpty()

        def begin() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            fcntl.ioctl(screen, termios.TIOCSCTTY, 0)
            processes.die_with_parent()

        environ = {**sweep.environ, "PYTHONPATH": os.pathsep.join([".", sweep.environ["PYTHONPATH"]])}
        self.child = subprocess.Popen(
            command,
            cwd=sweep.folder,
            env=environ,
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=begin,
        )
        os.close(screen)
        self.said = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the last process has left the terminal
            while part := os.read(self.keyboard, 2**16):
                self.said += part

    def end(self, press: Callable[[], object]) -> str:
        """What the command says after something made it end."""
        before = len(self.said)
        press()
        self.child.wait(PATIENCE_S)
        self.reader.join(PATIENCE_S)
        os.close(self.keyboard)
        return self.said[before:].decode().replace("\r", "")

    def control_c(self) -> None:
        os.write(self.keyboard, b"\x03")


def unfinished(sweep: Checkout) -> str:
    """One of the two runs, of which the record is gone."""
    victim = sorted(sweep.records())[0]
    (sweep.runs / victim / "record.json").unlink()
    return victim


@pytest.mark.parametrize("quiet", [[], ["--quiet", "all"]])
def test_ctrl_c_says_in_one_line_what_is_lost_and_how_to_go_on(sweep: Checkout, quiet: list[str]) -> None:
    victim = unfinished(sweep)
    with sweep.held():
        terminal = Terminal(sweep, sweep.command(*quiet))
        wait_for(sweep.workers, "the run's process")
        said = terminal.end(terminal.control_c)
    assert terminal.child.returncode not in (0, None)
    assert "Traceback" not in said and "KeyboardInterrupt" not in said, said
    goes_on = " ".join(["snakemake --cores 2", *quiet])
    line = f"Stopped with 1 run on the way, nothing else is lost: {victim}. Go on with: {goes_on}"
    said = said.removeprefix("^C")  # the terminal echoes it
    assert said.splitlines().count(line) == 1, said
    if quiet:
        assert [line for line in said.splitlines() if line] == [line], said
    assert not sweep.workers()
    assert victim not in sweep.records()


def test_a_run_by_hand_that_is_interrupted_says_so_in_one_line(sweep: Checkout) -> None:
    run = sorted(sweep.records())[0]
    with sweep.held():
        terminal = Terminal(sweep, [sys.executable, "-m", "joulesweep.cli.main", "run", run])
        wait_for(sweep.workers, "the run's process")
        said = terminal.end(terminal.control_c)
    assert terminal.child.returncode == 130
    assert said.removeprefix("^C").strip() == f"stopped: {run} left no record; the same command begins it again"
    assert not sweep.workers()
