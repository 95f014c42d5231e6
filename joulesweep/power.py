"""The power traces of a sweep, from each run's `power.jsonl` to one table."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from joulesweep.errors import UserError
from joulesweep.tables import POWER, frame

SAMPLE = {key: POWER[key] for key in ("t_s", "device", "power_w")}


def tabulate(runs: pl.DataFrame, runs_folder: Path) -> pl.DataFrame:
    """The power table of the runs that are ok; a run without a trace has no rows.

    Args:
        runs: the runs table.
        runs_folder: holds one folder per run.

    Raises:
        UserError: a trace is corrupt; the line names the file.
    """
    parts = [frame([], POWER)]
    ok = runs.filter(pl.col("status") == "ok").with_columns(window_s=pl.col("total_window_s"))
    for run in ok.iter_rows(named=True):
        path = runs_folder / run["run"] / "power.jsonl"
        if path.exists():
            same = [pl.lit(run[key], dtype).alias(key) for key, dtype in POWER.items() if key not in SAMPLE]
            parts.append(_read(path).with_columns(same).select(*POWER))
    return pl.concat(parts, rechunk=True)


def _read(path: Path) -> pl.DataFrame:
    try:
        found = pl.read_ndjson(path, schema=SAMPLE)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: corrupt power trace: {str(error).splitlines()[0]}") from None
    if found["t_s"].null_count() or found["device"].null_count():
        raise UserError(f"{path}: corrupt power trace: a row without t_s or device")
    return found
