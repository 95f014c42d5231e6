"""What the sweep itself took, every joule: windows and what is around them, failed and repeated attempts, anchors.

Attempts note themselves (`joulesweep.launch.attempts`). A run without such a note is older than they are: then its
record tells of the one attempt that left it. Measured joules are never added to estimated ones, and an attempt whose
joules nobody knows is counted as such, never as 0.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from joulesweep.analyse import run_rows
from joulesweep.analyse.columns import ATTEMPTS
from joulesweep.analyse.tables import Row, check, frame
from joulesweep.core.errors import UserError
from joulesweep.reference.cpu_estimate import Asked, estimate_cpu
from joulesweep.runs import attempted
from joulesweep.runs.attempted import PREEMPTED, Note

OPEN = "open"  # status of an attempt of which only the begin is known
RUN, ANCHOR, BY_HAND = "run", "anchor", "by hand"
WINDOW_ALONE = "of the window alone: what is around it was not read"
UNREAD = "no counter was read over the attempt"
#: Parts of what a sweep took, in the order in which they are told.
WINDOWS, AROUND, FAILED, REPEATED = "windows of the finished runs", "around the windows", "failed", "repeated"
PARTS = (WINDOWS, AROUND, FAILED, REPEATED, "anchors", BY_HAND)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of what a sweep took.

    Attributes:
        name: one of `PARTS`.
        measured_j: joules that were read; None where none were.
        estimated_j: estimated joules of attempts without read ones; None where none were asked for.
        seconds: in which machine or boards were held; None where nobody noted.
    """

    name: str
    measured_j: float | None
    estimated_j: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a sweep took so far.

    Attributes:
        measured_j: joules that were read, of all attempts; None where none were.
        estimated_j: estimated joules of the attempts without read ones; None where there are none.
        seconds: in which attempts held the machine or their boards, as far as noted.
        num_attempts: how many there were.
        num_unknown: attempts whose joules are neither read nor estimated.
        num_windows: of those with read joules, the ones whose joules are of the window alone.
        parts: the same by part, without empty ones.
    """

    measured_j: float | None
    estimated_j: float | None
    seconds: float
    num_attempts: int
    num_unknown: int
    num_windows: int
    parts: list[Part]


Recorded = tuple[Row, Sequence[Row]]  # a run's row of the runs table, and its rows of the devices table


def tabulate(grid: Mapping[str, Any], folder: Path, asked: Asked, recorded: Mapping[str, Recorded]) -> pl.DataFrame:
    """Build the attempts table of the present grid's runs.

    Args:
        grid: the manifest.
        folder: of the sweep, with the folders runs, anchors and by-hand.
        asked: the config's settings for estimates.
        recorded: what the records of the runs tell, by run; those of anchors and of runs by hand are read here.
    """
    runs, accelerator = grid["runs"], grid["config"]["hardware"]["accelerator"]
    rows = [
        row
        for run in runs
        for row in _rows(RUN, folder / "runs" / run, runs[run], recorded.get(run), asked, accelerator)
    ]
    for kind, pattern in ((ANCHOR, "anchors/*/*"), (BY_HAND, "by-hand/*")):
        for path in sorted(folder.glob(pattern)):
            if path.name in runs:
                again = _read_record(path / "record.json", asked)
                rows += _rows(kind, path, runs[path.name], again, asked, accelerator)
    return frame(rows, ATTEMPTS)


def _read_record(path: Path, asked: Asked) -> Recorded | None:
    """What a record tells; None where there is none, or it cannot be read."""
    try:
        row, others = run_rows.read(path, asked, None)
    except UserError:
        return None
    return row, others["devices"]


def _rows(
    kind: str, folder: Path, entry: Mapping[str, Any], recorded: Recorded | None, asked: Asked, accelerator: str
) -> list[Row]:
    """The attempts at one run."""
    kept = recorded if recorded and recorded[0].get("finished") else None
    notes = attempted.notes(folder / attempted.FILE)
    of_run = {"kind": kind, "run": folder.name, "cell": entry["cell"], "label": entry["label"]}
    last = _keeper(notes, kept[0]) if kept else None
    parts = _parts(notes, last, kept[0]) if kept and last is not None else set()
    rows = [_noted(note, kept if i == last else None, i in parts, asked, accelerator) for i, note in enumerate(notes)]
    if kept and last is None:
        rows.append(_noted(_as_noted(kept[0]), kept, True, asked, accelerator))
    return [check({**of_run, **row}, ATTEMPTS) for row in rows]


def _keeper(notes: Sequence[Mapping[str, Any]], row: Row) -> int | None:
    """Which attempt left the record: the last that ended with its status, and in whose time the record was written."""

    def left(note: Mapping[str, Any]) -> bool:
        begin, end = (str(note.get(key))[:19] for key in ("began", "ended"))
        return bool(note.get("status") == row["status"] and begin <= row["finished"][:19] <= end)

    return next((i for i in reversed(range(len(notes))) if left(notes[i])), None)


def _parts(notes: Sequence[Note], last: int, row: Row) -> set[int]:
    """Which attempts did a part of the recorded run: the one that left the record, and those whose work it went on."""
    before = [i for i in range(last) if notes[i].get("status") == PREEMPTED]
    num_before = int(row.get("num_attempts") or 1) - 1
    return {last, *(before[-num_before:] if num_before else [])}


def _as_noted(row: Row) -> Note:
    """An attempt that is older than notes, as its record tells of it, to the second."""
    begin, end = (datetime.datetime.fromisoformat(row[key]) for key in ("started", "finished"))
    held_s = max((end - begin).total_seconds(), row.get("total_window_s") or 0.0)
    about = {"status": row["status"], "reason": row["reason"], "held_s": held_s}
    return {"began": row["started"], "ended": row["finished"], **about}


def _noted(note: Mapping[str, Any], kept: Recorded | None, is_part: bool, asked: Asked, accelerator: str) -> Row:
    """The columns of an attempt.

    Args:
        note: of the attempt.
        kept: the record that it left.
        is_part: whether its work is in the run's present record.
        asked: the config's settings for estimates.
        accelerator: of the sweep.
    """
    joules, own = _counted(note.get("energy") or [], accelerator), note.get("window")
    row = kept[0] if kept is not None else {}
    if joules["energy_j"] is None and own is not None:
        joules = _of_window(own, accelerator) or joules
    elif joules["energy_j"] is None and kept is not None:
        joules = _of_record(*kept) or joules
    same = row.get("energy_scope") is not None and row["energy_scope"] == joules.get("energy_scope")
    window_s, window_j = row.get("total_window_s"), row.get("total_energy_j") if same else None
    if own is not None and is_part:
        kinds = str(joules.get("energy_scope") or "").split("+")
        window_s, window_j = note["window_s"], _known([one["energy_j"] for one in own if one["kind"] in kinds])
    return {
        "began": note["began"],
        "ended": note.get("ended"),
        "status": note.get("status", OPEN),
        "reason": note.get("reason"),
        "is_kept": is_part,
        "waited_s": note.get("waited_s"),
        "held_s": note.get("held_s"),
        "window_s": window_s,
        "window_energy_j": window_j,
        **joules,
        "estimated_energy_j": _estimated(note, row, asked, accelerator),
    }


def _counted(energy: Sequence[Mapping[str, Any]], accelerator: str) -> Row:
    """The joules that counters rose by while an attempt held its devices, if all of them answered.

    Boards that a run on the CPU metered are in no sum; without its boards a run on GPUs has none.
    """
    energy = [row for row in energy if accelerator != "cpu" or row["kind"] != "gpu"]
    if accelerator == "cuda" and all(row["kind"] != "gpu" for row in energy):
        return {"energy_j": None, "energy_reason": UNREAD}
    lacking = [row for row in energy if row["energy_j"] is None]
    if not energy or lacking:
        reasons = [f"{row['device']}: {row['reason']}" for row in lacking]
        return {"energy_j": None, "energy_reason": "; ".join(reasons) or UNREAD}
    return {
        "energy_j": math.fsum(row["energy_j"] for row in energy),
        "energy_status": "measured",
        "energy_scope": "+".join(dict.fromkeys(str(row["kind"]) for row in energy)),
    }


def _of_window(own: Sequence[Mapping[str, Any]], accelerator: str) -> Row | None:
    """The joules of an attempt's own window, where no counter was read over the attempt; None where there are none."""
    rows = [row for row in own if (row["kind"] == "gpu") == (accelerator == "cuda")]
    energy_j = _known([row["energy_j"] for row in rows])
    if energy_j is None or len({row["status"] for row in rows}) != 1:
        return None
    scope = "+".join(dict.fromkeys(str(row["kind"]) for row in rows))
    return {
        "energy_j": energy_j,
        "energy_status": rows[0]["status"],
        "energy_scope": scope,
        "energy_reason": WINDOW_ALONE,
    }


