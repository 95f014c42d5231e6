"""A board in time of its own: every answer is known, and a certificate of 150 s takes a second or two."""

from __future__ import annotations

import bisect
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joulesweep import blocks, readings
from joulesweep.meter import NO_COUNTER

START_S = 5000.0


class Board:
    """What a board draws, counts and says; also the clock and the load.

    Attributes:
        idle_w, context_w, load_w: what it draws before its load has started, when that rests, and when it works.
        tick_s, loaded_tick_s: the counter moves at multiples of these, at rest and under load.
        lag_s: … and shows what was drawn until so long before.
        scale: of the power readings, over the truth.
        fade_w, fade_s: more that it draws when it comes to rest, and how fast that goes.
        cools_s: time constant of its temperature; infinite: it stays as warm as it was.
        call_s: how long an answer takes.
        slower: share by which metering slows the work.
        trace_share: CPU time of the trace, of the time.
        counter: whether it has one.
        instant: whether it tells power of the moment.
        fails_after_s: from when on the counter has no answer.
        reset_s: when the counter is reset.
    """

    def __init__(self, **given: Any) -> None:
        defaults: dict[str, Any] = {
            "idle_w": 70.0, "context_w": 80.0, "load_w": 500.0, "tick_s": 0.1, "loaded_tick_s": None, "lag_s": 0.0,
            "scale": 1.0, "fade_w": 0.0, "fade_s": 1.0, "cools_s": 6.0, "call_s": 5e-5, "slower": 0.0,
            "trace_share": 0.001, "counter": True, "instant": True, "fails_after_s": math.inf, "reset_s": math.inf,
        }  # fmt: skip
        assert given.keys() <= defaults.keys()
        vars(self).update(defaults | given)
        self.now_s, self.metered = START_S, False
        self.changes: list[tuple[float, float, float]] = [(START_S - 100, self.idle_w, 0.0)]  # since, watts, joules
        self.temperatures: list[tuple[float, float]] = [(START_S - 100, 35.0)]
        self.worked: dict[str, Any] = {}

    # the clock
    def monotonic(self) -> float:
        self.now_s += 1e-6
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    # what it draws
    def draw(self, at_s: float, watts: float) -> None:
        degrees, joules = self.degrees(at_s), self.joules(at_s)
        self.changes.append((at_s, watts, joules))
        self.temperatures.append((at_s, degrees))

    def _since(self, at_s: float) -> tuple[float, float, float]:
        return self.changes[bisect.bisect_right(self.changes, at_s, key=lambda change: change[0]) - 1]

    def _fades_s(self, at_s: float, since_s: float, watts: float) -> float | None:
        return at_s - since_s if self.fade_w and watts == self.context_w else None

    def watts(self, at_s: float) -> float:
        since_s, watts, _ = self._since(at_s)
        fading_s = self._fades_s(at_s, since_s, watts)
        return watts + (0.0 if fading_s is None else self.fade_w * math.exp(-fading_s / self.fade_s))

    def joules(self, at_s: float) -> float:
        since_s, watts, joules = self._since(at_s)
        fading_s = self._fades_s(at_s, since_s, watts)
        faded_j = 0.0 if fading_s is None else self.fade_w * self.fade_s * (1 - math.exp(-fading_s / self.fade_s))
        return joules + watts * (at_s - since_s) + faded_j

    def degrees(self, at_s: float) -> float:
        i = bisect.bisect_right(self.temperatures, at_s, key=lambda change: change[0]) - 1
        since_s, before_c = self.temperatures[i]
        warm_c = 35.0 + 40.0 * (self.changes[i][1] == self.load_w)
        if math.isinf(self.cools_s):
            return max(before_c, warm_c)
        return warm_c + (before_c - warm_c) * math.exp(-(at_s - since_s) / self.cools_s)

    # what it says
    def energy_j(self) -> float | None:
        self.now_s += self.call_s
        if self.now_s - START_S > self.fails_after_s:
            return None
        tick_s = self.loaded_tick_s if self.loaded_tick_s and self.watts(self.now_s) == self.load_w else self.tick_s
        shown_s = math.floor((self.now_s - self.lag_s) / tick_s) * tick_s
        lost_j = self.joules(START_S + self.reset_s) if self.now_s > START_S + self.reset_s else 0.0
        return round(self.joules(shown_s) - lost_j, 3)

    def power_w(self) -> float:
        self.now_s += self.call_s
        return round(self.scale * self.watts(self.now_s), 3)

    def average_w(self) -> float:
        self.now_s += self.call_s
        return round(self.scale * (self.joules(self.now_s) - self.joules(self.now_s - 1)), 3)

    def temperature_c(self) -> float:
        self.now_s += self.call_s
        return float(round(self.degrees(self.now_s)))

    # the load
    def described(self) -> dict[str, Any]:
        if not self.worked:
            self.now_s += 4.0
            self.draw(self.now_s, self.context_w)
            self.worked = {
                "product": "4096 × 4096 float16",
                "product_s": 2e-4,
                "uuid": None,
                "torch": "0",
                "threads": 1,
            }
        return self.worked

    def begin(self, seconds: float, period_s: float | None) -> None:
        self.begun = self.now_s, self.now_s + seconds
        turns = [(0.0, seconds)]
        if period_s is not None:
            turns = [(i * period_s, (i + 0.5) * period_s) for i in range(max(1, round(seconds / period_s)))]
        for on_s, off_s in turns:
            self.draw(self.begun[0] + on_s, self.load_w)
            self.draw(self.begun[0] + off_s, self.context_w)

    def end(self, limit_s: float) -> dict[str, Any]:
        began_s, ended_s = self.begun
        self.now_s = max(self.now_s, ended_s)
        number = round(1e5 * (ended_s - began_s) * (1 - (self.slower if self.metered else 0.0)))
        return {"began_s": began_s, "ended_s": ended_s, "num_products": number}

    def close(self) -> None:
        """There is nothing to end."""

    @contextmanager
    def metering(self):
        self.metered = True
        yield self
        self.metered = False

    def used(self, began_s: float, ended_s: float) -> dict[str, Any]:
        return {"trace_cpu_s": self.trace_share * (ended_s - began_s), "num_samples": 10}

    # what is certified
    def subject(self) -> blocks.Subject:
        channels: dict[str, Any] = {"gpu:0": (self.energy_j, blocks.FAST_S)} if self.counter else {}
        channels |= {"instant": (self.power_w, blocks.FAST_S)} if self.instant else {}
        channels["average"] = (self.average_w, blocks.SLOW_S / 5)
        channels["temperature"] = (self.temperature_c, blocks.SLOW_S)
        return blocks.Subject(
            counters={"gpu:0": None} if self.counter else {},
            channels=channels,
            load=lambda: self,
            metering=self.metering,
            calls_s=lambda: ([0.001, 0.0012, 0.0011], None),
        )

    def header(self) -> dict[str, Any]:
        counter = {
            "device": "gpu:0",
            "kind": "gpu",
            "range_j": None,
            "no_counter": None if self.counter else NO_COUNTER,
        }
        identity = {
            "name": "Virtual GPU",
            "driver": "999.01",
            "instant": self.instant,
            "cpu_model": "CPU",
            "cpu_cores": 2,
        }
        return {
            "format": readings.FORMAT, "version": readings.VERSION, "host": "node1", "device": "gpu:0", "name": "GPU-1",
            "identity": {**identity, "versions": {"torch": "2.13"}}, "devices": [counter],
            "made": "2026-11-29T12:00:00+00:00",
        }  # fmt: skip

    def measured(self, path: Path, budget_s: float = 150.0) -> readings.Readings:
        """Measure it, into a file."""
        readings.append(path, {**self.header(), "budget_s": budget_s})
        blocks.measure(self.subject(), budget_s, lambda line: readings.append(path, line), self, lambda line: None)
        return readings.read(path)
