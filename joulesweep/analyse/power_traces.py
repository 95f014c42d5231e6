"""Collect the power traces of a sweep, each run's `power.jsonl`, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from joulesweep.analyse.columns import POWER
from joulesweep.analyse.tables import DTYPES, LARGEST
from joulesweep.core.errors import Corrupt

FILE = "power.jsonl"
PLACE, PLACE_TYPE = "place", pl.UInt32()
BLOCK = 16 * 2**20  # bytes that are read at once
SAMPLE = {key: DTYPES[POWER[key].dtype] for key in ("t_s", "device", "power_w")}


def tabulate(runs: pl.DataFrame, traces: pl.DataFrame) -> pl.DataFrame:
    """Build the power table of the ok runs; a run without a trace has no rows.

    Args:
        runs: the runs table.
        traces: result of `read_all` for the folders of all these runs, in their order.
    """
    traces = traces.filter(pl.col(PLACE).is_in(runs.with_row_index(PLACE).filter(status="ok")[PLACE].implode()))
    columns = [key for key in POWER if key not in SAMPLE]
    of_runs = runs.with_columns(window_s=pl.col("total_window_s")).select(columns)
    return of_runs[traces[PLACE]].hstack(traces.drop(PLACE)).select(*POWER)


def read_all(folders: Sequence[Path], lost: Callable[[int, Corrupt], None]) -> pl.DataFrame:
    """Read the traces of many runs, with the columns `SAMPLE` and the run's place among the folders.

    Files are read in blocks: a call of Polars for each of many small ones takes longer than all else.

    Args:
        folders: of the runs; one without a trace has no rows.
        lost: called with the place of each run whose trace is corrupt, and why; it has no rows.
    """
    parts, block, size = [pl.DataFrame(schema={PLACE: PLACE_TYPE, **SAMPLE})], [], 0
    for place, folder in enumerate(folders):
        try:
            contents = (folder / FILE).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            lost(place, Corrupt(folder / FILE, f"corrupt power trace: {error}"))
            continue
        if contents and not contents.endswith(b"\n"):
            contents += b"\n"  # else its last line and the next file's first would be one
        block.append((place, folder, contents))
        size += len(contents)
        if size > BLOCK:
            parts.append(_block(block, lost))
            block, size = [], 0
    return pl.concat([*parts, _block(block, lost)], rechunk=True)


def _block(block: Sequence[tuple[int, Path, bytes]], lost: Callable[[int, Corrupt], None]) -> pl.DataFrame:
    """The samples of some files at once; one by one if a line in them is not a sample, to say which."""
    counts = pl.DataFrame(
        {PLACE: [place for place, *_ in block], "num": [contents.count(b"\n") for *_, contents in block]}
    )
    places = counts.select(pl.col(PLACE).cast(PLACE_TYPE).repeat_by("num").explode(empty_as_null=False))
    try:
        samples = _samples(b"".join(contents for *_, contents in block))
        if samples.height == places.height:
            return places.hstack(samples)
    except (pl.exceptions.PolarsError, ValueError):
        pass
    parts = [pl.DataFrame(schema={PLACE: PLACE_TYPE, **SAMPLE})]
    for place, folder, _ in block:
        try:
            trace = read(folder)
        except Corrupt as error:
            lost(place, error)
        else:
            if trace is not None:
                parts.append(trace.select(pl.lit(place, PLACE_TYPE).alias(PLACE), *SAMPLE))
    return pl.concat(parts)


def _samples(lines: bytes) -> pl.DataFrame:
    """Samples from lines of JSON.

    Raises:
        PolarsError: a line is not JSON, or has another type.
        ValueError: a sample lacks its time or device, or has a number that cannot be.
    """
    if not lines.strip():
        return pl.DataFrame(schema=SAMPLE)
    trace = pl.read_ndjson(lines, schema=SAMPLE)
    if trace["t_s"].null_count() or trace["device"].null_count():
        raise ValueError("a row without t_s or device")
    if any(trace.select((pl.col("t_s", "power_w").abs() > LARGEST).any()).row(0)):
        raise ValueError("a number that cannot be")
    return trace


def read(folder: Path) -> pl.DataFrame | None:
    """Read a run's trace, with the columns `SAMPLE`; None if the run has no trace.

    Raises:
        Corrupt: a line is not a sample.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return _samples(path.read_bytes())
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise Corrupt(path, f"corrupt power trace: {error}") from None
