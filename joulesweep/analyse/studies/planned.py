"""What was planned, and what it took: each run as it would have been planned from the runs that ended before it.

No plan is stored: that of a run is made again from what was known when the run began, and from nothing later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from joulesweep.analyse import past_runs, planning
from joulesweep.analyse.planning import Accuracy, Replayed

GROWTH = 1.1  # the model is fitted again when a tenth as many runs more have ended: 1,000 runs in 60 steps
MOST = 1000  # runs that are replayed, the first that ended
#: Quantities and their names.
QUANTITIES = {"window_s": "Time", "energy_j": "Energy"}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """How near the plans of a sweep's runs were.

    Attributes:
        rows: by quantity and by whether the run's cell had finished runs before: how near.
        energy_status: whether the joules are "measured", "integrated" or "estimated"; None without joules.
        planned_s: planned seconds of all the runs' windows, of one pass each.
        took_s: what these took.
        num_runs: how many runs these are.
        num_more: runs beyond `MOST`, which were not replayed.
    """

    rows: dict[tuple[str, bool], Accuracy]
    energy_status: str | None
    planned_s: float
    took_s: float
    num_runs: int
    num_more: int


def planned(runs: pl.DataFrame) -> Planned | None:
    """Replay a sweep's plans.

    Args:
        runs: the runs table; runs of different environments tell nothing of each other.

    Returns:
        None where no run ended after another of its environment.
    """
    ended = runs.drop_nulls(["finished", "environment"]).sort("finished", maintain_order=True)
    replayed: list[Replayed] = []
    for frame in ended.head(MOST).partition_by("environment", maintain_order=True):
        replayed += planning.replay([past_runs.of_row(row) for row in frame.iter_rows(named=True)], GROWTH)
    if not replayed:
        return None
    near = {
        (name, seen): one
        for name in QUANTITIES
        for seen in (False, True)
        if (one := planning.accuracy(replayed, name, seen)) is not None
    }
    statuses = [row.prediction.energy_status for row in replayed if row.prediction.energy_j is not None]
    return Planned(
        rows=near,
        energy_status=statuses[-1] if statuses else None,
        planned_s=math.fsum(row.prediction.window_s.mid for row in replayed if row.prediction.window_s),
        took_s=math.fsum(row.past.window_s for row in replayed if row.past.window_s),
        num_runs=len(replayed),
        num_more=max(ended.height - MOST, 0),
    )
