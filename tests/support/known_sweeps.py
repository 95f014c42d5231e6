"""Synthetic sweeps whose truth is known: what each change does to joules, seconds, memory and loss."""

from __future__ import annotations

import math
import random
from typing import Any

import synthetic

#: Effects on joules, seconds and the validation loss, as factors; those of batch sizes are over 32 texts.
STRATEGIES = {"single": (1.0, 1.0), "dp": (1.55, 0.87), "ddp": (1.02, 0.54), "fsdp": (1.05, 0.56)}
PRECISIONS = {"fp32": (1.0, 1.0), "fp16-mixed": (0.41, 0.58), "bf16-mixed": (0.40, 0.57)}
METHODS = {"full": (1.0, 1.0), "lora": (0.8, 1.004), "last-k": (0.6, 1.03), "greentrainer": (0.7, 1.008)}
BATCHES = {4: -0.001, 8: 0.0, 16: 0.0, 32: 0.001, 64: 0.009, 128: 0.015, 256: 0.022, 512: 0.04}
BASE_J, BASE_S, BASE_LOSS = 160e3, 1340.0, 2.0
MEMORY = 24 * 2**30

#: One GPU or two, three precisions, five batch sizes: 45 cells, 135 runs.
TWO_GPUS: dict[str, Any] = {
    "model": ["tiny"],
    "strategy": ["single", "dp", "ddp"],
    "precision": ["fp32", "fp16-mixed", "bf16-mixed"],
    "batch_size": [32, 16, 64, 128, 256],
    "repeats": 3,
}
HALF: dict[str, Any] = {
    "method": ["full", {"lora": {"r": 8}}, {"last-k": {"layers": 2}}, {"greentrainer": {"rho": 0.5}}],
    "strategy": ["single", "ddp"],
    "precision": ["fp32", "bf16-mixed"],
    "batch_size": [32, 16, 64, 128, 256],
    "repeats": 6,
}
#: Sweeps by their number of runs: keys of the grid.
BY_SIZE: dict[int, dict[str, Any]] = {
    135: TWO_GPUS,
    480: HALF,
    10_560: {
        **HALF,
        "strategy": ["single", "dp", "ddp"],
        "batch_size": [32, 4, 8, 16, 64, 128, 256, 512],
        "lr": [k * 1e-4 for k in range(1, 12)],
        "repeats": 5,
    },
}


def on_a30(row: dict[str, Any], noise: float = 0.003, name: str = "NVIDIA A30") -> dict[str, Any]:
    """The same run on A30 boards, with the joules, seconds, memory and loss of the truth above.

    Args:
        row: the run's record.
        noise: standard deviation of the logs of loss; joules and seconds have three times as much.
        name: of the boards.
    """
    a_spec, own, seed = row["spec"], random.Random(f"known {row['run']}"), random.Random(row["spec"]["repeat"])
    if (why := _outcome(a_spec, own)) is not None:
        return synthetic.failed(row, *why)
    size = a_spec["batch_size"]
    strategy, precision = STRATEGIES[a_spec["strategy"]], PRECISIONS[a_spec["precision"]]
    method = METHODS[a_spec["method"]]
    smaller = math.log2(size / 32)
    joules = BASE_J * strategy[0] * precision[0] * method[0] * 2 ** (-0.3 * smaller + 0.03 * smaller**2)
    seconds = BASE_S * strategy[1] * precision[1] * method[0] * 2 ** (-0.35 * smaller + 0.04 * smaller**2)
    shared = seed.gauss(0, 1)
    joules *= math.exp(noise * (shared + 2 * own.gauss(0, 1)))
    seconds *= math.exp(noise * (shared + 2 * own.gauss(0, 1)))
    loss = BASE_LOSS * method[1] * (1 + BATCHES[size]) * math.exp(0.01 * seed.gauss(0, 1) + noise * own.gauss(0, 1))
    row = _timed(row, seconds, loss)
    row = synthetic.on_gpus(row, watts=joules / seconds / a_spec["devices"] / 1.0, idle_w=30.0)
    return _on_boards(row, joules, _memory(a_spec), name, own)


