"""Launch a run: lease its boards, start and watch its processes, and write its record.

The parent does not import torch, and its main thread never calls a meter, so that a meter that hangs blocks neither the
deadline nor signals. If a rank fails, its peers are stopped; a run over its time limit is stopped; and if this process
or Snakemake above it dies, every process of the run dies too.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from joulesweep.axes.strategy import STRATEGIES, on_one_device
from joulesweep.core import bounded, files, processes
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import (
    BadInput,
    Epoch,
    Flag,
    Measurement,
    Quality,
    RankResult,
    Stopped,
    Summary,
    as_json,
    read_rank,
)
from joulesweep.core.places import ROOT
from joulesweep.core.spec import RunSpec, full
from joulesweep.launch import stage
from joulesweep.launch.lease import Lease
from joulesweep.measure import conditions, devices, machine, measurement, meters, sensors
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import Trace
from joulesweep.measure.watch import Watch
from joulesweep.nets.weights import some
from joulesweep.runs import record
from joulesweep.runs.identity import run_id
from joulesweep.runs.record import Inputs, RunRecord

# changes no number: how often the parent checks whether the processes have ended
POLL_S = 0.1  # each check costs CPU
#: Make glibc keep the big buffers of a step for the next one. By default it returns them to the kernel, and every step
#: pays for mapping and clearing them again, more for larger buffers: partial training would look better than it is.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}

SIGKILLED = "Signal 9 (SIGKILL)"  # torchrun's words for a rank that was killed; its exit code is 1 then as for a bug


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run, successful or not.

    Attributes:
        status: "ok", or as in `Stopped`.
        started: UTC, ISO 8601.
        reason: why it is not ok; None if it is.
        oom_bytes: bytes asked for when memory ran out, or None.
        measurement: None unless ok, as the quality.
        quality: after the last epoch.
        epochs: the completed epochs.
        losses: the training loss of every step.
        summaries: what the trained model wrote.
        power: the power trace, rows of `Trace.rows`.
    """

    status: record.Status
    started: str
    reason: str | None = None
    oom_bytes: int | None = None
    measurement: Measurement | None = None
    quality: Quality | None = None
    epochs: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    power: list[dict[str, float | str | None]] = field(default_factory=list)


class RunFailed(Exception):  # noqa: N818 - says what happened
    """A process of the run ended without a result: it failed or was killed. The log says why."""


def check_granted(spec: RunSpec, exclusive: str, num_gpus: int) -> None:
    """Check that Snakemake granted enough GPUs: with --resources gpu=1 it also starts runs that need two.

    Raises:
        UserError: fewer GPUs are granted than the run needs.
    """
    needed = devices.num_boards(spec, exclusive)
    if num_gpus < needed:
        raise UserError(
            f"{run_id(spec)} needs {needed} GPUs, Snakemake grants {num_gpus}: use --resources gpu={needed}"
        )


