"""The meter on a real GPU: `python -m benchmarks.gpu_meter --output benchmarks/results/gpu_meter.json`.

Per board: tick of the counter under load, idle watts with a context, mean power × time against the counter over a
30 s window of matrix products, the same window by Zeus, and what the trace costs. Needs torch with CUDA and NVML.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joulesweep import devices, sensors
from joulesweep.environment import cpu_model
from joulesweep.meter import Meter
from joulesweep.trace import Trace

IDLE_S = 10.0
SIZE = 8192  # of the square matrices, bfloat16


def main() -> None:
    """Print the report and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the window under load")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    pool = devices.pool("auto")
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", devices.VISIBLE: devices.exported(pool)}  # as a run has them
    import torch

    if not torch.cuda.is_available() or not pool:
        sys.exit("no NVIDIA GPU that both PyTorch and NVML see")
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "driver": devices.ask("nvmlSystemGetDriverVersion"),
        "boards": [measure(i, board, args.seconds) for i, board in enumerate(pool)],
    }
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(position: int, board: devices.Board, seconds: float) -> dict[str, Any]:
    """One board's numbers."""
    import torch

    device = torch.device("cuda", position)
    a = torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16)

    def load(until: Callable[[], bool]) -> None:
        while not until():
            for _ in range(20):
                torch.mm(a, a)
            torch.cuda.synchronize(device)

    sensor = sensors.BoardSensor(board)
    ticks: list[float | None] = []
    watcher = threading.Thread(target=lambda: ticks.append(sensors.measure_tick(sensor.energy_j)))
    watcher.start()
    load(lambda: not watcher.is_alive())
    sensors.settle([sensor], 60.0, lambda: None)
    trace = Trace([board], [])
    idle = _traced(trace, lambda: time.sleep(IDLE_S))
    meter = Meter(
        [{**board.described(), "position": position}], host=False, synchronize=lambda: torch.cuda.synchronize(device)
    )

    def work() -> None:
        with meter.window():
            end_s = time.monotonic() + seconds
            load(lambda: time.monotonic() > end_s)

    loaded = _traced(trace, work)
    (row,) = meter.rows()
    power_w = trace.mean_power_w(board.device, meter.begin_s, meter.end_s)
    total_j, cost = row["total_energy_j"], trace.cost(*loaded)
    traced_j = trace.energy_between(board.device, meter.begin_s, meter.end_s)
    return {
        **board.described(),
        "tick_s": ticks[0],
        "idle_w": trace.mean_power_w(board.device, *idle),
        "window_s": meter.window_s,
        "energy_j": total_j,
        "status": row["status"],
        "reason": row["reason"],
        "mean_power_w": power_w,
        "power_ratio": power_w * meter.window_s / total_j if power_w and total_j else None,
        "trace_over_zeus": traced_j / total_j if traced_j and total_j else None,
        "meter_s": meter.calls_s,
        **cost,
        "overhead_share": (meter.calls_s + (cost["trace_cpu_s"] or 0)) / meter.window_s,
    }


def _traced(trace: Trace, work: Callable[[], None]) -> tuple[float, float]:
    """Do something while the trace is read beside it; returns when it began and ended."""
    thread, begin_s = threading.Thread(target=work), time.monotonic()
    trace.sample()
    thread.start()
    while thread.is_alive():
        trace.sample()
        time.sleep(0.05)
    trace.sample()
    return begin_s, time.monotonic()


if __name__ == "__main__":
    main()
