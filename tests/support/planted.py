"""Runs on boards whose joules, seconds and loss are planted: a truth, and the noise of seed and run around it."""

from __future__ import annotations

import math
import random
from typing import Any

import synthetic


def planted(
    row: dict[str, Any], joules: float, seconds: float, loss: float, noise: float = 0.003, boards: bool = True
) -> dict[str, Any]:
    """The same run with this truth.

    Args:
        row: the run's record.
        joules: of all its boards, one pass.
        seconds: of its window.
        loss: of validation.
        noise: standard deviation of the logs of each, of the run alone; the seed adds as much, shared by all cells.
        boards: whether it is on boards with counters; otherwise joules are unknown.
    """
    own, seed = random.Random(f"planted {row['run']}"), random.Random(row["spec"]["repeat"])
    shared = seed.gauss(0, noise)
    joules, seconds, loss = (value * math.exp(shared + own.gauss(0, noise)) for value in (joules, seconds, loss))
    measurement = row["measurement"]
    rates = {key: measurement[key] * measurement["window_s"] / seconds for key in RATES}
    row = {**row, "measurement": {**measurement, **rates, "window_s": seconds, "total_window_s": seconds}}
    row = {**row, "quality": {**row["quality"], "validation_loss": loss}}
    if not boards:
        return row
    devices = row["spec"]["devices"]
    row = synthetic.on_gpus(row)
    energy = [
        {**one, "energy_j": one["energy_j"] and joules / devices, "power_ratio": None}
        for one in row["measurement"]["energy"]
    ]
    return {**row, "measurement": {**row["measurement"], "energy": energy}}


RATES = ("samples_per_s", "tokens_per_s", "padded_tokens_per_s", "epochs_per_minute")