def launch(
    spec: RunSpec,
    code_digest: str,
    *,
    model_folder: Path,
    tokens: Path,
    folder: Path,
    log: Path | None,
    references: Sequence[Sequence[str]] = (),
    exclusive: str = "none",
    gpus: str | Sequence[int | str] = "auto",
    pinned: bool = False,
    meter_settings: Mapping[str, meters.Settings | None] | None = None,
    with_snakemake: bool = True,
) -> RunRecord:
    """Execute a run and write its files, the record last.

    Args:
        spec: the run's inputs.
        code_digest: digest of the code that the run uses, kept in the record.
        model_folder: the fetched model.
        tokens: the token file.
        folder: the run's folder: record.json, spec.json, steps.jsonl, epochs.jsonl, power.jsonl, summaries.jsonl (and
            model/ if kept) go here.
        log: where the processes' output goes; None for the terminal.
        references: for each text, the summaries to score the generated one against; empty if nothing is generated.
        exclusive: what other runs may not use meanwhile: "gpu" the boards, "node" the machine; see `lease.Lease`.
        gpus: the boards to choose from: "auto", or NVML indices or UUIDs.
        pinned: always take the first of these boards, so that all runs use the same ones.
        meter_settings: the config's `hardware` settings of single meters, by meter name.
        with_snakemake: end when the job's shell or Snakemake above it dies.

    Returns:
        The record.

    Raises:
        UserError: the run's input is at fault.
        RunFailed: a process died without a result; nothing is written.
    """
    signal.signal(signal.SIGTERM, _terminate)
    ensure_parent_alive = processes.parent_watch(with_snakemake)
    needed = devices.num_boards(spec, exclusive)
    candidates = devices.pool(gpus if spec.gpus == "auto" else spec.gpus) if needed else []
    lacking = devices.too_few(spec, needed, candidates)
    if lacking and len(devices.boards()) >= needed:
        raise UserError(lacking)  # the machine could; config or batch system do not let it
    if pinned:
        candidates = candidates[:needed]
    new_weights = _new_weights(spec, _manifest(model_folder.with_name(f"{model_folder.name}.json")))
    work = folder / ".work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    work.mkdir(parents=True)
    try:
        if lacking:
            outcome = Outcome(status="unsupported", reason=lacking, started=_now())
            return _write(spec, code_digest, model_folder, tokens, folder, outcome, candidates)
        with Lease(candidates, needed, exclusive, ensure_parent_alive) as lease:
            stage.info("settles")
            job = {"spec": full(spec), "model_folder": str(model_folder), "tokens": str(tokens), "folder": str(folder)}
            files.write_json(work / "job.json", {**job, "boards": as_json(lease.boards)})
            outcome = _measured(spec, work, log, lease, meter_settings or {}, ensure_parent_alive, new_weights)
            if references:
                summaries = [replace(row, references=list(references[row.text])) for row in outcome.summaries]
                outcome = replace(outcome, summaries=summaries)
            return _write(spec, code_digest, model_folder, tokens, folder, outcome, lease.boards)
    finally:
        shutil.rmtree(work)


def _new_weights(spec: RunSpec, manifest: Mapping[str, Any] | None) -> list[str]:
    """Names of the weights that are missing from the model's files and start at random values.

    Raises:
        UserError: the model cannot learn the task.
    """
    task = (manifest or {}).get("tasks", {}).get(spec.task, {"reason": None, "new_weights": []})
    if task["reason"] is not None:
        raise UserError(f"model {spec.model}: {task['reason']}")
    return list(task["new_weights"])


def _measured(
    spec: RunSpec,
    work: Path,
    log: Path | None,
    lease: Lease,
    settings: Mapping[str, meters.Settings | None],
    ensure_parent_alive: Callable[[], None],
    new_weights: Sequence[str],
) -> Outcome:
    """Prepare the conditions, run the processes, and evaluate the measurement."""
    others, mute = meters.of_host(settings)
    before = conditions.prepare(spec, lease.boards, others, ensure_parent_alive)
    boards = [board for board in lease.boards if board.device not in before.silent]
    others = [sensor for sensor in others if sensor.device not in before.silent]
    trace, no_trace = bounded.within(bounded.LIMIT_S, Trace, boards, others)
    before.silent.update(mute if no_trace is None else {**mute, "the trace": no_trace})
    trace, started = trace or Trace([], []), _now()
    stage.info("trains")
    result, seen = _supervise(spec, work, log, lease, trace, ensure_parent_alive)
    stage.info("writes")
    if isinstance(result, Stopped):
        return Outcome(status=result.status, reason=result.reason, oom_bytes=result.oom_bytes, started=started)
    energy, epochs = measurement.finalise_energy(result, trace, lease.boards, before.ticks)
    bounded.within(bounded.LIMIT_S, sensors.keep_ticks, energy, before.ticks)
    hold = conditions.Hold(
        boards=lease.boards,
        exclusive=lease.exclusive,
        shared_host=lease.shared_host(),
        one_device=on_one_device(spec.strategy, spec.devices),
    )
    run_conditions, flags = conditions.describe(result, energy, spec, before, trace, hold, seen)
    if new_weights:
        flags.append(Flag(flag="new_weights", text=f"not in the model's files: {some(new_weights)}"))
    return Outcome(
        status="ok",
        started=started,
        measurement=measurement.measured(
            result, energy, flags, run_conditions, conditions.overhead(result.span, trace)
        ),
        quality=result.quality,
        epochs=epochs,
        losses=result.losses,
        summaries=result.summaries,
        power=trace.rows(result.span.begin_s),
    )


