"""`joulesweep rerun` has exactly the runs of a status made again, and then the report."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import synthetic
import tiny_run
import yaml
from patience import PATIENCE_S

from joulesweep.cli import main, rerun
from joulesweep.core import files
from joulesweep.plan import staleness
from joulesweep.plan.config import validate
from joulesweep.plan.sweep import Sweep


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(in_empty_folder):
    """A config of four runs, two of which have a record: one ok, one timeout."""
    raw = tiny_run.config(grid__repeats=2, grid__batch_size=[8, 16])
    (in_empty_folder / "my.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    found = Sweep(validate(raw))
    for run, status in zip(found.runs, ("ok", "timeout"), strict=False):
        row = synthetic.ok_record(run, found.spec(run))
        write(found, row if status == "ok" else synthetic.failed(row, status, "stopped after 1 s"))
    return found


def write(sweep, row, **changes):
    """Write a record as the code of today would."""
    row = {**row, "code_digest": staleness.run_digest(sweep.spec(row["run"])), **changes}
    files.write_json(Path(path(sweep, row["run"])), row)


@pytest.fixture
def started(monkeypatch):
    """Snakemake's arguments, instead of Snakemake."""
    given = []
    monkeypatch.setattr(rerun, "_snakemake", lambda arguments: given.append(arguments) or 0)
    return given


def command(*arguments):
    return main.main(["rerun", *arguments, "--configfile", "my.yaml"])


def path(sweep, run):
    return f"results/tiny/runs/{run}/record.json"


def test_exactly_the_runs_of_a_status_are_forced(sweep, started, capsys):
    assert command("--status", "timeout") == 0
    run = sweep.runs[1]
    assert capsys.readouterr().out == f"{run} · timeout: stopped after 1 s\n"
    common = ["--configfile", "my.yaml", "--cores", "all"]
    assert started == [
        ["results/tiny/grid.json", *common],
        [path(sweep, run), "--force", *common],
        ["partial", *common],
    ]


def test_several_statuses_and_ok_only_when_asked_for(sweep, started, capsys):
    assert command("--status", "ok", "--status", "timeout") == 0
    assert started[1][:3] == [*(path(sweep, run) for run in sweep.runs[:2]), "--force"]
    assert capsys.readouterr().out.splitlines()[0] == f"{sweep.runs[0]} · ok"


def test_a_whole_sweep_has_its_report_made_and_no_rule_that_trains(sweep, started):
    for run in sweep.runs[2:]:
        write(sweep, synthetic.failed(synthetic.ok_record(run, sweep.spec(run)), "oom", "full"))
    assert command("--status", "oom", "--status", "timeout") == 0
    assert len(started[1][: started[1].index("--force")]) == 3
    report, export, *options = started[2]
    assert (report, export) == ("results/tiny/report.html", "results/tiny/exports/columns.csv")
    assert options[:6] == ["--allowed-rules", "grid", "aggregate", "charts", "exports", "report"]


def test_a_record_of_other_code_is_no_part_of_a_final_report(sweep, started):
    for run in sweep.runs[2:]:
        write(sweep, synthetic.ok_record(run, sweep.spec(run)))
    write(sweep, synthetic.ok_record(sweep.runs[3], sweep.spec(sweep.runs[3])), code_digest="0ld")
    assert command("--status", "timeout") == 0
    assert started[2][0] == "partial"


@pytest.mark.parametrize(("codes", "targets"), [([3], 1), ([0, 3, 0], 3), ([0, 0, 3], 3)])
def test_a_failed_rerun_exits_with_1_and_has_what_is_there_reported(sweep, monkeypatch, codes, targets):
    given, left = [], iter(codes)
    monkeypatch.setattr(rerun, "_snakemake", lambda arguments: given.append(arguments) or next(left))
    assert command("--status", "timeout") == 1
    assert len(given) == targets
    assert targets == 1 or given[2][0] == "partial"


@pytest.mark.parametrize(
    ("profile", "added"),
    [
        ("cores: 4", []),
        ("executor: slurm\njobs: 100", []),
        ("keep-going: true", ["--cores", "all"]),
        ("", ["--cores", "all"]),
    ],
)
def test_a_default_profile_that_says_how_many_is_followed(sweep, started, profile, added):
    files.write_text(rerun.PROFILE, profile)
    assert command("--status", "timeout") == 0
    assert started[0][1:] == ["--configfile", "my.yaml", *added]


