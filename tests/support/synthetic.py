"""A finished sweep without training: genuine grid and ids, seeded random numbers in the records."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import TypeAdapter

from joulesweep.analyse.tables import Tables
from joulesweep.core import files, spec
from joulesweep.core.work import UNITS
from joulesweep.plan import config, grid
from joulesweep.runs import record

T = TypeVar("T")
LOCAL = {"local": "some/folder"}
#: Of a BERT with 2 layers, 128 wide, as `flops.model_work` would give it.
WORK: dict[str, Any] = {
    "flop_coefficients": {
        "token": 2359296.0,
        "head_position": 23539200.0,
        "token_pair": 3072.0,
        "recomputed_token": 0.0,
        "recomputed_token_pair": 0.0,
    },
    "bytes_per_step": 177_000_000,
    "flop_reason": None,
}


#: Tensors of that model, from the output to the input.
TENSORS = (
    "cls.predictions.bias",
    *(f"cls.predictions.transform.{part}.{kind}" for part in ("LayerNorm", "dense") for kind in ("bias", "weight")),
    *(
        f"bert.encoder.layer.{layer}.{part}.{kind}"
        for layer in (1, 0)
        for part in (
            *("output.LayerNorm", "output.dense", "intermediate.dense"),
            *("attention.output.LayerNorm", "attention.output.dense"),
            *(f"attention.self.{part}" for part in ("value", "key", "query")),
        )
        for kind in ("bias", "weight")
    ),
    *(f"bert.embeddings.LayerNorm.{kind}" for kind in ("bias", "weight")),
    *(f"bert.embeddings.{part}_embeddings.weight" for part in ("token_type", "position", "word")),
)


#: What the texts of a run count.
TEXT_COUNTS = {
    "num_words": 40_000,
    "num_characters": 240_000,
    "num_pieces": 60_000,
    "num_validation_characters": 24_000,
    "num_validation_pieces": 6_000,
}


def typed(kind: type[T], row: Any) -> T:
    """What the analysis makes of JSON."""
    return TypeAdapter(kind).validate_json(json.dumps(row))


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
    return [energy_row("cpu:0", None, status="unavailable", method=None, reason=reason)]


def energy_row(device: str, joules: float | None, num_passes: int = 1, **changes: Any) -> dict[str, Any]:
    """A device's row of a measurement; joules per pass."""
    return {
        "device": device,
        "kind": device.split(":")[0],
        "uuid": None,
        "energy_j": joules,
        "total_energy_j": None if joules is None else joules * num_passes,
        "status": "measured",
        "method": "counter difference",
        "reason": None,
        "tick_s": None if joules is None else 0.1,
        "idle_w": None,
        "net_energy_j": None,
        "mean_power_w": None,
        "power_ratio": None,
        "error_j": None if joules is None else 0.01 * joules,
        "doubt": None,
        **changes,
    }


def board(index: int) -> dict[str, Any]:
    """A board as a record's environment has it."""
    return {"index": index, "name": "NVIDIA H200", "uuid": f"GPU-{index}", "memory_bytes": 141 * 2**30}


