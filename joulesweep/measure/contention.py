"""Detect CPU contention: CPU time used by other processes, and time that the run's threads waited for a core.

From Linux's counts: /proc/stat (all processes), /proc/PID/stat and schedstat (the run's), /proc/pressure/cpu. What the
machine does not count is unknown, with the reason.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from joulesweep.core.outcome import CpuUse, Span

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
FOREIGN = 0.1  # CPU-seconds of others per second of the window that are negligible …
FOREIGN_SHARE = 0.05  # … as is less than this share of the run's own
WAITING = 0.1  # share of their time that the run's threads may be ready and wait for a core
FULL = 0.75  # of the cores' time: a run that uses more and waits without other processes waits for itself
GOT = 0.9  # CPU-seconds per second of the window: with less, a run on the CPU was stopped at times
LOST = 0.9  # a machine's count below this share of the run's own time is not of this machine


@dataclass(frozen=True, kw_only=True)
class Reading:
    """CPU times until a moment, in seconds; None where the kernel does not report them.

    Attributes:
        at_s: the moment, on the monotonic clock.
        busy_s: of all processes, interrupts included.
        steal_s: taken by the hypervisor.
        pressure_s: in which some process was ready and had no core.
        own_s: of this process and all below it.
        ran_s, waited_s: in which threads of these ran, and were ready but had no core.
    """

    at_s: float
    busy_s: float | None
    steal_s: float | None
    pressure_s: float | None
    own_s: float | None
    ran_s: float | None
    waited_s: float | None


class Reader:
    """Reads CPU times of this process and its descendants; ended threads keep their last values."""

    def __init__(self) -> None:
        self._threads: dict[str, tuple[float, float]] = {}

    def read(self, at_s: float) -> Reading:
        """Take a reading.

        Args:
            at_s: the moment, on the monotonic clock.
        """
        family = descendants(os.getpid())
        busy_s, steal_s = _machine()
        ran_s, waited_s = self._queued(family) if family else (None, None)
        return Reading(
            at_s=at_s,
            busy_s=busy_s,
            steal_s=steal_s,
            pressure_s=_pressure(),
            own_s=sum(map(_used, family)) if family else None,
            ran_s=ran_s,
            waited_s=waited_s,
        )

    def _queued(self, family: Sequence[int]) -> tuple[float, float] | tuple[None, None]:
        for pid in family:
            with contextlib.suppress(OSError, ValueError):
                for task in (PROC / str(pid) / "task").iterdir():
                    with contextlib.suppress(OSError, ValueError):
                        ran_ns, waited_ns, _ = map(int, _words(task / "schedstat"))
                        self._threads[task.name] = ran_ns / 1e9, waited_ns / 1e9
        totals = [sum(values) for values in zip(*self._threads.values(), strict=True)]
        return (totals[0], totals[1]) if totals and totals[0] else (None, None)


def descendants(pid: int) -> list[int]:
    """Ids of a process and its descendants; empty if the kernel does not list children."""
    pids, unvisited = [], [pid]
    while unvisited:
        parent = unvisited.pop()
        pids.append(parent)
        try:
            tasks = list((PROC / str(parent) / "task").iterdir())
            unvisited += [int(word) for task in tasks for word in _words(task / "children")]
        except FileNotFoundError:
            if parent == pid:
                return []  # a kernel without these files; else the process has ended meanwhile
        except (OSError, ValueError):
            continue
    return pids


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="ascii", errors="replace").split()


def _used(pid: int) -> float:
    """CPU-seconds of a process and its ended children; 0 if it has ended itself."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS_PER_S  # proc(5): utime, stime, cutime, cstime
    except (OSError, ValueError):
        return 0.0


def _machine() -> tuple[float, float] | tuple[None, None]:
    """CPU-seconds that the machine was busy, and that the hypervisor took."""
    try:
        label, *fields = _words(PROC / "stat")[:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) / TICKS_PER_S for field in fields)
    except (OSError, ValueError):
        return None, None
    return (user + nice + system + irq + softirq, steal) if label == "cpu" else (None, None)


def _pressure() -> float | None:
    """Seconds in which some process waited for a core."""
    try:
        word, *_, total = (PROC / "pressure" / "cpu").read_text(encoding="ascii").splitlines()[0].split()
        return int(total.removeprefix("total=")) / 1e6 if word == "some" else None
    except (OSError, ValueError, IndexError):
        return None


