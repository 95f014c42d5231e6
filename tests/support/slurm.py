"""A real Slurm on this machine for one test module: controller, one node with GPUs, and the boards that its jobs see.

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
from collections.abc import Iterator, Mapping
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
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
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
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 Gres=gpu:{kind}:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


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


class Slurm:
    """A running Slurm.

    Attributes:
        environ: what its commands need, besides the environment.
        node: the name of its one node.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.node = folder, socket.gethostname().partition(".")[0]
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        environ = {**os.environ, **self.environ}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    def jobs(self, *states: str) -> dict[str, str]:
        """Comments of the jobs in some states, by id: Snakemake's executor writes rule and wildcards there."""
        lines = self.call("squeue", "--noheader", f"--states={','.join(states)}", "--format=%i|%k").splitlines()
        return dict(line.split("|", 1) for line in lines)


@contextlib.contextmanager
def running(
    folder: Path, of_jobs: Mapping[str, str] | None = None, gpus: int = 4, kind: str = "fake", cpus: int = 8
) -> Iterator[Slurm]:
    """A Slurm that ends with the block; a second one on this machine waits for its end.

    Args:
        folder: for its files, traversable by everybody.
        of_jobs: variables that are set on the node, and not where jobs are submitted.
        gpus: how many the node has.
        kind: of the GPUs.
        cpus: of the node, as Slurm counts them.
    """
    slurm = Slurm(folder)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _configure(slurm, of_jobs or {}, gpus, kind, cpus)
            _start(slurm)
            yield slurm
        finally:
            _end(slurm)


def _configure(slurm: Slurm, of_jobs: Mapping[str, str], gpus: int, kind: str, cpus: int) -> None:
    folder = slurm.folder
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    devices = [folder / f"gpu{i}" for i in range(gpus)]
    for device in devices:
        os.mknod(device, 0o20666, MEMORY_DEVICE)
    lines = [f"NodeName={slurm.node} Name=gpu Type={kind} File={device}" for device in devices]
    (folder / "gres.conf").write_text("\n".join(lines) + "\n", encoding="ascii")
    (folder / "prolog").write_text(
        "#!/bin/sh\n" + "".join(f"echo export {name}={shlex.quote(value)}\n" for name, value in of_jobs.items()),
        encoding="utf-8",
    )
    (folder / "prolog").chmod(0o755)
    config = CONFIG.format(host=slurm.node, folder=folder, ports=_free_ports(), kind=kind, gpus=gpus, cpus=cpus)
    (folder / "slurm.conf").write_text(config, encoding="ascii")
    CONFIGURED.unlink(missing_ok=True)  # a link of a test that was killed
    CONFIGURED.symlink_to(folder / "slurm.conf")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _start(slurm: Slurm) -> None:
    place = slurm.folder / "munge"
    paths = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={place / name}" for option, name in paths.items()]
    slurm.call("munged", "--force", *options)
    slurm.call("slurmctld")
    slurm.call("slurmd")
    wait_for(lambda: "idle" in slurm.call("sinfo", "--noheader", "--format=%t"), "the node")


def _end(slurm: Slurm) -> None:
    """Cancel what is left, and end the daemons."""
    with contextlib.suppress(subprocess.CalledProcessError, OSError):
        slurm.call("scancel", "--full", "--user=root")
        wait_for(lambda: not slurm.jobs("PENDING", "RUNNING", "COMPLETING"), "the end of the jobs")
    for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((slurm.folder / name).read_text(encoding="ascii"))
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), name)
    if CONFIGURED.is_symlink():
        CONFIGURED.unlink()