def test_the_default_profile_is_where_it_is_looked_for():
    assert (tiny_run.REPOSITORY / rerun.PROFILE).is_file()


@pytest.mark.parametrize("told", [["--cores", "4"], ["-c4"], ["--cores=1"], ["--workflow-profile", "profiles/slurm"]])
def test_what_follows_the_dashes_is_snakemakes(sweep, started, told):
    assert main.main(["rerun", "--status", "timeout", "--configfile", "my.yaml", "--", *told]) == 0
    assert started[1][1:] == ["--force", "--configfile", "my.yaml", *told]


def test_a_dry_run_says_which_and_runs_nothing(sweep, started, capsys):
    assert command("--status", "timeout", "--dry-run") == 0
    assert capsys.readouterr().out == f"{sweep.runs[1]} · timeout: stopped after 1 s\n"
    assert started == []


def test_none_found_is_one_line_and_no_mistake(sweep, started, capsys):
    assert command("--status", "oom", "--status", "diverged") == 0
    said = "my.yaml: no run has status oom or diverged; 2 have no record: run snakemake\n"
    assert capsys.readouterr().out == said
    assert started == []


def test_a_run_that_left_the_grid_is_left_alone(sweep, started, capsys):
    raw = tiny_run.config(grid__batch_size=[8])
    Path("my.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert command("--status", "timeout") == 0
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--status", "tiemout"], "unknown status 'tiemout'; .*did you mean 'timeout'"),
        (["--status", "failed"], "unknown status 'failed'; .*runs without a record need no rerun: run snakemake"),
        (["--status", "oom", "other.yaml"], "other.yaml: a config follows --configfile"),
        (["--status", "oom", "--cores", "2"], "unknown argument --cores; Snakemake's follow --: "),
        (["--status", "oom", "-c2"], "unknown argument -c2; Snakemake's follow --: "),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(sweep, started, capsys, arguments, said):
    assert command(*arguments) == 2
    err = capsys.readouterr().err
    assert re.match(f"error: {said}", err) and err.count("\n") == 1
    assert started == []


def test_a_corrupt_record_is_named(sweep, started, capsys):
    Path(path(sweep, sweep.runs[0])).write_text("{")
    assert command("--status", "timeout") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path(sweep, sweep.runs[0])}: corrupt run record")
    assert err.endswith("; delete it and run snakemake\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    "given", [["--configfile", "b.yaml"], ["--configfiles=b.yaml"], ["--config", "a=1"], ["-C", "a=1"]]
)
def test_another_config_for_snakemake_is_refused_in_one_line(sweep, started, capsys, given):
    assert main.main(["rerun", "--status", "timeout", "--configfile", "my.yaml", "--", "--cores", "2", *given]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {given[0]}: after -- no config is taken") and err.count("\n") == 1
    assert started == []


def test_a_mistake_in_the_grid_is_told_with_the_name_of_the_file(sweep, capsys):
    raw = tiny_run.config(grid__engine=["graph"])
    Path("my.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert command("--status", "timeout") == 2
    assert capsys.readouterr().err.startswith("error: my.yaml:6: grid: nothing is left to run")


def test_ctrl_c_waits_for_snakemake_to_end_its_jobs(in_empty_folder):
    """A terminal signals both; a stand-in for Snakemake takes its time, and its exit code counts."""
    (in_empty_folder / "snakemake.py").write_text(
        "import pathlib, time\n"
        "try:\n    pathlib.Path('started').touch(); time.sleep(600)\n"
        "except KeyboardInterrupt:\n    time.sleep(1); pathlib.Path('ended').touch(); raise SystemExit(7)\n"
    )
    code = "import sys; from joulesweep.cli import rerun; sys.exit(rerun._snakemake([]))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(in_empty_folder), str(tiny_run.REPOSITORY)])}
    child = subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True)
    while not Path("started").exists():
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(timeout=PATIENCE_S) == 7
    assert Path("ended").exists()
