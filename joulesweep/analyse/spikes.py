"""Count the spikes of a run's training loss, from its `steps.jsonl`: {step, train_loss} per line.

A spike is a step whose loss is above the median of the `WINDOW` steps before it by more than `FACTOR` times their
median absolute deviation: 6.7 standard deviations of normal noise. The first `LEAST` steps have too few before them to
tell. A falling loss hides small spikes, since the steps before are higher.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from joulesweep.analyse.statistics import Numbers
from joulesweep.core.errors import Corrupt

FILE = "steps.jsonl"
WINDOW, LEAST, FACTOR = 50, 20, 10.0
FLAT = 1e-6  # of the median: the least deviation, for a loss that hardly moves


def columns(folder: Path) -> dict[str, int]:
    """A run's column of the runs table, `num_loss_spikes`; empty without the file, or with too few steps.

    Args:
        folder: of the run.

    Raises:
        Corrupt: the file is no series of losses.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
        rows = pl.read_ndjson(content, schema={"train_loss": pl.Float64}) if content.strip() else pl.DataFrame()
    except FileNotFoundError:
        return {}
    except (pl.exceptions.PolarsError, OSError) as error:
        raise Corrupt(path, f"corrupt losses: {str(error).splitlines()[0]}") from None
    return {"num_loss_spikes": count(rows["train_loss"].to_numpy())} if rows.height > LEAST else {}


def count(losses: Numbers) -> int:
    """Count the spikes of a series of losses, in the order of the steps."""
    if len(losses) <= LEAST:
        return 0
    padded = np.concatenate([np.full(WINDOW - LEAST, np.inf), losses[:-1]])
    earlier = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)  # infinite where there are fewer
    numbers = np.minimum(np.arange(LEAST, len(losses)), WINDOW)
    medians = _medians(earlier, numbers)
    with np.errstate(invalid="ignore"):  # of an infinite loss
        deviations = _medians(np.abs(earlier - medians[:, None]), numbers)
        limits = medians + FACTOR * np.maximum(deviations, FLAT * np.abs(medians))
    return int((losses[LEAST:] > limits).sum())


def _medians(rows: Numbers, numbers: Numbers) -> Numbers:
    """The median of the lowest numbers of each row, of so many; NaN of a row that has one."""
    ordered = np.sort(rows, axis=1)
    middle = np.arange(len(rows)), (numbers - 1) // 2
    above = middle[0], numbers // 2
    return np.where(np.isnan(ordered[:, -1]), np.nan, (ordered[middle] + ordered[above]) / 2)
