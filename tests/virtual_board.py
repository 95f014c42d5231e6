"""A board in time of its own: every answer is known, and a certificate of 150 s takes a second or two."""

from __future__ import annotations

import bisect
import math
import random
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joulesweep.certify import blocks, readings
from joulesweep.measure.window import NO_COUNTER

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
        stuck: from when until when the counter stands still.
        failing, power_failing: share of the readings of the counter, and of power, that fail.
        update_s: the power sensor has a new value so often; 0: whenever it is asked.
        sensor_s: … which is the mean of so long; 0: the power of the moment.
        noise: standard deviation of such a value, relative.
        start_c: how warm it is at first.
        others, others_s: other processes on it, and from when on.
        held_s: from when on its clocks are held down.
        swings: what it draws under a steady load, from that to `load_w` and back every 3 s; None: it does not swing.
        seed: of all that is random.
    """

    def __init__(self, **given: Any) -> None:
        defaults: dict[str, Any] = {
            "idle_w": 70.0, "context_w": 80.0, "load_w": 500.0, "tick_s": 0.1, "loaded_tick_s": None, "lag_s": 0.0,
            "scale": 1.0, "fade_w": 0.0, "fade_s": 1.0, "cools_s": 6.0, "call_s": 5e-5, "slower": 0.0,
            "trace_share": 0.001, "counter": True, "instant": True, "fails_after_s": math.inf, "reset_s": math.inf,
            "stuck": (math.inf, math.inf), "failing": 0.0, "power_failing": 0.0, "update_s": 0.0, "sensor_s": 0.0,
            "noise": 0.002, "start_c": 35.0, "others": (), "others_s": 0.0, "held_s": math.inf, "swings": None,
            "seed": 0,
        }  # fmt: skip
        assert given.keys() <= defaults.keys()
        vars(self).update(defaults | given)
        self.chance = random.Random(self.seed)
        self.now_s, self.metered = START_S + 10 * self.chance.random(), False
        self.zero_s = self.now_s
        self.changes: list[tuple[float, float, float]] = [(START_S - 100, self.idle_w, 0.0)]  # since, watts, joules
        self.temperatures: list[tuple[float, float]] = [(START_S, self.start_c)]
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
        if self.now_s - self.zero_s > self.fails_after_s or self.chance.random() < self.failing:
            return None
        tick_s = self.loaded_tick_s if self.loaded_tick_s and self.watts(self.now_s) == self.load_w else self.tick_s
        at_s, (from_s, until_s) = self.now_s, (self.zero_s + moment for moment in self.stuck)
        at_s = from_s if from_s <= at_s < until_s else at_s
        shown_s = math.floor((at_s - self.lag_s) / tick_s) * tick_s
        lost_j = self.joules(self.zero_s + self.reset_s) if self.now_s > self.zero_s + self.reset_s else 0.0
        return round(self.joules(shown_s) - lost_j, 3)

    def power_w(self) -> float | None:
        at_s, noise = self._update()
        watts = (self.joules(at_s) - self.joules(at_s - self.sensor_s)) / self.sensor_s if self.sensor_s else None
        failed = self.chance.random() < self.power_failing
        return None if failed else round(self.scale * (watts or self.watts(at_s)) * (1 + noise), 3)

    def average_w(self) -> float:
        at_s, noise = self._update()
        return round(self.scale * (self.joules(at_s) - self.joules(at_s - 1)) * (1 + noise / 10), 3)

    def _update(self) -> tuple[float, float]:
        """When the sensor last had a new value, and what noise that has."""
        self.now_s += self.call_s
        number = math.floor(self.now_s / self.update_s) if self.update_s else self.now_s
        chance = random.Random(f"{self.seed} {number}") if self.update_s else self.chance
        return number * (self.update_s or 1.0), self.noise * chance.gauss()

    def temperature_c(self) -> float:
        self.now_s += self.call_s
        return float(round(self.degrees(self.now_s)))

    def process_ids(self) -> list[int]:
        return [*([1] if self.worked else []), *(self.others if self.now_s > self.zero_s + self.others_s else ())]

    def throttles(self) -> list[str]:
        return ["software thermal"] if self.now_s > self.zero_s + self.held_s else []

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
            turns = list(blocks.turns(seconds, period_s, self.chance))
        for on_s, off_s in turns:
            self.draw(self.begun[0] + on_s, self.load_w)
            for i in range(int(seconds / 1.5) if self.swings is not None and period_s is None else 0):
                self.draw(self.begun[0] + 1.5 * i, self.swings if i % 2 else self.load_w)
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
    def calls_s(self, limit_s: float) -> tuple[list[float] | None, str | None]:
        self.now_s += 1.5
        return [0.001, 0.0012, 0.0011], None

    def subject(self) -> blocks.Subject:
        channels: dict[str, Any] = {"gpu:0": (self.energy_j, blocks.FAST_S)} if self.counter else {}
        channels |= {"instant": (self.power_w, blocks.FAST_S)} if self.instant else {}
        channels["average"] = (self.average_w, blocks.SLOW_S / 5)
        channels["temperature"] = (self.temperature_c, blocks.SLOW_S)
        channels |= {"processes": (self.process_ids, 1.0), "throttles": (self.throttles, 1.0)}
        return blocks.Subject(
            counters={"gpu:0": None} if self.counter else {},
            channels=channels,
            load=lambda: self,
            metering=self.metering,
            calls_s=self.calls_s,
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
        chance = random.Random(self.seed)
        blocks.measure(self.subject(), budget_s, lambda line: readings.append(path, line), self, print, chance)
        return readings.read(path)
