"""Read the meters of a run in a separate thread while it works.

The launching parent's main thread keeps the deadline, hears signals and watches the processes. It never asks a meter:
one that hangs costs the readings, not the run. What was read until then stays.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from joulesweep.core import bounded, processes
from joulesweep.measure import contention
from joulesweep.measure.meters import BoardSensor
from joulesweep.measure.trace import Trace

LOOK_PERIOD_S = 1.0


@dataclass(frozen=True, kw_only=True)
class BoardLook:
    """What is asked of a board once a second, besides its readings.

    Attributes:
        own: whether processes of this run compute on it; None where the board does not say.
        others: ids of other processes that do, None where it does not say.
        power_limit_w: the limit in force.
    """

    own: bool | None
    others: list[int] | None
    power_limit_w: float | None


def look_at(sensor: BoardSensor) -> BoardLook:
    """Ask a board who computes on it, and for its limit."""
    pids = sensor.process_ids()
    if pids is None:
        return BoardLook(own=None, others=None, power_limit_w=sensor.power_limit_w())
    others = [pid for pid in pids if not processes.is_below(pid, os.getpid())]
    return BoardLook(own=len(others) < len(pids), others=others, power_limit_w=sensor.power_limit_w())


@dataclass
class Looks:
    """What was seen besides the trace, once a second.

    Attributes:
        cpu: the CPU's readings.
        boards: (time, device, what was seen of it).
    """

    cpu: list[contention.Reading] = field(default_factory=list)
    boards: list[tuple[float, str, BoardLook]] = field(default_factory=list)


class Watch:
    """A context in which a thread reads the meters.

    Args:
        trace: takes the readings; also the boards to look at.

    Attributes:
        looks: what was seen besides.
        stopped: why the readings ended before the run, in one line; None if they did not.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace, self.looks = trace, Looks()
        self.stopped: str | None = None
        self._cpu = contention.Reader()
        self._ended = threading.Event()
        self._asked_s: float | None = None  # since when an answer is waited for
        self._next_look_s = time.monotonic()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last reading, unless the run ends by an exception or nothing answers any more."""
        self._ended.set()
        while kind is None and self._thread.is_alive() and self.stopped is None:
            self._thread.join(0.01)
            self.check()

    def check(self) -> None:
        """Give the readings up if one takes too long. To be called now and then while the run works."""
        asked_s = self._asked_s
        if asked_s is not None and self.stopped is None and time.monotonic() - asked_s > bounded.LIMIT_S:
            self.stopped = f"no answer within {bounded.LIMIT_S:g} s"

    def _read(self) -> None:
        try:
            while not self._ended.wait(self._pause_s()) and self.stopped is None:
                self._read_once()
            if self.stopped is None:
                self._next_look_s = 0.0
                self._read_once(last=True)
        except Exception as error:
            self.stopped = bounded.said(error)  # whatever a meter raises costs the readings alone

    def _read_once(self, last: bool = False) -> None:
        self._asked_s = time.monotonic()
        self.trace.sample(last)
        self._look(time.monotonic())
        self._asked_s = None

    def _pause_s(self) -> float:
        until_look_s = max(0.0, self._next_look_s - time.monotonic())
        return min(self.trace.wait_s(), until_look_s) if self.trace.series else until_look_s

    def _look(self, now_s: float) -> None:
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_PERIOD_S
            cpu = self._cpu.read(now_s)
            boards = [(now_s, device, look_at(sensor)) for device, sensor in self.trace.boards.items()]
            if self.stopped is None:
                self.looks.cpu.append(cpu)
                self.looks.boards += boards


def others(looks: Sequence[BoardLook], computes: bool, whole_machine: bool) -> bool | None:
    """Whether processes of others computed on a board, as far as it can be known.

    A container is shown its own processes or none, so that a list without others says nothing there. One in which the
    run itself lacks although it computes has the ids of another namespace: whose they are cannot be told.

    Args:
        looks: what was seen of the board.
        computes: whether the run computed on it at that time.
        whole_machine: whether this process sees all processes of the machine.

    Returns:
        True if there were some, False if none, None if unknown.
    """
    known = [look for look in looks if look.others is not None]
    if not known:
        return None
    if computes and not whole_machine and not any(look.own for look in known):
        return None
    if any(look.others for look in known):
        return True
    return False if whole_machine and len(known) == len(looks) else None
