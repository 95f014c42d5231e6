"""A run inside a batch system's job says which one; outside there is none, and nothing is guessed."""

from __future__ import annotations

import pytest

from joulesweep.core.outcome import BatchJob
from joulesweep.measure import batch_system, machine

JOBS = {
    "slurm": (
        {
            "SLURM_JOB_ID": "4711",
            "SLURMD_NODENAME": "gpu07",
            "SLURM_JOB_ACCOUNT": "green",
            "SLURM_JOB_PARTITION": "h200",
        },
        BatchJob(system="slurm", job="4711", node="gpu07", account="green", partition="h200"),
    ),
    "pbs": (
        {"PBS_JOBID": "12[3].server", "PBS_QUEUE": "workq"},
        BatchJob(system="pbs", job="12[3].server", node=None, account=None, partition="workq"),
    ),
    "lsf": (
        {"LSB_JOBID": "88", "LSB_JOBINDEX": "0", "LSB_QUEUE": "normal", "LSB_PROJECT_NAME": "green"},
        BatchJob(system="lsf", job="88", node=None, account="green", partition="normal"),
    ),
    "lsf array": (
        {"LSB_JOBID": "88", "LSB_JOBINDEX": "5"},
        BatchJob(system="lsf", job="88.5", node=None, account=None, partition=None),
    ),
    "sge": (
        {"JOB_ID": "9", "SGE_TASK_ID": "undefined", "QUEUE": "all.q", "HOSTNAME": "n1"},
        BatchJob(system="sge", job="9", node="n1", account=None, partition="all.q"),
    ),
}
AD = """MyType = "Job"
ClusterId = 31
ProcId = 0
AcctGroup = "green"
RemoteHost = "slot1@n2"
Rank = 0.0
"""


@pytest.mark.parametrize("name", JOBS)
def test_each_system_names_its_job(name):
    environ, job = JOBS[name]
    assert batch_system.describe({"PATH": "/bin", **environ}) == job


def test_htcondor_is_read_from_its_job_ad(tmp_path):
    (tmp_path / ".job.ad").write_text(AD)
    job = batch_system.describe({"_CONDOR_JOB_AD": str(tmp_path / ".job.ad")})
    assert job == BatchJob(system="htcondor", job="31.0", node="slot1@n2", account="green", partition=None)


def test_an_unreadable_job_ad_leaves_the_system_known(tmp_path):
    job = batch_system.describe({"_CONDOR_JOB_AD": str(tmp_path / "none")})
    assert job == BatchJob(system="htcondor", job=None, node=None, account=None, partition=None)


@pytest.mark.parametrize("environ", [{}, {"JOB_ID": "7", "QUEUE": "x"}, {"SLURM_JOB_ID": ""}])
def test_outside_a_batch_system_there_is_no_job(environ):
    assert batch_system.describe(environ) is None


def test_a_run_records_the_job_it_is_in(monkeypatch):
    environ, job = JOBS["slurm"]
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert machine.describe(1).batch == job


@pytest.mark.parametrize(("said", "account"), [("green", "green"), ("(null)", None), ("", None)])
def test_slurm_is_asked_for_the_account_that_it_does_not_tell_a_step(tmp_path, monkeypatch, said, account):
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = batch_system.describe({"SLURM_JOB_ID": f"asked {said}"})
    assert job is not None
    assert job.account == account


def test_a_slurm_that_cannot_be_asked_costs_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert batch_system.describe({"SLURM_JOB_ID": "in vain"}) == BatchJob(
        system="slurm", job="in vain", node=None, account=None, partition=None
    )
