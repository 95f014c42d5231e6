"""Launch a run: have it carried out on this machine, and write its record."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from joulesweep.core import files, processes
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import (
    Epoch,
    EpochEnd,
    Flag,
    Measurement,
    NodePart,
    Preempted,
    RankResult,
    Segment,
    Stopped,
    Summary,
    as_json,
)
from joulesweep.core.spec import RunSpec, full
from joulesweep.launch import checkpoints, merge, node, nodes, stage
from joulesweep.launch.checkpoints import Checkpoint, RunPreempted
from joulesweep.launch.node import GRACE_S, Job, Measured, NodeResult, RunFailed
from joulesweep.measure import devices, measurement, meters, segments
from joulesweep.nets.weights import some
from joulesweep.runs import attempted, record
from joulesweep.runs.identity import run_id
from joulesweep.runs.record import Inputs, RunRecord


def check_granted(spec: RunSpec, exclusive: str, num_gpus: int) -> None:
    """Check that Snakemake granted enough GPUs: with --resources gpu=1 it also starts runs that need two.

    Raises:
        UserError: fewer GPUs are granted than the run needs.
    """
    needed = spec.nodes * devices.num_boards(spec, exclusive)
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
    evaluations: Sequence[Path] = (),
    exclusive: str = "none",
    gpus: str | Sequence[int | str] = "auto",
    pinned: bool = False,
    meter_settings: Mapping[str, meters.Settings | None] | None = None,
    with_snakemake: bool = True,
    grace_s: float = GRACE_S,
    attempt: str | None = None,
    rendezvous: str | None = None,
) -> RunRecord:
    """Execute a run and write its files, the record last.

    Args:
        spec: the run's inputs.
        code_digest: digest of the code that the run uses, kept in the record.
        model_folder: the fetched model.
        tokens: the token file.
        folder: the run's folder: record.json, spec.json, steps.jsonl, epochs.jsonl, power.jsonl, summaries.jsonl
            (evaluations.jsonl if there are any, and model/ if kept) go here.
        log: where the processes' output goes; None for the terminal.
        references: for each text, the summaries to score the generated one against; empty if nothing is generated.
        evaluations: what the spec's evaluations read, in their order: items or tokens, a manifest beside each.
        exclusive: what other runs may not use meanwhile: "gpu" the boards, "node" the machine; see `lease.Lease`.
        gpus: the boards to choose from: "auto", or NVML indices or UUIDs.
        pinned: always take the first of these boards, so that all runs use the same ones.
        meter_settings: the config's `hardware` settings of single meters, by meter name.
        with_snakemake: end when the job's shell or Snakemake above it dies.
        grace_s: at SIGTERM, seconds in which the training may be kept to go on later.
        attempt: name of the present attempt at the run; None if it is not noted.
        rendezvous: of a run on several nodes outside of Slurm: `host:port` at which this process waits for the others.

    Returns:
        The record.

    Raises:
        UserError: the run's input is at fault.
        RunFailed: a process died without a result; nothing is written.
        RunPreempted: at SIGTERM; the next call goes on from a checkpoint.
    """
    signal.signal(signal.SIGTERM, node.terminate)
    ensure_parent_alive = processes.parent_watch(with_snakemake)
    allowed = node.pool(spec, exclusive, gpus, pinned) if spec.nodes == 1 else None
    job = Job(
        spec=spec,
        model_folder=model_folder,
        tokens=tokens,
        folder=folder,
        log=log,
        exclusive=exclusive,
        meter_settings=meter_settings or {},
        code_digest=code_digest,
        grace_s=grace_s,
        attempt=attempt,
        evaluations=evaluations,
    )
    new_weights = _new_weights(spec, job.inputs["model"])
    work = node.work_folder(folder)
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    work.mkdir(parents=True)
    try:
        if allowed is not None:
            result, parts = node.carry_out(job, allowed, ensure_parent_alive), None
        else:
            result, parts = merge.merged(nodes.carry_out(job, gpus, pinned, rendezvous, ensure_parent_alive))
        if isinstance(result.ranks, Preempted):
            raise _kept(job, result)
        return _write(job, result, parts, _measurement(job, result, new_weights), references)
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


def _measurement(job: Job, result: NodeResult, new_weights: Sequence[str]) -> Measurement | None:
    """The measurement of a run, over all its attempts; None if it ended early."""
    if result.measured is None or not isinstance(result.ranks, RankResult):
        return None
    of_model = [Flag(flag="new_weights", text=f"not in the model's files: {some(new_weights)}")] if new_weights else []
    measured = result.measured
    alone = measurement.measured(result.ranks, measured.energy, measured.flags, measured.conditions, measured.overhead)
    if result.kept:
        parts = [*result.kept.segments, _segment(job, result, result.ranks, measured)]
        lost = attempted.lost(attempted.notes(job.folder / attempted.FILE), {part.attempt for part in parts})
        alone = replace(segments.combined(alone, parts), lost=lost)
    return replace(alone, flags=[*alone.flags, *of_model])


def _segment(job: Job, result: NodeResult, ranks: RankResult | Preempted, measured: Measured) -> Segment:
    """What the present attempt did."""
    files_written = ranks.files if isinstance(ranks, Preempted) else []
    return Segment(
        attempt=job.attempt,
        hostname=result.environment.hostname,
        first_step=1 + (result.kept.step if result.kept else 0),
        last_step=ranks.step if isinstance(ranks, Preempted) else ranks.num_steps,
        window_s=ranks.total_window_s,
        cpu_s=ranks.cpu_s * ranks.num_passes,
        took_s=result.took_s,
        energy=segments.whole(measured.energy, ranks.num_passes),
        flags=measured.flags,
        conditions=measured.conditions,
        overhead=measured.overhead,
        checkpoint_bytes=sum(file.num_bytes for file in files_written) if files_written else None,
        checkpoint_s=max((file.write_s for file in files_written), default=None),
    )


def _kept(job: Job, result: NodeResult) -> Exception:
    """Keep a preempted run to go on later, unless a counter cannot resolve the attempt. Returns what to raise."""
    ranks, measured, kept = result.ranks, result.measured, result.kept
    assert isinstance(ranks, Preempted)
    assert measured is not None
    segment = _segment(job, result, ranks, measured)
    earlier = kept.segments if kept else []
    if any(row.status == "below_resolution" for row in measured.energy):
        checkpoints.clean(job.folder, kept)
        lost = f"preempted after {segment.last_step - segment.first_step + 1} steps, too few to be measured"
        return RunFailed(f"{lost}; the next start goes on after step {kept.step}" if kept else lost)
    checkpoint = Checkpoint(
        run=run_id(job.spec),
        basis=result.basis,
        written=stage.now(),
        step=ranks.step,
        num_steps=ranks.num_steps,
        files=ranks.files,
        segments=[*earlier, segment],
        epochs=_epochs(result, measured),
        power=_power(result, measured),
    )
    checkpoints.keep(job.folder, checkpoint)
    return RunPreempted(checkpoint)


def _epochs(result: NodeResult, measured: Measured) -> list[EpochEnd]:
    """The completed epochs, with joules over all attempts."""
    if result.kept is None:
        return measured.epochs
    earlier = {end.epoch: end.energy for end in result.kept.epochs}
    later = segments.epochs([end for end in measured.epochs if end.epoch not in earlier], result.kept.segments)
    return [
        *(replace(end, energy=earlier[end.epoch]) for end in measured.epochs if end.epoch in earlier),
        *later,
    ]


def _power(result: NodeResult, measured: Measured) -> Sequence[Mapping[str, Any]]:
    """The power trace over the windows of all attempts; times and joules count from the first one's begin."""
    if result.kept is None:
        return measured.power
    before_j = {row.device: row.total_energy_j for row in segments.energies(result.kept.segments)}
    return segments.joined_power(result.kept.power, measured.power, result.kept.window_s, before_j)


