"""When a sweep will be done: from how long its finished runs took, and how close together they came.

A run that is left takes as long as the finished ones of its cell; without any, as those that share most with it.
The sum is divided by the number of runs that were on the way at once: below 1 where there were pauses between them.
"""

# changes no number: when the rest will be done
from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.core.errors import UserError
from joulesweep.core.files import MALFORMED, read_json

#: Axes that runs share, from most to least: the first that a finished run shares with one that is left decide.
SHARED = (("cell",), ("model", "dataset", "method", "strategy", "devices", "precision"), ("model", "method"), ())
NEWEST = 200  # finished runs that count: to read all of a large sweep again and again would cost CPU
PACE = 20  # the newest finished runs show how many were on the way at once
PAUSE_S = 600.0  # without any run is no pause between runs, but between sessions


@dataclass(frozen=True, kw_only=True)
class Took:
    """A finished run: its id, and when it began and ended, in seconds since 1970."""

    run: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Eta:
    """When the rest will be done.

    Attributes:
        left_s: seconds from now.
        num_left: runs without a record.
        num_by_cell: how many of them have a finished run of their cell.
        num_finished: finished runs that this rests on.
        at_once: number of runs that were on the way at once.
    """

    left_s: float
    num_left: int
    num_by_cell: int
    num_finished: int
    at_once: float

    @property
    def basis(self) -> str:
        """What it rests on, in words."""
        by_likeness = self.num_left - self.num_by_cell
        parts = [f"{self.num_by_cell} by finished runs of their cell"] if self.num_by_cell else []
        parts += [f"{by_likeness} by the finished runs most like them"] if by_likeness else []
        runs = "run" if self.num_left == 1 else "runs"
        return f"of {self.num_left} {runs} left, {', '.join(parts)} ({self.num_finished} finished)"


def until(left_s: float) -> str:
    """The local time of day after some seconds, with the day if it is another."""
    now = datetime.datetime.now().astimezone()
    then = now + datetime.timedelta(seconds=left_s)
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `6 min`, `3.4 h`, `2.1 days`."""
    for size, unit, least in ((86400, "days", 2), (3600, "h", 1.5), (60, "min", 1.5)):
        if seconds >= least * size:
            number = seconds / size
            return f"{number:.1f} {unit}" if unit != "min" and number < 10 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"


def finished(runs: Iterable[str], runs_folder: Path, newest: int = NEWEST) -> list[Took]:
    """The newest of some finished runs, by the time of their end. Records that cannot be read are left out."""
    paths = [runs_folder / run / "record.json" for run in runs]
    rows = []
    for path in sorted(paths, key=_changed_s)[-newest:]:
        try:
            row = read_json(path, "run record")
            times = [datetime.datetime.fromisoformat(row[key]).timestamp() for key in ("started", "finished")]
            rows.append(Took(run=path.parent.name, begin_s=times[0], end_s=max(times)))
        except (UserError, *MALFORMED):
            continue
    return sorted(rows, key=lambda row: row.end_s)


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # there is none
        return 0.0


def remaining(
    grid: Mapping[str, Mapping[str, Any]], done: list[Took], left: Iterable[str], elapsed_s: Mapping[str, float]
) -> Eta | None:
    """When the runs that are left will be done; None if no run has finished.

    Args:
        grid: `runs` of the manifest.
        done: finished runs.
        left: runs without a record.
        elapsed_s: of those on the way, the seconds since they began.
    """
    done = [row for row in done if row.run in grid]
    if not done:
        return None
    means = [_means(grid, done, axes) for axes in SHARED]
    left_s, num_left, num_by_cell = 0.0, 0, 0
    for run in left:
        found = [of.get(_key(grid[run], axes)) for of, axes in zip(means, SHARED, strict=True)]
        expected_s = next(mean_s for mean_s in found if mean_s is not None)
        left_s += max(expected_s - elapsed_s.get(run, 0.0), 0.0)
        num_left, num_by_cell = num_left + 1, num_by_cell + (found[0] is not None)
    at_once = _at_once(done)
    return Eta(
        left_s=left_s / at_once, num_left=num_left, num_by_cell=num_by_cell, num_finished=len(done), at_once=at_once
    )


def _key(entry: Mapping[str, Any], axes: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(str(entry.get(axis)) for axis in axes)


def _means(
    grid: Mapping[str, Mapping[str, Any]], done: list[Took], axes: tuple[str, ...]
) -> dict[tuple[object, ...], float]:
    """Mean seconds of the finished runs, by the values of some axes."""
    took_s: dict[tuple[object, ...], list[float]] = {}
    for row in done:
        took_s.setdefault(_key(grid[row.run], axes), []).append(row.end_s - row.begin_s)
    return {key: statistics.fmean(values) for key, values in took_s.items()}


def _at_once(done: list[Took]) -> float:
    """How many runs were on the way at once, lately: their seconds by those that passed."""
    lately = done[-PACE:]
    first = lately[-1].begin_s
    number = 1
    for row in reversed(lately[:-1]):
        if first - row.end_s > PAUSE_S:
            break
        first, number = min(first, row.begin_s), number + 1
    passed_s = lately[-1].end_s - first
    busy_s = sum(row.end_s - row.begin_s for row in lately[-number:])
    return busy_s / passed_s if passed_s > 0 and busy_s > 0 and number > 1 else 1.0
