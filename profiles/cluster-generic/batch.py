"""Submit, look at and cancel jobs of a batch system, for Snakemake's executor cluster-generic.

`submit`, `status` and `cancel` beside this file call it. The system is the first of `SYSTEMS` whose command is there;
JOULESWEEP_BATCH names another one. The commands are those of the manual pages of Slurm, OpenPBS, LSF, Grid Engine and
HTCondor. A site that wants other words for memory or GPUs changes a line here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUCCESS, FAILED, RUNNING = "success", "failed", "running"


@dataclass(frozen=True)
class Job:
    """What a job asks for.

    Attributes:
        name: of the job.
        cpus: CPU cores.
        gpus: GPUs.
        mem_mb: memory of the whole job, in MB.
        minutes: the longest that it may take.
        whole_node: 1 if no other job may use its node meanwhile, else 0.
        log: file of its output; %j stands for the job's id.
        options: more words of the batch system's own, such as queue and account.
        script: what it executes.
    """

    name: str
    cpus: int
    gpus: int
    mem_mb: int
    minutes: int
    whole_node: int
    log: str
    options: list[str]
    script: str


@dataclass(frozen=True)
class System:
    """A batch system.

    Attributes:
        command: the program that submits; the system is there if this is.
        submit: submits a job and returns what the command says.
        job_id: pattern of the id in it.
        status: returns the status of a job by its id.
        cancel: the command that cancels the jobs whose ids follow.
    """

    command: str
    submit: Callable[[Job], str]
    job_id: str
    status: Callable[[str], str]
    cancel: list[str]


def output(*command: str) -> str:
    """What a command says; empty if it fails: many fail for a job that they do not know any more."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def submitted(command: list[str], text: str = "") -> str:
    """What a command that submits says; ends this process with its message if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def _sbatch(job: Job) -> str:
    more = [f"--gpus={job.gpus}"] * (job.gpus > 0) + ["--exclusive"] * job.whole_node
    command = ["sbatch", "--parsable", f"--job-name={job.name}", f"--output={job.log}", "--ntasks=1"]
    command += [f"--cpus-per-task={job.cpus}", f"--mem={job.mem_mb}", f"--time={job.minutes}", *more]
    return submitted([*command, *job.options, job.script])


def _of_slurm(job: str) -> str:
    state = output("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()
    state = state or output("sacct", "-X", "--noheader", "--parsable2", "--format=State", f"--jobs={job}").strip()
    first = (state.split() or ["UNKNOWN"])[0]
    on_its_way = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "PREEMPTED", "UNKNOWN")
    return SUCCESS if first == "COMPLETED" else RUNNING if first in on_its_way else FAILED


def _qsub_of_pbs(job: Job) -> str:
    chunk = f"select=1:ncpus={job.cpus}:mem={job.mem_mb}mb" + (f":ngpus={job.gpus}" if job.gpus else "")
    place = ["-l", "place=excl"] * job.whole_node
    folder = str(Path(job.log).parent)  # there, PBS names the file by the job's id, and .OU
    command = ["qsub", "-N", job.name[:15], "-j", "oe", "-o", f"{folder}/"]
    return submitted([*command, "-l", chunk, "-l", f"walltime={60 * job.minutes}", *place, *job.options, job.script])


def _of_pbs(job: str) -> str:
    said = output("qstat", "-x", "-f", job)
    if not re.search(r"job_state = [FX]", said):
        return RUNNING
    return SUCCESS if re.search(r"Exit_status = 0\b", said) else FAILED


def _bsub(job: Job) -> str:
    more = ["-gpu", f"num={job.gpus}"] * (job.gpus > 0) + ["-x"] * job.whole_node
    command = ["bsub", "-J", job.name, "-o", job.log.replace("%j", "%J"), "-n", str(job.cpus), "-R", "span[hosts=1]"]
    command += ["-R", f"rusage[mem={job.mem_mb}MB]", "-W", str(job.minutes), *more]
    return submitted([*command, *job.options, job.script])


def _of_lsf(job: str) -> str:
    state = output("bjobs", "-noheader", "-o", "stat", job).strip()
    return {"DONE": SUCCESS, "EXIT": FAILED}.get(state, RUNNING)


def _qsub_of_sge(job: Job) -> str:
    asked = [f"h_vmem={job.mem_mb // job.cpus}M", f"h_rt={60 * job.minutes}"]
    asked += [f"gpu={job.gpus}"] * (job.gpus > 0) + ["exclusive=true"] * job.whole_node
    command = ["qsub", "-terse", "-N", job.name, "-j", "y", "-o", job.log.replace("%j", "$JOB_ID"), "-cwd"]
    command += ["-pe", "smp", str(job.cpus), *(word for one in asked for word in ("-l", one))]
    return submitted([*command, *job.options, job.script])


def _of_sge(job: str) -> str:
    if output("qstat", "-j", job):
        return RUNNING
    said = output("qacct", "-j", job)  # some seconds after its end
    if not said:
        return RUNNING
    codes = re.findall(r"^(?:failed|exit_status) +(\d+)", said, re.MULTILINE)
    return SUCCESS if codes and not any(map(int, codes)) else FAILED


def _condor_submit(job: Job) -> str:
    lines = [f"executable = {job.script}", f"batch_name = {job.name}", "universe = vanilla", "getenv = true"]
    lines += [f"{stream} = {job.log.replace('%j', '$(ClusterId).$(ProcId)')}" for stream in ("output", "error")]
    lines += [f"request_cpus = {job.cpus}", f"request_memory = {job.mem_mb}MB", f"request_gpus = {job.gpus}"]
    lines += [f"periodic_remove = JobStatus == 2 && time() - EnteredCurrentStatus > {60 * job.minutes}", *job.options]
    return submitted(["condor_submit", "-terse", "-"], "\n".join([*lines, "queue", ""]))


def _of_condor(job: str) -> str:
    said = output("condor_q", job, "-af", "JobStatus") or output(
        "condor_history", job, "-limit", "1", "-af", "JobStatus", "ExitCode"
    )
    status, _, code = said.strip().partition(" ")
    return RUNNING if status not in ("3", "4") else SUCCESS if (status, code) == ("4", "0") else FAILED


def _in_background(job: Job) -> str:
    """A process of this machine, which leaves its exit code beside its log: to try the profile without a cluster."""
    log = job.log.replace("%j", str(time.time_ns()))
    command = ["sh", "-c", 'sh "$1" > "$2" 2>&1; echo $? > "$2.code"', "-", job.script, log]
    nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, start_new_session=True, **nothing)
    return f"{child.pid}:{log}"


def _of_background(job: str) -> str:
    pid, _, log = job.partition(":")
    code = Path(f"{log}.code")
    for _ in range(2):  # it may end between the two looks
        if code.exists():
            return SUCCESS if code.read_text(encoding="ascii").strip() == "0" else FAILED
        if Path("/proc", pid).exists():
            return RUNNING
        time.sleep(0.1)
    return FAILED


SYSTEMS = {
    "slurm": System("sbatch", _sbatch, r"^(\d+)", _of_slurm, ["scancel"]),
    "lsf": System("bsub", _bsub, r"Job <(\d+)>", _of_lsf, ["bkill"]),
    "htcondor": System("condor_submit", _condor_submit, r"^([\d.]+)", _of_condor, ["condor_rm"]),
    "sge": System("qacct", _qsub_of_sge, r"^(\d+)", _of_sge, ["qdel"]),
    "pbs": System("qsub", _qsub_of_pbs, r"^(\S+)", _of_pbs, ["qdel"]),
    "local": System("sh", _in_background, r"^(\S+)", _of_background, []),
}


def system() -> System:
    """The batch system of this machine, or the one that JOULESWEEP_BATCH names."""
    named = os.environ.get("JOULESWEEP_BATCH")
    if named:
        if named not in SYSTEMS:
            sys.exit(f"JOULESWEEP_BATCH={named}: unknown; allowed: {', '.join(SYSTEMS)}")
        return SYSTEMS[named]
    there = [one for name, one in SYSTEMS.items() if name != "local" and shutil.which(one.command)]
    return there[0] if there else sys.exit(f"no {', '.join(one.command for one in SYSTEMS.values())} here")


def submit(words: list[str]) -> None:
    """Submit a job and print its id."""
    parser = argparse.ArgumentParser(description="what follows the options is passed to the batch system")
    for name in ("--name", "--cpus", "--gpus", "--mem-mb", "--minutes", "--whole-node"):
        parser.add_argument(name, type=str if name == "--name" else int, required=True)
    args, rest = parser.parse_known_args(words)
    *options, script = rest
    folder = Path(".snakemake", "batch_logs", args.name)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(log=str(folder.absolute() / "%j.log"), options=options, script=script, **vars(args))
    where = system()
    said = where.submit(job)
    told = re.search(where.job_id, said, re.MULTILINE)
    print(told[1] if told else sys.exit(f"no id of a job in: {said}"))


def status(words: list[str]) -> None:
    """Print whether a job is running, has failed, or was a success."""
    print(system().status(words[0]))


def cancel(words: list[str]) -> None:
    """Cancel jobs."""
    where = system()
    command = where.cancel or ["kill", "--"]
    ids = words if where.cancel else [f"-{job.partition(':')[0]}" for job in words]
    subprocess.run([*command, *ids], check=False)