def _known(values: Sequence[float | None]) -> float | None:
    """The sum; None where a value is missing, or all are."""
    return None if not values or None in values else math.fsum(value for value in values if value is not None)


def _of_record(row: Row, devices: Sequence[Row]) -> Row | None:
    """The joules that a record has: of the whole run, else of its window alone; None where it has none."""
    if row.get("total_energy_j") is None:
        return None
    whole = [device["whole_run_energy_j"] for device in devices if device["in_scope"]]
    complete = None not in whole
    return {
        "energy_j": math.fsum(whole) if complete else row["total_energy_j"],
        "energy_status": row["energy_status"],
        "energy_scope": row["energy_scope"],
        "energy_reason": None if complete else WINDOW_ALONE,
    }


def _estimated(note: Mapping[str, Any], row: Row, asked: Asked, accelerator: str) -> float | None:
    """Estimated joules of an attempt on the CPU: from all of its CPU-seconds, else from those of its window."""
    if not asked.estimate or row.get("accelerator", accelerator) != "cpu":
        return None
    if note.get("held_s") is not None and "cpu_s" in note:
        return estimate_cpu(note["cpu_s"], note["held_s"], note["cpu_model"], note["cpu_cores"], asked.cpu_watts).mid_j
    estimated_j = row.get("estimated_energy_j")
    return None if estimated_j is None else float(estimated_j) * int(row["num_passes"])


