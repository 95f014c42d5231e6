"""Carry out a run on one machine: lease its boards, meter them, and start and watch its processes.

The parent does not import torch, and its main thread never calls a meter, so that a meter that hangs blocks neither the
deadline nor signals. If a rank fails, its peers are stopped; a run over its time limit is stopped; and if this process
or Snakemake above it dies, every process of the run dies too.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from joulesweep.axes.strategy import STRATEGIES, on_one_device
from joulesweep.core import bounded, files, processes
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import (
    BadInput,
    Conditions,
    DeviceEnergy,
    Environment,
    EpochEnd,
    Flag,
    Overhead,
    Preempted,
    RankResult,
    Stopped,
    as_json,
    read_rank,
)
from joulesweep.core.places import ROOT
from joulesweep.core.spec import RunSpec, full
from joulesweep.launch import checkpoints, stage
from joulesweep.launch.checkpoints import Checkpoint
from joulesweep.launch.lease import Lease
from joulesweep.measure import conditions, devices, machine, measurement, meters, sensors
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import Trace
from joulesweep.measure.watch import Watch
from joulesweep.runs.identity import run_id

# changes no number: how often the parent checks whether the processes have ended
POLL_S = 0.1  # each check costs CPU
GRACE_S = 30.0  # as `measure.grace_s` has it by default
SIGNALS_APART_S = 0.3  # so much later than the workflow may this process get the signal of a batch system
WRITTEN_POLLS = 10  # looks at a file that is being written
#: Make glibc keep the big buffers of a step for the next one. By default it returns them to the kernel, and every step
#: pays for mapping and clearing them again, more for larger buffers: partial training would look better than it is.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}

#: Seconds within which torchrun of every node must have found the first node's.
RENDEZVOUS_S = 120
SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of a network interface
SIGKILLED = "Signal 9 (SIGKILL)"  # torchrun's words for a rank that was killed; its exit code is 1 then as for a bug


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a machine is told to carry out.

    Attributes:
        spec: the run's inputs.
        model_folder: the fetched model.
        tokens: the token file.
        folder: the run's folder.
        log: where the processes' output goes; None for the terminal.
        exclusive: what other runs may not use meanwhile: "gpu" the boards, "node" the machine; see `lease.Lease`.
        meter_settings: the config's `hardware` settings of single meters, by meter name.
        code_digest: digest of the code that the run uses.
        grace_s: at SIGTERM, seconds in which the training may be kept to go on later.
        attempt: name of the present attempt at the run; None if it is not noted.
        evaluations: what the spec's evaluations read, in their order.
        node: number of this machine among those of the run, from 0.
    """

    spec: RunSpec
    model_folder: Path
    tokens: Path
    folder: Path
    log: Path | None
    exclusive: str
    meter_settings: Mapping[str, meters.Settings | None]
    code_digest: str
    grace_s: float
    attempt: str | None
    evaluations: Sequence[Path] = ()
    node: int = 0

    @property
    def work(self) -> Path:
        """The folder in which the processes of this machine find their job and leave their results."""
        return work_folder(self.folder) / (f"node{self.node}" if self.spec.nodes > 1 else "")

    @property
    def ranks(self) -> range:
        """The ranks of the processes of this machine."""
        number = self.spec.node_devices if STRATEGIES[self.spec.strategy].multi_process else 1
        return range(self.node * number, (self.node + 1) * number)

    @functools.cached_property
    def inputs(self) -> dict[str, dict[str, object] | None]:
        """Manifests of the inputs, as the preparing rules wrote them; None where there is none."""
        paths = {
            "model": self.model_folder.with_name(f"{self.model_folder.name}.json"),
            "tokens": self.tokens.with_suffix(".json"),
        }
        return {name: _manifest(path) for name, path in paths.items()}

    @functools.cached_property
    def evaluation_inputs(self) -> list[dict[str, object] | None] | None:
        """Manifests of what the evaluations read; None if there are none."""
        return [_manifest(path.with_suffix(".json")) for path in self.evaluations] or None


