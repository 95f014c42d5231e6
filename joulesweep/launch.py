"""The launching parent of a run: starts its processes, watches them, and alone writes its record.

The parent imports no torch. A rank that fails takes its peers with it, a run over its time is stopped, and when this
process or Snakemake above it dies, every process of the run dies too.
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
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from joulesweep import environment, process, record
from joulesweep.errors import UserError
from joulesweep.spec import RunSpec, full, run_id
from joulesweep.strategy import STRATEGIES

POLL_S = 0.05
REPOSITORY = Path(__file__).parent.parent


class RunFailed(Exception):  # noqa: N818 - says what happened
    """A process of the run ended without a result: a bug, or a kill. The log says why."""


def launch(
    spec: RunSpec,
    code_digest: str,
    *,
    model_folder: Path,
    tokens: Path,
    folder: Path,
    log: Path | None,
    with_snakemake: bool = True,
) -> dict[str, Any]:
    """Carry out a run and write its record, last of all its files.

    Args:
        spec: the run's inputs.
        code_digest: digest of the code that the run uses, kept in the record.
        model_folder: the fetched model.
        tokens: the token file.
        folder: the run's folder: record.json, spec.json, steps.jsonl, epochs.jsonl (and model/ if kept) go here.
        log: where the processes' output goes; None for the terminal.
        with_snakemake: end when the job's shell or Snakemake above it dies.

    Returns:
        The record.

    Raises:
        UserError: the run's input is at fault.
        RunFailed: a process died without a result; nothing is written.
    """
    started = _now()
    work = folder / ".work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    work.mkdir(parents=True)
    job = {"spec": full(spec), "model_folder": str(model_folder), "tokens": str(tokens), "folder": str(folder)}
    record.write_json(work / "job.json", job)
    num_ranks = spec.devices if STRATEGIES[spec.strategy].multi_process else 1
    try:
        outcome = _supervise(_command(num_ranks, work), spec, work, num_ranks, log, with_snakemake)
    finally:
        shutil.rmtree(work)
    result = {
        "format": record.FORMAT,
        "version": record.VERSION,
        "run": run_id(spec),
        "status": outcome["status"],
        "reason": outcome.get("reason"),
        "oom_bytes": outcome.get("oom_bytes"),
        "spec": full(spec),
        "code_digest": code_digest,
        "inputs": {
            "model": _manifest(model_folder.with_name(f"{model_folder.name}.json")),
            "tokens": _manifest(tokens.with_suffix(".json")),
        },
        "started": started,
        "finished": _now(),
        "environment": environment.describe(spec.threads_per_device),
        "measurement": outcome.get("measurement"),
        "quality": outcome.get("quality"),
        "epochs": outcome.get("epochs", []),
    }
    record.write_json(folder / "spec.json", result["spec"])
    record.write_lines(folder / "epochs.jsonl", result["epochs"])
    losses = outcome.get("losses", [])
    record.write_lines(folder / "steps.jsonl", [{"step": i, "train_loss": loss} for i, loss in enumerate(losses, 1)])
    record.write_json(folder / "record.json", result)
    return result


def _manifest(path: Path) -> dict[str, Any] | None:
    """What was fetched or made, as the preparing rules wrote it down."""
    return record.read_json(path, "manifest") if path.exists() else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _command(num_ranks: int, work: Path) -> list[str]:
    """One process, or one per rank under torchrun."""
    module = ["-m", "joulesweep.worker", str(work / "job.json")]
    if num_ranks == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return [sys.executable, *torchrun, *module]


def _environment(spec: RunSpec) -> dict[str, str]:
    """The processes' environment: this one's, plus what makes runs equal to each other."""
    threads = str(spec.threads_per_device)
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting ranks must not burn the core that another rank needs
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # everything was fetched before; a measured run does not touch the network
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order
        "PYTHONUNBUFFERED": "1",
        # Zeus looks at the GPUs even for a run on the CPU, and fails on some values that a batch system sets.
        **({"CUDA_VISIBLE_DEVICES": ""} if spec.accelerator == "cpu" else {}),
    }


def _supervise(
    command: list[str], spec: RunSpec, work: Path, num_ranks: int, log: Path | None, with_snakemake: bool
) -> dict[str, Any]:
    """Run the processes to their end and return the run's outcome."""
    descriptor = None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    signal.signal(signal.SIGTERM, _terminate)
    child = process.start(command, _environment(spec), descriptor)
    try:
        timed_out = _wait(child, spec.timeout_s, process.ancestry() if with_snakemake else None)
    finally:
        process.kill_group(child)
        if descriptor is not None:
            os.close(descriptor)
    if timed_out:
        return {"status": "timeout", "reason": f"stopped after timeout_s = {spec.timeout_s:g} s"}
    return _outcome(work, num_ranks, child.returncode)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # unwinds through the `finally` that kills the processes


