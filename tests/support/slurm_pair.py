"""A real Slurm of two nodes that are this machine: a controller and two slurmd, each with one GPU and its own boards.

What it needs, and what it does with /etc/slurm/slurm.conf, is as in `slurm`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from patience import wait_for
from slurm import CONFIGURED, LOCK, MEMORY_DEVICE

NODES = ("n1", "n2")
CONFIG = """
ClusterName=joulesweep
SlurmUser=root
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
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
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000 Gres=gpu:1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Pair:
    """The running Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """The output of a command."""
        done = subprocess.run(command, env=self.environ, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, output: Path, cwd: Path, options: Sequence[str], command: Sequence[str]) -> str:
        """The id of a job that executes a command on its first node, as Snakemake's executor submits it."""
        where = [f"--output={output}", f"--chdir={cwd}", "--parsable", "--export=ALL"]
        script = self.folder / "job.sh"
        words = " ".join(f"'{word}'" for word in command)
        script.write_text(f"#!/bin/bash\nexec {words}\n", encoding="utf-8")
        return self.call("sbatch", *where, *options, str(script), cwd=cwd).strip()

    def state(self, job: str) -> str:
        """The state of a job."""
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()


@contextlib.contextmanager
def running(folder: Path, of_nodes: Sequence[Mapping[str, str]]) -> Iterator[Pair]:
    """A Slurm that ends with the block; another one on this machine waits for its end.

    Args:
        folder: for its files, traversable by everybody.
        of_nodes: variables that are set on each node, and not where jobs are submitted.
    """
    pair = Pair(folder)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _configure(pair, of_nodes)
            _start(pair)
            yield pair
        finally:
            _end(pair)


def _configure(pair: Pair, of_nodes: Sequence[Mapping[str, str]]) -> None:
    folder = pair.folder
    for name in ("state", "munge", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o400)
    lines = []
    for node, variables in zip(NODES, of_nodes, strict=True):
        os.mknod(folder / f"gpu-{node}", 0o20666, MEMORY_DEVICE)
        lines.append(f"NodeName={node} Name=gpu File={folder / f'gpu-{node}'}\n")
        exports = [f"export {name}={value}\n" for name, value in variables.items()]
        (folder / f"variables-{node}").write_text("".join(exports), encoding="utf-8")
    (folder / "gres.conf").write_text("".join(lines), encoding="ascii")
    (folder / "prolog").write_text(f"#!/bin/sh\ncat {folder}/variables-$SLURMD_NODENAME\n", encoding="utf-8")
    (folder / "prolog").chmod(0o755)
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [probe.getsockname()[1] for probe in probes]
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=ports), encoding="ascii")
    CONFIGURED.unlink(missing_ok=True)  # a link of a test that was killed
    CONFIGURED.symlink_to(folder / "slurm.conf")


def _start(pair: Pair) -> None:
    place = pair.folder / "munge"
    paths = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    pair.call("munged", "--force", *(f"--{option}={place / name}" for option, name in paths.items()))
    pair.call("slurmctld")
    for node in NODES:
        pair.call("slurmd", "-N", node)
    wait_for(lambda: pair.call("sinfo", "--noheader", "--format=%t %D").strip() == "idle 2", "the nodes")


def _end(pair: Pair) -> None:
    """Cancel what is left, and end the daemons."""
    with contextlib.suppress(AssertionError, OSError):
        pair.call("scancel", "--full", "--user=root")
        busy = ("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING")
        wait_for(lambda: not pair.call(*busy).strip(), "the end of the jobs")
    for name in (*(f"slurmd-{node}.pid" for node in NODES), "slurmctld.pid", "munge/pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((pair.folder / name).read_text(encoding="ascii"))
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda pid=pid: not _lives(pid), name)
    if CONFIGURED.is_symlink() and CONFIGURED.readlink() == pair.folder / "slurm.conf":
        CONFIGURED.unlink()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