def _manifest(path: Path) -> dict[str, object] | None:
    return dict(files.read_json(path, "manifest")) if path.exists() else None


def work_folder(folder: Path) -> Path:
    """The folder for what a run needs while it runs."""
    return folder / ".work"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the meters and the conditions of one machine say of a run that ended well, or was preempted.

    Attributes:
        energy: the joules of each device in the window of this attempt.
        epochs: the completed epochs, with joules since the begin of the training.
        conditions: of the measurement.
        flags: conditions that weaken a comparison.
        overhead: cost of the measurement.
        power: the power trace, rows of `Trace.rows`.
    """

    energy: list[DeviceEnergy]
    epochs: list[EpochEnd]
    conditions: Conditions
    flags: list[Flag]
    overhead: Overhead
    power: list[dict[str, float | str | None]]


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    """The result of a run on one machine.

    Attributes:
        started: UTC, ISO 8601.
        environment: what it ran on.
        ranks: of all its processes there, merged; or how the run ended early.
        measured: None if it ended early.
        basis: see `checkpoints.basis`.
        kept: from which the run went on; None if it began.
        took_s: seconds from the start of the processes to their end.
    """

    started: str
    environment: Environment
    ranks: RankResult | Preempted | Stopped
    measured: Measured | None = None
    basis: dict[str, str] = field(default_factory=dict)
    kept: Checkpoint | None = None
    took_s: float = 0.0


class RunFailed(Exception):  # noqa: N818 - says what happened
    """A process of the run ended without a result: it failed or was killed. The log says why."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The boards that a run may take on this machine.

    Attributes:
        boards: those to choose from.
        needed: how many it takes.
        lacking: why the machine has too few; None if it has enough.
    """

    boards: list[Board]
    needed: int
    lacking: str | None


def pool(spec: RunSpec, exclusive: str, gpus: str | Sequence[int | str], pinned: bool) -> Pool:
    """The boards that a run may take on this machine.

    Args:
        spec: the run's inputs.
        exclusive: see `Job`.
        gpus: the boards to choose from: "auto", or NVML indices or UUIDs.
        pinned: always take the first of these boards, so that all runs use the same ones.

    Raises:
        UserError: the machine has enough boards, but config or batch system do not let the run use them.
    """
    needed = devices.num_boards(spec, exclusive)
    boards = devices.pool(gpus if spec.gpus == "auto" else spec.gpus) if needed else []
    lacking = devices.too_few(spec, needed, boards)
    if lacking and len(devices.boards()) >= needed:
        raise UserError(lacking)
    return Pool(boards=boards[:needed] if pinned else boards, needed=needed, lacking=lacking)


#: Waits at a point ("lease", "settle", "train") for the other nodes of the run; returns what they agreed on.
Meet = Callable[[str], Mapping[str, Any]]


def alone(point: str) -> Mapping[str, Any]:
    """Wait for nobody."""
    return {}


def carry_out(job: Job, allowed: Pool, ensure_parent_alive: Callable[[], None], meet: Meet = alone) -> NodeResult:
    """Lease the boards, measure the run on them, and say what came of it.

    Args:
        job: what to do; its work folder exists.
        allowed: the boards that it may take.
        ensure_parent_alive: called while waiting; raises if the run's parent has died.
        meet: waits for the other nodes of the run: before boards are leased, when they are, and before processes start.

    Raises:
        UserError: the run's input is at fault.
        RunFailed: a process died without a result.
    """
    spec = job.spec
    if allowed.lacking:
        environment = machine.describe(spec.threads_per_device, allowed.boards)
        lacking = Stopped(status="unsupported", reason=allowed.lacking)
        return NodeResult(started=stage.now(), environment=environment, ranks=lacking)
    meet("lease")
    with Lease(allowed.boards, allowed.needed, job.exclusive, ensure_parent_alive) as lease:
        meet("settle")
        stage.info("settles")
        environment = machine.describe(spec.threads_per_device, lease.boards)
        present = checkpoints.basis(job.code_digest, job.inputs, environment)
        kept = checkpoints.find(job.folder, run_id(spec), present) if spec.nodes == 1 else None
        told = {"spec": full(spec), **{name: str(getattr(job, name)) for name in ("model_folder", "tokens", "folder")}}
        goes_on = {"step": kept.step, "elapsed_s": kept.window_s} if kept else {}
        kept_in = {"folder": str(job.folder / checkpoints.FOLDER), **goes_on} if spec.nodes == 1 else None
        reads = {"evaluations": [str(path) for path in job.evaluations]}
        files.write_json(
            job.work / "job.json", {**told, **reads, "boards": as_json(lease.boards), "checkpoint": kept_in}
        )
        try:
            started, ranks, measured, took_s = _measured(job, kept, lease, ensure_parent_alive, meet)
        except RunFailed:
            if kept:
                checkpoints.note_failure(job.folder, kept)
            raise
        return NodeResult(
            started=started,
            environment=environment,
            ranks=ranks,
            measured=measured,
            basis=present,
            kept=kept,
            took_s=took_s,
        )


def _measured(
    job: Job, kept: Checkpoint | None, lease: Lease, ensure_parent_alive: Callable[[], None], meet: Meet
) -> tuple[str, RankResult | Preempted | Stopped, Measured | None, float]:
    """Prepare the conditions, run the processes, and evaluate the measurement.

    Returns also when the processes started, and how long they took.
    """
    spec = job.spec
    others, mute = meters.of_host(job.meter_settings)
    before = conditions.prepare(spec, lease.boards, others, ensure_parent_alive)
    boards = [board for board in lease.boards if board.device not in before.silent]
    others = [sensor for sensor in others if sensor.device not in before.silent]
    trace, no_trace = bounded.within(bounded.LIMIT_S, Trace, boards, others)
    before.silent.update(mute if no_trace is None else {**mute, "the trace": no_trace})
    trace = trace or Trace([], [])
    agreed = meet("train")
    started, began_s = stage.now(), time.monotonic()
    stage.info("trains")
    result, seen = _supervise(job, kept, lease, trace, ensure_parent_alive, agreed)
    took_s = time.monotonic() - began_s
    stage.info("writes")
    if isinstance(result, Stopped):
        return started, result, None, took_s
    earlier_s = kept.window_s if kept else 0.0
    energy, epochs = measurement.finalise_energy(result, trace, lease.boards, before.ticks, earlier_s)
    bounded.within(bounded.LIMIT_S, sensors.keep_ticks, energy, before.ticks)
    hold = conditions.Hold(
        boards=lease.boards,
        exclusive=lease.exclusive,
        shared_host=lease.shared_host(),
        one_device=on_one_device(spec.strategy, spec.devices),
    )
    run_conditions, flags = conditions.describe(result, energy, spec, before, trace, hold, seen)
    measured = Measured(
        energy=energy,
        epochs=epochs,
        conditions=run_conditions,
        flags=flags,
        overhead=conditions.overhead(result.span, trace),
        power=trace.rows(result.span.begin_s),
    )
    return started, result, measured, took_s


def _command(num_ranks: int, work: Path) -> list[str]:
    """The command that starts one process, or one per rank under torchrun."""
    module = ["-m", "joulesweep.train.worker", str(work / "job.json")]
    if num_ranks == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return [sys.executable, *torchrun, *module]


def _command_of_node(job: Job, agreed: Mapping[str, Any]) -> list[str]:
    """The command that starts this node's processes; all nodes' meet at the first one's torchrun."""
    module = ["-m", "joulesweep.train.worker", str(job.work / "job.json")]
    host, port = agreed["first"]
    options = {
        "nnodes": job.spec.nodes,
        "node-rank": job.node,
        "nproc-per-node": len(job.ranks),
        "master-addr": host,
        "master-port": port,
        "rdzv-conf": f"timeout={RENDEZVOUS_S}",
    }
    torchrun = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "torch.distributed.run", *torchrun, *module]


