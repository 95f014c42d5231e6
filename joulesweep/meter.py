"""The measured window of one process: Zeus's ZeusMonitor, read with suspicion.

Zeus reports a missing meter as an empty result whose total is 0. Here every device is a row of its own with a status:
what could not be read is null, with the reason. The boards that are metered are one thing, the device that trains
another: a run on the CPU may meter boards, and waiting for pending work follows the device that trains.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joulesweep import lazy
from joulesweep.sensors import packages, rapl_problem

WINDOW = "training"
MIG = "MIG: NVML counts the joules of the whole board, not those of a slice"
NO_COUNTER = "the board has no energy counter (before Volta)"


class Meter:
    """One measured span of this process.

    Under DDP each rank measures its own board, and local rank 0 alone the host: every device is counted once.

    Args:
        boards: as `devices.Board.described` gives them, each with its `position` among those that
            CUDA_VISIBLE_DEVICES lists, which is Zeus's index.
        host: whether to measure CPU packages and DRAM too.
        synchronize: waits for pending work of the device that trains.

    Attributes:
        begin_s, end_s: of the window, on the monotonic clock.
        window_s: Zeus's time of the window.
        calls_s: time spent in the meter's own calls.
    """

    def __init__(self, boards: Sequence[dict[str, Any]], host: bool, synchronize: Callable[[], None]) -> None:
        self.boards, self.synchronize = boards, synchronize
        self.host, self.no_host = host, rapl_problem()
        self.calls_s = self.begin_s = self.end_s = self.window_s = 0.0
        self.failure: str | None = None
        self._measured: Any = None
        self._connect()

    def _connect(self) -> None:
        with lazy.put_off("sklearn.metrics", "auc"):  # of the fall-back for boards without a counter, never ours
            from zeus.monitor import ZeusMonitor

        counted = [board["position"] for board in self.boards if _problem(board) is None]
        cpus = packages() if self.host and self.no_host is None else []
        self.monitor: ZeusMonitor | None = None
        with self._noting_failure():
            monitor = ZeusMonitor(gpu_indices=counted, cpu_indices=cpus)
            for index in monitor.cpu_indices:  # the first reading starts Zeus's helper process: seconds
                monitor.cpus.get_total_energy_consumption(index)
            self.monitor = monitor

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """The measured span; what ends early by an exception is not measured. A meter that fails stops no training."""
        self.synchronize()
        called_s = time.monotonic()
        with self._noting_failure():
            if self.monitor is not None:
                self.monitor.begin_window(WINDOW, sync_execution=False)
        self.begin_s = time.monotonic()
        yield
        self.synchronize()
        self.end_s = time.monotonic()
        self.window_s = self.end_s - self.begin_s
        with self._noting_failure():
            if self.monitor is not None and self.failure is None:
                self._measured = self.monitor.end_window(WINDOW, sync_execution=False)
                self.window_s = self._measured.time
        self.calls_s = (self.begin_s - called_s) + (time.monotonic() - self.end_s)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        from zeus.exception import ZeusBaseError

        try:
            yield
        except (ZeusBaseError, RuntimeError, ValueError, OSError, LookupError) as error:
            self.failure = f"Zeus: {type(error).__name__}: {error}"

    def rows(self) -> list[dict[str, Any]]:
        """One row {device, kind, uuid, total_energy_j, status, method, reason} per device, of the whole window."""
        rows = [self._board_row(board) for board in self.boards]
        if self.host:
            rows += self._host_rows("cpu", getattr(self._measured, "cpu_energy", None))
            rows += self._host_rows("dram", getattr(self._measured, "dram_energy", None))
        return rows

    def _board_row(self, board: dict[str, Any]) -> dict[str, Any]:
        reason = _problem(board) or self.failure
        total_j = self._measured.gpu_energy.get(board["position"]) if self._measured else None
        if reason is None and total_j is None:
            reason = "Zeus gave no energy for this board"
        if reason is not None:
            return row(board["device"], "gpu", board["uuid"], reason=reason)
        return row(board["device"], "gpu", board["uuid"], total_j, "Zeus: NVML energy counter")

    def _host_rows(self, kind: str, total_j: dict[int, float] | None) -> list[dict[str, Any]]:
        if not total_j:
            reason = self.no_host or self.failure or f"RAPL of this machine counts no {kind.upper()} energy"
            return [row(f"{kind}:0", kind, None, reason=reason)]
        return [row(f"{kind}:{i}", kind, None, value, "Zeus: RAPL counter") for i, value in total_j.items()]


def _problem(board: dict[str, Any]) -> str | None:
    """Why Zeus has no joules of a board; None if it has."""
    if board["mig"]:
        return MIG
    return None if board["has_counter"] else NO_COUNTER


def row(
    device: str,
    kind: str,
    uuid: str | None,
    total_energy_j: float | None = None,
    method: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """A device's row: measured, or unavailable where there is a reason."""
    return {
        "device": device,
        "kind": kind,
        "uuid": uuid,
        "total_energy_j": total_energy_j,
        "status": "measured" if reason is None else "unavailable",
        "method": method,
        "reason": reason,
    }
