"""A person reads from another terminal how a sweep is going, and a program reads the same as JSON."""

from __future__ import annotations

import datetime
import fcntl
import json
import re
import time

import pytest
import synthetic
import yaml

from joulesweep.cli import main, status
from joulesweep.core import files, processes
from joulesweep.launch import stage, state
from joulesweep.plan import snakemake_lock
from joulesweep.report import ending


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("COLUMNS", "110")


@pytest.fixture
def configfile(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(synthetic.raw_config()), encoding="utf-8")
    return path


@pytest.fixture
def sweep(tmp_path, configfile):
    """Half of the runs of a sweep are finished, one ran out of memory."""
    folder = tmp_path / "results" / "synthetic"

    def change(row):
        if row["run"].endswith("-r3") or "-r3-" in row["run"]:
            return None
        out_of_memory = "ddp2-bf16-mixed-bs64-r1" in row["run"]
        return synthetic.failed(row, "oom", "out of memory") if out_of_memory else row

    manifest, _ = synthetic.write_sweep(folder, synthetic.raw_config(), change)
    return folder, [run for run in manifest["runs"] if "-r3" in run]


def command(*arguments):
    return main.main(["status", *map(str, arguments)])


def alive(folder, run, begun, ago_s=70, **facts):
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago_s)
    told = {**processes.identity(), "stage": begun, "since": since.isoformat(timespec="seconds"), **facts}
    files.write_json(folder / "runs" / run / stage.FILE, told)


def test_before_anything_began_one_line_says_how_to(configfile, capsys):
    assert command("--configfile", "my.yaml") == 0
    start = "snakemake --cores 2 --configfile my.yaml"
    assert capsys.readouterr().out == f"results/synthetic: nothing has begun; 24 runs to do: {start}\n"
    assert command("--configfile", "my.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "results/synthetic", "num_runs": 24, "begun": False}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: no sweep has begun there: it has no grid.json"),
        (["--json", "--watch"], "--json is for one look, --watch for many: give one of them"),
        (["--every-s", "0"], "--every-s 0: expected 0.1 to 3600 seconds"),
        ([], "config/config.yaml: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capsys):
    assert command(*arguments) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_the_screen_says_what_is_done_runs_waits_and_failed(sweep, capsys):
    folder, left = sweep
    alive(folder, left[0], "trains")
    bar = "\r  0%|     | 0/90 [00:00<?, ?step/s]\r 44%|██   | 40/90 [00:03<00:07, 3.9step/s]"
    files.write_text(folder / "runs" / left[0] / "run.log", bar)
    alive(folder, left[1], "waits", waits_for="the machine", whom="/x/runs/other of ana since 12:00:00")
    files.write_text(folder / "runs" / left[2] / "run.log", "Traceback\nValueError: boom\n")
    files.write_json(folder / "runs" / left[3] / ".checkpoint" / "manifest.json", {"step": 12000, "num_steps": 50000})
    assert command(folder.relative_to(folder.parent.parent)) == 0
    out = capsys.readouterr().out
    counts = "15 ok, 1 oom, 1 on the way, 1 waiting, 1 preempted, 1 failed, 4 to do"
    assert out.splitlines()[0] == f"results/synthetic: 16 of 24 runs done ({counts})"
    out = out.replace(" 71 s so far", " 70 s so far")  # the file has whole seconds
    assert "  single fp32 bs32 r3: epoch 2 of 3, step 40 of 90, 7 s left, 70 s so far\n" in out
    assert "  single fp32 bs64 r3: waits for the machine, 70 s so far\n    /x/runs/other of ana since 12:00:00\n" in out
    assert "  estimated " in out and "  unknown     no joules are known of 1 run\n" in out
    assert "\nleft:\n  about " in out and "of 8 runs left, 8 by finished runs of their cell (16 finished)\n" in out
    assert f": ValueError: boom\n    its output: results/synthetic/runs/{left[2]}/run.log\n" in out
    assert "  ddp2 bf16-mixed bs64 r1: oom: out of memory\n" in out
    assert re.search(r"\npreempted:\n  .* r3: goes on after step 12,000 of 50,000\n", out)
    assert all(len(line) <= 200 for line in out.splitlines())


def test_where_nothing_runs_it_says_how_to_go_on(sweep, capsys):
    assert command(sweep[0]) == 0
    out = capsys.readouterr().out
    assert "\n  nothing runs here now: the same snakemake command goes on\n" in out
    assert "done at" not in out


def test_between_two_runs_a_workflow_is_seen_to_work(sweep, tmp_path, capsys):
    (tmp_path / ".snakemake").mkdir()
    with (tmp_path / ".snakemake" / snakemake_lock.FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert command("results/synthetic") == 0
    assert "\n  no run is on the way at this moment: a workflow fetches" in capsys.readouterr().out


def test_json_says_the_state_of_every_run(sweep, capsys):
    folder, left = sweep
    assert command(folder, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert len(row["states"]) == row["num_runs"] == 24
    assert {row["states"][run] for run in left} == {"missing"}
    assert row["num_finished"] == 16
    assert row["joules"]["unknown"] == {"energy_j": None, "num_runs": 1, "num_doubtful": 0}
    assert row["eta"]["basis"].startswith("of 8 runs left, ")
    assert row["begun"] is True


def test_a_long_list_of_failures_is_cut_and_says_so(sweep, monkeypatch, capsys):
    folder, left = sweep
    monkeypatch.setattr(status, "MOST_LINES", 2)
    for run in left:
        files.write_text(folder / "runs" / run / "run.log", "boom " * 100)
    command(folder)
    out = capsys.readouterr().out
    assert out.count("its output") == 2
    assert "  and 6 more: --json lists all\n" in out
    assert all(len(line) <= 200 for line in out.splitlines())


def test_a_finished_sweep_ends_with_its_answer(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "results" / "synthetic"
    synthetic.write_sweep(folder, synthetic.raw_config())
    assert command(folder) == 0
    assert capsys.readouterr().out.endswith("the report is being made, or the next snakemake makes it.\n")
    (folder / "report.html").touch()
    monkeypatch.setattr(ending, "lines", lambda folder: ["Use this."])
    assert command(folder) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["Use this.", f"Report: {folder}/report.html"]


def test_without_tables_the_ending_says_so(tmp_path, capsys):
    folder = tmp_path / "results" / "synthetic"
    synthetic.write_sweep(folder, synthetic.raw_config())
    (folder / "report.html").touch()
    assert command(folder) == 0
    assert "\nNo answer can be read: " in capsys.readouterr().out


def test_watching_ends_with_the_sweep(sweep, monkeypatch, capsys):
    folder, left = sweep
    manifest = files.read_json(folder / "grid.json", "grid")
    done = {**manifest, "runs": {run: row for run, row in manifest["runs"].items() if run not in left}}
    monkeypatch.setattr(time, "sleep", lambda seconds: files.write_json(folder / "grid.json", done))
    assert command(folder, "--watch", "--every-s", "0.5") == 0
    out = capsys.readouterr().out
    assert "16 of 24 runs done" in out and "16 of 16 runs done" in out


def test_ctrl_c_ends_the_watching_with_the_last_state(sweep, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert command(sweep[0], "--watch") == 0
    assert "16 of 24 runs done" in capsys.readouterr().out


def test_a_screen_fits_the_height_it_is_given(sweep):
    assert len(status.screen(state.read(sweep[0]), 3)) == 3
