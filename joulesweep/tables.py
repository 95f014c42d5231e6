"""The tables of a sweep: their columns, and how they are written and read.

Missing is null, never 0 or NaN. Every column has one dtype, whatever the sweep holds. Estimated joules have columns of
their own.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from joulesweep.errors import UserError, brief_repr
from joulesweep.units import COUNTED

LARGEST = 1e300  # of all numbers: what is made from them is finite as well
#: A number whose name has such an end cannot be negative.
COUNTS = ("_s", "_j", "_w", "_bytes", "_flops", "_macs", "loss", "perplexity", "accuracy")
TEXT, WHOLE, REAL, FLAG, TEXTS = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean(), pl.List(pl.String())
PYTHON_TYPES: dict[pl.DataType, tuple[type, ...]] = {
    TEXT: (str,),
    WHOLE: (int,),
    REAL: (int, float),
    FLAG: (bool,),
    TEXTS: (list,),
}


def _columns(dtype: pl.DataType, names: str) -> dict[str, pl.DataType]:
    return dict.fromkeys(names.split(), dtype)


#: What names a cell. `setup` is its label without the batch size; cells of one `panel` may be compared.
IDENTITY: dict[str, pl.DataType] = {
    **_columns(TEXT, "cell name label setup panel model dataset task method method_params strategy"),
    **_columns(WHOLE, "devices"),
    **_columns(TEXT, "precision batching head engine"),
    **_columns(WHOLE, "batch_size"),
    **_columns(TEXT, "batch_size_scope batch"),
    **_columns(WHOLE, "micro_batch_size"),
    **_columns(FLAG, "checkpoint_activations"),
    **_columns(REAL, "lr max_grad_norm"),
}
ESTIMATED = _columns(REAL, "estimated_energy_j estimated_energy_low_j estimated_energy_high_j")
QUALITY = _columns(REAL, "validation_loss perplexity masked_accuracy choice_accuracy")
ROUGE = _columns(REAL, "rouge1 rouge2 rougeL")  # F-measures in 0..1
RUNS: dict[str, pl.DataType] = {
    **_columns(TEXT, "run"),
    **IDENTITY,
    **_columns(WHOLE, "repeat"),
    **_columns(TEXT, "status reason"),
    **_columns(WHOLE, "oom_bytes"),
    **_columns(TEXT, "started finished"),
    **_columns(REAL, "window_s startup_s cpu_s"),
    **_columns(REAL, "energy_j energy_error_j net_energy_j"),
    **_columns(TEXT, "energy_scope energy_status energy_method energy_reason energy_doubt"),
    **_columns(REAL, "energy_tick_s idle_w power_ratio co2e_g cost"),
    **ESTIMATED,
    **_columns(REAL, "estimated_co2e_g"),
    **_columns(TEXT, "estimated_energy_method"),
    **_columns(WHOLE, "num_passes"),
    **_columns(REAL, "total_window_s total_energy_j meter_overhead_fraction"),
    **_columns(TEXT, "flags flag_texts"),
    **_columns(REAL, "temperature_start_c temperature_end_c sm_clock_mean_mhz power_limit_w"),
    **_columns(TEXT, "throttle_reasons"),
    **_columns(REAL, "cooldown_s idle_s"),
    **_columns(FLAG, "settled"),
    **_columns(TEXT, "exclusive window_begin window_end"),
    **_columns(WHOLE, "peak_gpu_allocated_bytes peak_gpu_reserved_bytes peak_host_rss_bytes"),
    **_columns(WHOLE, "num_steps num_skipped_steps"),
    **dict.fromkeys(COUNTED, WHOLE),
    **_columns(WHOLE, "bytes_per_step"),
    **_columns(REAL, "samples_per_s tokens_per_s padded_tokens_per_s epochs_per_minute"),
    **_columns(REAL, "useful_flops executed_flops rating_flops padded_macs padded_flop_share useful_flops_per_j"),
    **_columns(TEXT, "flop_reason"),
    **_columns(REAL, "mfu floor_distance"),
    **_columns(TEXT, "floor_reason peak_status"),
    **QUALITY,
    **ROUGE,
    **_columns(WHOLE, "num_validation_texts num_masked num_summaries"),
    **_columns(TEXT, "environment accelerator hostname platform python cpu_model"),
    **_columns(WHOLE, "cpu_cores host_memory_bytes"),
    **_columns(TEXT, "gpus gpu_uuids driver torch_version transformers_version zeus_version"),
    **_columns(WHOLE, "threads_per_process"),
    **_columns(TEXT, "certificate certificate_reason"),
    **_columns(TEXT, "code_digest accepted_codes accepted_reasons git_commit"),
    **_columns(FLAG, "git_dirty"),
}
#: What names a run in the tables beside `runs`.
RUN_NAME = _columns(TEXT, "run name setup panel batch")
EPOCHS: dict[str, pl.DataType] = {
    **_columns(TEXT, "run cell name setup panel batch environment"),
    **_columns(WHOLE, "batch_size repeat epoch"),
    **_columns(REAL, "elapsed_s cpu_s"),
    **_columns(WHOLE, "num_steps"),
    **_columns(REAL, "train_loss"),
    **QUALITY,
    **_columns(REAL, "energy_j"),
    **_columns(TEXT, "energy_scope energy_status energy_reason"),
    **ESTIMATED,
}
SELECTIONS: dict[str, pl.DataType] = {
    **_columns(TEXT, "run cell name setup panel batch environment"),
    **_columns(WHOLE, "batch_size repeat epoch num_chosen num_candidates"),
    **_columns(REAL, "trained_share importance_share gap"),
    **_columns(TEXT, "objective"),
    **_columns(REAL, "rho floor predicted_cost counted_cost"),
    **_columns(TEXT, "cost_reason"),
    **_columns(REAL, "rating_s step_s"),
    **_columns(TEXTS, "chosen candidates"),
}
DEVICES: dict[str, pl.DataType] = {
    **RUN_NAME,
    **_columns(WHOLE, "batch_size repeat"),
    **_columns(TEXT, "device kind uuid status method reason doubt idle_reason net_reason ratio_reason power_method"),
    **_columns(TEXT, "certificate certificate_made certificate_holds certificate_fails certificate_not_tried"),
    **_columns(TEXT, "certificate_reason"),
    **_columns(REAL, "energy_j error_j total_energy_j net_energy_j idle_w tick_s mean_power_w power_ratio"),
    **_columns(REAL, "whole_run_energy_j"),
    **_columns(TEXT, "whole_run_reason"),
    **_columns(FLAG, "in_scope"),
}
POWER: dict[str, pl.DataType] = {
    **RUN_NAME,
    **_columns(WHOLE, "batch_size repeat"),
    **_columns(TEXT, "device"),
    **_columns(REAL, "t_s power_w window_s"),
}
UNREADABLE = "unreadable"  # status of a run or an anchor whose record cannot be read; no record has it
ANCHORS: dict[str, pl.DataType] = {
    **_columns(TEXT, "day run name panel status"),
    **_columns(REAL, "window_s energy_j anchor_window_s anchor_energy_j anchor_total_energy_j"),
    **_columns(TEXT, "anchor_energy_status anchor_energy_scope"),
    **_columns(REAL, "window_ratio energy_ratio"),
    **_columns(FLAG, "same_environment same_code same_scope"),
}
#: Each gets `_mean`, `_low` and `_high` in the cells: mean and 95 % t interval over repeats.
QUANTITIES = (
    "window_s",
    "cpu_s",
    "energy_j",
    "net_energy_j",
    "co2e_g",
    "cost",
    "peak_gpu_allocated_bytes",
    "peak_gpu_reserved_bytes",
    "peak_host_rss_bytes",
    "samples_per_s",
    "tokens_per_s",
    "epochs_per_minute",
    "useful_flops",
    "executed_flops",
    "padded_flop_share",
    "useful_flops_per_j",
    "mfu",
    "floor_distance",
    *QUALITY,
    *ROUGE,
)
#: Of these, those that are joules or made from them: no mean over different scopes or statuses.
FROM_ENERGY = ("energy_j", "net_energy_j", "co2e_g", "cost", "useful_flops_per_j")
CELLS: dict[str, pl.DataType] = {
    **IDENTITY,
    **_columns(TEXT, "environment"),
    **_columns(WHOLE, "num_ok num_runs"),
    **_columns(TEXT, "statuses"),
    **_columns(WHOLE, "num_flagged"),
    **_columns(TEXT, "flags energy_scope energy_status energy_doubt"),
    **_columns(REAL, "energy_error_j"),
    **{f"{quantity}_{end}": REAL for quantity in QUANTITIES for end in ("mean", "low", "high")},
    **ESTIMATED,
    **_columns(REAL, "estimated_co2e_g"),
    **_columns(TEXT, "baseline"),
    **_columns(FLAG, "is_baseline"),
    **_columns(REAL, "speedup speedup_low speedup_high"),
    **_columns(WHOLE, "speedup_n"),
    **_columns(TEXT, "speedup_verdict"),
}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a sweep.

    Attributes:
        runs: one row per run of the manifest, in its order; columns `RUNS`. Joules are per pass over the training,
            `total_energy_j` is of the whole window.
        cells: one row per cell and environment; columns `CELLS`. A cell with no ok run has one row and nulls.
            `energy_error_j` is the mean of its runs' largest errors, which repeating does not make smaller.
        epochs: one row per ok run and epoch, epoch 0 being the untrained model; columns `EPOCHS`; joules are
            cumulative.
        selections: one row per ok run and choice of tensors, `epoch` being the first one that trained them; columns
            `SELECTIONS`. Tensors are listed from the output to the input. Costs are shares of training all candidates:
            predicted by the method's own model, in FLOPs or in seconds (`objective`), and counted, always in FLOPs.
        devices: one row per ok run and device that was or should have been read; columns `DEVICES`; `in_scope` says
            whether its joules are in the run's; whole_run_energy_j is of start-up, idle baseline, window and scoring.
            `certificate` is the digest of the device's certificate.
        power: the power traces of the ok runs, one row per sample and device; columns `POWER`. t_s counts from the
            begin of the window, which lasts window_s.
        anchors: one row per run that was measured again on a later day; columns `ANCHORS`.
    """

    runs: pl.DataFrame
    cells: pl.DataFrame
    epochs: pl.DataFrame
    selections: pl.DataFrame
    devices: pl.DataFrame
    power: pl.DataFrame
    anchors: pl.DataFrame