def _wait(child: subprocess.Popen[bytes], timeout_s: float, ancestry: tuple[int, int] | None) -> bool:
    """Wait for the end of the processes. Returns whether time ran out."""
    deadline_s = time.monotonic() + timeout_s
    while child.poll() is None:
        if time.monotonic() > deadline_s:
            return True
        if ancestry is not None and process.ancestry() != ancestry:
            raise SystemExit("the workflow that started this run is gone")
        time.sleep(POLL_S)
    return False


def _outcome(work: Path, num_ranks: int, exit_code: int) -> dict[str, Any]:
    """Bring the ranks' results together. A rank that stopped with a reason speaks for the run.

    Raises:
        UserError: a rank found the input at fault.
        RunFailed: a rank left no result.
    """
    paths = [work / f"rank{rank}.json" for rank in range(num_ranks)]
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    stopped = next((rank for rank in ranks if rank["status"] != "ok"), None)
    if stopped is not None and stopped["status"] == "error":
        raise UserError(stopped["reason"])
    if stopped is not None:
        return dict(stopped)
    if len(ranks) < num_ranks or exit_code != 0:
        raise RunFailed(f"a process of the run ended with exit code {exit_code} and left no result")
    return combine(ranks)


def combine(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's measurement from its ranks': energy, CPU time and counts are sums, the window the longest.

    Args:
        ranks: the ranks' results in order; all ok.

    Returns:
        measurement with window_s, startup_s, cpu_s, energy (one row per device), peak_memory (host: sum over the
        processes; GPU: the fullest), num_steps, num_skipped_steps, num_texts, num_tokens, num_padded_tokens,
        samples_per_s, tokens_per_s (real tokens), padded_tokens_per_s, epochs_per_minute; quality: the last epoch's;
        epochs and losses.
    """
    parts = [rank["measurement"] for rank in ranks]
    epochs = _epochs(ranks)
    window_s = max(part["window_s"] for part in parts)
    counts = {name: sum(part[name] for part in parts) for name in ("num_texts", "num_tokens", "num_padded_tokens")}
    quality = {name: epochs[-1][name] for name in QUALITY}
    return {
        "status": "ok",
        "measurement": {
            "window_s": window_s,
            "startup_s": max(part["startup_s"] for part in parts),
            "cpu_s": sum(part["cpu_s"] for part in parts),
            "energy": [row for part in parts for row in part["energy"]],
            "peak_memory": _peak_memory([part["peak_memory"] for part in parts]),
            "num_steps": parts[0]["num_steps"],
            "num_skipped_steps": parts[0]["num_skipped_steps"],
            **counts,
            "samples_per_s": counts["num_texts"] / window_s,
            "tokens_per_s": counts["num_tokens"] / window_s,
            "padded_tokens_per_s": counts["num_padded_tokens"] / window_s,
            "epochs_per_minute": 60 * counts["num_texts"] / ranks[0]["num_train_texts"] / window_s,
        },
        "quality": quality,
        "epochs": [{key: value for key, value in row.items() if key in EPOCH} for row in epochs],
        "losses": ranks[0]["losses"],
    }


QUALITY = ("validation_loss", "perplexity", "masked_accuracy", "num_validation_texts", "num_masked")
EPOCH = ("epoch", "elapsed_s", "cpu_s", "num_steps", "train_loss", "validation_loss", "perplexity", "masked_accuracy")


def _epochs(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank 0's epochs, with CPU seconds of all ranks and the slowest rank's clock."""
    return [
        {**rows[0], "cpu_s": sum(row["cpu_s"] for row in rows), "elapsed_s": max(row["elapsed_s"] for row in rows)}
        for rows in zip(*(rank["epochs"] for rank in ranks), strict=True)
    ]


def _peak_memory(parts: list[dict[str, int | None]]) -> dict[str, int | None]:
    def fullest(key: str) -> int | None:
        values = [part[key] for part in parts if part[key] is not None]
        return max(values) if values else None  # type: ignore[type-var]

    return {
        "host_rss_bytes": sum(part["host_rss_bytes"] or 0 for part in parts),
        "gpu_allocated_bytes": fullest("gpu_allocated_bytes"),
        "gpu_reserved_bytes": fullest("gpu_reserved_bytes"),
    }