def _write(
    job: Job,
    result: NodeResult,
    parts: list[NodePart] | None,
    measured: Measurement | None,
    references: Sequence[Sequence[str]],
) -> RunRecord:
    """Write the run's files, the record last, and return it."""
    spec, folder, stopped = job.spec, job.folder, result.ranks if isinstance(result.ranks, Stopped) else None
    ranks = result.ranks if isinstance(result.ranks, RankResult) else None
    epochs = _epochs(result, result.measured) if result.measured else []
    made = RunRecord(
        format=record.FORMAT,
        version=record.VERSION,
        run=run_id(spec),
        status=stopped.status if stopped else "ok",
        reason=stopped.reason if stopped else None,
        oom_bytes=stopped.oom_bytes if stopped else None,
        spec=spec,
        code_digest=job.code_digest,
        inputs=Inputs(**job.inputs, evaluations=job.evaluation_inputs),
        started=result.started,
        finished=stage.now(),
        environment=result.environment,
        nodes=parts,
        measurement=measured,
        quality=ranks.quality if ranks else None,
        epochs=[epoch for epoch in epochs if isinstance(epoch, Epoch)],
        evaluations=(ranks.evaluations or None) if ranks else None,
    )
    steps = [{"step": i, "train_loss": loss} for i, loss in enumerate(ranks.losses if ranks else [], 1)]
    files.write_json(folder / "spec.json", full(spec))
    files.write_lines(folder / "epochs.jsonl", as_json(made.epochs))
    files.write_lines(folder / "steps.jsonl", steps)
    files.write_lines(folder / "power.jsonl", _power(result, result.measured) if result.measured else [])
    files.write_lines(folder / "summaries.jsonl", as_json(_referenced(ranks.summaries if ranks else [], references)))
    if spec.evaluate:
        files.write_lines(folder / record.ITEMS, as_json(ranks.evaluation_items if ranks else []))
    checkpoints.remove(folder)  # before there is a record: a repetition of the run is to begin
    files.write_json(folder / "record.json", as_json(made))
    return made


def _referenced(summaries: Sequence[Summary], references: Sequence[Sequence[str]]) -> list[Summary]:
    """The summaries, with the texts that they are scored against if the data set has any."""
    return [replace(row, references=list(references[row.text])) if references else row for row in summaries]
