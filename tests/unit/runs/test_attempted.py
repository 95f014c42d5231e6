"""How earlier attempts ended decides what a batch system is asked for, and whether a run is tried again."""

from __future__ import annotations

import json

import pytest

from joulesweep.runs import attempted

BEGAN = "2026-01-01T10:00:00.000+00:00"


def ended(after_min: float, status: str = "stopped", reason: str = "ended from outside", minutes: int = 10):
    """An attempt in a batch job with a limit of so many minutes."""
    at = f"2026-01-01T10:{int(after_min):02}:{round(after_min % 1 * 60):02}.000+00:00"
    batch = {"system": "slurm", "job": "7", "minutes": minutes}
    return {"attempt": "a", "began": BEGAN, "batch": batch, "ended": at, "status": status, "reason": reason}


KILLED = {"attempt": "a", "began": BEGAN}
LACKED_MEMORY = ended(1, "failed", f"{attempted.HOST_OOM}; more next time")
LACKED_TIME = ended(9.7)


def test_begin_and_end_of_an_attempt_are_one_note_and_torn_lines_none(tmp_path):
    path = tmp_path / attempted.FILE
    lines = [{"attempt": "a", "began": BEGAN}, {"attempt": "b", "began": BEGAN}, {"attempt": "a", "status": "ok"}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"attempt": "c", "beg', encoding="utf-8")
    assert attempted.notes(path) == [lines[0] | {"status": "ok"}, lines[1]]
    assert attempted.notes(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("notes", "doublings"),
    [
        ([], (0, 0)),
        ([LACKED_TIME], (0, 1)),
        ([LACKED_MEMORY, LACKED_TIME, LACKED_MEMORY], (2, 1)),
        ([LACKED_TIME] * 5, (0, 2)),
        ([ended(2)], (0, 0)),  # cancelled
        ([ended(9.7, "failed", "ValueError: boom")], (0, 0)),
        ([ended(9.7) | {"batch": None}], (0, 0)),
        ([KILLED], (0, 0)),
    ],
)
def test_only_who_lacked_memory_or_time_gets_more(notes, doublings):
    assert attempted.doublings(notes) == doublings


@pytest.mark.parametrize(
    ("last", "is_worth"),
    [
        (LACKED_MEMORY, True),
        (LACKED_TIME, True),
        (KILLED, True),
        (ended(1, "failed", "ValueError: boom"), False),
        (ended(1), False),
        (ended(1, "ok", ""), False),
        (ended(1, "preempted", "after step 5"), True),
    ],
)
def test_a_run_that_failed_of_itself_is_not_tried_again(last, is_worth):
    assert attempted.is_worth_another([KILLED, last]) == is_worth


def test_work_that_is_in_no_record_is_lost_since_the_last_one():
    joules = {"device": "gpu:0", "kind": "gpu", "energy_j": 5.0, "reason": None}
    notes = [
        ended(1) | {"attempt": "old"},
        ended(1, "oom", "memory") | {"attempt": "recorded"},
        ended(2, "stopped", "ended from outside") | {"attempt": "a", "held_s": 3.0, "energy": [joules]},
        ended(2, "preempted", "after step 5") | {"attempt": "b"},
        KILLED | {"attempt": "c"},
        KILLED | {"attempt": "d"},
    ]
    first, second = attempted.lost(notes, {"b", "d"})
    assert (first.attempt, first.status, first.held_s, vars(first.energy[0])) == ("a", "stopped", 3.0, joules)
    assert (second.attempt, second.began, second.status, second.energy) == ("c", BEGAN, None, [])


def test_memory_is_asked_for_again_in_batch_jobs_only_and_twice_at_most(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not attempted.may_ask_for_more(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    asked = []
    for i in range(4):
        asked.append(attempted.may_ask_for_more(tmp_path))
        with (tmp_path / attempted.FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(LACKED_MEMORY | {"attempt": str(i)}) + "\n")
    assert asked == [True, True, False, False]
