"""The answer of a sweep is a few lines at the end of the terminal's output."""

from __future__ import annotations

import polars as pl
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
    line, paid = ending.lines(written(tmp_path))
    assert paid.startswith("The sweep itself took ") and "paid back after " in paid
    assert line.startswith("Train with 2 processes on the CPU with DDP, bf16-mixed, batch ") and line.endswith(".")


def test_a_partial_report_is_answered_by_the_manifest_of_its_sweep(tmp_path):
    written(tmp_path).joinpath("tables").rename(tmp_path / "tables-of-partial")
    (tmp_path / "partial").mkdir()
    (tmp_path / "tables-of-partial").rename(tmp_path / "partial" / "tables")
    line, *_ = ending.lines(tmp_path / "partial")
    assert line.startswith("Train with ")


def test_a_decision_is_a_sentence_a_table_and_how_sure(tmp_path):
    (decision,) = ending.made(written(tmp_path, synthetic.measured))
    first, _, heads, *rows = ending.told(decision)
    assert "less energy [" in first
    assert heads.split() == ["configuration", "energy", "time", "memory", "validation", "loss"]
    assert any(row.startswith("recommended") and " % [" in row for row in rows)
    assert any("baseline" in row and "single fp32 bs32" in row for row in rows)
    assert any(row.startswith("3 repeats resolve ±") and "% of energy" in row for row in rows)


def test_without_a_finished_run_there_is_no_answer(tmp_path):
    folder = written(tmp_path, lambda row: None)
    assert ending.lines(folder) == [ending.NOTHING]


def test_missing_tables_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no table of a sweep"):
        ending.lines(tmp_path)


def test_tables_of_another_version_are_one_line(tmp_path):
    folder = written(tmp_path, synthetic.measured)
    path = folder / "tables" / "cells.parquet"
    pl.read_parquet(path).drop("energy_ratio").write_parquet(path)
    with pytest.raises(UserError, match=r"cells.parquet: of another version, without energy_ratio: run"):
        ending.lines(folder)
