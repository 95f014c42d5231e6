from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from joulesweep.runs import aftermath

BEGAN = {"attempt": "1", "began": "2026-11-30T10:00:00"}


def folder(place: Path, name: str, *notes: dict[str, str], files: tuple[str, ...] = ("run.log",)) -> Path:
    """A run's folder with the notes of its attempts."""
    made = place / name
    made.mkdir()
    for file in files:
        (made / file).write_text("{}")
    (made / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in notes))
    return made


def ended(status: str) -> dict[str, str]:
    return {"attempt": "1", "ended": "2026-11-30T10:01:00", "status": status}


def test_a_run_that_failed_has_a_line_with_its_log(tmp_path):
    failed = folder(tmp_path, "failed", BEGAN, ended("failed"))
    finished = folder(tmp_path, "finished", BEGAN, ended("ok"), files=("run.log", "record.json"))
    (line,) = aftermath.lines([failed, finished, tmp_path / "missing"])
    assert line == f"FAILED failed; its output: {failed / 'run.log'}"


def test_a_preempted_run_goes_on_and_is_no_failure(tmp_path):
    made = folder(tmp_path, "preempted", BEGAN, ended("preempted"))
    (made / ".checkpoint").mkdir()
    (made / ".checkpoint" / "manifest.json").write_text("{}")
    assert aftermath.lines([made]) == ["PREEMPTED preempted: the next snakemake goes on with it"]


def test_stopped_runs_are_one_line_with_the_command_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/snakemake/__main__.py", "--cores", "2", "--config", "sweep=a b"])
    killed = folder(tmp_path, "killed", BEGAN, ended("failed"), {**BEGAN, "attempt": "2"}, files=())
    others = [folder(tmp_path, f"stopped{i}", BEGAN, ended("stopped")) for i in range(4)]
    (line,) = aftermath.lines([killed, *others])
    assert line.startswith(
        "Stopped with 5 runs on the way, nothing else is lost: killed, stopped0, stopped1, stopped2,"
    )
    assert line.endswith("and 1 more. Go on with: snakemake --cores 2 --config 'sweep=a b'")


@pytest.mark.parametrize("content", ["", "{", "[]", "null\n"])
def test_illegible_notes_make_a_run_a_failed_one(tmp_path, content):
    made = folder(tmp_path, "run")
    (made / "attempts.jsonl").write_text(content)
    assert aftermath.lines([made])[0].startswith("FAILED run")
