"""The answer of a sweep is a few lines at the end of the terminal's output."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.analyse import collect, tables
from joulesweep.core.errors import UserError
from joulesweep.report import ending


def written(folder, change=lambda row: row):
    manifest, runs = synthetic.write_sweep(folder, synthetic.raw_config(), change)
    tables.write(collect.aggregate(manifest, runs), folder / "tables")
    return folder


def test_the_recommended_configuration_is_one_sentence(tmp_path):
    (line,) = ending.lines(written(tmp_path))
    assert line.startswith("Use ") and line.endswith(".")


def test_without_a_finished_run_there_is_no_answer(tmp_path):
    folder = written(tmp_path, lambda row: None)
    assert ending.lines(folder) == ["No run has finished: there is no answer yet."]


def test_missing_tables_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no table of a sweep"):
        ending.lines(tmp_path)
