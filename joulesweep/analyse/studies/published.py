"""Published figures beside the ratios that a sweep measured, where it has the same configurations.

Models, texts and machines differ, so that ratios are compared, never seconds or FLOPs themselves.

GreenTrainer (resources/published/greentrainer.csv): a method's cost over full training's. Maina et al.
(resources/published/maina.csv): headlines, beside how much faster DDP is than DP and AMP-FP16 than fp32.
"""

from __future__ import annotations

import csv
import functools
import json
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import LAYOUT, by_method, finished, method_words, ratio_of, same_joules
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.places import RESOURCES

FOLDER = RESOURCES / "published"
#: Parameters with which a method is the paper's; those that are not named here may be any.
PAPERS: dict[str, dict[str, Any]] = {
    "last-k": {"layers": 2},
    "prefix": {"tokens": 20},
    "lora": {"r": 8, "alpha": 32, "targets": None},
    "greentrainer": {"objective": "flops", "lora": None},
}
#: What is compared of Maina et al.: words, and (strategy, precision) of both, None for any that both share.
FASTER = (
    ("ddp over dp", ("ddp", None), ("dp", None)),
    ("fp16-mixed over fp32", (None, "fp16-mixed"), (None, "fp32")),
    ("ddp with fp16-mixed over dp with fp32", ("ddp", "fp16-mixed"), ("dp", "fp32")),
)
#: What two cells share of which one is faster.
SHARED = ("panel", "environment", "devices", *LAYOUT, "batch_size", "batch_size_scope", "lr", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A method's published costs over full training's, smallest and largest. No units.

    Attributes:
        compute: of multiply-adds.
        hours: of time.
        num_settings: pairs of a model and a data set behind them.
    """

    compute: tuple[float, float]
    hours: tuple[float, float]
    num_settings: int


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A method of the sweep, its costs over full training's as published and as measured, paired by seed.

    Attributes:
        name: what the two cells share, and their panel.
        method: with its parameters.
        published: the paper's.
        measured_compute: of multiply-adds with padding, as the paper counts; None where they were not counted.
        measured_time: of the window's seconds.
        measured_joules: of measured joules of the same devices, or None.
    """

    name: str
    method: str
    published: Published
    measured_compute: Ratio | None
    measured_time: Ratio | None
    measured_joules: Ratio | None


@dataclass(frozen=True, kw_only=True)
class Faster:
    """How much faster one way of training is than another, over all pairs of cells that share the rest.

    Attributes:
        words: what is compared.
        num_pairs: of cells.
        lowest: the smallest ratio of texts per second, paired by seed.
        highest: the largest.
        where: the faster cell of the largest.
    """

    words: str
    num_pairs: int
    lowest: Ratio
    highest: Ratio
    where: str


def source(file: str) -> str:
    """What the head of a published table says of where it is from."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def rows(file: str) -> list[dict[str, str]]:
    """The rows of a published table, as text; what is not known is empty."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@functools.cache
def greentrainer() -> dict[tuple[str, float | None], Published]:
    """GreenTrainer's table, by method and rho: what costs are known of, as ratios to full training."""
    known = [row for row in rows("greentrainer.csv") if row["pmacs"] and row["hours"]]
    full = {(row["model"], row["dataset"]): row for row in known if row["method"] == "full"}
    found: dict[tuple[str, float | None], list[tuple[float, float]]] = {}
    for row in known:
        whole = full[row["model"], row["dataset"]]
        ratios = (float(row["pmacs"]) / float(whole["pmacs"]), float(row["hours"]) / float(whole["hours"]))
        found.setdefault((row["method"], float(row["rho"]) if row["rho"] else None), []).append(ratios)
    return {
        method: Published(
            compute=(min(compute), max(compute)), hours=(min(hours), max(hours)), num_settings=len(compute)
        )
        for method, ratios in found.items()
        for compute, hours in [tuple(zip(*ratios, strict=True))]
    }


def beside(tables: Tables) -> list[Beside]:
    """The methods of GreenTrainer's table that the sweep has too, beside full training where all else is the same."""
    found = []
    for name, cells in by_method(finished(tables.cells, "window_s_mean")):
        full = cells.filter(method="full").to_dicts()
        for row in cells.to_dicts() if full else ():
            published = _published(row)
            if published is not None:
                found.append(_beside(tables.runs, name, row, full[0], published))
    return found


def _published(row: Row) -> Published | None:
    """What is published of a cell's method; None where the paper has no such row."""
    params = json.loads(row["method_params"])
    wanted = PAPERS.get(row["method"])
    if wanted is None or any(params.get(key) != value for key, value in wanted.items()):
        return None
    return greentrainer().get((row["method"], params.get("rho")))


def _beside(runs: pl.DataFrame, name: str, row: Row, full: Row, published: Published) -> Beside:
    return Beside(
        name=name,
        method=method_words(row),
        published=published,
        measured_compute=ratio_of(runs, row, full, "padded_macs"),
        measured_time=ratio_of(runs, row, full, "window_s"),
        measured_joules=ratio_of(runs, row, full, "energy_j") if same_joules(row, full) else None,
    )


def faster(tables: Tables) -> list[Faster]:
    """The comparisons of Maina et al. that the sweep has pairs for: full training on masked tokens."""
    cells = finished(tables.cells, "samples_per_s_mean").filter(method="full", task="mlm")
    groups = [part.to_dicts() for _, part in cells.group_by(SHARED, maintain_order=True)]
    found = []
    for words, first, second in FASTER:
        pairs = [(a, b) for group in groups for a in group for b in group if _is(a, b, first, second)]
        ratios = [
            (one, a["name"]) for a, b in pairs if (one := ratio_of(tables.runs, a, b, "samples_per_s")) is not None
        ]
        if ratios:
            ratios.sort(key=lambda pair: pair[0].ratio)
            (lowest, _), (highest, where) = ratios[0], ratios[-1]
            found.append(Faster(words=words, num_pairs=len(ratios), lowest=lowest, highest=highest, where=where))
    return found


def _is(a: Row, b: Row, first: tuple[str | None, ...], second: tuple[str | None, ...]) -> bool:
    """Whether two cells have the strategies and precisions that are compared, or share what is not."""
    axes = zip(("strategy", "precision"), first, second, strict=True)
    return all((a[axis], b[axis]) == (x, y) if x else a[axis] == b[axis] for axis, x, y in axes)
