"""Read how earlier attempts at a run ended, and what the next one needs: more memory, more time, or no next one.

The attempts note themselves, see `joulesweep.launch.attempts`. Where a batch system holds a run to what was asked for,
one that the kernel killed for want of memory, or that its time limit ended, may do with more. One that failed of itself
would fail again.
"""

# changes no number: what a batch system is asked for, and whether a run is tried again
from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from joulesweep.core.files import MALFORMED
from joulesweep.core.outcome import Ending, LostAttempt, LostEnergy
from joulesweep.measure import batch_system

FILE = "attempts.jsonl"
#: Why a run has no numbers whose process the kernel killed for want of the host's memory.
HOST_OOM = "killed by the kernel's out-of-memory killer"
FAILED, STOPPED = "failed", "stopped"  # statuses of attempts without a record: of themselves, or ended from outside
PREEMPTED = "preempted"  # status of an attempt that ended at SIGTERM, and whose training was kept
RECORDED = ("ok", *get_args(Ending))  # statuses of attempts that left a record
MOST_DOUBLINGS = 2  # of memory and of time
NEAR_LIMIT = 0.9  # of its minutes: an attempt begins when its job has been starting for a while

Note = dict[str, Any]


def notes(path: Path) -> list[Note]:
    """The attempts that a file notes, begin and end in one, in the order of their begins; torn lines are left out."""
    rows: dict[str, Note] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            if "began" in row or row["attempt"] in rows:
                rows[row["attempt"]] = rows.get(row["attempt"], {}) | row
        except MALFORMED:
            continue
    return list(rows.values())


def lost(of_run: Sequence[Note], kept: Collection[str | None]) -> list[LostAttempt]:
    """The attempts since the last record whose work is not in the next one.

    Args:
        of_run: the notes of all attempts.
        kept: names of the attempts whose work is in it.
    """
    recorded = [i for i, note in enumerate(of_run) if note.get("status") in RECORDED]
    since = of_run[recorded[-1] + 1 :] if recorded else of_run
    return [_lost(note) for note in since if note["attempt"] not in kept]


def _lost(note: Note) -> LostAttempt:
    names = [item.name for item in dataclasses.fields(LostEnergy)]
    return LostAttempt(
        attempt=note["attempt"],
        began=note["began"],
        status=note.get("status"),
        reason=note.get("reason"),
        held_s=note.get("held_s"),
        energy=[LostEnergy(**{name: row.get(name) for name in names}) for row in note.get("energy", [])],
    )


def lacked_memory(note: Mapping[str, Any]) -> bool:
    """Whether the kernel killed an attempt for want of the host's memory."""
    return HOST_OOM in str(note.get("reason"))


def lacked_time(note: Mapping[str, Any]) -> bool:
    """Whether a batch job's time limit ended an attempt."""
    try:
        began, ended = (datetime.datetime.fromisoformat(note[key]) for key in ("began", "ended"))
        limit_s = 60 * float(note["batch"]["minutes"])
    except MALFORMED:
        return False
    return note.get("status") == STOPPED and (ended - began).total_seconds() >= NEAR_LIMIT * limit_s


def doublings(of_run: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How often memory and time of the next attempt are to be doubled."""
    lacked = (sum(map(lacked_memory, of_run)), sum(map(lacked_time, of_run)))
    return min(lacked[0], MOST_DOUBLINGS), min(lacked[1], MOST_DOUBLINGS)


def may_ask_for_more(folder: Path) -> bool:
    """Whether a run that lacked memory is to be tried with more: in a batch job, as long as doubling goes on.

    Args:
        folder: of the run.
    """
    return batch_system.system_of(os.environ) is not None and doublings(notes(folder / FILE))[0] < MOST_DOUBLINGS


def is_worth_another(of_run: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a job that failed is tried again: for want of memory or time, preempted, or killed without a word."""
    last = of_run[-1] if of_run else {}
    return last.get("status", PREEMPTED) == PREEMPTED or lacked_memory(last) or lacked_time(last)
