"""Measure what metering costs a run: `python -m benchmarks.meter_overhead`.

First the share of a 30 s window that goes into the meter's calls and the CPU of the tracing parent; then pairs of
equal runs, metered and not, in alternating order, and the ratio of their speeds with its interval. On a machine
without NVIDIA driver the boards are those of the tests' fake NVML: the cost is then that of the whole Python side,
without the driver's own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from joulesweep.analyse.statistics import paired_ratio
from joulesweep.core.outcome import as_json
from joulesweep.launch.launcher import launch
from joulesweep.measure import devices
from joulesweep.measure.machine import cpu_model
from joulesweep.runs.identity import run_id

TESTS = Path(__file__).parent.parent / "tests" / "support"
NUM_BOARDS, TICK_MS = 2, 100


def main() -> None:
    """Print both measurements, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the long window")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--pair-seconds", type=float, default=5.0, help="of each window of a pair")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    with tempfile.TemporaryDirectory() as folder:
        if not devices.boards():
            _restart_with_fake_boards(Path(folder))
        report = measure(Path(folder), args.seconds, args.pairs, args.pair_seconds)
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _restart_with_fake_boards(folder: Path) -> None:
    """Run this benchmark again with the fake NVML; does not return."""
    import fake_meters

    boards = fake_meters.Boards(folder, [{"watts": 300, "tick_ms": TICK_MS}] * NUM_BOARDS)
    environ = {**boards.environment(), "JOULESWEEP_FAKE_NVML": f"{NUM_BOARDS} fake boards, tick {TICK_MS} ms"}
    if not devices.boards() and "JOULESWEEP_FAKE_NVML" not in os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.meter_overhead", *sys.argv[1:]], environ)


def measure(folder: Path, seconds: float, num_pairs: int, pair_seconds: float) -> dict[str, Any]:
    """Both measurements, with machine and date."""
    import tiny_run

    assets = tiny_run.assets(folder)
    every = [board.index for board in devices.boards()]

    def run(metered: bool, min_seconds: float) -> dict[str, Any]:
        spec = tiny_run.spec(max_steps=200, min_seconds=min_seconds, gpus=every if metered else "auto")
        paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "folder": folder / run_id(spec)}
        exclusive = "node" if metered else "none"
        log = folder / "run.log"
        record = launch(spec, "benchmark", **paths, log=log, exclusive=exclusive, with_snakemake=False)
        measurement: dict[str, Any] = as_json(record.measurement)
        return measurement

    long = run(metered=True, min_seconds=seconds)
    overhead = long["overhead"]
    spent_s = overhead["meter_s"] + overhead["trace_cpu_s"]
    pairs = []
    for i in range(num_pairs):
        order = (True, False) if i % 2 else (False, True)
        speeds = {metered: run(metered, pair_seconds)["samples_per_s"] for metered in order}
        pairs.append((speeds[True], speeds[False]))
        print(f"pair {i + 1}/{num_pairs}: {speeds[True] / speeds[False]:.4f}", file=sys.stderr)
    ratio = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "boards": os.environ.get("JOULESWEEP_FAKE_NVML") or [board.name for board in devices.boards()],
        "window_s": long["total_window_s"],
        **overhead,
        "share_of_window": spent_s / long["total_window_s"],
        "pairs": {
            "n": ratio.n,
            "speed_metered_over_unmetered": ratio.ratio,
            "low": ratio.low,
            "high": ratio.high,
            "verdict": ratio.verdict,
            "window_s": pair_seconds,
        },
    }


if __name__ == "__main__":
    main()
