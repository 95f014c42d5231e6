"""A finished sweep without training: genuine grid and ids, seeded random numbers in the records."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joulesweep import config, grid, record, spec

LOCAL = {"local": "some/folder"}


def raw_config(axes: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A config as YAML would give it; `axes` replaces keys of its grid."""
    base = {
        "model": ["tiny"],
        "dataset": ["questions"],
        "strategy": ["single", "ddp"],
        "precision": ["fp32", "bf16-mixed"],
        "batch_size": [32, 64],
        "lr": [0.001],
        "repeats": 3,
    }
    return {
        "sweep": "synthetic",
        "models": {"tiny": {"source": LOCAL}, "other": {"source": LOCAL}},
        "datasets": {"questions": {"source": LOCAL, "format": "text"}},
        "grid": {**base, **(axes or {})},
        "train": {"epochs": 3},
        "energy": {"estimate": True},
        "hardware": {"accelerator": "cpu"},
        **sections,
    }


def environment(**changes: Any) -> dict[str, Any]:
    """The environment part of a record, of a machine that does not exist."""
    return {
        "hostname": "node1",
        "platform": "Linux-6.1",
        "python": "3.12.3",
        "cpu_model": "AMD EPYC 7763 64-Core Processor",
        "cpu_cores": 2,
        "host_memory_bytes": 16 * 2**30,
        "gpus": [],
        "driver": None,
        "versions": {"torch": "2.9.0", "transformers": "4.57.0", "zeus": "0.16.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "threads_per_process": 1,
        **changes,
    }


def no_meter() -> list[dict[str, Any]]:
    """The energy rows of a machine that cannot measure."""
    reason = "no RAPL counters: the machine exposes none"
    return [energy_row("cpu:0", None, status="unavailable", reason=reason)]


def energy_row(device: str, joules: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "device": device,
        "kind": device.split(":")[0],
        "uuid": None,
        "energy_j": joules,
        "status": "measured",
        "method": "counter difference",
        "reason": None,
        **changes,
    }


def ok_record(run: str, a_spec: spec.RunSpec) -> dict[str, Any]:
    """What a run that went well would have written; the seed's part of the noise is shared by all cells."""
    own, seed = random.Random(run), random.Random(a_spec.repeat)
    speed = {"single": 1.0, "dp": 1.2, "ddp": 1.7}[a_spec.strategy] * (1.3 if "16" in a_spec.precision else 1.0)
    noise = seed.gauss(0, 0.05) + own.gauss(0, 0.01)
    window_s = 30 / speed * (16 / a_spec.global_batch_size) ** 0.4 * (1 + noise)
    loss = 3.4 + 0.002 * a_spec.global_batch_size + seed.gauss(0, 0.03) + own.gauss(0, 0.004)
    cpu_s = window_s * a_spec.devices * 0.97
    epochs = [
        {
            "epoch": epoch,
            "elapsed_s": window_s * epoch / 3,
            "cpu_s": cpu_s * epoch / 3,
            "num_steps": epoch * 40,
            "train_loss": None if epoch == 0 else loss + 0.6 / epoch,
            "validation_loss": loss + (1.2 if epoch == 0 else 0.3 / epoch - 0.1),
            "perplexity": 30.0,
            "masked_accuracy": 0.3 + 0.05 * epoch,
        }
        for epoch in range(4)
    ]
    rss = int((600 + 2 * a_spec.global_batch_size) * 2**20 * a_spec.devices * (1 + own.gauss(0, 0.01)))
    measurement = {
        "window_s": window_s,
        "cpu_s": cpu_s,
        "energy": no_meter(),
        "peak_memory": {"gpu_allocated_bytes": None, "gpu_reserved_bytes": None, "host_rss_bytes": rss},
        "num_steps": 120,
        "num_skipped_steps": 0,
        "num_texts": 6000,
        "num_tokens": 70000,
        "num_padded_tokens": 80000,
        "samples_per_s": 6000 / window_s,
        "tokens_per_s": 70000 / window_s,
        "padded_tokens_per_s": 80000 / window_s,
        "epochs_per_minute": 180 / window_s,
        "startup_s": 2.5,
    }
    quality = {
        "validation_loss": epochs[-1]["validation_loss"],
        "perplexity": 28.5,
        "masked_accuracy": 0.45,
        "num_validation_texts": 600,
        "num_masked": 1100,
    }
    return {
        "format": record.FORMAT,
        "version": record.VERSION,
        "run": run,
        "status": "ok",
        "reason": None,
        "oom_bytes": None,
        "spec": spec.full(a_spec),
        "code_digest": "c0de" * 16,
        "inputs": {"model": None, "tokens": None},
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00",
        "environment": environment(),
        "measurement": measurement,
        "quality": quality,
        "epochs": epochs,
    }


def failed(row: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    """The same run, had it not gone well."""
    nothing = {"measurement": None, "quality": None, "epochs": []}
    return {**row, **nothing, "status": status, "reason": reason, "oom_bytes": 2**31 if status == "oom" else None}


def measured(row: dict[str, Any], watts: float = 50.0) -> dict[str, Any]:
    """The same run on a machine with a meter."""
    rows = [energy_row("cpu:0", watts * row["measurement"]["window_s"])]
    return {**row, "measurement": {**row["measurement"], "energy": rows}}


def write_sweep(
    folder: Path,
    raw: dict[str, Any],
    change: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda row: row,
) -> tuple[dict[str, Any], Path]:
    """Write grid.json and a record for every run; `change` edits a record or returns None to leave it out.

    Returns:
        The manifest and the folder of the runs.
    """
    validated = config.validate(raw)
    manifest = grid.manifest(validated)
    record.write_json(folder / "grid.json", manifest)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for run, a_spec in grid.expand(validated).runs.items():
        row = change(ok_record(run, a_spec))
        if row is not None:
            record.write_json(runs / run / "record.json", row)
    return manifest, runs