def _interface(address: str) -> dict[str, str]:
    """The variable that makes gloo use the network interface of an address; by itself it looks up the host's name.

    Many systems give their own name an address of the loopback interface, where no other node answers.
    """
    name = next((name for _, name in socket.if_nameindex() if _address_of(name) == address), None)
    return {} if name is None or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": name}


def _address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None  # it has none
    return socket.inet_ntoa(answer[20:24])


def child_environment(num_threads: int, boards: Sequence[Board]) -> dict[str, str]:
    """The environment of a run's processes: this one's, plus the settings that make runs comparable."""
    threads = str(num_threads)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {
        **os.environ,
        **ALLOCATOR,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # a waiting rank must not occupy the core that another rank needs
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # everything was fetched before; a measured run does not touch the network
        "PYTHONUNBUFFERED": "1",
        # Only the leased boards; none for a run that meters no GPU, because Zeus opens every visible board.
        **devices.exposing(boards),
    }
    return {name: value for name, value in environ.items() if value is not None}


def _supervise(
    job: Job,
    kept: Checkpoint | None,
    lease: Lease,
    trace: Trace,
    ensure_parent_alive: Callable[[], None],
    agreed: Mapping[str, Any],
) -> tuple[RankResult | Preempted | Stopped, Watch]:
    """Run the processes until they end. Returns their result, and the watch that observed them."""
    spec, work, log, descriptor = job.spec, job.work, job.log, None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    num_ranks = len(job.ranks)
    command = _command(num_ranks, work) if spec.nodes == 1 else _command_of_node(job, agreed)
    environ = child_environment(spec.threads_per_device, lease.boards)
    environ |= _interface(agreed["address"]) if "address" in agreed else {}
    left_s = spec.timeout_s - (kept.took_s if kept else 0.0)
    others, kills = processes.children(), processes.oom_kills()
    processes.adopt(orphans=True)
    child = processes.start(command, environ, descriptor, lease.descriptors)
    with Watch(trace) as seen:  # starts after the fork: a thread that exists then may hold a lock
        try:
            timed_out = _wait(child, job, num_ranks, left_s, seen, ensure_parent_alive)
        finally:
            processes.kill_group(child)
            processes.kill_children(but=others)
            processes.adopt(orphans=False)
            if descriptor is not None:
                os.close(descriptor)
    result = _outcome(work, num_ranks, job.ranks[0])
    if result is not None:
        return result, seen
    if timed_out:
        return Stopped(status="timeout", reason=f"stopped after timeout_s = {spec.timeout_s:g} s"), seen
    kills_now = processes.oom_kills()
    was_oom = kills is not None and kills_now is not None and kills_now > kills
    if was_oom and _killed(num_ranks, child.returncode, log):
        return Stopped(status="oom", reason="killed by the kernel's out-of-memory killer"), seen
    raise RunFailed(f"a process of the run ended with exit code {child.returncode} and left no result")


def terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """End this process at a signal."""
    raise SystemExit(128 + signum)  # unwinds through the `finally` that kills the processes


def _wait(
    child: subprocess.Popen[bytes],
    job: Job,
    num_ranks: int,
    left_s: float,
    seen: Watch,
    ensure_parent_alive: Callable[[], None],
) -> bool:
    """Wait until the processes end. Returns whether they timed out.

    At SIGTERM the ranks are asked to stop and to keep the training, if they can by now. Without that, at the end of the
    grace time, or at a second SIGTERM this process ends at once.
    """
    deadline_s = time.monotonic() + left_s
    with asking(lambda: job.spec.nodes == 1 and _ask(job.work, num_ranks)) as asked:
        while child.poll() is None:
            if time.monotonic() > deadline_s:
                return True
            if asked and time.monotonic() > asked[0] + job.grace_s:
                print(f"{run_id(job.spec)}: nothing was kept within {job.grace_s:g} s", file=sys.stderr, flush=True)
                terminate(signal.SIGTERM, None)
            if not asked:
                _ensure_parent_alive(ensure_parent_alive, asked)
            seen.check()
            time.sleep(POLL_S)
    return False


@contextlib.contextmanager
def asking(ask: Callable[[], bool]) -> Iterator[list[float]]:
    """In the block, ask the ranks to stop at the first SIGTERM. Yields a list of when that was.

    Args:
        ask: returns False if they cannot stop; this process ends then.
    """
    asked: list[float] = []

    def hear(signum: int, frame: FrameType | None) -> None:
        if asked or not ask():
            terminate(signum, frame)
        asked.append(time.monotonic())

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _ask(work: Path, num_ranks: int) -> bool:
    """Ask the ranks to stop; returns whether all of them listen, or have stopped by a signal of their own."""
    ranks: set[str] = set()
    for path in work.glob(f"{processes.LISTENS}*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it stops in this moment
            pid = _listener(path)
            if processes.is_below(pid, os.getpid()):
                os.kill(pid, signal.SIGUSR1)
                ranks.add(path.name.removeprefix(processes.LISTENS))
    ranks |= {path.name.removeprefix(processes.HAS_STOPPED) for path in work.glob(f"{processes.HAS_STOPPED}*")}
    return len(ranks) == num_ranks


def _listener(path: Path) -> int:
    """The process that a rank's file names; 0 if it names none. It may be written in this very moment."""
    for _ in range(WRITTEN_POLLS):
        if text := path.read_text(encoding="ascii"):
            return int(text)
        time.sleep(POLL_S)
    return 0


def _ensure_parent_alive(ensure_parent_alive: Callable[[], None], asked: Sequence[float]) -> None:
    """End this process if the workflow is gone; a batch system's SIGTERM to all processes may reach that first."""
    try:
        ensure_parent_alive()
    except SystemExit:
        time.sleep(SIGNALS_APART_S)
        if not asked:
            raise


def _outcome(work: Path, num_ranks: int, first: int = 0) -> RankResult | Preempted | Stopped | None:
    """Bring the ranks' results together. A rank that stopped with a reason speaks for the run.

    A result is the last thing that a rank leaves: how its process ends after that changes nothing.

    Args:
        work: where the ranks leave their results.
        num_ranks: how many there are here.
        first: the first of them.

    Returns:
        What all of them saw, or why one stopped; None where a rank left no result and none stopped with a reason.

    Raises:
        UserError: a rank reported that the input is at fault.
    """
    stopped = _stopped(work)
    if isinstance(stopped, BadInput):
        raise UserError(stopped.reason)
    if stopped is not None:
        return stopped
    paths = [work / f"rank{rank}.json" for rank in range(first, first + num_ranks)]
    if not all(path.exists() for path in paths):
        return None
    ranks = [_rank(path) for path in paths]
    preempted = [rank for rank in ranks if isinstance(rank, Preempted)]
    if preempted:
        agree = len(preempted) == num_ranks and len({rank.step for rank in preempted}) == 1
        return measurement.merge_preempted(preempted) if agree else None
    return measurement.merge_ranks([rank for rank in ranks if isinstance(rank, RankResult)])


def _rank(path: Path) -> RankResult | Preempted | Stopped | BadInput:
    return read_rank(json.loads(path.read_text(encoding="utf-8")))


def _killed(num_ranks: int, exit_code: int, log: Path | None) -> bool:
    """Whether a process was killed: the only one, torchrun itself, or a rank that torchrun reports in the log."""
    if exit_code == -signal.SIGKILL:
        return True
    if num_ranks == 1 or log is None:
        return False
    return SIGKILLED in log.read_text(encoding="utf-8", errors="replace")


def _stopped(work: Path) -> Stopped | BadInput | None:
    """The result of the first rank that stopped with a reason, or None.

    Its peers then lose their connection and fail without a result.
    """
    paths = sorted(work.glob("rank*.json"), key=lambda path: path.stat().st_mtime_ns)
    return next((rank for rank in map(_rank, paths) if isinstance(rank, Stopped | BadInput)), None)
