"""Sample power and energy counters while a run is training.

Ten readings a second, each at a random moment of its tenth: a load that repeats itself as often cannot hide between
them. From them come joules per epoch, mean power for the cross-check, the idle baseline, the edges of the window, and
the whole energy of boards that have no counter; so all of them are kept until the end. Of a day and a board that is
some 50 MB. The rows that are written are at most 1,200 per device.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from joulesweep.measure import counter, meters
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import BoardSensor, Sensor, Traits

PERIOD_S = 0.1
MAX_ROWS = 1200
STATE_PERIOD_S = 1.0
MAX_LOST = 0.01  # share of the power readings in a span that may have failed
MAX_EDGE_S = 2.0  # a reading speaks for no more than that at the edges of a span
AVERAGE_S = 1.0  # what a board that has no instant power averages over
MIN_APART_S = 0.01  # readings that are closer together say nothing of power


@dataclass(frozen=True, kw_only=True)
class BoardState:
    """What is asked of a board once a second; None where it does not say.

    Attributes:
        temperature_c: of the GPU.
        sm_clock_mhz: of its processors.
        throttles: what held its clocks down.
    """

    temperature_c: float | None
    sm_clock_mhz: float | None
    throttles: list[str] | None


class Cost(TypedDict):
    """CPU seconds that the trace took in a span, None where it was read less than twice; and how often it was read."""

    trace_cpu_s: float | None
    num_samples: int


@dataclass
class Series:
    """One device's readings, as many as there are times; None where it gave none.

    Attributes:
        energy_j: the counter, since it was first read.
        power_w: power as the device reports it, if it does.
    """

    energy_j: list[float | None] = field(default_factory=list)
    power_w: list[float | None] = field(default_factory=list)
    _falls: list[tuple[int, int]] = field(default_factory=list)
    _looked: int = 0
    _last: int | None = None

    def falls(self) -> list[tuple[int, int]]:
        """Where the counter read less than before, which none does: it was reset. Indices of the readings around it."""
        for i in range(self._looked, len(self.energy_j)):
            now = self.energy_j[i]
            if now is None:
                continue
            before = None if self._last is None else self.energy_j[self._last]
            if self._last is not None and before is not None and now < before:
                self._falls.append((self._last, i))
            self._last = i
        self._looked = len(self.energy_j)
        return self._falls


class Trace:
    """Readings of some devices. All times are of the monotonic clock, which all processes share.

    Args:
        boards: the run's.
        others: sensors of the host; empty where the run does not meter it.

    Attributes:
        boards: sensors of the boards by device, which also have a state.
        sensors: all sensors by device.
        traits: what is known of their readings, by device.
        times_s: when the readings began.
        took_s: how long each took.
        series: the readings by device.
        states: (time, device, state), once a second.
        spent: CPU seconds of this thread so far at each reading.
    """

    def __init__(self, boards: Sequence[Board], others: Sequence[Sensor]) -> None:
        self.boards: dict[str, BoardSensor] = {board.device: meters.sensor(board) for board in boards}
        self.sensors: dict[str, Sensor] = {**self.boards, **{sensor.device: sensor for sensor in others}}
        self.traits: dict[str, Traits] = {device: sensor.traits for device, sensor in self.sensors.items()}
        self.times_s: list[float] = []
        self.took_s: list[float] = []
        self.series = {device: Series() for device in self.sensors}
        self.states: list[tuple[float, str, BoardState]] = []
        self.spent: list[float] = []
        self._random = random.Random()
        self._slot_s = self._next_s = self._next_state_s = time.monotonic()
        self._wrapped_j = dict.fromkeys(self.sensors, 0.0)
        self._last_j: dict[str, tuple[float, float]] = {}

    def wait_s(self) -> float:
        """Seconds until the next reading is due."""
        return max(0.0, self._next_s - time.monotonic())

    def sample(self, last: bool = False) -> None:
        """Read everything, if it is time to, or for the last time: the window's end lies between two readings.

        What was read is kept at the end, all at once: a reading that never comes back leaves a trace that holds
        together.
        """
        now_s = time.monotonic()
        if not self.series or (now_s < self._next_s and not last):
            return
        spent_s = time.thread_time()
        self._slot_s = max(self._slot_s + PERIOD_S, now_s)
        self._next_s = self._slot_s + PERIOD_S * self._random.random()
        read = {device: (self._counted(device, now_s), sensor.power_w()) for device, sensor in self.sensors.items()}
        states = self._read_states(now_s) if now_s >= self._next_state_s else []
        took_s = time.monotonic() - now_s
        for device, (energy_j, power_w) in read.items():
            self.series[device].energy_j.append(energy_j)
            self.series[device].power_w.append(power_w)
        self.states += states
        self.spent.append(spent_s)
        self.took_s.append(took_s)
        self.times_s.append(now_s)

    def _counted(self, device: str, now_s: float) -> float | None:
        """A counter; one that starts again at 0 as one that does not: it falls only where it was reset."""
        value, range_j, most_w = self.sensors[device].energy_j(), self.traits[device].range_j, self._most_w(device)
        if value is None or range_j is None:
            return value
        last_s, last_j = self._last_j.get(device, (now_s, 0.0))
        if value < last_j and range_j - last_j + value <= most_w * (now_s - last_s):
            self._wrapped_j[device] += range_j
        self._last_j[device] = now_s, value
        return value + self._wrapped_j[device]

    def _most_w(self, device: str) -> float:
        most_w = self.traits[device].kind.most_w if device in self.traits else None
        return math.inf if most_w is None else most_w

    def _read_states(self, now_s: float) -> list[tuple[float, str, BoardState]]:
        self._next_state_s = now_s + STATE_PERIOD_S
        states = []
        for device, sensor in self.boards.items():
            state = BoardState(
                temperature_c=sensor.temperature_c(), sm_clock_mhz=sensor.sm_clock_mhz(), throttles=sensor.throttles()
            )
            states.append((now_s, device, state))
        return states

    def cost(self, begin_s: float, end_s: float) -> Cost:
        """What the readings of a span cost."""
        first, last = bisect.bisect_left(self.times_s, begin_s), bisect.bisect_right(self.times_s, end_s)
        inside = self.spent[first:last]
        return {"trace_cpu_s": inside[-1] - inside[0] if len(inside) > 1 else None, "num_samples": len(inside)}

    def energy_between(self, device: str, begin_s: float, end_s: float) -> float | None:
        """Joules by the counter between two times, interpolated between readings.

        None if it was not read there, or was reset between.
        """
        if self.was_reset(device, begin_s, end_s):
            return None
        ends = [self._counter_at(device, at_s) for at_s in (begin_s, end_s)]
        return None if None in ends else ends[1] - ends[0]  # type: ignore[operator]

    def was_reset(self, device: str, begin_s: float, end_s: float) -> bool:
        """Whether the counter fell between two times, or between the readings around them."""
        falls = self.series[device].falls() if device in self.series else []
        return any(self.times_s[i] < end_s and self.times_s[j] > begin_s for i, j in falls if j < len(self.times_s))

    def jumped(self, device: str, begin_s: float, end_s: float, tick_s: float) -> bool:
        """Whether a counter rose faster between two times than any such device draws: it was set anew, further on.

        Args:
            device: whose.
            begin_s: of the span.
            end_s: of the span.
            tick_s: so long a counter may have stood still before it rose.
        """
        most_w = self._most_w(device)
        late_s = max(self.took_s, default=0.0)  # how long after its time a reading may have been taken
        return any(
            later - value > most_w * (max(apart_s, tick_s, MIN_APART_S) + late_s)
            for apart_s, value, later in self.rises(device, begin_s, end_s)
        )

    def steps(self, device: str, begin_s: float, end_s: float) -> counter.Steps:
        """How the counter moved between two times."""
        energy_j = self.series[device].energy_j if device in self.series else [None] * len(self.times_s)
        return counter.steps(self.times_s, energy_j, self.took_s, begin_s, end_s)

    def powers_w(self, device: str, begin_s: float, end_s: float) -> list[float]:
        """The power readings between two times that did not fail."""
        first, last = bisect.bisect_left(self.times_s, begin_s), bisect.bisect_right(self.times_s, end_s)
        readings_w = self.series[device].power_w[first:last] if device in self.series else []
        return [power_w for power_w in readings_w if power_w is not None]

    def is_instant(self, device: str) -> bool:
        """Whether the device reports power as it is now, not as a mean of the last second."""
        return device in self.traits and self.traits[device].instant

    def averaged_s(self, device: str) -> float:
        """Seconds of the past that a power reading also tells of."""
        if self.is_instant(device):
            return 0.0
        return max(AVERAGE_S, self.traits[device].late_s if device in self.traits else 0.0)

    def failure(self, device: str) -> str | None:
        """Why the device's last reading failed, where it says so."""
        return self.sensors[device].failure if device in self.sensors else None

    def power_method(self, device: str) -> str | None:
        """What the device's power readings are; None where it has none."""
        return self.traits[device].power if device in self.traits else None

    def slope_w(self, device: str, begin_s: float, end_s: float) -> float | None:
        """Mean power by the counter over the readings between two times; None where there are fewer than two."""
        known = self._known(device, begin_s, end_s)
        if len(known) < 2 or self.was_reset(device, begin_s, end_s):
            return None
        return (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])

    def rises(self, device: str, begin_s: float, end_s: float) -> list[tuple[float, float, float]]:
        """The counter's rises from one reading between two times to the next: seconds apart, reading, next reading."""
        known = self._known(device, begin_s, end_s)
        return [(b[0] - a[0], a[1], b[1]) for a, b in itertools.pairwise(known)]

    def holes_s(self, begin_s: float, end_s: float, longer_s: float) -> float:
        """Seconds between two times in which nothing was read for longer than so many."""
        first, last = bisect.bisect_left(self.times_s, begin_s), bisect.bisect_right(self.times_s, end_s)
        gaps_s = [b - a for a, b in itertools.pairwise([begin_s, *self.times_s[first:last], end_s])]
        return sum(gap_s for gap_s in gaps_s if gap_s > longer_s)

    def slope_between_moves(self, device: str, begin_s: float, end_s: float) -> tuple[float | None, float]:
        """Mean power between the first and the last move of the counter in a span, and the bound of its relative error.

        None where it moved less than twice. A move is somewhere between the readings before and after it.
        """
        if self.was_reset(device, begin_s, end_s):
            return None, 1.0
        moves = [(a[0], b[0], b[1]) for a, b in itertools.pairwise(self._known(device, begin_s, end_s)) if a[1] != b[1]]
        if len(moves) < 2:
            return None, 1.0
        (low_s, high_s, first_j), (last_low_s, last_high_s, last_j) = moves[0], moves[-1]
        span_s = (last_low_s + last_high_s - low_s - high_s) / 2
        return (last_j - first_j) / span_s, (last_high_s - last_low_s + high_s - low_s) / 2 / span_s

    def _known(self, device: str, begin_s: float, end_s: float) -> list[tuple[float, float]]:
        """The counter's readings between two times that did not fail, with their times."""
        first, last = bisect.bisect_left(self.times_s, begin_s), bisect.bisect_right(self.times_s, end_s)
        values = self.series[device].energy_j[first:last] if device in self.series else []
        read = zip(self.times_s[first:last], values, strict=False)
        return [(at_s, value) for at_s, value in read if value is not None]

    def _counter_at(self, device: str, at_s: float) -> float | None:
        values = self.series[device].energy_j if device in self.series else []
        after = bisect.bisect_left(self.times_s, at_s)
        if not 0 < after < len(values):
            return None
        low, high = values[after - 1], values[after]
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
        if known[0][0] - begin_s > MAX_EDGE_S or end_s - known[-1][0] > MAX_EDGE_S:
            return []
        return [(begin_s, known[0][1]), *known, (end_s, known[-1][1])]

    def rows(self, begin_s: float) -> list[dict[str, float | str | None]]:
        """The trace as rows {t_s, device, power_w, energy_j}, times and joules counted from the window's begin.

        Every n-th reading, so that there are at most `MAX_ROWS` per device. The power of a device that reports none is
        the slope of its counter.
        """
        rows: list[dict[str, float | str | None]] = []
        step = -(-len(self.times_s) // MAX_ROWS) or 1
        for device, series in self.series.items():
            start_j = self._counter_at(device, begin_s)
            for i in range(0, len(self.times_s), step):
                at_s, value = self.times_s[i], series.energy_j[i]
                energy_j = None if value is None or start_j is None else value - start_j
                power_w = series.power_w[i] if self.power_method(device) else self._slope_w(series, i)
                rows.append({"t_s": at_s - begin_s, "device": device, "power_w": power_w, "energy_j": energy_j})
        return rows

    def _slope_w(self, series: Series, i: int) -> float | None:
        before, now = (series.energy_j[i - 1], series.energy_j[i]) if i else (None, None)
        return None if before is None or now is None else (now - before) / (self.times_s[i] - self.times_s[i - 1])
