"""How long the rest of a sweep takes follows from runs that are finished, and what it rests on is said."""

from __future__ import annotations

import json
import os

import pytest

from joulesweep.launch import eta
from joulesweep.launch.eta import Took

AXES = {"model": "m", "dataset": "d", "method": "full", "devices": 1, "precision": "fp32"}


def entry(cell, **axes):
    return {"cell": cell, "strategy": "single", **AXES, **axes}


GRID = {
    "a1": entry("a"),
    "a2": entry("a"),
    "b1": entry("b", strategy="ddp"),
    "b2": entry("b", strategy="ddp"),
    "c1": entry("c", strategy="ddp"),
    "d1": entry("d", model="other"),
}


def one_after_another(*durations_s):
    """Finished runs without pauses between them: (run, seconds)."""
    rows, now_s = [], 0.0
    for run, took_s in durations_s:
        rows.append(Took(run=run, begin_s=now_s, end_s=now_s + took_s))
        now_s += took_s
    return rows


def test_a_run_takes_as_long_as_those_of_its_cell():
    rest = eta.remaining(GRID, one_after_another(("a1", 10), ("b1", 30)), ["a2", "b2"], {})
    assert (rest.left_s, rest.num_left, rest.num_by_cell, rest.at_once) == (40, 2, 2, 1)
    assert rest.basis == "of 2 runs left, 2 by finished runs of their cell (2 finished)"


def test_a_run_of_a_new_cell_takes_as_long_as_those_most_like_it():
    rest = eta.remaining(GRID, one_after_another(("a1", 10), ("b1", 30)), ["c1"], {})
    assert rest.left_s == 30
    assert rest.basis == "of 1 run left, 1 by the finished runs most like them (2 finished)"
    assert eta.remaining(GRID, one_after_another(("a1", 10), ("b1", 30)), ["d1"], {}).left_s == 20


def test_both_bases_are_told():
    rest = eta.remaining(GRID, one_after_another(("a1", 10)), ["a2", "b1"], {})
    told = "of 2 runs left, 1 by finished runs of their cell, 1 by the finished runs most like them (1 finished)"
    assert rest.basis == told


def test_a_run_on_the_way_takes_what_is_left_of_it():
    done = one_after_another(("a1", 10), ("b1", 30))
    assert eta.remaining(GRID, done, ["a2"], {"a2": 4}).left_s == 6
    assert eta.remaining(GRID, done, ["a2"], {"a2": 400}).left_s == 0


def test_without_a_finished_run_nothing_is_said():
    assert eta.remaining(GRID, [], ["a1"], {}) is None
    assert eta.remaining(GRID, one_after_another(("elsewhere", 10)), ["a1"], {}) is None


def test_runs_at_once_shorten_the_rest_and_pauses_prolong_it():
    twice = [Took(run="a1", begin_s=0, end_s=10), Took(run="b1", begin_s=0, end_s=10)]
    assert eta.remaining(GRID, twice, ["a2", "b2"], {}).left_s == 10
    paused = [Took(run="a1", begin_s=0, end_s=10), Took(run="b1", begin_s=20, end_s=30)]
    assert eta.remaining(GRID, paused, ["a2", "b2"], {}).left_s == pytest.approx(30)


def test_a_night_between_two_sessions_is_no_pause():
    done = [Took(run="a1", begin_s=0, end_s=10), Took(run="b1", begin_s=9e4, end_s=9e4 + 10)]
    assert eta.remaining(GRID, done, ["a2"], {}).left_s == 10


def test_the_newest_records_count_and_broken_ones_do_not(tmp_path):
    for i, run in enumerate(["a1", "a2", "b1"]):
        times = {"started": f"2026-01-02T03:0{i}:00+00:00", "finished": f"2026-01-02T03:0{i}:30+00:00"}
        (tmp_path / run).mkdir()
        (tmp_path / run / "record.json").write_text(json.dumps(times))
        os.utime(tmp_path / run / "record.json", (i, i))
    (tmp_path / "b2").mkdir()
    (tmp_path / "b2" / "record.json").write_text('{"started": "now"}')
    assert [row.run for row in eta.finished(GRID, tmp_path)] == ["a1", "a2", "b1"]
    assert [row.run for row in eta.finished(GRID, tmp_path, newest=2)] == ["b1"]  # the broken one is the newest
    assert {row.end_s - row.begin_s for row in eta.finished(GRID, tmp_path)} == {30}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (372, "6 min"), (5400, "1.5 h"), (40000, "11 h"), (200000, "2.3 days")],
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert eta.duration(seconds) == said
