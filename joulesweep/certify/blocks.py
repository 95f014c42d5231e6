"""Measure the blocks of a certificate within a time budget, the most informative first.

    idle | load starts | context | steady | rest | bursts | square loads | cost
    at rest, no context  at rest   all on   all off  off and on, seconds   17 ms … 0.8 s  with the trace and without

Each block is written when it ends. A separate thread reads the devices: if one hangs, the later blocks are lost, but
not the earlier ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from joulesweep.certify.readings import Block, Channel, Span
from joulesweep.core import bounded
from joulesweep.measure import counter
from joulesweep.measure.trace import Cost

PAUSE_S = 0.001  # between checks for due readings
FAST_S, SLOW_S = 0.002, 0.5  # between two readings: of counters and instant power; of temperatures and the like
#: Seconds of each block in a budget of `BUDGET_S` (which leaves time to start the load), and its least useful length.
BLOCKS: dict[str, tuple[float, float]] = {
    "idle": (7.0, 1.0),
    "context": (9.0, 1.0),
    "steady": (36.0, 2.0),
    "rest": (38.0, 1.5),
    "bursts": (17.0, 2.0),
    "square 17 ms": (10.0, 0.5),
    "square 73 ms": (5.0, 0.5),
    "square 0.83 s": (5.0, 2.0),
    "cost": (16.0, 4.0),
}
ENOUGH_S, EARLY = {"context": 5.1}, 0.25  # a sufficient length, used if it is at most this share of the time left
SPARE = 0.02  # share of the budget for the time between blocks
#: Mean periods of square loads; turns vary in length, so that no sensor is in step with them.
PERIODS_S = {"square 17 ms": 0.017, "square 73 ms": 0.073, "square 0.83 s": 0.83}
BURST_S, BURST_TICKS = 2.0, 12  # least length of a burst, and of the rest before it, in seconds and in ticks
PAIRS = 4  # pairs of spans with and without metering
CALLS = 0.6  # share of the block `cost` that the start of Zeus may take
ANSWER_S = 5.0  # how late a load may answer


class Clock(Protocol):
    """The monotonic clock: the module `time`, or a fake clock in a test."""

    def monotonic(self) -> float:
        """The time in seconds."""

    def sleep(self, seconds: float, /) -> None:
        """Wait for some seconds."""


class Done(TypedDict):
    """Begin and end of a load on the monotonic clock, and the work done."""

    began_s: float
    ended_s: float
    num_products: int


class Used(Cost):
    """Cost of metering, and why it stopped early, or None."""

    stopped: str | None


class Load(Protocol):
    """A program that loads a device. It raises RuntimeError if it cannot."""

    def described(self) -> Mapping[str, object]:
        """The device and its work; waits until the load is ready."""

    def begin(self, seconds: float, period_s: float | None) -> None:
        """Start to work for some seconds; with a period, for half of each turn of `turns`."""

    def end(self, limit_s: float) -> Done:
        """Wait for the end of the work, and return what was done."""

    def close(self) -> None:
        """Stop the program."""


class Metering(Protocol):
    """A context in which a device is metered as in a run."""

    def used(self, began_s: float, ended_s: float) -> Used:
        """Cost of metering in a span."""


@dataclass
class Subject:
    """A device to certify, as functions that read and load it.

    Attributes:
        counters: devices that have a counter, each with the joules at which it wraps to 0, or None.
        channels: function and period in seconds of each quantity to read; a counter has the name of its device.
        load: starts the load.
        metering: starts metering as in a run.
        calls_s: measures within a number of seconds how long the calls of a run's meter take around a window; returns
            the seconds of some windows, or the reason why they are unknown.
    """

    counters: dict[str, float | None]
    channels: dict[str, tuple[Callable[[], Any], float]]
    load: Callable[[], Load]
    metering: Callable[[], AbstractContextManager[Metering]]
    calls_s: Callable[[float], tuple[list[float] | None, str | None]]


@dataclass
class Session:
    """A measurement in progress.

    Attributes:
        subject: the device.
        clock: the clock.
        zero_s: the moment from which times are counted.
        silent: why devices are no longer read, or None.
        load: the load, once it has started.
        no_load: why there is no load, or None.
        tick_s: tick of its slowest counter, 0 if unknown.
    """

    subject: Subject
    clock: Clock
    zero_s: float
    silent: str | None = None
    load: Load | None = None
    no_load: str | None = None
    tick_s: float = 0.0
    _random: random.Random = field(default_factory=random.Random)

    def now_s(self) -> float:
        """Seconds since the measurement began."""
        return self.clock.monotonic() - self.zero_s

    def read(self, block: Block, seconds: float) -> None:
        """Read all channels for some seconds into a block."""
        if not self.subject.channels or self.silent is not None:
            self.clock.sleep(seconds)
            return
        until_s = self.now_s() + seconds
        _, self.silent = bounded.within(seconds + bounded.LIMIT_S, self._fill, block, until_s)
        if self.silent is not None:
            block.silent = self.silent
            block.channels = {name: _whole(channel) for name, channel in block.channels.items()}

    def _fill(self, block: Block, until_s: float) -> None:
        channels = {name: block.channels.setdefault(name, Channel()) for name in self.subject.channels}
        due_s = dict.fromkeys(channels, 0.0)
        while (now_s := self.now_s()) < until_s and block.silent is None:
            for name, (ask, period_s) in self.subject.channels.items():
                if now_s < due_s[name]:
                    continue
                began_s = self.now_s()
                value = ask()
                if block.silent is not None:  # the answer came too late: the block is already written
                    return
                channels[name].add(began_s, self.now_s() - began_s, value)
                # Random moments, so that a periodic load cannot hide between readings.
                due_s[name] = now_s + period_s * (0.5 + self._random.random())
            self.clock.sleep(PAUSE_S)

    def start(self) -> None:
        """Start the load."""
        try:
            self.load = self.subject.load()
            self.load.described()
        except RuntimeError as error:
            self.no_load = str(error)

    def work(self, block: Block, seconds: float, period_s: float | None = None) -> None:
        """Load the device for some seconds, and read it."""
        if self.load is not None:
            self.load.begin(seconds, period_s)
            self.read(block, seconds)
            block.spans.append(self._span(seconds, period_s))

    def _span(self, seconds: float, period_s: float | None, **more: Any) -> Span:  # noqa: ANN401 - fields of a span
        if self.load is None:
            raise RuntimeError("there is no load")
        done = self.load.end(seconds + ANSWER_S)
        began_s, ended_s = done["began_s"] - self.zero_s, done["ended_s"] - self.zero_s
        return Span(round(began_s, 6), round(ended_s, 6), period_s, done["num_products"], **more)

    def compare(self, block: Block, seconds: float, pair: int, metered: bool) -> None:
        """Load the device, metered as in a run or not at all."""
        if self.load is None:
            return
        if not metered:
            self.load.begin(seconds, None)
            self.clock.sleep(seconds)
            block.spans.append(self._span(seconds, None, pair=pair))
            return
        with self.subject.metering() as reading:
            self.load.begin(seconds, None)
            self.clock.sleep(seconds)
            span = self._span(seconds, None, pair=pair)
        used = reading.used(span.began_s + self.zero_s, span.ended_s + self.zero_s)
        block.spans.append(Span(**{**vars(span), "metered": used}))


def turns(seconds: float, period_s: float, chance: random.Random) -> Iterator[tuple[float, float]]:
    """Yield when a square load works, (from, until): the first half of each turn, which takes 0.5 to 1.5 periods."""
    begin_s = 0.0
    while begin_s < seconds:
        turn_s = (0.5 + chance.random()) * period_s
        yield begin_s, min(begin_s + turn_s / 2, seconds)
        begin_s += turn_s


def _whole(channel: Channel) -> Channel:
    """A copy of a channel's complete readings, as a hanging thread might still add to it."""
    number = min(len(channel.times_s), len(channel.took_s), len(channel.values))
    return Channel(channel.times_s[:number], channel.took_s[:number], channel.values[:number])


