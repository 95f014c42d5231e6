"""The report of what is finished is made without Snakemake, and no file is ever half-written."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.cli import main, report
from joulesweep.core import files
from joulesweep.core.processes import identity
from joulesweep.report import charts


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(report.os, "nice", lambda steps: 0)  # the tests keep their priority
    monkeypatch.setattr(charts, "names", lambda: ONE)


ONE = charts.names()[:1]


@pytest.fixture
def sweep(tmp_path):
    """A sweep whose last repeat is missing, and which Snakemake has locked."""
    folder = tmp_path / "results" / "synthetic"
    synthetic.write_sweep(folder, synthetic.raw_config(), lambda row: None if "-r3" in row["run"] else row)
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.input.lock").write_text("x")
    return folder


def test_tables_charts_and_page_of_the_finished_runs(sweep, capsys):
    before = {path for path in sweep.rglob("*") if path.is_file()}
    assert main.main(["report", str(sweep)]) == 0
    made = {path.relative_to(sweep).as_posix() for path in sweep.rglob("*") if path.is_file()} - {
        path.relative_to(sweep).as_posix() for path in before
    }
    assert {"partial/report.html", "partial/tables/cells.parquet"} <= made
    assert any(name.startswith("partial/charts/") and name.endswith(".svg") for name in made)
    assert all(name.startswith("partial/") and "/." not in name for name in made)
    assert "16 of 24 runs ok" in (sweep / "partial" / "report.html").read_text(encoding="utf-8")
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"Report: {sweep}/partial/report.html"
    assert len(out) > 1


def test_a_failure_leaves_the_earlier_page(sweep, monkeypatch):
    files.write_text(sweep / "partial" / "report.html", "the earlier page")

    def fail(tables, folder):
        (folder / "half.svg").write_text("<svg")
        raise ZeroDivisionError

    monkeypatch.setattr(charts, "save_all", fail)
    with pytest.raises(ZeroDivisionError):
        main.main(["report", str(sweep)])
    assert (sweep / "partial" / "report.html").read_text() == "the earlier page"
    assert [path.name for path in (sweep / "partial" / "charts").iterdir()] == []


def test_who_is_measured_meanwhile_is_told(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "make", lambda folder: folder / "partial" / "report.html")
    monkeypatch.setattr("joulesweep.report.ending.lines", lambda folder: [])
    told = {**identity(), "since": "2026-01-02T03:04:05+00:00", "run": "run1", "folder": "/x/run1"}
    files.write_json(tmp_path / "locks" / "node.lock", told)
    assert main.main(["report", str(sweep)]) == 0
    assert "note: /x/run1 of " in capsys.readouterr().err


def test_a_sweep_that_has_not_begun_is_one_line(tmp_path, capsys):
    assert main.main(["report", "results/none"]) == 2
    line = "error: results/none: no sweep has begun there: it has no grid.json\n"
    assert capsys.readouterr().err == line