def describe(readings: Sequence[Reading], span: Span, cpu_s: float, num_threads: int) -> CpuUse:
    """The CPU use of a window, from the readings around it.

    Args:
        readings: in their order.
        span: begin_s and end_s of the window.
        cpu_s: CPU-seconds of the run's processes in the window.
        num_threads: threads that they may compute with.
    """
    window_s = span.window_s
    around = _around(readings, span)
    shares: dict[str, tuple[float | None, str]] = {
        "cpu_share": (cpu_s / (window_s * num_threads) if window_s > 0 else None, "the window has no length"),
        "cpu_pressure_share": _pressure_share(around),
        "cpu_wait_share": _wait_share(around),
        "foreign_cpu_s": _foreign_s(around, window_s),
        "cpu_steal_s": _steal_s(around, window_s),
    }
    unknown = {name: reason for name, (value, reason) in shares.items() if value is None}
    return CpuUse(**{name: value for name, (value, _) in shares.items()}, cpu_unknown=unknown)


def _around(readings: Sequence[Reading], span: Span) -> tuple[Reading, Reading] | None:
    """The last reading before a window and the first one after it."""
    before = [reading for reading in readings if reading.at_s <= span.begin_s]
    after = [reading for reading in readings if reading.at_s >= span.end_s]
    return (before[-1], after[0]) if before and after and after[0].at_s > before[-1].at_s else None


Share = tuple[float | None, str]
NOT_READ = "no readings on both sides of the window"


def _pressure_share(around: tuple[Reading, Reading] | None) -> Share:
    if around is None:
        return None, NOT_READ
    first, last = around
    if first.pressure_s is None or last.pressure_s is None:
        return None, "no /proc/pressure/cpu"
    return (last.pressure_s - first.pressure_s) / (last.at_s - first.at_s), ""


def _wait_share(around: tuple[Reading, Reading] | None) -> Share:
    if around is None:
        return None, NOT_READ
    first, last = around
    if first.ran_s is None or last.ran_s is None or first.waited_s is None or last.waited_s is None:
        return None, "no /proc/PID/schedstat"
    ran_s, waited_s = last.ran_s - first.ran_s, last.waited_s - first.waited_s
    return (waited_s / (ran_s + waited_s), "") if ran_s + waited_s > 0 else (None, "no thread of the run ran")


def _foreign_s(around: tuple[Reading, Reading] | None, window_s: float) -> Share:
    if around is None:
        return None, NOT_READ
    first, last = around
    if first.busy_s is None or last.busy_s is None:
        return None, "no /proc/stat"
    if first.own_s is None or last.own_s is None:
        return None, "no /proc/PID/task/TID/children"
    busy_s, own_s = last.busy_s - first.busy_s, last.own_s - first.own_s
    if busy_s < LOST * own_s - 2 / TICKS_PER_S:
        return None, "/proc/stat does not count what this run used"
    return max(0.0, busy_s - own_s) * window_s / (last.at_s - first.at_s), ""


def _steal_s(around: tuple[Reading, Reading] | None, window_s: float) -> Share:
    if around is None:
        return None, NOT_READ
    first, last = around
    if first.steal_s is None or last.steal_s is None:
        return None, "no /proc/stat"
    return max(0.0, last.steal_s - first.steal_s) * window_s / (last.at_s - first.at_s), ""


def causes(cpu: CpuUse, window_s: float, cpu_s: float, on_cpu: bool) -> list[str]:
    """Why a run was contended, each cause in a few words; empty if no cause is known.

    Args:
        cpu: of `describe`.
        window_s: length of the window.
        cpu_s: CPU-seconds of the run's processes in it.
        on_cpu: whether it trains on the CPU: then at least one of its threads is always busy.
    """
    reasons = []
    much_s = max(FOREIGN * window_s, FOREIGN_SHARE * cpu_s)
    if (cpu.foreign_cpu_s or 0.0) > much_s:
        reasons.append(f"other processes used {cpu.foreign_cpu_s:.3g} CPU-seconds (it used {cpu_s:.3g})")
    if (cpu.cpu_steal_s or 0.0) > much_s:
        reasons.append(f"the hypervisor took {cpu.cpu_steal_s:.3g} CPU-seconds")
    # A run with more threads than cores waits for itself: then the cores are full of its own work.
    itself = cpu.foreign_cpu_s is not None and cpu_s > FULL * window_s * len(os.sched_getaffinity(0))
    if (cpu.cpu_wait_share or 0.0) > WAITING and not itself:
        reasons.append(f"its threads waited for a core {cpu.cpu_wait_share:.0%} of the time that they were ready")
    elif cpu.cpu_wait_share is None and (cpu.cpu_pressure_share or 0.0) > WAITING:
        reasons.append(f"some process waited for a core {cpu.cpu_pressure_share:.0%} of the time")
    if on_cpu and cpu_s < GOT * window_s:
        reasons.append(f"its processes got {cpu_s:.3g} CPU-seconds in {window_s:.3g} s")
    return reasons
