"""A real Slurm on this machine: a controller, nodes with GPUs that all are this machine, and the boards that jobs see.

The daemons need root, the packages slurmctld, slurmd, slurm-client and munge, and /etc/slurm/slurm.conf: jobs find
their controller by that name alone. It becomes a link to a file in the test's own folder, and goes with it; somebody
else's file is left alone, and the tests are skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from patience import wait_for

CONFIGURED = Path("/etc/slurm/slurm.conf")
LOCK = Path("/run/lock/joulesweep-test-slurm.lock")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
#: /dev/null by another name: Slurm counts as GPUs what are devices of their own.
MEMORY_DEVICE = os.makedev(1, 3)

CONFIG = """
ClusterName=joulesweep
SlurmUser=root
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin={task}
TaskProlog={folder}/prolog
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
DefMemPerCPU=100
GresTypes=gpu
MinJobAge=3600
KillWait=5
ReturnToService=2
MpiDefault=none
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
#: With it, and task/cgroup, the kernel holds a job to its memory.
CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
"""
#: A node that is this machine.
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=16000"
    " Gres=gpu:{kind}:{gpus} State=UNKNOWN\n"
)
KIND = "fake"  # of the GPUs


def lacking() -> str | None:
    """Why no Slurm can be started here; None if one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge"
    if CONFIGURED.exists() and not CONFIGURED.is_symlink():
        return f"{CONFIGURED} is there: this machine has a Slurm of its own"
    return None


def holds_to_memory() -> bool:
    """Whether jobs can be held to the memory they ask for: with cgroups of version 2, Slurm wants systemd for that."""
    return os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.W_OK)


class Slurm:
    """A running Slurm.

    Attributes:
        environ: what its commands need, besides the environment.
        nodes: the names of its nodes, all of which are this machine.
    """

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        self.folder, self.nodes = folder, nodes
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """The output of one of Slurm's commands."""
        environ = {**os.environ, **self.environ}
        done = subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self, *states: str) -> dict[str, str]:
        """Comments of the jobs in some states, by id: Snakemake's executor writes rule and wildcards there."""
        lines = self.call("squeue", "--noheader", f"--states={','.join(states)}", "--format=%i|%k").splitlines()
        return dict(line.split("|", 1) for line in lines)

    def state(self, job: str) -> str:
        """The state of a job."""
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def submit(self, output: Path, cwd: Path, options: Sequence[str], command: Sequence[str]) -> str:
        """The id of a job that executes a command on its first node, as Snakemake's executor submits it."""
        where = [f"--output={output}", f"--chdir={cwd}", "--parsable", "--export=ALL"]
        script = self.folder / "job.sh"
        script.write_text(f"#!/bin/bash\nexec {shlex.join(command)}\n", encoding="utf-8")
        return self.call("sbatch", *where, *options, str(script), cwd=cwd).strip()

    def set_on(self, node: str, variables: Mapping[str, str]) -> None:
        """Set variables in the jobs that start on a node from now on, and not where jobs are submitted."""
        lines = "".join(f"echo export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        (self.folder / f"variables-{node}").write_text(lines, encoding="utf-8")


@contextlib.contextmanager
def running(folder: Path, of_nodes: Mapping[str, Mapping[str, str]], gpus: int, holds: bool = False) -> Iterator[Slurm]:
    """A Slurm that ends with the block; another one on this machine waits for its end.

    Args:
        folder: for its files, traversable by everybody.
        of_nodes: by the name of each node, variables that are set there, and not where jobs are submitted.
        gpus: of each node.
        holds: jobs to the memory that they ask for, if `holds_to_memory`.
    """
    slurm = Slurm(folder, list(of_nodes))
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _configure(slurm, gpus, holds and holds_to_memory())
            for node, variables in of_nodes.items():
                slurm.set_on(node, variables)
            _start(slurm)
            yield slurm
        finally:
            _end(slurm)


def _configure(slurm: Slurm, gpus: int, holds: bool) -> None:
    folder, host = slurm.folder, socket.gethostname().partition(".")[0]
    for name in ("state", "munge", *(f"spool-{node}" for node in slurm.nodes)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    resources = ""
    for node in slurm.nodes:
        for device in (folder / f"gpu-{node}-{i}" for i in range(gpus)):
            os.mknod(device, 0o20666, MEMORY_DEVICE)
            resources += f"NodeName={node} Name=gpu Type={KIND} File={device}\n"
    (folder / "gres.conf").write_text(resources, encoding="ascii")
    (folder / "prolog").write_text(f"#!/bin/sh\n. {folder}/variables-$SLURMD_NODENAME\n", encoding="utf-8")
    (folder / "prolog").chmod(0o755)
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(1 + len(slurm.nodes))]
        port, *ports = [probe.getsockname()[1] for probe in probes]
    nodes = "".join(
        NODE.format(name=node, host=host, port=of_node, kind=KIND, gpus=gpus)
        for node, of_node in zip(slurm.nodes, ports, strict=True)
    )
    task = "task/cgroup" if holds else "task/none"
    config = CONFIG.format(host=host, port=port, folder=folder, task=task)
    (folder / "cgroup.conf").write_text(CGROUPS, encoding="ascii")
    (folder / "slurm.conf").write_text(config.replace("PartitionName=", f"{nodes}PartitionName="), encoding="ascii")
    CONFIGURED.unlink(missing_ok=True)  # a link of a test that was killed
    CONFIGURED.symlink_to(folder / "slurm.conf")


def _start(slurm: Slurm) -> None:
    place = slurm.folder / "munge"
    paths = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    slurm.call("munged", "--force", *(f"--{option}={place / name}" for option, name in paths.items()))
    slurm.call("slurmctld")
    for node in slurm.nodes:
        slurm.call("slurmd", "-N", node)
    ready = f"idle {len(slurm.nodes)}"
    wait_for(lambda: slurm.call("sinfo", "--noheader", "--format=%t %D").strip() == ready, "the nodes")


def _end(slurm: Slurm) -> None:
    """Cancel what is left, and end the daemons."""
    with contextlib.suppress(AssertionError, OSError):
        slurm.call("scancel", "--full", "--user=root")
        wait_for(lambda: not slurm.jobs("PENDING", "RUNNING", "COMPLETING"), "the end of the jobs")
    for name in (*(f"slurmd-{node}.pid" for node in slurm.nodes), "slurmctld.pid", "munge/pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((slurm.folder / name).read_text(encoding="ascii"))
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda pid=pid: not _lives(pid), name)
    if CONFIGURED.is_symlink() and CONFIGURED.readlink() == slurm.folder / "slurm.conf":
        CONFIGURED.unlink()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