def measure(
    subject: Subject,
    budget_s: float,
    write: Callable[[Mapping[str, Any]], None],
    clock: Clock,
    say: Callable[[str], None],
    chance: random.Random | None = None,
) -> None:
    """Measure all blocks and write each as it ends.

    Args:
        subject: the device to measure.
        budget_s: seconds for all blocks.
        write: writes the line of each block.
        clock: the clock; the budget starts with the call.
        say: reports which block begins.
        chance: random generator for the moments of readings; None: a new one.
    """
    session = Session(subject, clock, clock.monotonic(), _random=chance or random.Random())
    waiting, left_s = list(BLOCKS), budget_s
    try:
        while waiting:
            name = waiting[0]
            if name == "context" and session.silent is None and subject.channels:
                say("starts the load")
                session.start()
            seconds = _share(waiting, min(left_s, budget_s - session.now_s()), SPARE * budget_s)
            left_s = left_s if seconds else 0.0  # skip the later blocks too: they build on this one
            write(_measured(session, name, seconds, say).line())
            waiting.pop(0)
    finally:
        if session.load is not None:
            session.load.close()


def _share(waiting: list[str], left_s: float, spare_s: float) -> float:
    """Seconds for the next block; 0 if too little time is left for it."""
    (weight, least_s), later = BLOCKS[waiting[0]], [BLOCKS[name] for name in waiting[1:]]
    share_s = weight / (weight + sum(other for other, _ in later)) * (left_s - spare_s)
    spared_s = left_s - spare_s - sum(least for _, least in later)
    if left_s < least_s:
        return 0.0
    enough_s = ENOUGH_S.get(waiting[0], 0.0)
    return max(min(share_s, spared_s), least_s, enough_s if enough_s <= EARLY * left_s else 0.0)


