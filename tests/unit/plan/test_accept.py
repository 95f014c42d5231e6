"""Finished runs are kept over a change of code that alters no number, and records and report say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic
import tiny_run
import yaml

from joulesweep.cli import main
from joulesweep.core import files
from joulesweep.plan import staleness
from joulesweep.plan.config import validate
from joulesweep.plan.sweep import Sweep

OLD, OLDER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of four runs: measured by today's code, by other code twice, and not at all."""
    monkeypatch.chdir(tmp_path)
    raw = tiny_run.config(grid__repeats=2, grid__batch_size=[8, 16])
    Path("my.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    made = Sweep(validate(raw))
    for run, code in zip(made.runs, (today(made, made.runs[0]), OLD, OLDER), strict=False):
        files.write_json(path(made, run), {**synthetic.ok_record(run, made.spec(run)), "code_digest": code})
    return made


def today(sweep, run):
    return staleness.run_digest(sweep.spec(run))


def path(sweep, run):
    return Path(sweep.folder, "runs", run, "record.json")


def accept(*arguments, reason="a move"):
    return main.main(["accept", "--reason", reason, "--configfile", "my.yaml", *arguments])


def code(sweep, run):
    return json.loads(sweep.job(run))["code"]


def test_snakemake_sees_the_job_of_an_accepted_run_unchanged_until_the_code_changes_again(sweep, monkeypatch):
    first, second, third, fourth = sweep.runs
    assert [code(sweep, run) for run in sweep.runs] == [today(sweep, first)] * 4
    assert accept() == 0
    sweep = Sweep(sweep.config)  # as the next start of Snakemake, which looks at records once
    assert [code(sweep, run) for run in (first, second, third)] == [today(sweep, first), OLD, OLDER]
    assert code(sweep, fourth) == today(sweep, fourth)
    assert list(sweep.current()) == [first, second, third]
    monkeypatch.setattr(staleness, "run_digest", lambda spec: "another")
    sweep = Sweep(sweep.config)
    assert code(sweep, second) == "another"
    assert list(sweep.outdated()) == [first, second, third]


def test_records_say_what_they_were_accepted_for_and_why(sweep, capsys):
    accept()
    accept()  # once more changes nothing
    assert capsys.readouterr().out.endswith("my.yaml: no finished run was measured by other code than today's\n")
    row = files.read_json(path(sweep, sweep.runs[1]), "record")
    assert row["code_digest"] == OLD
    assert [(one["code_digest"], one["reason"]) for one in row["accepted"]] == [(today(sweep, sweep.runs[1]), "a move")]
    assert row["accepted"][0]["accepted"] > "2026"
    assert "accepted" not in files.read_json(path(sweep, sweep.runs[0]), "record")


def test_a_dry_run_lists_what_would_be_kept_and_keeps_nothing(sweep, capsys):
    before = [path(sweep, run).read_bytes() for run in sweep.runs[:3]]
    assert accept("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines[:-1]] == list(sweep.runs[1:3])
    assert lines[-1].startswith("2 finished runs (")
    assert lines[-1].endswith(" would be kept")
    assert [path(sweep, run).read_bytes() for run in sweep.runs[:3]] == before


def test_some_runs_alone_may_be_kept(sweep):
    assert accept(sweep.runs[2]) == 0
    assert list(sweep.outdated()) == [sweep.runs[1]]


@pytest.mark.parametrize(("arguments", "reason", "said"), [([], " ", "--reason"), (["nothing"], "x", "outdated run")])
def test_a_mistake_is_one_line_and_keeps_nothing(sweep, capsys, arguments, reason, said):
    assert accept(*arguments, reason=reason) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert len(sweep.outdated()) == 2


def test_what_outdated_runs_cost_is_told(sweep):
    warning = sweep.outdated_warning()
    assert warning.startswith("2 finished runs (")
    assert "joulesweep accept --reason" in warning
    accept()
    assert sweep.outdated_warning() is None


def test_a_record_that_cannot_be_read_is_not_outdated(sweep):
    path(sweep, sweep.runs[1]).write_text("{", encoding="utf-8")
    assert list(sweep.outdated()) == [sweep.runs[2]]
    path(sweep, sweep.runs[2]).write_text('{"accepted"', encoding="utf-8")
    assert code(sweep, sweep.runs[2]) == today(sweep, sweep.runs[2])
