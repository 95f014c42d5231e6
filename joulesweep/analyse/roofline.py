"""How close a run gets to the hardware limit: useful FLOPs, model FLOPs utilisation, distance to the floor.

    useful_flops       of training on real tokens and their predictions: no padding, nothing computed twice
    executed_flops     all computed: with padding, recomputed activations, and the rating of tensors
    rating_flops       the part of them that a method spent on rating tensors
    padded_macs        multiply-adds of training with padding, without recomputing and rating: half its FLOPs. Papers
                       that count padded positions call this FLOPs
    padded_flop_share  1 - useful / (executed without recomputing and rating)
    mfu                useful_flops / (seconds × devices × peak rate of the precision)
    floor_distance     t_floor / seconds: near 1, there is little left to gain

    t_floor = useful_flops / (peak rate × devices) + steps × bytes_per_step / memory bandwidth
    (both over the training phases)

t_floor estimates the least possible time. Its two terms are added, since AdamW moves its state after the backward pass
and computes almost nothing meanwhile. With their maximum, small and large batches would both look up to twice as far
from the floor. A run that overlaps the two, or whose state stays in a cache, can be faster than t_floor.
Peak rates come from `resources/gpus.csv`; a GPU that is not listed has no floor. The counts come from the record.
Standard library only.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from joulesweep.axes.precision import PRECISIONS
from joulesweep.core.outcome import BoardIdentity, Measurement, Phase
from joulesweep.core.places import RESOURCES
from joulesweep.core.work import COMPUTED, UNITS, USEFUL
from joulesweep.runs.record import RunRecord

GPU_FILE = RESOURCES / "gpus.csv"
RATE = "_tflops"  # suffix of the columns of peak rates
#: Tolerance between NVML's bytes and the nominal size of memory: error correction takes a sixteenth of GDDR.
MEMORY_TOLERANCE = 0.1
UNCOUNTED = "the record was written before FLOPs were counted"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A row of `resources/gpus.csv`.

    Attributes:
        name: NVML's, without its maker.
        memory_gib: nominal size of its memory.
        flops_per_s: peak rate of dense matrix products by format; None if it does not exist or is unknown.
        bytes_per_s: peak bandwidth of its memory.
        status: "verified" if the numbers were read in a copy of the source, else "recalled"; or "unsupported: " and
            why.
        source: of the numbers.
    """

    name: str
    memory_gib: float
    flops_per_s: dict[str, float | None]
    bytes_per_s: float | None
    status: str
    source: str


@functools.cache
def gpus() -> dict[tuple[str, float], Gpu]:
    """The rows of `resources/gpus.csv`, by name and size of memory."""
    lines = GPU_FILE.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    boards = [
        Gpu(
            name=row["name"],
            memory_gib=float(row["memory_gib"]),
            flops_per_s={
                name.removesuffix(RATE): _number(text, 1e12) for name, text in row.items() if name.endswith(RATE)
            },
            bytes_per_s=_number(row["bandwidth_gb_per_s"], 1e9),
            status=row["status"],
            source=row["source"],
        )
        for row in rows
    ]
    return {(gpu.name, gpu.memory_gib): gpu for gpu in boards}


def _number(text: str, unit: float) -> float | None:
    return float(text) * unit if text else None


def find(name: str, memory_bytes: int | None) -> Gpu | None:
    """The row of a board, or None.

    The whole name must match, apart from a leading "NVIDIA ", which older drivers leave out: part of a name would
    confuse an A10 with an A100. Boards of one name differ in memory, and a slice of a board has less of it.
    """
    if memory_bytes is None:
        return None
    size = memory_bytes / 2**30
    same_name = [gpu for gpu in gpus().values() if gpu.name == name.removeprefix("NVIDIA ")]
    return next((gpu for gpu in same_name if abs(size / gpu.memory_gib - 1) <= MEMORY_TOLERANCE), None)


def totals(phases: Sequence[Phase]) -> dict[str, float]:
    """Work of one pass: useful_flops, executed_flops, rating_flops, padded_macs, padded_flop_share.

    Args:
        phases: of a measurement.
    """
    trained = [phase for phase in phases if phase.kind == "training"]
    useful, computed = (sum(flops(phase, which) for phase in trained) for which in (USEFUL, COMPUTED))
    repeated = sum(recomputed(phase, COMPUTED) for phase in trained)
    rated = [phase for phase in phases if phase.kind == "rating"]
    rating = sum(flops(phase, COMPUTED) + recomputed(phase, COMPUTED) for phase in rated)
    return {
        "useful_flops": useful,
        "executed_flops": computed + repeated + rating,
        "rating_flops": rating,
        "padded_macs": computed / 2,
        "padded_flop_share": 1 - useful / computed,
    }