def conditions(**changes: Any) -> dict[str, Any]:
    """The conditions of a run without boards."""
    return {
        "boards": [],
        "cooldown_s": None,
        "settled": None,
        "idle_s": 0.0,
        "exclusive": "node",
        "window_begin": "2026-01-02T03:04:10.000+00:00",
        "window_end": "2026-01-02T03:04:40.000+00:00",
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
            "choice_accuracy": None,
            "energy": [],
        }
        for epoch in range(4)
    ]
    rss = int((600 + 2 * a_spec.global_batch_size) * 2**20 * a_spec.devices * (1 + own.gauss(0, 0.01)))
    measurement = {
        "window_s": window_s,
        "num_passes": 1,
        "total_window_s": window_s,
        "cpu_s": cpu_s,
        "energy": no_meter(),
        "peak_memory": {"gpu_allocated_bytes": None, "gpu_reserved_bytes": None, "host_rss_bytes": rss},
        "num_steps": 120,
        "num_skipped_steps": 0,
        "num_texts": 6000,
        "num_tokens": 70000,
        "num_padded_tokens": 80000,
        "num_predicted": 10500,
        "num_head_positions": 10560,
        "num_token_pairs": 70000 * 13,
        "num_padded_token_pairs": 80000 * 16,
        **dict.fromkeys([*UNITS["target_token"], *UNITS["target_pair"], *UNITS["cross_pair"]], 0),
        "samples_per_s": 6000 / window_s,
        "tokens_per_s": 70000 / window_s,
        "padded_tokens_per_s": 80000 / window_s,
        "epochs_per_minute": 180 / window_s,
        "startup_s": 2.5,
        "flags": [],
        "conditions": conditions(),
        "overhead": overhead(),
    }
    counts = {name: value for name, value in measurement.items() if name.startswith("num_") and name != "num_passes"}
    measurement["phases"] = [{"kind": "training", "epoch": 1, "elapsed_s": window_s, **counts, **WORK}]
    quality = {
        "validation_loss": epochs[-1]["validation_loss"],
        "perplexity": 28.5,
        "masked_accuracy": 0.45,
        "choice_accuracy": None,
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


def overhead(**changes: Any) -> dict[str, Any]:
    """What measuring cost, and joules of the whole run that nobody read."""
    nothing = {"meter_s": 0.002, "trace_cpu_s": 0.01, "num_samples": 0, "whole_run_s": None, "whole_run_energy": []}
    return {**nothing, **changes}


def with_energy(row: dict[str, Any], *rows: dict[str, Any]) -> dict[str, Any]:
    """The same run with these energy rows."""
    return {**row, "measurement": {**row["measurement"], "energy": list(rows)}}


def measured(row: dict[str, Any], watts: float = 50.0) -> dict[str, Any]:
    """The same run on a machine with a meter."""
    return with_energy(row, energy_row("cpu:0", watts * row["measurement"]["window_s"]))


START_S = 20.0  # from the begin of a run on boards to its window: they idle so long
GPU_CONFIG: dict[str, Any] = {"hardware": {"accelerator": "cuda"}, "energy": {}}


def on_gpus(row: dict[str, Any], watts: float = 350.0, idle_w: float = 90.0, **changes: Any) -> dict[str, Any]:
    """The same run on boards with counters, repeated until its window has 30 s; CPU and DRAM are not readable.

    Args:
        row: the run's record, whose spec says how many boards.
        watts: of each board while it trains.
        idle_w: of each board before.
        changes: to every energy row.
    """
    measurement, devices = row["measurement"], range(row["spec"]["devices"])
    window_s = measurement["window_s"]
    num_passes = max(1, math.ceil(30 / window_s))
    noise = {index: 1 + random.Random(f"{row['run']} {index}").gauss(0, 0.01) for index in devices}
    watts *= 1.15 if row["spec"]["precision"] == "fp32" else 1.0
    energy = [
        energy_row(
            f"gpu:{index}",
            watts * noise[index] * window_s,
            num_passes,
            uuid=f"GPU-{index}",
            method="Zeus: NVML energy counter",
            idle_w=idle_w,
            net_energy_j=(watts * noise[index] - idle_w) * window_s,
            mean_power_w=watts,
            power_ratio=1 / noise[index],
        )
        for index in devices
    ]
    energy = [{**one, **changes} for one in energy] + no_meter()
    joules = sum(one["energy_j"] or 0.0 for one in energy)
    whole = [
        {"device": one["device"], "energy_j": one["total_energy_j"] + idle_w * START_S, "reason": None}
        for one in energy
        if one["total_energy_j"] is not None
    ]
    memory = {"gpu_allocated_bytes": 3 * 2**30, "gpu_reserved_bytes": 4 * 2**30}
    measurement = {
        **measurement,
        "num_passes": num_passes,
        "total_window_s": num_passes * window_s,
        "energy": energy,
        "peak_memory": {**measurement["peak_memory"], **memory},
        "overhead": overhead(whole_run_s=num_passes * window_s + START_S, whole_run_energy=whole),
        "conditions": conditions(
            boards=[board_state(index) for index in devices],
            cooldown_s=12.0,
            settled=True,
            idle_s=5.0,
            exclusive="gpu",
            window_end="2026-01-02T03:04:45.000+00:00",
        ),
    }
    epochs = [
        {**epoch, "energy": [epoch_row(index, epoch["epoch"], joules / len(devices)) for index in devices]}
        for epoch in row["epochs"]
    ]
    environment_ = environment(gpus=[board(index) for index in devices], driver="570.86")
    return {**row, "environment": environment_, "measurement": measurement, "epochs": epochs}


def epoch_row(index: int, epoch: int, joules: float) -> dict[str, Any]:
    """A board's joules up to the end of an epoch of three."""
    if not epoch or not joules:
        reason = "no joules" if epoch else "nothing trained yet"
        return {"device": f"gpu:{index}", "energy_j": None, "status": "unavailable", "reason": reason}
    return {"device": f"gpu:{index}", "energy_j": joules * epoch / 3, "status": "integrated", "reason": None}


def board_state(index: int, **changes: Any) -> dict[str, Any]:
    """A board in the conditions of a run."""
    return {
        "device": f"gpu:{index}",
        "uuid": f"GPU-{index}",
        "temperature_start_c": 35.0 + index,
        "temperature_end_c": 61.0 + index,
        "sm_clock_mean_mhz": 1935.0 + 10 * index,
        "sm_clock_min_mhz": 1900.0,
        "power_limit_w": 700.0,
        "throttle_reasons": [],
        **changes,
    }


def choosing(row: dict[str, Any], epochs: tuple[int, ...] = (1, 3), **changes: Any) -> dict[str, Any]:
    """The same run; a method with a budget chose tensors before these epochs, and each choice cost 1 % too much.

    Args:
        row: the run's record; that of another method is left as it is.
        epochs: before which tensors were rated and chosen.
        changes: to every phase with a choice.
    """
    rho = row["spec"]["method_params"].get("rho")
    if rho is None:
        return row
    (whole,) = row["measurement"]["phases"]
    counts = {key: value // len(epochs) for key, value in whole.items() if key.startswith("num_")}
    phases = []
    for epoch in epochs:
        own = random.Random(f"{row['run']} {epoch}")
        # The more of it fits, the nearer to the output.
        chosen = [name for k, name in enumerate(TENSORS) if own.random() < rho * (1.4 - k / len(TENSORS))]
        predicted = rho * (1 - own.random() / 100)
        work = {unit: 1.01 * predicted * flops for unit, flops in WORK["flop_coefficients"].items()}
        phase = {
            **whole,
            **counts,
            "epoch": epoch,
            "elapsed_s": 3.0,
            "chosen": chosen,
            "candidates": list(TENSORS),
            "num_candidates": len(TENSORS),
            "trained_share": rho / 2,
            "importance_share": 0.8,
            "objective": "flops",
            "rho": rho,
            "predicted_cost": predicted,
            "floor": 0.35,
            "gap": 0.002 * own.random(),
            "rates": None,
            "flop_coefficients": work,
            **changes,
        }
        rating = {"kind": "rating", "epoch": epoch, "elapsed_s": 0.25}
        phases += [{**whole, **dict.fromkeys(counts, 100), **rating}, phase]
    return {**row, "measurement": {**row["measurement"], "phases": phases}}


#: A grid in which two methods choose tensors and one does not.
METHODS: dict[str, Any] = {
    "method": ["full", {"greentrainer": {"rho": 0.5}}, {"random": {"rho": 0.5}}],
    "strategy": ["single"],
    "precision": ["fp32"],
    "batch_size": [32],
}


def flagged(row: dict[str, Any], flag: str, text: str) -> dict[str, Any]:
    """The same run with one flag more."""
    flags = [*row["measurement"]["flags"], {"flag": flag, "text": text}]
    return {**row, "measurement": {**row["measurement"], "flags": flags}}


def trace(row: dict[str, Any], step_s: float = 0.5) -> list[dict[str, Any]]:
    """A power trace as a run writes it: idle, a ramp, the window, idle again."""
    total_s = row["measurement"]["total_window_s"]
    noise, rows = random.Random(row["run"]), []
    for one in row["measurement"]["energy"]:
        for i in range(-int(5 / step_s), int(total_s / step_s) + 20):
            t_s = i * step_s
            busy = 0 <= t_s <= total_s
            power_w = (one["mean_power_w"] or 20.0) * (1 - 0.3 * math.exp(-t_s)) if busy else 90.0
            spread = noise.gauss(0, 0.02 * power_w)
            if one["kind"] == "gpu":
                rows.append({"t_s": t_s, "device": one["device"], "power_w": power_w + spread, "energy_j": None})
    return rows


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
    files.write_json(folder / "grid.json", manifest)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for run, a_spec in grid.expand(validated).runs.items():
        row = change(ok_record(run, a_spec))
        if row is not None:
            files.write_json(runs / run / "record.json", row)
        if row is not None and row["status"] == "ok":
            files.write_lines(runs / run / "power.jsonl", trace(row))
    return manifest, runs


def write_anchors(
    sweep: tuple[dict[str, Any], Path],
    folder: Path,
    day: str,
    number: int,
    factor: float,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
) -> list[Path]:
    """Measure the first runs of a written sweep again: every time and joule is `factor` times the first day's."""
    manifest, runs = sweep
    paths = []
    for run in list(manifest["runs"])[:number]:
        row = files.read_json(runs / run / "record.json", "record")
        measurement = dict(row["measurement"])
        for key in ("window_s", "total_window_s"):
            measurement[key] *= factor
        measurement["energy"] = [
            {**one, **{key: one[key] and factor * one[key] for key in ("energy_j", "total_energy_j")}}
            for one in measurement["energy"]
        ]
        paths.append(folder / "anchors" / day / run / "record.json")
        files.write_json(paths[-1], change({**row, "measurement": measurement}))
    return paths


def replaced(tables: Tables, **frames: pl.DataFrame) -> Tables:
    """The same tables with others in place of some."""
    return dataclasses.replace(tables, **frames)
