"""A run says what it does in a file of its folder, and takes it away at the end."""

from __future__ import annotations

import json
import os

import pytest

from joulesweep.core import processes
from joulesweep.launch import stage


def told(folder):
    return stage.read(folder / stage.FILE)


def test_each_stage_is_told_to_the_file_and_to_the_listener(tmp_path):
    heard = []
    with stage.telling(tmp_path / "run1", heard.append):
        assert told(tmp_path / "run1")["stage"] == "starts"
        stage.info("waits", waits_for="the machine", whom="somebody")
        now = told(tmp_path / "run1")
        assert (now["stage"], now["waits_for"], now["whom"]) == ("waits", "the machine", "somebody")
        assert (now["run"], now["pid"]) == ("run1", os.getpid())
        assert processes.is_alive(now) is True
        stage.info("settles")
        assert "whom" not in told(tmp_path / "run1")
    assert heard == ["starts", "waits", "settles"]
    assert list((tmp_path / "run1").iterdir()) == []


def test_new_facts_leave_the_stages_begin_as_it_is(tmp_path, monkeypatch):
    times = iter(["1", "2", "3", "4"])
    monkeypatch.setattr(stage, "now", lambda: next(times))
    heard = []
    with stage.telling(tmp_path, heard.append):
        stage.info("waits", whom="a")
        stage.info("waits", whom="b")
        assert (told(tmp_path)["since"], told(tmp_path)["whom"]) == ("2", "b")
    assert heard == ["starts", "waits"]


def test_a_run_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), stage.telling(tmp_path, lambda stage: None):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_without_a_run_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage.info("trains")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_the_file_stops_no_run(tmp_path, monkeypatch):
    def refuse(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage.files, "write_json", refuse)
    heard = []
    with stage.telling(tmp_path, heard.append):
        stage.info("trains")
    assert heard == ["starts", "trains"]


def test_telling_changes_no_digest_of_a_run():
    """The calls in the launcher are taken for a logger's; with them a run is what it was without."""
    from joulesweep.plan import definitions, staleness

    parts = staleness.run_parts("full", {"ENGINES": "eager", "PRECISIONS": "fp32", "STRATEGIES": "single"})
    counted = [part for part in parts if definitions.exemption(part) is None]
    assert "stage.py" not in {part.path.name for part in counted}
    launch = definitions.encoded(definitions.named(*staleness.RUN), wording=False)
    assert "settles" not in launch.text


@pytest.mark.parametrize("text", ["", "[]", '{"stage": "waits"}', '{"host": 1, "user": "", "pid": 1, "since": ""}'])
def test_an_illegible_file_tells_nothing(tmp_path, text):
    (tmp_path / stage.FILE).write_text(text)
    assert told(tmp_path) is None


def test_a_file_of_another_process_is_read_as_it_is(tmp_path):
    row = {"host": "there", "user": "ana", "pid": 7, "since": "2026-01-02T03:04:05+00:00", "stage": "trains"}
    (tmp_path / stage.FILE).write_text(json.dumps(row))
    assert told(tmp_path) == row
    assert processes.is_alive(row) is None