def _outcome(a_spec: dict[str, Any], own: random.Random) -> tuple[str, str] | None:
    """Why a run has no numbers; None if it has."""
    if a_spec["precision"] == "fp32" and a_spec["strategy"] == "single" and a_spec["batch_size"] >= 256:
        return "oom", "out of memory: asked for 2.0 GiB"
    if a_spec["precision"] == "fp16-mixed" and a_spec["batch_size"] == 16 and a_spec["repeat"] == 1:
        return "diverged", f"the loss is not finite after step {own.randrange(100, 200)}"
    return None


def _memory(a_spec: dict[str, Any]) -> int:
    share = a_spec["batch_size"] / (1 if a_spec["strategy"] == "single" else 2)
    return int(2.8e9 + share * (4.5e7 if a_spec["precision"] == "fp32" else 2.2e7))


def _timed(row: dict[str, Any], seconds: float, loss: float) -> dict[str, Any]:
    """The run with other seconds and another loss; what is counted per second follows."""
    measurement = row["measurement"]
    factor = measurement["window_s"] / seconds
    rates = {key: measurement[key] * factor for key in measurement if key.endswith(("_per_s", "_per_minute"))}
    times = {"window_s": seconds, "total_window_s": seconds, "cpu_s": seconds * 1.1}
    phases = [{**phase, "elapsed_s": seconds} for phase in measurement["phases"]]
    apart = loss - row["quality"]["validation_loss"]
    epochs = [
        {
            **epoch,
            "elapsed_s": epoch["elapsed_s"] / factor,
            "cpu_s": epoch["cpu_s"] / factor,
            "validation_loss": epoch["validation_loss"] + apart,
        }
        for epoch in row["epochs"]
    ]
    return {
        **row,
        "measurement": {**measurement, **rates, **times, "phases": phases},
        "quality": {**row["quality"], "validation_loss": loss, "perplexity": math.exp(loss)},
        "epochs": epochs,
    }


def _on_boards(row: dict[str, Any], joules: float, memory: int, name: str, own: random.Random) -> dict[str, Any]:
    measurement = row["measurement"]
    boards = [{**board, "name": name, "memory_bytes": MEMORY} for board in row["environment"]["gpus"]]
    read = [one for one in measurement["energy"] if one["energy_j"]]
    factor = joules / sum(one["energy_j"] for one in read)
    energy = [
        {**one, **{key: one[key] * factor for key in JOULES}} if one in read else one for one in measurement["energy"]
    ]
    peak = {**measurement["peak_memory"], "gpu_allocated_bytes": memory, "gpu_reserved_bytes": int(1.1 * memory)}
    row = {
        **row,
        "environment": {**row["environment"], "gpus": boards},
        "measurement": {**measurement, "energy": energy, "peak_memory": peak},
    }
    hot = row["spec"]["strategy"] == "dp" and row["spec"]["batch_size"] >= 128 and row["spec"]["repeat"] == 2
    return synthetic.flagged(row, "throttled", "GPU 0 ran below its clock for 40 s") if hot else row


JOULES = ("energy_j", "total_energy_j", "net_energy_j", "error_j")


def trace(row: dict[str, Any], samples: int = 300) -> list[dict[str, Any]]:
    """The run's power trace: idle, a ramp, the window, idle again.

    Args:
        row: the run's record.
        samples: for each board.
    """
    return synthetic.trace(row, step_s=row["measurement"]["total_window_s"] / samples)


def planted(row: dict[str, Any], seconds: float, watts: float, loss: float, flops: float = 1.0) -> dict[str, Any]:
    """The same run on boards, with planted seconds, watts of all its boards together, loss, and FLOPs.

    Args:
        row: the run's record.
        seconds: of a pass; the run's own noise is 0.3 %, as is that of its seed.
        watts: those of each board have 1 % noise.
        loss: on validation.
        flops: as a multiple of the record's.
    """
    own, seed, a_spec = random.Random(f"planted {row['run']}"), random.Random(row["spec"]["repeat"]), row["spec"]
    row = _timed(
        row, seconds * math.exp(0.003 * (seed.gauss(0, 1) + own.gauss(0, 1))), loss * math.exp(own.gauss(0, 1e-4))
    )
    row = synthetic.on_gpus(row, watts=watts / a_spec["devices"] / (1.15 if a_spec["precision"] == "fp32" else 1.0))
    phases = [
        {**phase, "flop_coefficients": {unit: flops * value for unit, value in phase["flop_coefficients"].items()}}
        for phase in row["measurement"]["phases"]
    ]
    return {**row, "measurement": {**row["measurement"], "phases": phases}}