def _write(
    spec: RunSpec,
    code_digest: str,
    model_folder: Path,
    tokens: Path,
    folder: Path,
    outcome: Outcome,
    boards: Sequence[Board] = (),
) -> RunRecord:
    """Write the run's files, the record last, and return it."""
    result = RunRecord(
        format=record.FORMAT,
        version=record.VERSION,
        run=run_id(spec),
        status=outcome.status,
        reason=outcome.reason,
        oom_bytes=outcome.oom_bytes,
        spec=spec,
        code_digest=code_digest,
        inputs=Inputs(
            model=_manifest(model_folder.with_name(f"{model_folder.name}.json")),
            tokens=_manifest(tokens.with_suffix(".json")),
        ),
        started=outcome.started,
        finished=_now(),
        environment=machine.describe(spec.threads_per_device, boards),
        measurement=outcome.measurement,
        quality=outcome.quality,
        epochs=outcome.epochs,
    )
    steps = [{"step": i, "train_loss": loss} for i, loss in enumerate(outcome.losses, 1)]
    files.write_json(folder / "spec.json", full(spec))
    files.write_lines(folder / "epochs.jsonl", as_json(outcome.epochs))
    files.write_lines(folder / "steps.jsonl", steps)
    files.write_lines(folder / "power.jsonl", outcome.power)
    files.write_lines(folder / "summaries.jsonl", as_json(outcome.summaries))
    files.write_json(folder / "record.json", as_json(result))
    return result


def _manifest(path: Path) -> dict[str, object] | None:
    """A manifest that the preparing rules wrote; None if there is none."""
    return dict(files.read_json(path, "manifest")) if path.exists() else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _command(num_ranks: int, work: Path) -> list[str]:
    """The command that starts one process, or one per rank under torchrun."""
    module = ["-m", "joulesweep.train.worker", str(work / "job.json")]
    if num_ranks == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return [sys.executable, *torchrun, *module]


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
    spec: RunSpec, work: Path, log: Path | None, lease: Lease, trace: Trace, ensure_parent_alive: Callable[[], None]
) -> tuple[RankResult | Stopped, Watch]:
    """Run the processes until they end. Returns their result, and the watch that observed them."""
    descriptor = None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    num_ranks = spec.devices if STRATEGIES[spec.strategy].multi_process else 1
    environ = child_environment(spec.threads_per_device, lease.boards)
    others, kills = processes.children(), processes.oom_kills()
    processes.adopt(orphans=True)
    child = processes.start(_command(num_ranks, work), environ, descriptor, lease.descriptors)
    with Watch(trace) as seen:  # starts after the fork: a thread that exists then may hold a lock
        try:
            timed_out = _wait(child, spec.timeout_s, seen, ensure_parent_alive)
        finally:
            processes.kill_group(child)
            processes.kill_children(but=others)
            processes.adopt(orphans=False)
            if descriptor is not None:
                os.close(descriptor)
    result = _outcome(work, num_ranks)
    if result is not None:
        return result, seen
    if timed_out:
        return Stopped(status="timeout", reason=f"stopped after timeout_s = {spec.timeout_s:g} s"), seen
    kills_now = processes.oom_kills()
    was_oom = kills is not None and kills_now is not None and kills_now > kills
    if was_oom and _killed(num_ranks, child.returncode, log):
        return Stopped(status="oom", reason="killed by the kernel's out-of-memory killer"), seen
    raise RunFailed(f"a process of the run ended with exit code {child.returncode} and left no result")


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # unwinds through the `finally` that kills the processes


def _wait(
    child: subprocess.Popen[bytes], timeout_s: float, seen: Watch, ensure_parent_alive: Callable[[], None]
) -> bool:
    """Wait until the processes end. Returns whether they timed out."""
    deadline_s = time.monotonic() + timeout_s
    while child.poll() is None:
        if time.monotonic() > deadline_s:
            return True
        ensure_parent_alive()
        seen.check()
        time.sleep(POLL_S)
    return False


def _outcome(work: Path, num_ranks: int) -> RankResult | Stopped | None:
    """Bring the ranks' results together. A rank that stopped with a reason speaks for the run.

    A result is the last thing that a rank leaves: how its process ends after that changes nothing.

    Args:
        work: where the ranks leave their results.
        num_ranks: how many there are.

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
    paths = [work / f"rank{rank}.json" for rank in range(num_ranks)]
    if not all(path.exists() for path in paths):
        return None
    ranks = [_rank(path) for path in paths]
    return measurement.merge_ranks([rank for rank in ranks if isinstance(rank, RankResult)])


def _rank(path: Path) -> RankResult | Stopped | BadInput:
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
    return next((rank for rank in map(_rank, paths) if not isinstance(rank, RankResult)), None)
