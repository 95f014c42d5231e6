from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from joulesweep.plan import notes

RECORD = Path("results/tiny/runs/a/record.json")


class Memory:
    """What is asked of Snakemake's notes."""

    def __init__(self) -> None:
        self.incomplete = {str(RECORD), "results/tiny/grid.json"}

    def _filter_incomplete_keys(self, keys):
        return self.incomplete & set(keys)

    def _unmark_incomplete(self, key):
        self.incomplete.remove(key)

    def _input_changed(self, job, file=None):
        return True

    def _read_record(self, key):
        raise UnicodeDecodeError("utf-8", b"\xf8", 0, 1, "invalid start byte")


@pytest.fixture
def workflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notes.INCOMPLETE.mkdir(parents=True)
    (notes.INCOMPLETE / "cmVzdWx0cw==").touch()
    return SimpleNamespace(dag=SimpleNamespace(forcefiles={"asked for"}), persistence=Memory())


def test_what_is_not_believed_is_made_again(workflow):
    notes.correct(workflow, [RECORD], [])
    assert workflow.dag.forcefiles == {"asked for", str(RECORD)}


def test_what_was_recorded_is_done_though_snakemake_was_killed(workflow):
    notes.correct(workflow, [], [RECORD, Path("results/tiny/runs/b/record.json")])
    assert workflow.persistence.incomplete == {"results/tiny/grid.json"}


@pytest.mark.parametrize(("output", "counts"), [("record", False), ("tokens", True)])
def test_another_set_of_inputs_repeats_no_run(workflow, output, counts):
    notes.correct(workflow, [], [])
    assert workflow.persistence._input_changed(SimpleNamespace(output=SimpleNamespace(**{output: "x"}))) is counts


def test_a_note_that_a_disk_spoilt_is_none(workflow):
    notes.correct(workflow, [], [])
    assert workflow.persistence._read_record("x") is None