def _measured(session: Session, name: str, seconds: float, say: Callable[[str], None]) -> Block:
    block = Block(name, begin_s=session.now_s())
    block.reason = _reason(session, name, seconds)
    if block.reason is None:
        say(f"{name}, {seconds:.3g} s")
        try:
            _fill(session, block, seconds)
        except RuntimeError as error:
            block.reason = session.no_load = str(error)
    block.end_s = session.now_s()
    if name in ("idle", "steady"):
        session.tick_s = max([session.tick_s, *(_tick_s(block, device) for device in session.subject.counters)])
    return block


def _reason(session: Session, name: str, seconds: float) -> str | None:
    """Reason why a block is not tried, or None."""
    if not session.subject.channels:
        return "there is no meter to read"
    if session.silent is not None:
        return f"a meter gave {session.silent} in an earlier block"
    if name != "idle" and session.no_load is not None:
        return f"no load: {session.no_load}"
    return None if seconds else "no time was left of the budget"


def _fill(session: Session, block: Block, seconds: float) -> None:
    """Measure a block."""
    if block.name == "bursts":
        _bursts(session, block, seconds)
    elif block.name == "cost":
        _cost(session, block, seconds)
    elif block.name in ("idle", "context", "rest"):
        session.read(block, seconds)
        if block.name == "context" and session.load is not None:
            block.more = dict(session.load.described())
    else:
        session.work(block, seconds, PERIODS_S.get(block.name))


def _bursts(session: Session, block: Block, seconds: float) -> None:
    """Rest and load in turn, each for many ticks."""
    half_s = min(max(min(BURST_S, seconds / 4), BURST_TICKS * session.tick_s), 0.45 * seconds)
    after_s = min(0.1 * seconds, 4 * session.tick_s)
    for _ in range(max(1, int((seconds - after_s) / 2 / half_s))):  # at least one, despite rounding
        session.read(block, half_s)
        session.work(block, half_s)
    session.read(block, after_s)


def _cost(session: Session, block: Block, seconds: float) -> None:
    """Time the meter's calls; then do the same work with and without metering, in turn."""
    calls, reason = session.subject.calls_s(CALLS * seconds)
    left_s = max(seconds - (session.now_s() - block.begin_s), (1 - CALLS) * seconds)
    for pair in range(PAIRS):
        for metered in (False, True) if pair % 2 else (True, False):
            session.compare(block, left_s / PAIRS / 2, pair, metered)
    block.more = {"calls_s": calls, "calls_reason": reason}


def _tick_s(block: Block, device: str) -> float:
    channel = block.channels.get(device, Channel())
    steps = counter.steps(channel.times_s, channel.values, channel.took_s, block.begin_s, float("inf"))
    return steps.tick_s or 0.0


#: The monotonic clock, which all processes share.
MONOTONIC: Clock = time
