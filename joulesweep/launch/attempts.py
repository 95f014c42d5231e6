"""Note every attempt at a run beside its record: when it was, how it ended, and what it took.

An attempt appends two lines to `attempts.jsonl` in the run's folder, one as it begins and one as it ends; one that was
killed without a word has only the first. The file is no output of the workflow, so Snakemake does not delete it before
it repeats a run. Each line is one write to the end of the file, so the lines of two processes never mix.

    {attempt, began, hostname, pid, cpu_model, cpu_cores, batch: {system, job, …, minutes}}
    {attempt, ended, status, reason, waited_s, held_s, cpu_s, energy: [{device, kind, energy_j, reason}]}

An attempt that was preempted is followed by one that goes on from its checkpoint. Such attempts also note their part
of the window, which the record lists as a segment: window_s, window: [{device, kind, energy_j, status}].

The joules are what the counters of the leased boards rose by while the lease was held; of the host's devices too, if
the run had the machine to itself. So failed attempts have joules, which no record has.
"""

# changes no number: what an attempt took, beside its record
from __future__ import annotations

import datetime
import json
import os
import resource
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from joulesweep.core import bounded
from joulesweep.core.errors import UserError
from joulesweep.launch.checkpoints import RunPreempted
from joulesweep.launch.lease import Lease
from joulesweep.launch.node import RunFailed
from joulesweep.measure import batch_system, machine, meters
from joulesweep.measure.meters import Sensor
from joulesweep.runs.attempted import FAILED, FILE, PREEMPTED, STOPPED
from joulesweep.runs.record import RunRecord


@dataclass(frozen=True)
class _Counter:
    """A counter as the lease began; value_j is None where it did not answer, with the reason."""

    sensor: Sensor
    value_j: float | None
    reason: str | None
    at_s: float


class Attempt:
    """A context around `launch` that notes the attempt.

    Args:
        folder: the run's.
        minutes: after which a batch system would end it.
    """

    def __init__(self, folder: Path, minutes: int | None = None) -> None:
        self.path = folder / FILE
        job = batch_system.describe()
        self._batch = {**asdict(job), "minutes": minutes} if job else None
        self._record: RunRecord | None = None
        self._began_s = time.monotonic()
        self._cpu_s = _cpu_s()
        self._taken_s: float | None = None
        self._held_s: float | None = None
        self._counters: list[_Counter] = []
        self._energy: list[dict[str, object]] = []
        self.name = f"{time.time_ns()} {socket.gethostname()} {os.getpid()}"

    def __enter__(self) -> Attempt:
        Lease.watchers.append(self._see)
        about: dict[str, object] = {"cpu_model": machine.cpu_model(), "cpu_cores": len(os.sched_getaffinity(0))}
        about |= {"batch": self._batch} if self._batch else {}
        self._append({"began": _now(), "hostname": socket.gethostname(), "pid": os.getpid(), **about})
        return self

    def ended(self, record: RunRecord) -> RunRecord:
        """Note that the attempt left a record; returns it."""
        self._record = record
        return record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        Lease.watchers.remove(self._see)
        until_s = self._taken_s if self._taken_s is not None else time.monotonic()
        status, reason = self._outcome(error)
        self._append(
            {
                "ended": _now(),
                "status": status,
                "reason": reason,
                "waited_s": until_s - self._began_s,
                "held_s": self._held_s,
                "cpu_s": _cpu_s() - self._cpu_s,
                "energy": self._energy,
                **self._part(error),
            }
        )

    def _part(self, error: BaseException | None) -> dict[str, object]:
        """What the attempt did of a training that was preempted; empty if it was not."""
        measured = self._record.measurement if self._record is not None else None
        segment = measured.segments[-1] if measured is not None and measured.segments else None
        segment = error.segment if isinstance(error, RunPreempted) else segment
        if segment is None:
            return {}
        names = ("device", "kind", "status")
        rows = [
            {**{name: getattr(row, name) for name in names}, "energy_j": row.total_energy_j} for row in segment.energy
        ]
        return {"window_s": segment.window_s, "window": rows}

    def _outcome(self, error: BaseException | None) -> tuple[str, str | None]:
        if self._record is not None:
            return self._record.status, self._record.reason
        if isinstance(error, RunPreempted):
            return PREEMPTED, str(error)
        if isinstance(error, Exception):
            said = str(error) if isinstance(error, UserError | RunFailed) else bounded.said(error)
            return FAILED, " ".join(said.split())
        return STOPPED, "ended from outside"

    def _see(self, lease: Lease, begins: bool) -> None:
        """Read the counters as the lease begins, and as it ends."""
        if begins:
            self._taken_s = time.monotonic()
            self._counters = [_first(sensor) for sensor in _sensors(lease)]
        elif self._taken_s is not None and self._held_s is None:
            self._energy = [_risen(counter) for counter in self._counters]
            self._held_s = time.monotonic() - self._taken_s

    def _append(self, row: dict[str, object]) -> None:
        """Append one line; a disk that refuses costs the line, not the run."""
        line = json.dumps({"attempt": self.name, **row}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            print(f"{self.path}: {error.strerror}; what this attempt took is not noted", file=sys.stderr)


def _sensors(lease: Lease) -> list[Sensor]:
    """The devices that only this run uses: its boards, and the host's if it has the machine to itself."""
    sensors: list[Sensor] = []
    for board in lease.boards:
        sensor, _ = bounded.within(bounded.LIMIT_S, meters.sensor, board)
        sensors += [sensor] if sensor is not None else []
    host, _ = meters.of_host({}) if lease.exclusive == "node" else ([], {})
    return [*sensors, *(sensor for sensor in host if not sensor.traits.kind.contains)]


def _first(sensor: Sensor) -> _Counter:
    value_j, reason = bounded.within(bounded.LIMIT_S, sensor.energy_j)
    return _Counter(sensor, value_j, None if value_j is not None else reason or "it has no counter", time.monotonic())


def _risen(counter: _Counter) -> dict[str, object]:
    """What a counter rose by, as JSON; null with the reason where it did not answer twice, or may have started anew."""
    sensor, energy_j, reason = counter.sensor, None, counter.reason
    if counter.value_j is not None:
        value_j, reason = bounded.within(bounded.LIMIT_S, sensor.energy_j)
        if value_j is not None:
            energy_j, reason = _difference(counter, counter.value_j, value_j)
        reason = reason if energy_j is not None else reason or "its counter did not answer any more"
    return {"device": sensor.device, "kind": sensor.traits.kind.name, "energy_j": energy_j, "reason": reason}


def _difference(counter: _Counter, first_j: float, last_j: float) -> tuple[float | None, str | None]:
    """Joules since the first reading; or None and why they are not known."""
    range_j, most_w = counter.sensor.traits.range_j, counter.sensor.traits.kind.most_w
    if range_j is not None and most_w is not None and most_w * (time.monotonic() - counter.at_s) > range_j:
        return None, "its counter may have started again at 0 more than once"
    risen_j = last_j - first_j + (range_j if range_j is not None and last_j < first_j else 0.0)
    return (risen_j, None) if risen_j >= 0 else (None, "its counter was reset")


def _cpu_s() -> float:
    """CPU-seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
