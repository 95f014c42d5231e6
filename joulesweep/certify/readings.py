"""Read and write a certificate's raw readings: a compressed line of JSON per block, written when the block ends.

    {"format": "joulesweep-readings", "version": 2, …}      the first line: what was measured, where and when
    {"block": "steady", "begin_s": …, "end_s": …, "spans": […], "channels": {…}, "silent": null, "reason": null}

Times are of the monotonic clock, counted from the first line's moment. A channel is three lists: when each reading
began (in µs from the block's begin), how long it took (in µs), and its value, null if the device did not answer. Each
line is compressed by itself, so that the complete lines of a truncated file can be read.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joulesweep.core.errors import Corrupt, UserError
from joulesweep.measure.certificate import digest

FORMAT, VERSION = "joulesweep-readings", 2
NUMBER = (int, float)  # asked of millions of readings: a union takes three times as long
LEVEL = 6  # of compression: the highest takes five times as long for a hundredth less
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass
class Channel:
    """Readings of one quantity.

    Attributes:
        times_s: when each reading began.
        took_s: how long it took.
        values: its value; None if there was no answer.
    """

    times_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, at_s: float, took_s: float, value: Any) -> None:  # noqa: ANN401 - any answer of a device
        """Add a reading."""
        self.times_s.append(at_s)
        self.took_s.append(took_s)
        self.values.append(value)

    def numbers(self, begin_s: float = float("-inf"), end_s: float = float("inf")) -> list[tuple[float, float]]:
        """The readings between two times that are numbers, with their times."""
        known = zip(self.times_s, self.values, strict=True)
        return [(at_s, float(v)) for at_s, v in known if isinstance(v, NUMBER) and begin_s <= at_s <= end_s]


@dataclass(frozen=True)
class Span:
    """A time under load.

    Attributes:
        began_s: its begin.
        ended_s: its end.
        period_s: mean period of a square load; None: a steady load.
        num_products: number of matrix products done.
        pair: number of its comparison with and without metering, or None.
        metered: cost of metering in such a comparison, {trace_cpu_s, num_samples}; None: not metered.
    """

    began_s: float
    ended_s: float
    period_s: float | None
    num_products: int
    pair: int | None = None
    metered: Mapping[str, Any] | None = None


@dataclass
class Block:
    """One part of the measurement.

    Attributes:
        name: a key of `blocks.BLOCKS`.
        begin_s: its begin.
        end_s: its end.
        spans: times under load.
        channels: readings by name; a counter has the name of its device.
        silent: why a device stopped answering, or None.
        reason: why the block was not tried, or None.
        more: further results.
    """

    name: str
    begin_s: float = 0.0
    end_s: float = 0.0
    spans: list[Span] = field(default_factory=list)
    channels: dict[str, Channel] = field(default_factory=dict)
    silent: str | None = None
    reason: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def line(self) -> dict[str, object]:
        """The block as a line of the file."""
        return {
            "block": self.name,
            "begin_s": round(self.begin_s, 6),
            "end_s": round(self.end_s, 6),
            "spans": [vars(span) for span in self.spans],
            "silent": self.silent,
            "reason": self.reason,
            "more": self.more,
            "channels": {name: self._packed(channel) for name, channel in self.channels.items()},
        }

    def _packed(self, channel: Channel) -> list[list[Any]]:
        values = [round(value, 3) if isinstance(value, float) else value for value in channel.values]
        times_us = [round(1e6 * (at_s - self.begin_s)) for at_s in channel.times_s]
        return [times_us, [round(1e6 * took_s) for took_s in channel.took_s], values]


@dataclass(frozen=True)
class Readings:
    """A file of readings.

    Attributes:
        header: the file's first line.
        blocks: the blocks by name, in the order in which they were measured.
        digest: digest of the file.
        file: name of the file.
    """

    header: Mapping[str, Any]
    blocks: dict[str, Block]
    digest: str
    file: str


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line and flush it to the disk."""
    with path.open("ab") as file:
        file.write(gzip.compress((json.dumps(line, ensure_ascii=False) + "\n").encode(), LEVEL, mtime=0))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Readings:
    """Read a file of readings, which may be truncated.

    Raises:
        UserError: there is no such file.
        Corrupt: it has no readings.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected readings of a certificate (….readings.jsonl.gz)") from None
    try:
        header, *lines = [json.loads(line) for line in _lines(content)]
        if header["format"] != FORMAT or header["version"] != VERSION:
            raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
        blocks = [_block(line) for line in lines]
    except MALFORMED as error:
        raise Corrupt(path, f"no readings of a certificate: {type(error).__name__}: {error}") from None
    return Readings(header, {block.name: block for block in blocks}, digest(content), path.name)


def _lines(content: bytes) -> list[bytes]:
    """The complete lines of a file that may be truncated."""
    lines = []
    while content:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)  # with gzip's head
        try:
            line = member.decompress(content)
        except zlib.error:
            break
        if not member.eof:
            break
        lines.append(line)
        content = member.unused_data
    return lines


def _block(line: Mapping[str, Any]) -> Block:
    begin_s = float(line["begin_s"])
    channels = {}
    for name, (times_us, took_us, values) in line["channels"].items():
        times_s = [begin_s + at_us / 1e6 for at_us in times_us]
        channels[name] = Channel(times_s, [us / 1e6 for us in took_us], list(values))
        if not len(times_s) == len(took_us) == len(values):
            raise ValueError(f"{name}: lists of different lengths")
    return Block(
        name=line["block"],
        begin_s=begin_s,
        end_s=float(line["end_s"]),
        spans=[Span(**span) for span in line["spans"]],
        channels=channels,
        silent=line["silent"],
        reason=line["reason"],
        more=dict(line["more"]),
    )
