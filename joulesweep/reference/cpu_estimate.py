"""Estimate the joules of a CPU run without a meter: a range from CPU-seconds, always labelled as estimated.

    mid = n · Wmin · T + cpu_s · (Wmax − Wmin)      n hardware threads, T wall seconds, watts per thread

The watts come from the user, or from Cloud Carbon Footprint by microarchitecture (`resources/cpu_watts.csv`). Memory
and GPUs are not estimated. Standard library only: the progress line calls this too.
"""

from __future__ import annotations

import csv
import functools
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulesweep.core.places import RESOURCES

WATTS_FILE = RESOURCES / "cpu_watts.csv"

#: The range is at least mid ± 40 %: averages over a fleet are no more exact for one machine.
MARGIN = 0.4


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """One row of `resources/cpu_watts.csv`.

    Attributes:
        microarchitecture: its name.
        family: EPYC or Xeon.
        min_w: watts per hardware thread, idle.
        max_w: watts per hardware thread, fully busy.
        pattern: regular expression that matches processors' names.
    """

    microarchitecture: str
    family: str
    min_w: float
    max_w: float
    pattern: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated energy.

    Attributes:
        low_j: lower end of the range, in joules.
        mid_j: middle value.
        high_j: upper end.
        method: one line that says where the watts came from.
        inputs: every number that was used.
    """

    low_j: float
    mid_j: float
    high_j: float
    method: str
    inputs: dict[str, object]


@dataclass(frozen=True)
class Asked:
    """A config's settings for estimates.

    Attributes:
        estimate: whether to estimate.
        cpu_watts: {min_w, max_w} of the whole CPU; None: published coefficients.
    """

    estimate: bool
    cpu_watts: Mapping[str, float] | None = None


def asked(energy: Mapping[str, Any]) -> Asked:
    """The settings for estimates in a config's section `energy`."""
    return Asked(estimate=energy["estimate"], cpu_watts=energy["cpu_watts"] if energy["estimate"] else None)


@functools.cache
def coefficients() -> tuple[Coefficient, ...]:
    """The rows of `resources/cpu_watts.csv`."""
    lines = WATTS_FILE.read_text(encoding="utf-8").splitlines()
    return tuple(
        Coefficient(
            microarchitecture=row["microarchitecture"],
            family=row["family"],
            min_w=float(row["min_w"]),
            max_w=float(row["max_w"]),
            pattern=row["pattern"],
        )
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    )


def source() -> str:
    """The source of the coefficients, from the comment at the head of their file."""
    lines = WATTS_FILE.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


@functools.cache
def candidates(cpu_model: str) -> tuple[Coefficient, ...]:
    """The coefficients that may apply: one row if the name shows the generation, else its family's rows, else all."""
    exact = tuple(row for row in coefficients() if re.search(row.pattern, cpu_model, re.IGNORECASE))
    family = tuple(row for row in coefficients() if row.family.lower() in cpu_model.lower())
    return exact[:1] or family or coefficients()


def estimate_cpu(
    cpu_s: float, wall_s: float, cpu_model: str, num_cores: int, watts: Mapping[str, float] | None
) -> Estimate:
    """Estimate the joules that a CPU used.

    Args:
        cpu_s: CPU seconds of all processes of the run.
        wall_s: duration of the run, in seconds.
        cpu_model: the processor's name as the kernel reports it.
        num_cores: hardware threads that the run may use.
        watts: the user's {min_w, max_w} of the whole CPU, idle and fully busy; or None.

    Returns:
        Low, middle and high joules: the median and range over all generations that the CPU may be.
    """
    if watts is not None:
        pairs = [(watts["min_w"] / num_cores, watts["max_w"] / num_cores)]
        method = f"CPU-seconds × your watts ({watts['min_w']:g} to {watts['max_w']:g} W for the whole CPU)"
    else:
        rows = candidates(cpu_model)
        pairs = [(row.min_w, row.max_w) for row in rows]
        method = f"CPU-seconds × Cloud Carbon Footprint coefficients ({_described(rows, cpu_model)})"
    joules = [num_cores * min_w * wall_s + cpu_s * (max_w - min_w) for min_w, max_w in pairs]
    mid_j = statistics.median(joules)
    return Estimate(
        low_j=min(min(joules), (1 - MARGIN) * mid_j),
        mid_j=mid_j,
        high_j=max(max(joules), (1 + MARGIN) * mid_j),
        method=method,
        inputs={
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "cpu_model": cpu_model,
            "num_cores": num_cores,
            "watts_per_core": pairs,
        },
    )


def _described(rows: tuple[Coefficient, ...], cpu_model: str) -> str:
    if len(rows) == 1:
        return f"{rows[0].microarchitecture}: {rows[0].min_w:g} to {rows[0].max_w:g} W per hardware thread"
    family = f"{rows[0].family} " if rows != coefficients() else ""
    return f"generation of {cpu_model!r} unknown: median and range of {len(rows)} {family}microarchitectures"
