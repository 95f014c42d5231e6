"""Wait until a run's boards are near their temperature at rest, or it no longer changes.

A board is settled near the temperature at which it came to rest on this host before, or, without one, when its
temperature moves by less than a degree in a minute. Whole degrees show so slow a slope only over half a minute or
more: five seconds without a change say nothing, a big heat sink moves less than a degree in them at its hottest.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from joulesweep.core import bounded, files
from joulesweep.measure.meters import BoardSensor
from joulesweep.measure.sensors import cache_folder

NEAR_C = 3.0  # of the temperature at rest
STEADY_S = 5.0  # readings of the last seconds must be near it, and their power agree …
STEADY_W = 0.05  # … to this share
SLOPE_S = 30.0  # a slope is taken over at least this
LONGEST_S = 60.0  # … and at most this
SLOPE_C_PER_MIN = 1.0
PERIOD_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Rest:
    """How the wait for one board ended.

    Attributes:
        settled_by: "anchor": near the temperature at rest; "slope": it stood still; "power": its power did, and it
            tells no temperature; None: it did not settle, or tells neither.
        slope_c_per_min: of its temperature at the end, over 30 to 60 s; None for a shorter wait.
        anchor_c: the temperature at rest that it was compared with; None where none was known.
    """

    settled_by: str | None
    slope_c_per_min: float | None
    anchor_c: float | None


@dataclass(frozen=True, kw_only=True)
class Settled:
    """How the wait for all boards of a run ended.

    Attributes:
        waited_s: how long it took.
        settled: whether all settled; None where some board tells neither temperature nor power.
        boards: by device.
        silent: why boards could not be asked, by device; empty if all answered.
    """

    waited_s: float
    settled: bool | None
    boards: dict[str, Rest]
    silent: dict[str, str] = field(default_factory=dict)


Point = tuple[float, float | None, float | None]  # seconds since the wait began, degrees, watts


def settle(
    sensors: Sequence[BoardSensor],
    limit_s: float,
    ensure_parent_alive: Callable[[], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Settled:
    """Wait until boards are at rest, at most `limit_s`.

    Args:
        sensors: of the run's boards.
        limit_s: bound of the wait.
        ensure_parent_alive: called while waiting; raises if the run's parent has died.
        clock: gives seconds.
        sleep: waits for some.
    """
    began_s, anchors = clock(), known_anchors([sensor.board.uuid for sensor in sensors])
    askers = {sensor.board.device: bounded.Asker() for sensor in sensors}
    history: dict[str, list[Point]] = {sensor.board.device: [] for sensor in sensors}
    while True:
        ensure_parent_alive()
        now_s = clock() - began_s
        for sensor in sensors:
            degrees, watts = askers[sensor.board.device].ask(_read, sensor) or (None, None)
            history[sensor.board.device].append((now_s, degrees, watts))
        rests = {
            sensor.board.device: rested(history[sensor.board.device], anchors.get(sensor.board.uuid), limit_s)
            for sensor in sensors
        }
        answering = [rest for device, rest in rests.items() if askers[device].silent is None]
        if now_s >= limit_s or all(rest.settled_by for rest in answering):
            break
        sleep(min(PERIOD_S, limit_s - now_s))
    at_rest = {s.board.uuid: _at_rest(history[s.board.device], rests[s.board.device]) for s in sensors}
    keep_anchors({uuid: idle_c for uuid, idle_c in at_rest.items() if idle_c is not None})
    silent = {device: asker.silent for device, asker in askers.items() if asker.silent is not None}
    return Settled(waited_s=now_s, settled=_all(history, rests), boards=rests, silent=silent)


def _read(sensor: BoardSensor) -> tuple[float | None, float | None]:
    return sensor.temperature_c(), sensor.power_w()


def _all(history: Mapping[str, Sequence[Point]], rests: Mapping[str, Rest]) -> bool | None:
    if all(rest.settled_by for rest in rests.values()):
        return True
    mute = [device for device, points in history.items() if points[-1][1:] == (None, None)]
    return None if any(rests[device].settled_by is None for device in mute) else False


def rested(points: Sequence[Point], anchor_c: float | None, limit_s: float) -> Rest:
    """Whether a board is at rest now, and by which rule.

    Args:
        points: readings so far, the last one now.
        anchor_c: its temperature at rest, where that is known.
        limit_s: bound of the wait.
    """
    last_s = points[-1][0]
    slope = slope_c_per_min(points)
    recent = [point for point in points if point[0] >= last_s - STEADY_S]
    settled_by = None
    if last_s >= min(STEADY_S, limit_s) and _steady(recent):
        if anchor_c is not None and all(c is not None and abs(c - anchor_c) <= NEAR_C for _, c, _ in recent):
            settled_by = "anchor"
        elif slope is not None and abs(slope) < SLOPE_C_PER_MIN:
            settled_by = "slope"
        elif all(c is None for _, c, _ in points) and recent[-1][2] is not None and last_s >= SLOPE_S:
            settled_by = "power"
    return Rest(settled_by=settled_by, slope_c_per_min=slope, anchor_c=anchor_c)


def _steady(recent: Sequence[Point]) -> bool:
    """Whether the power readings agree; power that the board does not tell is no obstacle."""
    watts = [value for *_, value in recent if value is not None]
    return not watts or max(watts) - min(watts) <= max(2.0, STEADY_W * max(watts))


def slope_c_per_min(points: Sequence[Point]) -> float | None:
    """The slope of the temperature over the last minute, by least squares; None of less than half a minute."""
    recent = [(at_s, c) for at_s, c, _ in points if at_s >= points[-1][0] - LONGEST_S and c is not None]
    if not recent or recent[-1][0] - recent[0][0] < SLOPE_S:
        return None
    return 60 * statistics.linear_regression(*zip(*recent, strict=True)).slope


def _at_rest(points: Sequence[Point], rest: Rest) -> float | None:
    """The temperature at rest that a wait has shown: where it ended by its slope, or cooler than what was known."""
    degrees = [c for _, c, _ in points if c is not None]
    if not degrees or rest.settled_by not in ("anchor", "slope"):
        return None
    if rest.anchor_c is None:
        return degrees[-1]
    return min(degrees) if min(degrees) < rest.anchor_c else None


def known_anchors(uuids: Sequence[str]) -> dict[str, float]:
    """Temperatures at rest of boards of this host, by UUID, as far as they are known."""
    kept = _kept()
    rows = {uuid: kept.get(_key(uuid)) for uuid in uuids}
    temperatures = {uuid: row.get("idle_c") for uuid, row in rows.items() if isinstance(row, dict)}
    return {uuid: float(idle_c) for uuid, idle_c in temperatures.items() if isinstance(idle_c, int | float)}


def keep_anchors(idle_temperatures_c: Mapping[str, float]) -> None:
    """Keep temperatures at rest, by UUID, for the runs to come."""
    if not idle_temperatures_c:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = {_key(uuid): {"idle_c": idle_c, "measured": now} for uuid, idle_c in idle_temperatures_c.items()}
    with contextlib.suppress(OSError):  # no place to keep them: idle_temperatures_c again next time
        files.write_json(cache_folder() / "temperatures.json", {**_kept(), **rows})


def _kept() -> dict[str, object]:
    try:
        return dict(json.loads((cache_folder() / "temperatures.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _key(uuid: str) -> str:
    return f"{socket.gethostname()} {uuid}"
