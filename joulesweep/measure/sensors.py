"""Measure how often counters update, and cache it on this host for later runs."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from joulesweep.core import files
from joulesweep.core.outcome import DeviceEnergy
from joulesweep.measure import devices

TICK_LIMIT_S = 10.0
TICK_STEPS = 10
TICK_LATE_S = 0.005  # looks that are further apart, and than half the tick, may have missed a move: not kept


def measure_tick(read: Callable[[], float | None], limit_s: float = TICK_LIMIT_S) -> float | None:
    """Seconds between two updates of a counter: over up to ten steps, None if fewer than two were seen."""
    return _watch(read, limit_s)[0]


def _watch(read: Callable[[], float | None], limit_s: float) -> tuple[float | None, bool]:
    """A counter's tick, and whether no update can have been missed: on a busy machine some are."""
    began_s = time.monotonic()
    changes: list[float] = []
    last, looked_s, late_s = read(), began_s, 0.0
    while len(changes) <= TICK_STEPS and time.monotonic() - began_s < limit_s:
        value, now_s = read(), time.monotonic()
        if value is None:
            return None, False
        late_s, looked_s = max(late_s, now_s - looked_s), now_s
        if value != last:
            changes.append(now_s)
            last = value
        time.sleep(0.0005)
    if len(changes) < 3:
        return None, False
    tick_s = (changes[-1] - changes[0]) / (len(changes) - 1)
    if late_s <= max(TICK_LATE_S, tick_s / 2):
        return tick_s, True
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(changes)), False


def cached_tick(name: str, read: Callable[[], float | None], afresh: bool = False) -> float | None:
    """A counter's update period on this host: measured once, then read from the user's cache folder.

    Args:
        name: of the counter: a board's UUID, or the device of a zone.
        read: its reading.
        afresh: measure it again, whatever was kept.
    """
    kept = _ticks().get(_tick_key(name))
    if isinstance(kept, dict) and isinstance(kept.get("tick_s"), float) and not afresh:
        return float(kept["tick_s"])
    tick_s, sure = _watch(read, TICK_LIMIT_S)
    if tick_s is not None and sure:
        keep_tick(name, tick_s)
    return tick_s


def keep_tick(name: str, tick_s: float) -> None:
    """Keep a counter's update period for the runs to come."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # no place to keep it: measured again next time
        files.write_json(
            cache_folder() / "ticks.json", {**_ticks(), _tick_key(name): {"tick_s": tick_s, "measured": now}}
        )


def keep_ticks(rows: Sequence[DeviceEnergy], known: Mapping[str, float | None]) -> None:
    """Keep what a run's own trace found of its counters' update periods, where it is other than what was known.

    Args:
        rows: the run's final joules.
        known: the update periods before the run, by device.
    """
    for row in rows:
        if row.tick_s is not None and row.status != "unavailable" and row.tick_s != known.get(row.device):
            keep_tick(row.uuid or row.device, row.tick_s)


def _tick_key(name: str) -> str:
    return f"{socket.gethostname()} {name} {devices.driver()}"


def _ticks() -> dict[str, object]:
    try:
        return dict(json.loads((cache_folder() / "ticks.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def cache_folder() -> Path:
    """The folder that caches measured facts about this host for later runs."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without home
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache", "joulesweep")
