"""The measured window: Zeus's ZeusMonitor, read with suspicion.

Zeus reports a missing meter as an empty result whose total is 0. Here every device is a row of its own with a status:
what could not be read is null, with the reason.
"""

from __future__ import annotations

from typing import Any

WINDOW = "training"


class Meter:
    """One measured span of this process.

    Under DDP each rank measures its own GPU, and local rank 0 alone the host: every device is counted once.

    Args:
        gpu_indices: GPUs to measure, as positions among the visible ones; empty for a run on the CPU.
        host: whether to measure CPU packages and DRAM too.
    """

    def __init__(self, gpu_indices: list[int], host: bool) -> None:
        from zeus.monitor import ZeusMonitor

        self.gpu_indices = gpu_indices
        self.host = host
        self.monitor = ZeusMonitor(gpu_indices=_readable(gpu_indices), cpu_indices=None if host else [])

    def begin(self) -> None:
        """Open the window, after pending GPU work is done."""
        self.monitor.begin_window(WINDOW, sync_execution=bool(self.gpu_indices))

    def end(self) -> dict[str, Any]:
        """Close the window.

        Returns:
            window_s, and energy: one row {device, kind, uuid, energy_j, status, method, reason} per device.
        """
        measured = self.monitor.end_window(WINDOW, sync_execution=bool(self.gpu_indices))
        rows = [self._gpu_row(index, measured.gpu_energy.get(index)) for index in self.gpu_indices]
        if self.host:
            rows += _host_rows("cpu", measured.cpu_energy, "no readable CPU energy counter (RAPL) on this machine")
            rows += _host_rows("dram", measured.dram_energy, "no readable DRAM energy counter (RAPL) on this machine")
        return {"window_s": measured.time, "energy": rows}

    def _gpu_row(self, index: int, energy_j: float | None) -> dict[str, Any]:
        gpus = self.monitor.gpus
        if energy_j is None or index >= len(gpus):
            return _row(f"gpu:{index}", "gpu", None, "unavailable", None, "NVML gives no energy for this device")
        uuid = _uuid(gpus, index)
        if not gpus.supports_get_total_energy_consumption(index):
            return _read_row(f"gpu:{index}", "gpu", energy_j, "integrated", "Zeus: NVML power, integrated", uuid)
        return _read_row(f"gpu:{index}", "gpu", energy_j, "measured", "Zeus: NVML energy counter", uuid)


def _readable(gpu_indices: list[int]) -> list[int]:
    """Those of the GPUs that Zeus can see: ZeusMonitor itself fails on any other."""
    from zeus.device import get_gpus
    from zeus.device.gpu.common import ZeusGPUInitError

    try:
        num_gpus = len(get_gpus()) if gpu_indices else 0
    except ZeusGPUInitError:
        return []
    return [index for index in gpu_indices if index < num_gpus]


def _uuid(gpus: Any, index: int) -> str | None:  # noqa: ANN401 - Zeus's GPUs
    import pynvml

    try:
        return str(pynvml.nvmlDeviceGetUUID(gpus.gpus[index].handle))
    except (AttributeError, pynvml.NVMLError):
        return None


def _host_rows(kind: str, energy_j: dict[int, float] | None, absent: str) -> list[dict[str, Any]]:
    if not energy_j:
        return [_row(f"{kind}:0", kind, None, "unavailable", None, absent)]
    return [_read_row(f"{kind}:{i}", kind, value, "measured", "Zeus: RAPL counter") for i, value in energy_j.items()]


def _read_row(
    device: str, kind: str, energy_j: float, status: str, method: str, uuid: str | None = None
) -> dict[str, Any]:
    """The row of a meter that was read: no joules at all mean that the window was too short for it."""
    if energy_j <= 0:
        reason = "the counter did not advance in the window"
        return _row(device, kind, None, "below_resolution", method, reason, uuid)
    return _row(device, kind, energy_j, status, method, None, uuid)


def _row(
    device: str,
    kind: str,
    energy_j: float | None,
    status: str,
    method: str | None,
    reason: str | None,
    uuid: str | None = None,
) -> dict[str, Any]:
    return {
        "device": device,
        "kind": kind,
        "uuid": uuid,
        "energy_j": energy_j,
        "status": status,
        "method": method,
        "reason": reason,
    }
