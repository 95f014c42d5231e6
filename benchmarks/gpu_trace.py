"""Record the meters during an item of the GPU day: `python -m benchmarks.gpu_trace JOB`, until it is killed.

The product's own trace in a process of its own, as a run's launching parent keeps it. Readings are written down once a
second: `restored` makes a trace of them again, by which windows are judged whenever the results are read.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_common import POWER, Job, append
from joulesweep.core import bounded, processes
from joulesweep.measure import meters, sensors
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import rapl
from joulesweep.measure.trace import Series, Trace

WRITE_S = 1.0


def main() -> int:
    """Record until the parent exits or ends this process; then write the last readings."""
    processes.die_with_parent()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    job = Job.read(Path(sys.argv[1]))
    boards = [Board(**{key: value for key, value in board.items() if key != "device"}) for board in job.boards]
    zones = bounded.within(bounded.LIMIT_S, rapl.devices)[0] or []
    trace = Trace(boards, zones)
    counters = [(board.device, board.uuid, trace.sensors[board.device].energy_j) for board in boards if board.counts]
    counters += [(zone.device, zone.device, zone.energy_j) for zone in zones]
    header = {
        "instant": {device: sensor.traits.instant for device, sensor in trace.boards.items()},
        "ranges_j": {zone.device: zone.range_j for zone in zones},
        "ticks_s": {device: sensors.cached_tick(name, read) for device, name, read in counters},
    }
    append(job.out / POWER, header)
    written, states = 0, 0
    while trace.series and not stopped.is_set():
        until_s = time.monotonic() + WRITE_S
        while time.monotonic() < until_s and not stopped.wait(trace.wait_s()):
            trace.sample()
        trace.sample(last=stopped.is_set())
        append(job.out / POWER, readings(trace, written, states))
        written, states = len(trace.times_s), len(trace.states)
    return 0


def readings(trace: Trace, first: int, first_state: int) -> dict[str, Any]:
    """Readings of a trace after given numbers of readings and of states."""
    series = {
        device: {"energy_j": device_series.energy_j[first:], "power_w": device_series.power_w[first:]}
        for device, device_series in trace.series.items()
    }
    return {
        "times_s": trace.times_s[first:],
        "took_s": trace.took_s[first:],
        "spent_s": trace.spent[first:],
        "series": series,
        "states": trace.states[first_state:],
    }


def restored(rows: Iterable[dict[str, Any]]) -> tuple[Trace, dict[str, float | None]]:
    """The trace rebuilt from its lines, and the counters' update periods by device."""
    trace, ticks = Trace([], []), {}
    for row in rows:
        if "ticks_s" in row:
            ticks |= row["ticks_s"]
            trace.traits |= {
                device: meters.Traits(
                    kind=meters.GPU, source="NVML", power="instant" if yes else "as the driver averages it"
                )
                for device, yes in row["instant"].items()
            }
            trace.traits |= {
                device: rapl.Zone(device=device, path=Path(), range_j=range_j).traits
                for device, range_j in row["ranges_j"].items()
            }
            continue
        trace.times_s += row["times_s"]
        trace.took_s += row["took_s"]
        trace.spent += row["spent_s"]
        trace.states += [tuple(state) for state in row["states"]]
        for device, device_series in row["series"].items():
            series = trace.series.setdefault(device, Series())
            series.energy_j += device_series["energy_j"]
            series.power_w += device_series["power_w"]
    return trace, ticks


if __name__ == "__main__":
    sys.exit(main())
