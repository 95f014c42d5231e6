"""A run's power over time, read by its launching parent while the run's processes work.

At most ten readings a second. From them come joules per epoch, mean power for the cross-check, the idle baseline, and
the whole energy of boards that have no counter; so all of them are kept until the end. Of a day and a board that is
some 50 MB. The rows that are written are at most 1,200 per device.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from joulesweep.devices import Board
from joulesweep.sensors import BoardSensor, Zone

PERIOD_S = 0.1
MAX_ROWS = 1200
STATE_PERIOD_S = 1.0
MAX_LOST = 0.01  # share of the power readings in a span that may have failed


@dataclass
class Series:
    """One device's readings, as many as there are times; None where it gave none.

    Attributes:
        energy_j: the counter, since it was first read.
        power_w: power as the device reports it; RAPL reports none.
    """

    energy_j: list[float | None] = field(default_factory=list)
    power_w: list[float | None] = field(default_factory=list)


class Trace:
    """Readings of some boards and RAPL zones. All times are of the monotonic clock, which all processes share.

    Args:
        boards: the run's.
        zones: of the host; empty where the run does not meter it.

    Attributes:
        times_s: when the readings were taken.
        series: the readings by device.
        states: (time, device, {temperature_c, sm_clock_mhz, throttles}), once a second.
        spent: CPU seconds of this thread so far at each reading.
    """

    def __init__(self, boards: Sequence[Board], zones: Sequence[Zone]) -> None:
        self.sensors = {board.device: BoardSensor(board) for board in boards}
        self.zones = {zone.device: zone for zone in zones}
        self.times_s: list[float] = []
        self.series = {device: Series() for device in (*self.sensors, *self.zones)}
        self.states: list[tuple[float, str, dict[str, Any]]] = []
        self.spent: list[float] = []
        self._next_s = self._next_state_s = time.monotonic()
        self._wrapped_j = dict.fromkeys(self.zones, 0.0)
        self._last_j: dict[str, float] = {}

    def wait_s(self) -> float:
        """Seconds until the next reading is due."""
        return max(0.0, self._next_s - time.monotonic())

    def sample(self, last: bool = False) -> None:
        """Read everything, if it is time to, or for the last time: the window's end lies between two readings."""
        now_s = time.monotonic()
        if not self.series or (now_s < self._next_s and not last):
            return
        self.spent.append(time.thread_time())
        self._next_s = max(self._next_s + PERIOD_S, now_s)
        self.times_s.append(now_s)
        for device, sensor in self.sensors.items():
            self.series[device].energy_j.append(sensor.energy_j())
            self.series[device].power_w.append(sensor.power_w())
        for device, zone in self.zones.items():
            self.series[device].energy_j.append(self._unwrapped(device, zone))
            self.series[device].power_w.append(None)
        if now_s >= self._next_state_s:
            self._next_state_s = now_s + STATE_PERIOD_S
            self._read_states(now_s)

    def _unwrapped(self, device: str, zone: Zone) -> float | None:
        """A zone's counter, which starts again at 0, as one that does not."""
        value = zone.energy_j()
        if value is None:
            return None
        if value < self._last_j.get(device, 0.0):
            self._wrapped_j[device] += zone.range_j
        self._last_j[device] = value
        return value + self._wrapped_j[device]

    def _read_states(self, now_s: float) -> None:
        for device, sensor in self.sensors.items():
            state = {"temperature_c": sensor.temperature_c(), "sm_clock_mhz": sensor.sm_clock_mhz()}
            self.states.append((now_s, device, {**state, "throttles": sensor.throttles()}))

    def cost(self, begin_s: float, end_s: float) -> dict[str, float | int | None]:
        """CPU seconds that this process spent in a span, and how many readings it took: {trace_cpu_s, num_samples}."""
        first, last = bisect.bisect_left(self.times_s, begin_s), bisect.bisect_right(self.times_s, end_s)
        inside = self.spent[first:last]
        return {"trace_cpu_s": inside[-1] - inside[0] if len(inside) > 1 else None, "num_samples": len(inside)}

    def energy_between(self, device: str, begin_s: float, end_s: float) -> float | None:
        """Joules by the counter between two times, interpolated between readings; None if it was not read there."""
        ends = [self._counter_at(device, at_s) for at_s in (begin_s, end_s)]
        return None if None in ends else ends[1] - ends[0]  # type: ignore[operator]

    def _counter_at(self, device: str, at_s: float) -> float | None:
        counter = self.series[device].energy_j if device in self.series else []
        after = bisect.bisect_left(self.times_s, at_s)
        if not 0 < after < len(counter):
            return None
        low, high = counter[after - 1], counter[after]
        if low is None or high is None:
            return None
        share = (at_s - self.times_s[after - 1]) / (self.times_s[after] - self.times_s[after - 1])
        return low + share * (high - low)

    def mean_power_w(self, device: str, begin_s: float, end_s: float) -> float | None:
        """Time-weighted mean of the power readings between two times; None where they lack."""
        points = self._powers(device, begin_s, end_s)
        if len(points) < 2 or points[-1][0] <= points[0][0]:
            return None
        area_j = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
        return area_j / (points[-1][0] - points[0][0])

    def _powers(self, device: str, begin_s: float, end_s: float) -> list[tuple[float, float]]:
        """The readings in a span, but for a few that failed; its edges take the nearest reading inside."""
        if device not in self.series:
            return []
        first, last = bisect.bisect_left(self.times_s, begin_s), bisect.bisect_right(self.times_s, end_s)
        inside = zip(self.times_s[first:last], self.series[device].power_w[first:last], strict=True)
        known = [(at_s, power) for at_s, power in inside if power is not None]
        if not known or last - first - len(known) > MAX_LOST * (last - first):
            return []
        return [(begin_s, known[0][1]), *known, (end_s, known[-1][1])]

    def rows(self, begin_s: float) -> list[dict[str, Any]]:
        """The trace as rows {t_s, device, power_w, energy_j}, times and joules counted from the window's begin.

        Every n-th reading, so that there are at most `MAX_ROWS` per device. A RAPL zone's power is the slope of its
        counter.
        """
        rows, step = [], -(-len(self.times_s) // MAX_ROWS) or 1
        for device, series in self.series.items():
            start_j = self._counter_at(device, begin_s)
            for i in range(0, len(self.times_s), step):
                at_s, value = self.times_s[i], series.energy_j[i]
                energy_j = None if value is None or start_j is None else value - start_j
                power_w = self._slope_w(series, i) if device in self.zones else series.power_w[i]
                rows.append({"t_s": at_s - begin_s, "device": device, "power_w": power_w, "energy_j": energy_j})
        return rows

    def _slope_w(self, series: Series, i: int) -> float | None:
        before, now = (series.energy_j[i - 1], series.energy_j[i]) if i else (None, None)
        return None if before is None or now is None else (now - before) / (self.times_s[i] - self.times_s[i - 1])
