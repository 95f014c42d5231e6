"""The state of a sweep is read from its files alone, and nothing in them is changed by looking."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import pytest
import synthetic

from joulesweep.core import files, processes
from joulesweep.core.errors import UserError
from joulesweep.launch import stage, state


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))


@pytest.fixture
def sweep(tmp_path):
    """A sweep of four cells and twelve runs, none of which has begun: its folder and its runs."""
    raw = synthetic.raw_config(axes={"precision": ["fp32"]})
    folder = tmp_path / "results" / "synthetic"
    manifest, _ = synthetic.write_sweep(folder, raw, lambda row: None)
    return folder, list(manifest["runs"])


def put(folder, row):
    files.write_json(folder / "runs" / row["run"] / "record.json", row)


def record(folder, run, **changes):
    from joulesweep.plan import config, grid

    manifest = files.read_json(folder / "grid.json", "grid")
    spec = grid.expand(config.validate(json.loads(json.dumps(manifest["config"])))).runs[run]
    return {**synthetic.ok_record(run, spec), **changes}


def alive(folder, run, begun="trains", ago_s=20, **facts):
    """Make a run look as if this process launched it."""
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago_s)
    told = {**processes.identity(), "stage": begun, "since": since.isoformat(timespec="seconds"), **facts}
    files.write_json(folder / "runs" / run / stage.FILE, told)


def keep(folder, run):
    """Make a run look as if it had been preempted."""
    files.write_text(folder / "runs" / run / "run.log", "preempted")
    files.write_json(folder / "runs" / run / ".checkpoint" / "manifest.json", {"step": 120, "num_steps": 500})


def test_before_anything_began_all_is_missing(sweep):
    folder, runs = sweep
    now = state.read(folder)
    assert (now.num_runs, now.num_finished, now.counts) == (12, 0, {"missing": 12})
    assert (now.living, now.joules, now.eta, now.failures, now.stopped, now.machine) == ([], {}, None, [], [], [])
    assert list(now.states) == runs


def test_a_folder_without_a_sweep_is_refused_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"grid\.json: No such file"):
        state.read(tmp_path)


def test_every_state_is_told_apart(sweep):
    folder, runs = sweep
    put(folder, record(folder, runs[0]))
    put(folder, synthetic.failed(record(folder, runs[1]), "oom", "out of memory"))
    files.write_text(folder / "runs" / runs[2] / "record.json", "{")
    files.write_text(folder / "runs" / runs[3] / "run.log", "Traceback\nValueError: boom\n\n")
    alive(folder, runs[4], "waits", waits_for="the machine", whom="somebody")
    alive(folder, runs[5])
    keep(folder, runs[6])
    now = state.read(folder)
    assert [now.states[run] for run in runs[:8]] == [
        "ok", "oom", "corrupt", "failed", "waiting", "running", "preempted", "missing",
    ]  # fmt: skip
    assert [(row.run, row.step, row.num_steps) for row in now.preempted] == [(runs[6], 120, 500)]
    assert now.num_finished == 3
    assert [row.status for row in now.stopped] == ["oom", "corrupt"]
    assert now.stopped[0].reason == "out of memory"
    assert [(row.run, row.last_line) for row in now.failures] == [(runs[3], "ValueError: boom")]
    assert now.failures[0].log == str(folder / "runs" / runs[3] / "run.log")
    assert [(row.waits_for, row.whom) for row in now.living] == [("the machine", "somebody"), (None, None)]


def test_looking_changes_nothing(sweep):
    folder, runs = sweep
    put(folder, record(folder, runs[0]))
    alive(folder, runs[1])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    state.read(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not (folder.parent.parent / "locks").exists()


def test_a_killed_run_is_no_living_one(sweep):
    folder, runs = sweep
    alive(folder, runs[0], began=1)
    files.write_text(folder / "runs" / runs[0] / "run.log", "")
    now = state.read(folder)
    assert now.living == []
    assert now.failures[0].last_line == "it says nothing"


def test_the_output_of_a_batch_job_is_named_with_the_run_that_failed_in_it(sweep):
    folder, runs = sweep
    logs = folder.parent.parent / ".snakemake"
    for run in runs[:3]:
        files.write_text(folder / "runs" / run / "run.log", "boom")
    note = {"attempt": "a", "began": "2026-01-01T10:00:00+00:00", "batch": {"job": "12.server"}}
    files.write_lines(folder / "runs" / runs[0] / "attempts.jsonl", [note])
    of_group, of_run = logs / "batch_logs" / "GROUP" / "12.server.OU", logs / "slurm_logs" / "rule_train" / runs[1]
    before_it_began = logs / "slurm_logs" / "rule_train" / runs[3] / "13.log"
    files.write_text(of_group, "boom")
    for job in ("9", "10"):  # the later one counts
        files.write_text(of_run / f"{job}.log", "boom")
    files.write_text(before_it_began, "slurmstepd: error: no such partition")
    files.write_text(logs / "slurm_logs" / "rule_train" / runs[4] / "14.log", "it starts")
    now = state.read(folder)
    expected = {runs[0]: of_group, runs[1]: of_run / "10.log", runs[2]: None, runs[3]: before_it_began}
    assert {row.run: row.batch_log and Path(row.batch_log) for row in now.failures} == expected
    assert now.states[runs[4]] == "missing"


def test_a_run_on_another_machine_is_believed(sweep):
    folder, runs = sweep
    alive(folder, runs[0], host="node7")
    (row,) = state.read(folder).living
    assert (row.host, row.here) == ("node7", None)


def bar(*lines):
    return "".join(f"\r{100 * at // of:3}%|██   | {at}/{of} [{took}<{left}, 3.9step/s]" for at, of, took, left in lines)


def test_the_progress_of_a_training_stands_at_the_end_of_its_log(sweep):
    folder, runs = sweep
    alive(folder, runs[0])
    log = bar((0, 90, "00:00", "?"), (40, 90, "01:02:03", "00:07"))
    files.write_text(folder / "runs" / runs[0] / "run.log", log)
    (row,) = state.read(folder).living
    assert row.steps == state.Steps(step=40, num_steps=90, num_passes=1, elapsed_s=3723, left_s=7)
    assert (row.epoch, row.num_epochs) == (2, 3)


def test_an_older_log_is_of_another_try(sweep):
    folder, runs = sweep
    alive(folder, runs[0])
    path = folder / "runs" / runs[0] / "run.log"
    files.write_text(path, bar((40, 90, "00:03", "00:07")))
    os.utime(path, (0, 0))
    (row,) = state.read(folder).living
    assert (row.steps, row.epoch) == (None, None)


def test_repeated_passes_are_counted(tmp_path):
    first, second = (0, 9, "00:00", "?"), (9, 9, "00:03", "00:00")
    (tmp_path / "run.log").write_text(bar(first, second) + "\n" + bar(first, second) + "\n" + bar(first))
    steps = state.steps_in(tmp_path / "run.log", 0)
    assert (steps.num_passes, steps.step, steps.left_s) == (3, 0, None)


def test_measured_estimated_and_unknown_joules_stand_apart(sweep):
    folder, runs = sweep
    rows = [record(folder, run) for run in runs[:4]]
    put(folder, synthetic.with_energy(rows[0], synthetic.energy_row("cpu:0", 40.0, kind="cpu")))
    put(folder, synthetic.with_energy(rows[1], synthetic.energy_row("cpu:0", 2.5, kind="cpu")))
    put(folder, rows[2])
    put(folder, synthetic.failed(rows[3], "oom", "out of memory"))
    joules = state.read(folder).joules
    assert {kind: row.num_runs for kind, row in joules.items()} == {"measured": 2, "estimated": 1, "unknown": 1}
    assert joules["measured"].energy_j == 42.5
    assert joules["estimated"].energy_j > 0
    assert joules["unknown"].energy_j is None


def test_joules_of_repeated_passes_and_of_anchors_count_too(sweep):
    folder, runs = sweep
    row = record(folder, runs[0])
    energy = synthetic.energy_row("cpu:0", 40.0, num_passes=3, kind="cpu")
    files.write_json(folder / "anchors" / "2026-01-02" / runs[0] / "record.json", synthetic.with_energy(row, energy))
    now = state.read(folder)
    assert now.joules["measured"].energy_j == 120.0
    assert now.num_finished == 0


def test_the_rest_is_foretold_from_finished_runs(sweep):
    folder, runs = sweep
    times = {"started": "2026-01-02T03:04:00+00:00", "finished": "2026-01-02T03:04:30+00:00"}
    put(folder, record(folder, runs[0], **times))
    assert state.read(folder).eta.left_s == 11 * 30
    alive(folder, runs[1], ago_s=10)
    assert state.read(folder).eta.left_s == pytest.approx(11 * 30 - 10, abs=5)


def test_a_changed_record_is_read_again(sweep):
    folder, runs = sweep
    put(folder, record(folder, runs[0]))
    assert state.read(folder).counts["ok"] == 1
    put(folder, synthetic.failed(record(folder, runs[0]), "timeout", "too slow"))
    os.utime(folder / "runs" / runs[0] / "record.json", (1, 1))
    assert state.read(folder).counts["timeout"] == 1


def test_an_anchor_on_the_way_is_told_and_is_no_run_of_the_grid(sweep):
    folder, runs = sweep
    told = {**processes.identity(), "stage": "settles", "since": stage.now()}
    files.write_json(folder / "anchors" / "2026-01-02" / runs[0] / stage.FILE, told)
    now = state.read(folder)
    assert [row.label for row in now.living] == [f"anchors/2026-01-02/{runs[0]}"]
    assert now.counts == {"missing": 12}
