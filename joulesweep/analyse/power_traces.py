"""Collect the power traces of a sweep, each run's `power.jsonl`, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from joulesweep.analyse.columns import POWER
from joulesweep.analyse.tables import DTYPES, LARGEST, frame
from joulesweep.core.errors import Corrupt

FILE = "power.jsonl"
SAMPLE = {key: DTYPES[POWER[key].dtype] for key in ("t_s", "device", "power_w")}


def tabulate(runs: pl.DataFrame, traces: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Build the power table of the ok runs; a run without a trace has no rows.

    Args:
        runs: the runs table.
        traces: results of `read`, by run.
    """
    parts = [frame([], POWER)]
    ok = runs.filter(pl.col("status") == "ok").with_columns(window_s=pl.col("total_window_s"))
    for run in ok.iter_rows(named=True):
        if run["run"] in traces:
            of_run = [pl.lit(run[key], DTYPES[POWER[key].dtype]).alias(key) for key in POWER if key not in SAMPLE]
            parts.append(traces[run["run"]].with_columns(of_run).select(*POWER))
    return pl.concat(parts, rechunk=True)


def read(folder: Path) -> pl.DataFrame | None:
    """Read a run's trace, with the columns `SAMPLE`; None if the run has no trace.

    Raises:
        Corrupt: a line is not a sample.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        trace = pl.read_ndjson(path, schema=SAMPLE)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise Corrupt(path, f"corrupt power trace: {error}") from None
    if trace["t_s"].null_count() or trace["device"].null_count():
        raise Corrupt(path, "corrupt power trace: a row without t_s or device")
    if len(trace.filter(pl.any_horizontal(pl.col("t_s", "power_w").abs() > LARGEST))):
        raise Corrupt(path, "corrupt power trace: a number that cannot be")
    return trace
