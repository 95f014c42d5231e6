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
from joulesweep.core.outcome import Flag, Measurement, RankResult, Stopped, Summary, as_json
from joulesweep.core.spec import RunSpec, full
from joulesweep.launch import node
from joulesweep.launch.node import Job, NodeResult
from joulesweep.measure import devices, measurement, meters
from joulesweep.nets.weights import some
from joulesweep.runs import record
from joulesweep.runs.identity import run_id
from joulesweep.runs.record import Inputs, RunRecord


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
    signal.signal(signal.SIGTERM, node.terminate)
    ensure_parent_alive = processes.parent_watch(with_snakemake)
    allowed = node.pool(spec, exclusive, gpus, pinned)
    new_weights = _new_weights(spec, _manifest(model_folder.with_name(f"{model_folder.name}.json")))
    job = Job(
        spec=spec,
        model_folder=model_folder,
        tokens=tokens,
        folder=folder,
        log=log,
        exclusive=exclusive,
        meter_settings=meter_settings or {},
    )
    shutil.rmtree(job.work, ignore_errors=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    job.work.mkdir(parents=True)
    try:
        result = node.carry_out(job, allowed, ensure_parent_alive)
        return _write(job, code_digest, result, _measurement(result, new_weights), references)
    finally:
        shutil.rmtree(job.work)


def _new_weights(spec: RunSpec, manifest: Mapping[str, Any] | None) -> list[str]:
    """Names of the weights that are missing from the model's files and start at random values.

    Raises:
        UserError: the model cannot learn the task.
    """
    task = (manifest or {}).get("tasks", {}).get(spec.task, {"reason": None, "new_weights": []})
    if task["reason"] is not None:
        raise UserError(f"model {spec.model}: {task['reason']}")
    return list(task["new_weights"])


def _measurement(result: NodeResult, new_weights: Sequence[str]) -> Measurement | None:
    """The measurement of a run; None if it ended early."""
    if result.measured is None or isinstance(result.ranks, Stopped):
        return None
    of_model = [Flag(flag="new_weights", text=f"not in the model's files: {some(new_weights)}")] if new_weights else []
    measured = result.measured
    return measurement.measured(
        result.ranks, measured.energy, [*measured.flags, *of_model], measured.conditions, measured.overhead
    )


def _write(
    job: Job,
    code_digest: str,
    result: NodeResult,
    measured: Measurement | None,
    references: Sequence[Sequence[str]],
) -> RunRecord:
    """Write the run's files, the record last, and return it."""
    spec, folder, stopped = job.spec, job.folder, result.ranks if isinstance(result.ranks, Stopped) else None
    ranks = result.ranks if isinstance(result.ranks, RankResult) else None
    made = RunRecord(
        format=record.FORMAT,
        version=record.VERSION,
        run=run_id(spec),
        status=result.ranks.status,
        reason=stopped.reason if stopped else None,
        oom_bytes=stopped.oom_bytes if stopped else None,
        spec=spec,
        code_digest=code_digest,
        inputs=Inputs(
            model=_manifest(job.model_folder.with_name(f"{job.model_folder.name}.json")),
            tokens=_manifest(job.tokens.with_suffix(".json")),
        ),
        started=result.started,
        finished=node.now(),
        environment=result.environment,
        measurement=measured,
        quality=ranks.quality if ranks else None,
        epochs=result.measured.epochs if result.measured else [],
    )
    steps = [{"step": i, "train_loss": loss} for i, loss in enumerate(ranks.losses if ranks else [], 1)]
    files.write_json(folder / "spec.json", full(spec))
    files.write_lines(folder / "epochs.jsonl", as_json(made.epochs))
    files.write_lines(folder / "steps.jsonl", steps)
    files.write_lines(folder / "power.jsonl", result.measured.power if result.measured else [])
    files.write_lines(folder / "summaries.jsonl", as_json(_referenced(ranks.summaries if ranks else [], references)))
    files.write_json(folder / "record.json", as_json(made))
    return made


def _referenced(summaries: Sequence[Summary], references: Sequence[Sequence[str]]) -> list[Summary]:
    """The summaries, with the texts that they are scored against if the data set has any."""
    return [replace(row, references=list(references[row.text])) if references else row for row in summaries]


def _manifest(path: Path) -> dict[str, object] | None:
    """A manifest that the preparing rules wrote; None if there is none."""
    return dict(files.read_json(path, "manifest")) if path.exists() else None