def recomputed(phase: Phase, which: int) -> float:
    """FLOPs that checkpointing adds to a phase, for its `USEFUL` or `COMPUTED` counts."""
    return flops(phase, which, "recomputed_")


def flops(phase: Phase, which: int, prefix: str = "") -> float:
    """FLOPs of a phase, which must be known, for its `USEFUL` or `COMPUTED` counts."""
    coefficients = phase.flop_coefficients or {}
    return sum(
        float(coefficients.get(prefix + unit, 0.0)) * float(getattr(phase, counts[which]))
        for unit, counts in UNITS.items()
    )


def floor_s(flops: float, num_bytes: float, flops_per_s: float, bytes_per_s: float) -> float:
    """Estimated least seconds: compute at peak rate plus memory traffic at peak bandwidth."""
    return flops / flops_per_s + num_bytes / bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A run's columns of the runs table: the quantities that the module's docstring defines, and reasons for nulls.

    Attributes:
        flop_reason: why its FLOPs are unknown, or None.
        floor_reason: why mfu and floor_distance are null, or None.
        bytes_per_step: also null if phases differ.
        peak_status: status of the peak rates, as in `Gpu.status`.
    """

    useful_flops: float | None = None
    executed_flops: float | None = None
    rating_flops: float | None = None
    padded_macs: float | None = None
    padded_flop_share: float | None = None
    bytes_per_step: int | None = None
    flop_reason: str | None = None
    mfu: float | None = None
    floor_distance: float | None = None
    floor_reason: str | None = None
    peak_status: str | None = None


def columns(record: RunRecord, measured: Measurement) -> Roofline:
    """A finished run's columns of the runs table.

    Args:
        record: of the run.
        measured: its measurement.
    """
    phases = measured.phases
    if phases is None:
        return Roofline(flop_reason=UNCOUNTED, floor_reason=UNCOUNTED)
    spec, boards = record.spec, record.environment.gpus
    return roofline(spec.precision, spec.devices, spec.accelerator, boards, measured.window_s, phases)


def roofline(
    precision: str,
    num_devices: int,
    accelerator: str,
    boards: Sequence[BoardIdentity],
    window_s: float,
    phases: Sequence[Phase],
) -> Roofline:
    """How close a training gets to the limit of its boards.

    Args:
        precision: a row of `precision.PRECISIONS`.
        num_devices: number that it computed on.
        accelerator: "cuda" or "cpu".
        boards: of the run.
        window_s: seconds of a pass.
        phases: of the pass.
    """
    reason = next((phase.flop_reason for phase in phases if phase.flop_reason), None)
    if reason is not None:
        return Roofline(flop_reason=reason, floor_reason=reason)
    work, trained = totals(phases), [phase for phase in phases if phase.kind == "training"]
    moved = {phase.bytes_per_step for phase in trained}
    counted = Roofline(**work, bytes_per_step=moved.pop() if len(moved) == 1 else None)  # type: ignore[arg-type]
    gpu, reason = _gpu(accelerator, boards)
    if gpu is None:
        return replace(counted, floor_reason=reason)
    if gpu.status.startswith("unsupported"):
        return replace(counted, floor_reason=f"{gpu.name} is {gpu.status}")
    rate = PRECISIONS[precision].peak_rate
    flops_per_s, bytes_per_s = gpu.flops_per_s.get(rate), gpu.bytes_per_s
    if flops_per_s is None or bytes_per_s is None:
        return replace(counted, floor_reason=f"resources/gpus.csv has no {rate} rate of {gpu.name}")
    flops_per_s *= num_devices
    num_bytes = sum(phase.num_steps * (phase.bytes_per_step or 0) for phase in trained)
    return replace(
        counted,
        mfu=work["useful_flops"] / (window_s * flops_per_s),
        floor_distance=floor_s(work["useful_flops"], num_bytes, flops_per_s, bytes_per_s) / window_s,
        peak_status=gpu.status,
    )


def _gpu(accelerator: str, boards: Sequence[BoardIdentity]) -> tuple[Gpu | None, str | None]:
    """The kind of board that computed, or why it is unknown."""
    if accelerator != "cuda":
        return None, "peak rates are known of GPUs only; this run used the CPU"
    kinds = {(board.name, board.memory_bytes) for board in boards}
    if len({name for name, _ in kinds}) != 1:
        return None, "the boards of the run are not of one kind" if kinds else "the record names no GPU"
    rows = [find(*kind) for kind in kinds]
    if None in rows or any(row is not rows[0] for row in rows):
        name = boards[0].name
        sizes = ", ".join(sorted(f"{size / 2**30:.3g} GiB" for _, size in kinds if size is not None))
        return None, f"resources/gpus.csv does not know {name}" + (f" with {sizes}" if sizes else "")
    return rows[0], None
