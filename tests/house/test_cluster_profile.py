"""The commands of profiles/cluster-generic: for systems that are not here, what the programs would be asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import wait_for
from tiny_run import REPOSITORY

PROFILE = REPOSITORY / "profiles" / "cluster-generic"
ASKED = ["--name", "train", "--cpus", "2", "--gpus", "1", "--mem-mb", "8000", "--minutes", "90", "--whole-node", "0"]
#: What each system's program is asked to submit, and what it says; then what it says of three jobs.
SYSTEMS = {
    "slurm": (
        "sbatch --parsable --job-name=train --output={log} --ntasks=1 --cpus-per-task=2 --mem=8000 --time=90 --gpus=1"
        " -q gpu job.sh",
        {"sbatch": "4711;cluster"},
        "4711",
        [{"squeue": "COMPLETED"}, {"squeue": "PENDING"}, {"squeue": "OUT_OF_MEMORY"}],
    ),
    "pbs": (
        "qsub -N train -j oe -o {folder}/ -l select=1:ncpus=2:mem=8000mb:ngpus=1 -l walltime=5400 -q gpu job.sh",
        {"qsub": "4711.server"},
        "4711.server",
        [{"qstat": "job_state = F\n Exit_status = 0"}, {"qstat": "job_state = R"}, {"qstat": "job_state = F"}],
    ),
    "lsf": (
        "bsub -J train -o {folder}/%J.log -n 2 -R span[hosts=1] -R rusage[mem=8000MB] -W 90 -gpu num=1 -q gpu job.sh",
        {"bsub": "Job <4711> is submitted to queue <gpu>."},
        "4711",
        [{"bjobs": "DONE"}, {"bjobs": "PEND"}, {"bjobs": "EXIT"}],
    ),
    "sge": (
        "qsub -terse -N train -j y -o {folder}/$JOB_ID.log -cwd -pe smp 2 -l h_vmem=4000M -l h_rt=5400 -l gpu=1"
        " -q gpu job.sh",
        {"qsub": "4711"},
        "4711",
        [
            {"qstat": "", "qacct": "failed       0\nexit_status  0"},
            {"qstat": "job_number: 4711"},
            {"qstat": "", "qacct": "failed       0\nexit_status  1"},
        ],
    ),
    "htcondor": (
        "condor_submit -terse -",
        {"condor_submit": "4711.0 - 4711.0"},
        "4711.0",
        [{"condor_q": "", "condor_history": "4 0"}, {"condor_q": "2"}, {"condor_q": "", "condor_history": "4 1"}],
    ),
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call one of the profile's programs among programs that note what they are asked, and say what they are given."""

    def program(name: str, said: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.said").write_text(f"{said}\n" if said else "", encoding="utf-8")
        note = f'echo "{name} $*" >> {tmp_path}/asked; cat >> {tmp_path}/read; cat {tmp_path}/{name}.said'
        path.write_text(f"#!/bin/sh\n{note}\n", encoding="utf-8")
        path.chmod(0o755)

    def call(name: str, *words: str, **programs: str) -> subprocess.CompletedProcess[str]:
        for one, said in programs.items():
            program(one, said)
        environ = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"}
        command = [sys.executable, str(PROFILE / name), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    return call


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_batch_system_is_asked_in_its_own_words(system, call, tmp_path, monkeypatch):
    command, programs, job, statuses = SYSTEMS[system]
    monkeypatch.setenv("JOULESWEEP_BATCH", system)
    assert call("submit", *ASKED, "-q", "gpu", "job.sh", **programs).stdout == f"{job}\n"
    logs = tmp_path / ".snakemake" / "batch_logs" / "train"
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert asked == command.format(log=logs / "%j.log", folder=logs) + "\n"
    if system == "htcondor":
        read = (tmp_path / "read").read_text(encoding="utf-8").splitlines()
        assert {"executable = job.sh", "request_gpus = 1", "request_memory = 8000MB", "queue"} <= set(read)
        assert f"output = {logs}/$(ClusterId).$(ProcId).log" in read
        assert any("> 5400" in line for line in read)
    told = [call("status", job, **programs).stdout for programs in statuses]
    assert told == ["success\n", "running\n", "failed\n"]


def test_the_system_is_found_by_its_program(call, monkeypatch):
    monkeypatch.delenv("JOULESWEEP_BATCH", raising=False)
    monkeypatch.setenv("SLURM_CONF", "/nowhere")
    assert call("submit", *ASKED, "job.sh", sbatch="4711").stdout == "4711\n"


def test_a_job_that_cannot_be_submitted_says_why(call, monkeypatch):
    monkeypatch.setenv("JOULESWEEP_BATCH", "pbs")
    done = call("submit", *ASKED, "job.sh", qsub="no such queue")
    assert done.returncode == 0
    done = call("submit", *ASKED, "job.sh", qsub="")
    assert (done.returncode, done.stderr) == (1, "no id of a job in: \n")
    monkeypatch.setenv("JOULESWEEP_BATCH", "pps")
    assert "unknown; allowed: slurm, lsf, htcondor, sge, pbs, local" in call("status", "7").stderr


@pytest.mark.slow
def test_jobs_in_the_background_are_submitted_looked_at_and_cancelled(call, tmp_path, monkeypatch):
    monkeypatch.setenv("JOULESWEEP_BATCH", "local")
    for name, line in (("good", "echo hello"), ("bad", "exit 3"), ("long", "sleep 600")):
        (tmp_path / f"{name}.sh").write_text(line, encoding="utf-8")
    jobs = {name: call("submit", *ASKED, f"{name}.sh").stdout.strip() for name in ("good", "bad", "long")}

    def status(name: str) -> str:
        return call("status", jobs[name]).stdout.strip()

    assert wait_for(lambda: status("good") == "success", "a job")
    assert wait_for(lambda: status("bad") == "failed", "a job")
    assert status("long") == "running"
    call("cancel", jobs["long"])
    assert wait_for(lambda: status("long") == "failed", "a job's end")
    assert Path(jobs["good"].partition(":")[2]).read_text(encoding="utf-8") == "hello\n"
