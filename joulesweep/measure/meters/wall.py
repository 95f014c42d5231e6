"""The whole machine at its plug or PDU: what a command of the config prints.

The command prints one number: watts, or a counter. It runs again and again in a thread of its own, so that a slow plug
delays no other reading, and only while somebody reads: a thread that nobody asks any more ends.
"""

# changes no number: shown beside a run's joules, in no sum
from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import threading
import time

from joulesweep.measure.meters import WALL, Settings, Traits

KINDS = (WALL,)
#: Joules per unit of a counter; None: watts.
UNITS = {"W": None, "J": 1.0, "Wh": 3600.0, "kWh": 3.6e6}
MOST_BYTES = 4096  # of an output
UNASKED_S = 5.0  # so long nobody asks, and the thread ends


class Wall:
    """The readings of the command.

    Args:
        command: run by `sh -c`; the last line that it prints is a number.
        unit: of the number, in `UNITS`.
        every_s: seconds from one reading to the next.
        deadline_s: the command is killed after so many.

    Attributes:
        failure: why the last reading failed, or None.
    """

    device = "wall:0"

    def __init__(self, command: str, unit: str, every_s: float, deadline_s: float) -> None:
        self.command, self.every_s, self.deadline_s = command, every_s, deadline_s
        self.joules = UNITS[unit]
        source = "meter at the wall"
        self.traits = Traits(
            kind=WALL,
            source=source,
            power=f"as the {source} averages it" if self.joules is None else None,
            method=f"{source}: {'power' if self.joules is None else f'counter in {unit}'}",
            late_s=every_s + deadline_s,
        )
        self.failure: str | None = None
        self._number: tuple[float, float] | None = None  # when it was read, and what
        self._asked_s = -math.inf
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def energy_j(self) -> float | None:
        """The counter."""
        number = None if self.joules is None else self._latest()
        return None if number is None else number * (self.joules or 0.0)

    def power_w(self) -> float | None:
        """Power, over whatever time the meter averages it."""
        return self._latest() if self.joules is None else None

    def read(self) -> float:
        """Run the command once.

        Raises:
            ValueError: it printed no number, failed or took too long; says so in one line.
        """
        return _number(_printed(self.command, self.deadline_s))

    def _latest(self) -> float | None:
        """The newest reading, unless it is too old."""
        with self._lock:
            self._asked_s = time.monotonic()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._keep_reading, daemon=True)
                self._thread.start()
            old = self._number is None or self._asked_s - self._number[0] > self.every_s + self.deadline_s
            return None if self._number is None or old else self._number[1]

    def _keep_reading(self) -> None:
        while time.monotonic() - self._asked_s < UNASKED_S:
            began_s = time.monotonic()
            try:
                number, self.failure = self.read(), None
            except (OSError, ValueError) as error:
                self.failure = " ".join(str(error).split())
            else:
                with self._lock:
                    self._number = began_s, number
            time.sleep(max(0.0, began_s + self.every_s - time.monotonic()))


def _printed(command: str, deadline_s: float) -> str:
    """What a command prints, in time."""
    child = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what the shell started, too
        child.communicate()
        raise ValueError(f"the command took longer than {deadline_s:g} s") from None
    if child.returncode:
        lines = err[-MOST_BYTES:].decode(errors="replace").strip().splitlines()
        raise ValueError(f"the command ended with exit code {child.returncode}{f': {lines[-1]}' if lines else ''}")
    return out[-MOST_BYTES:].decode(errors="replace")


def _number(text: str) -> float:
    """The number on the last line of a text.

    Raises:
        ValueError: there is none, or it is no reading.
    """
    lines = text.strip().splitlines() or [""]
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", lines[-1].strip()):
        raise ValueError(f"the command printed {lines[-1].strip()[:40]!r}, not a number")
    number = float(lines[-1])
    if not 0 <= number < math.inf:
        raise ValueError(f"the command printed {number:g}: neither power nor a counter is less than 0 or infinite")
    return number


def devices(settings: Settings | None) -> list[Wall]:
    """The plug of the config; none without it."""
    return [] if settings is None else [Wall(**settings)]


def problem(settings: Settings | None) -> str | None:
    """Why the plug gives no reading; None if it gives one."""
    if settings is None:
        return "no plug or PDU: name a command that prints its watts or joules in the config, hardware.wall"
    try:
        Wall(**settings).read()
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return None
