"""Measure the window of one process with Zeus's ZeusMonitor, and check what it returns.

Zeus reports a missing meter as an empty result whose total is 0. Here every device is a row of its own with a status:
what could not be read is null, with the reason. The boards that are metered are one thing, the device that trains
another: a run on the CPU may meter boards, and waiting for pending work follows the device that trains.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from joulesweep.core import late_imports
from joulesweep.core.outcome import CounterReads, Reading
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import GPU, of_board, rapl

WINDOW = "training"
MIG = "MIG: NVML counts the joules of the whole board, not those of a slice"
NO_COUNTER = "the board answers no energy counter; boards before Volta and many virtual ones have none"


class Meter:
    """One measured span of this process.

    Under DDP each rank measures its own board, and local rank 0 alone the host: every device is counted once. Each
    device has a window of Zeus to itself, so that one that fails costs no other its joules.

    Args:
        boards: by their position among those that CUDA_VISIBLE_DEVICES lists, which is Zeus's index.
        host: whether to measure CPU packages and DRAM too.
        synchronize: waits for pending work of the device that trains.

    Attributes:
        begin_s, end_s: of the window, on the monotonic clock. Zeus's own seconds are the wall clock's, which may step.
        window_s: between them.
        clock_step_s: how much further the wall clock went than the monotonic one meanwhile.
        calls_s: time spent in the meter's own calls.
    """

    def __init__(self, boards: Mapping[int, Board], host: bool, synchronize: Callable[[], None]) -> None:
        self.boards, self.host, self.synchronize = boards, host, synchronize
        self.calls_s = self.begin_s = self.end_s = self.window_s = self.clock_step_s = 0.0
        self.no_host = None if _daemon() else rapl.problem()  # Zeus's daemon reads for those who may not
        self._gpus = {at: _Window(gpu=at) for at, board in boards.items() if _problem(board) is None}
        cpus = rapl.packages() if host and self.no_host is None else []
        self._cpus = {number: _Window(cpu=number) for number in cpus}

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Measure the block. If it raises, nothing is recorded; if a meter fails, training goes on, with the reason."""
        windows = [*self._cpus.values(), *self._gpus.values()]
        self.synchronize()
        called_s = time.monotonic()
        for window in windows:
            window.begin()
        self.begin_s, ahead_s = time.monotonic(), _wall_ahead_s()
        yield
        self.synchronize()
        self.end_s, self.clock_step_s = time.monotonic(), _wall_ahead_s() - ahead_s
        self.window_s = self.end_s - self.begin_s
        for window in reversed(windows):
            window.end()
        self.calls_s = (self.begin_s - called_s) + (time.monotonic() - self.end_s)

    def readings(self) -> list[Reading]:
        """The readings of each device over the whole window."""
        of_boards = [self._of_board(position, board) for position, board in self.boards.items()]
        return of_boards + (self._of_host("cpu") + self._of_host("dram") if self.host else [])

    def _of_board(self, position: int, board: Board) -> Reading:
        window, reason, total_j = self._gpus.get(position), _problem(board), None
        if window is not None:
            total_j = window.joules("gpu_energy")
            reason = window.failure or (None if total_j is not None else "Zeus gave no energy for this board")
        if window is None or reason is not None:
            return reading(board.device, GPU.name, board.uuid, reason=reason)
        return reading(board.device, GPU.name, board.uuid, total_j, of_board(board).COUNTER, reads=window.reads)

    def _of_host(self, kind: str) -> list[Reading]:
        shown = {zone.device for zone in rapl.devices()} if self._cpus and not _daemon() else None
        rows = []
        for number, window in self._cpus.items():
            total_j, device = window.joules(f"{kind}_energy"), f"{kind}:{number}"
            if total_j is not None and (shown is None or device in shown):  # else a counter that another zone shows too
                rows.append(reading(device, kind, None, total_j, "Zeus: RAPL counter"))
            elif window.failure is not None:
                rows.append(reading(device, kind, None, reason=window.failure))
        if rows:
            return rows
        reason = self.no_host or f"RAPL of this machine counts no {kind.upper()} energy"
        return [reading(f"{kind}:{min(self._cpus, default=0)}", kind, None, reason=reason)]


class _Window:
    """Zeus's window of one device.

    Attributes:
        failure: why there are no joules of it, or None.
        reads: how a board's counter was read at the edges of the window, or None where Zeus does not tell.
    """

    def __init__(self, gpu: int | None = None, cpu: int | None = None) -> None:
        self.failure: str | None = None
        self.reads: CounterReads | None = None
        self._begun: tuple[float, tuple[float, float]] | None = None  # the counter, and when it was read
        self._index = gpu if gpu is not None else cpu
        self._monitor: Any = None
        self._measured: Any = None
        with self._noting_failure():
            with late_imports.defer_import(
                "sklearn.metrics", "auc"
            ):  # of the fall-back for boards without a counter, never ours
                from zeus.monitor import ZeusMonitor

            monitor = ZeusMonitor(gpu_indices=[] if gpu is None else [gpu], cpu_indices=[] if cpu is None else [cpu])
            if cpu is not None:  # the first reading starts Zeus's helper process: seconds
                monitor.cpus.get_total_energy_consumption(cpu)
            self._monitor = monitor

    def begin(self) -> None:
        """Begin it, if Zeus could be started."""
        called_s = time.monotonic()
        with self._noting_failure():
            if self._monitor is not None:
                self._monitor.begin_window(WINDOW, sync_execution=False)
        begin_s = called_s, time.monotonic()
        with contextlib.suppress(Exception):  # not part of what Zeus promises
            begin_j = self._monitor.measurement_states[WINDOW].gpu_energy[self._index]
            self._begun = float(begin_j), begin_s

    def end(self) -> None:
        """End it, if it was begun."""
        called_s = time.monotonic()
        with self._noting_failure():
            if self._monitor is not None and self.failure is None:
                self._measured = self._monitor.end_window(WINDOW, sync_execution=False)
        if self._begun is not None:
            begin_j, begin_s = self._begun
            self.reads = CounterReads(begin_j=begin_j, begin_s=begin_s, end_s=(called_s, time.monotonic()))

    def joules(self, kind: str) -> float | None:
        """What was measured of gpu_energy, cpu_energy or dram_energy."""
        return (getattr(self._measured, kind, None) or {}).get(self._index)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a meter raises costs its joules, never the training
            hint = f" ({_daemon()} is set: Zeus asks its daemon)" if _daemon() else ""
            self.failure = f"Zeus: {type(error).__name__}: {error}{hint}"


def _daemon() -> str | None:
    """The variable that makes Zeus ask its daemon instead of the driver, if one is set."""
    return next((name for name in sorted(os.environ) if name.startswith("ZEUSD_")), None)


def _wall_ahead_s() -> float:
    """How far the wall clock is ahead of the monotonic one: the most of some looks, which nothing came between."""
    return max(time.time() - time.monotonic() for _ in range(5))


def _problem(board: Board) -> str | None:
    """Why Zeus has no joules of a board; None if it has."""
    if board.mig:
        return MIG
    return None if board.has_counter else board.no_counter or NO_COUNTER


def reading(
    device: str,
    kind: str,
    uuid: str | None,
    total_energy_j: float | None = None,
    method: str | None = None,
    reason: str | None = None,
    reads: CounterReads | None = None,
) -> Reading:
    """What a meter says of a device: measured, or unavailable where there is a reason."""
    return Reading(
        device=device,
        kind=kind,
        uuid=uuid,
        total_energy_j=total_energy_j,
        status="measured" if reason is None else "unavailable",
        method=method,
        reason=reason,
        reads=reads,
    )