NAMES = tuple(field.name for field in fields(Tables))


def write(tables: Tables, folder: Path) -> None:
    """Write every table as `<name>.parquet`, each whole or not at all; equal tables, equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        buffer = io.BytesIO()
        getattr(tables, name).write_parquet(buffer)
        temporary = folder / f".{name}.parquet.{os.getpid()}"
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(folder / f"{name}.parquet")


def read(folder: Path) -> Tables:
    """Read back what `write` wrote.

    Raises:
        UserError: a table is missing or no parquet file.
    """
    frames = {}
    for name in NAMES:
        path = folder / f"{name}.parquet"
        try:
            frames[name] = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{path}: no table of a sweep: {str(error).splitlines()[0]}") from None
    return Tables(**frames)


def check(row: dict[str, Any], schema: dict[str, pl.DataType]) -> dict[str, Any]:
    """Return a row of a table unchanged if its values fit.

    Raises:
        TypeError: a value of another type.
        ValueError: a number that cannot be: NaN, beyond `LARGEST`, or negative where it counts something.
    """
    for key, value in row.items():
        if value is None or key not in schema:
            continue
        if type(value) not in PYTHON_TYPES[schema[key]]:
            raise TypeError(f"{key} is {brief_repr(value)}")
        if schema[key] in (REAL, WHOLE) and not _possible(key, value, LARGEST if schema[key] == REAL else 2**63 - 1):
            raise ValueError(f"{key} is {brief_repr(value)}")
        if schema[key] == TEXT:
            value.encode()  # half a surrogate pair is no text
        if schema[key] == TEXTS and not all(isinstance(text, str) for text in value):
            raise TypeError(f"{key} is {brief_repr(value)}")
    return row


def _possible(key: str, value: float, largest: float) -> bool:
    """Whether a quantity of that name can have the value; NaN compares as false."""
    smallest = 0 if key.endswith(COUNTS) or key.startswith("num_") else -largest
    return smallest <= value <= largest


def frame(rows: list[dict[str, Any]], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """A table with exactly the columns of its schema; a key that a row lacks is null."""
    columns = {key: [row.get(key) for row in rows] for key in schema}
    return pl.DataFrame([pl.Series(key, values, schema[key], strict=False) for key, values in columns.items()])
