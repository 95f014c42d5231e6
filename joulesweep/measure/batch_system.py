"""The batch system's job within which a run is measured, from the environment that the system gives its jobs."""

# changes no number: reported beside the numbers
from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from joulesweep.core.outcome import BatchJob

ACCOUNT = "SLURM_JOB_ACCOUNT"
NO_ACCOUNT = ("", "(null)", "N/A")  # what squeue says of a job without one
ASK_S = 10.0  # a controller that is busy may take seconds


@dataclass(frozen=True, kw_only=True)
class System:
    """The names by which a batch system tells a job about itself.

    Attributes:
        sign: a variable that is set in its jobs only.
        job: variables of the job's id, joined by a dot.
        task: the variable that numbers a task of an array; None: it has no such variable.
        node: variables of the node's name; the first that is set counts. None: it names none.
        account: the same of the account or project.
        partition: the same of the partition or queue.
        read: makes the mapping that has these names from the environment.
    """

    sign: str
    job: tuple[str, ...]
    task: str | None = None
    node: tuple[str, ...] = ()
    account: tuple[str, ...] = ()
    partition: tuple[str, ...] = ()
    read: Callable[[Mapping[str, str]], Mapping[str, str]] = dict


def _condor_ad(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The attributes of an HTCondor job, from the file that its environment names; none if it cannot be read."""
    try:
        text = Path(environ["_CONDOR_JOB_AD"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return dict(re.findall(r'^(\w+) = "?([^"\n]*)"?$', text, re.MULTILINE))


def _of_slurm(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of a Slurm job; its steps are not told the account, so the controller is asked."""
    if ACCOUNT in environ:
        return environ
    return {**environ, ACCOUNT: _account(environ["SLURM_JOB_ID"])}


@functools.cache
def _account(job: str) -> str:
    """The account of a Slurm job; empty if there is none, or nobody says."""
    command = ["squeue", "--noheader", "--format=%a", f"--jobs={job}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return "" if said in NO_ACCOUNT else said


#: Sources: the manual pages sbatch(1), qsub(1) of OpenPBS and of Grid Engine, LSF's list of environment variables for
#: jobs, HTCondor's manual on the environment of a job. What a system does not tell its jobs is not guessed.
SYSTEMS: dict[str, System] = {
    "slurm": System(
        sign="SLURM_JOB_ID",
        job=("SLURM_JOB_ID",),
        node=("SLURMD_NODENAME",),
        account=(ACCOUNT,),
        partition=("SLURM_JOB_PARTITION",),
        read=_of_slurm,
    ),
    "pbs": System(sign="PBS_JOBID", job=("PBS_JOBID",), partition=("PBS_QUEUE",)),
    "lsf": System(
        sign="LSB_JOBID",
        job=("LSB_JOBID",),
        task="LSB_JOBINDEX",
        account=("LSB_PROJECT_NAME",),
        partition=("LSB_QUEUE",),
    ),
    "sge": System(sign="SGE_TASK_ID", job=("JOB_ID",), task="SGE_TASK_ID", node=("HOSTNAME",), partition=("QUEUE",)),
    "htcondor": System(
        sign="_CONDOR_JOB_AD",
        job=("ClusterId", "ProcId"),
        node=("RemoteHost",),
        account=("AccountingGroup", "AcctGroup"),
        read=_condor_ad,
    ),
}
#: Values of a task's variable in a job that is no array.
NO_TASK = {None, "", "undefined", "0"}


def system_of(environ: Mapping[str, str]) -> str | None:
    """The name of the batch system whose job has this environment; None outside of all."""
    return next((name for name, system in SYSTEMS.items() if environ.get(system.sign)), None)


def describe(environ: Mapping[str, str] | None = None) -> BatchJob | None:
    """The job of this process; None outside a batch system.

    Args:
        environ: the environment; default: this process's.
    """
    environ = os.environ if environ is None else environ
    name = system_of(environ)
    if name is None:
        return None
    system = SYSTEMS[name]
    facts = system.read(environ)
    parts = [facts.get(key) for key in system.job]
    task = facts.get(system.task) if system.task else None
    return BatchJob(
        system=name,
        job=".".join(filter(None, [*parts, None if task in NO_TASK else task])) or None,
        node=_first(facts, system.node),
        account=_first(facts, system.account),
        partition=_first(facts, system.partition),
    )


def _first(facts: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((facts[name] for name in names if facts.get(name)), None)