def spent(attempts: pl.DataFrame) -> Spent:
    """What all attempts took.

    Args:
        attempts: the table.
    """
    rows = list(attempts.iter_rows(named=True))
    unread = [row for row in rows if row["energy_j"] is None]
    shares = [share for row in rows for share in _shares(row)]
    parts = []
    for name in PARTS:
        of_part = [share for share in shares if share[0] == name]
        if of_part:
            measured_j, estimated_j, seconds = (_sum(column) for column in list(zip(*of_part, strict=True))[1:])
            parts.append(Part(name=name, measured_j=measured_j, estimated_j=estimated_j, seconds=seconds))
    return Spent(
        measured_j=_sum(row["energy_j"] for row in rows),
        estimated_j=_sum(row["estimated_energy_j"] for row in unread),
        seconds=sum(_seconds(row) or 0.0 for row in rows),
        num_attempts=len(rows),
        num_unknown=sum(row["estimated_energy_j"] is None for row in unread),
        num_windows=sum(row["energy_reason"] == WINDOW_ALONE for row in rows),
        parts=parts,
    )


_Share = tuple[str, float | None, float | None, float | None]  # part, measured_j, estimated_j, seconds


def _shares(row: Row) -> list[_Share]:
    """How an attempt is divided over the parts."""
    estimated_j = row["estimated_energy_j"] if row["energy_j"] is None else None
    seconds = _seconds(row)
    if row["kind"] != RUN:
        return [(BY_HAND if row["kind"] == BY_HAND else "anchors", row["energy_j"], estimated_j, seconds)]
    if not row["is_kept"]:
        return [(REPEATED if row["status"] == "ok" else FAILED, row["energy_j"], estimated_j, seconds)]
    if row["status"] not in ("ok", PREEMPTED):
        return [(FAILED, row["energy_j"], estimated_j, seconds)]
    if row["window_energy_j"] is None or row["energy_j"] is None:
        return [(WINDOWS, row["energy_j"], estimated_j, seconds)]
    around_j = max(row["energy_j"] - row["window_energy_j"], 0.0)
    around_s = None if seconds is None else max(seconds - row["window_s"], 0.0)
    return [(WINDOWS, row["window_energy_j"], None, row["window_s"]), (AROUND, around_j, None, around_s)]


def _seconds(row: Row) -> float | None:
    seconds: float | None = row["held_s"] if row["held_s"] is not None else row["window_s"]
    return seconds


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
