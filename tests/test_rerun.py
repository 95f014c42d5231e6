"""Runs without numbers are results: the sweep goes on, the report lists them, `joulesweep rerun` takes them up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import synthetic
import tiny_run
import yaml
from checkout import Checkout
from patience import PATIENCE_S
from test_report import words

from joulesweep import cli, digest, files, rerun, workflow
from joulesweep.config import validate

#: What becomes of the runs of each batch size; those of 8 go well.
FAULTS = [
    [{"batch_size": 16}, "oom"],
    [{"batch_size": 32}, "nan"],
    [{"batch_size": 64}, "hang"],
]
TIMEOUT_S = 3000  # no run takes so long: the clock jumps when one hangs


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(in_empty_folder):
    """A config of four runs, two of which have a record: one ok, one timeout."""
    raw = tiny_run.config(grid__repeats=2, grid__batch_size=[8, 16])
    (in_empty_folder / "my.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    found = workflow.Sweep(validate(raw))
    for run, status in zip(found.runs, ("ok", "timeout"), strict=False):
        row = synthetic.ok_record(run, found.spec(run))
        write(found, row if status == "ok" else synthetic.failed(row, status, "stopped after 1 s"))
    return found


def write(sweep, row, **changes):
    """Write a record as the code of today would."""
    row = {**row, "code_digest": digest.run_digest(sweep.spec(row["run"])), **changes}
    files.write_json(Path(path(sweep, row["run"])), row)


@pytest.fixture
def started(monkeypatch):
    """Snakemake's arguments, instead of Snakemake."""
    given = []
    monkeypatch.setattr(rerun, "_snakemake", lambda arguments: given.append(arguments) or 0)
    return given


def command(*arguments):
    return cli.main(["rerun", *arguments, "--configfile", "my.yaml"])


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
    assert started[2][:6] == ["results/tiny/report.html", "--allowed-rules", "grid", "aggregate", "charts", "report"]


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
    assert cli.main(["rerun", "--status", "timeout", "--configfile", "my.yaml", "--", *told]) == 0
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
        (["--status", "failed"], "unknown status 'failed'; .*runs without a record, snakemake takes up itself"),
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
    assert cli.main(["rerun", "--status", "timeout", "--configfile", "my.yaml", "--", "--cores", "2", *given]) == 2
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
    code = "import sys; from joulesweep import rerun; sys.exit(rerun._snakemake([]))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(in_empty_folder), str(tiny_run.REPOSITORY)])}
    child = subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True)
    while not Path("started").exists():
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(timeout=PATIENCE_S) == 7
    assert Path("ended").exists()


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A sweep of five runs, of which one goes well and each other one ends in its own way."""
    environ = {"PYTHONPATH": str(tiny_run.REPOSITORY / "tests" / "faults"), "FAULTS": json.dumps(FAULTS)}
    checkout = Checkout(tmp_path_factory.mktemp("failing") / "checkout", environ)
    sizes = [8, *(when["batch_size"] for when, _ in FAULTS)]
    checkout.config["grid"] |= {"batch_size": sizes, "strategy": ["single", "dp"], "repeats": 1}
    checkout.config["train"] = {"epochs": 1, "timeout_s": TIMEOUT_S}
    checkout.config["exclude"] = [
        {"when": {"strategy": "dp", "batch_size": size}, "reason": "one is enough"} for size in sizes[1:]
    ]
    checkout.write_config()
    checkout.run()  # exit code 0
    return checkout


def statuses(checkout):
    table = pl.read_parquet(checkout.runs.parent / "tables" / "runs.parquet")
    return {(row["strategy"], row["batch_size"]): row["status"] for row in table.iter_rows(named=True)}


@pytest.mark.slow
def test_failures_are_results_and_rerun_takes_them_up_again(failing):
    """One story, since each sweep takes a minute."""
    expected = {
        ("single", 8): "ok",
        ("single", 16): "oom",
        ("single", 32): "diverged",
        ("single", 64): "timeout",
        ("dp", 8): "unsupported",
    }
    assert statuses(failing) == expected
    assert "Nothing to be done" in failing.run()
    page = words((failing.runs.parent / "report.html").read_text(encoding="utf-8"))
    assert "dp2 fp32 bs8 1 unsupported – dp needs at least two GPUs" in page
    assert f"single fp32 bs64 1 timeout – stopped after timeout_s = {TIMEOUT_S} s" in page
    assert re.search(r"single fp32 bs16 1 oom 1,?024 TiB .*tried to allocate 1125899906842624 bytes", page)
    assert re.search(r"single fp32 bs32 1 diverged – the .*loss was not finite", page)

    # one that needs nothing but another try goes well, and so does what stands on it
    before, failing.environ["FAULTS"] = failing.records(), json.dumps(FAULTS[:2])
    done = take_up(failing, "--status", "timeout")
    assert done.returncode == 0, done.stdout + done.stderr
    after = failing.records()
    (again,) = [run for run in after if after[run] != before[run]]
    assert "bs64" in again
    assert statuses(failing) == expected | {("single", 64): "ok"}
    assert "2 of 5 runs finished" in words((failing.runs.parent / "report.html").read_text(encoding="utf-8"))
    assert failing.planned() == {}

    # what is stale or missing elsewhere in the grid is not rerun's: the report is the partial one
    failing.config["grid"]["repeats"] = 2
    failing.write_config()
    failing.edit("joulesweep/worker.py", "    gc.freeze()\n", "    gc.freeze()\n    gc.isenabled()\n")
    failing.environ["FAULTS"] = "[]"
    before = failing.records()
    done = take_up(failing, "--status", "oom", "--status", "diverged")
    assert done.returncode == 0, done.stdout + done.stderr
    after = failing.records()
    assert after.keys() == before.keys()
    assert sorted(run.split("-bs")[1][:2] for run in after if after[run] != before[run]) == ["16", "32"]
    page = (failing.runs.parent / "partial" / "report.html").read_text(encoding="utf-8")
    assert "4 of 10 runs finished" in words(page)


def take_up(checkout, *arguments):
    code = "import sys; from joulesweep import cli; sys.exit(cli.main())"
    line = [sys.executable, "-c", code, "rerun", *arguments, "--", "--cores", "2"]
    environ = {**checkout.environ, "PYTHONPATH": os.pathsep.join([".", checkout.environ["PYTHONPATH"]])}
    return subprocess.run(line, cwd=checkout.folder, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
