"""Compare a sweep's ratios with published ones, where it has the same configurations.

Models, texts and machines differ, so only ratios are compared, never seconds or FLOPs.

GreenTrainer (resources/published/greentrainer.csv): a method's cost over full training's. Maina et al.
(resources/published/maina.csv): headlines on speed, memory, power and accuracy of DDP, DP and AMP-FP16.
"""

from __future__ import annotations

import csv
import functools
import json
from dataclasses import dataclass
from typing import Any

import polars as pl

from joulesweep.analyse.cells import LAYOUT, by_method, finished, method_words
from joulesweep.analyse.comparisons import Comparisons, same_joules
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.places import RESOURCES

FOLDER = RESOURCES / "published"
#: The paper's parameters of each method; parameters not listed may have any value.
PAPERS: dict[str, dict[str, Any]] = {
    "last-k": {"layers": 2},
    "prefix": {"tokens": 20},
    "lora": {"r": 8, "alpha": 32, "targets": None},
    "greentrainer": {"objective": "flops", "lora": None},
}
#: Comparisons of Maina et al.: words, and (strategy, precision) of both cells; None: any that both share.
COMPARED = (
    ("ddp over dp", ("ddp", None), ("dp", None)),
    ("fp16-mixed over fp32", (None, "fp16-mixed"), (None, "fp32")),
    ("ddp with fp16-mixed over dp with fp32", ("ddp", "fp16-mixed"), ("dp", "fp32")),
)
#: What each claim of the paper is a ratio of: a column of the runs.
CLAIMS = {
    "training speed": "samples_per_s",
    "memory": "peak_gpu_allocated_bytes",
    "power": "measured_power_w",
    "validation accuracy": "masked_accuracy",
}
#: Axes on which two cells agree that are compared.
SHARED = ("panel", "environment", "devices", "nodes", *LAYOUT, "batch_size", "batch_size_scope", "lr", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A method's published costs relative to full training, smallest and largest. No units.

    Attributes:
        compute: ratios of multiply-adds.
        hours: ratios of time.
        num_settings: pairs of a model and a data set behind them.
    """

    compute: tuple[float, float]
    hours: tuple[float, float]
    num_settings: int


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A method of the sweep, and its published and measured costs relative to full training, paired by seed.

    Attributes:
        name: what the two cells share, and their panel.
        method: its label, with parameters.
        published: the paper's ratios.
        measured_compute: ratio of multiply-adds with padding, as the paper counts; None if not counted.
        measured_time: ratio of the window's seconds.
        measured_joules: ratio of measured joules of the same kinds of device, or None.
    """

    name: str
    method: str
    published: Published
    measured_compute: Ratio | None
    measured_time: Ratio | None
    measured_joules: Ratio | None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One quantity of one way of training over another, over all pairs of cells that are otherwise the same.

    Attributes:
        words: what is compared.
        claim: the published quantity that it stands beside.
        num_pairs: pairs of cells.
        lowest: the smallest ratio, paired by seed.
        highest: the largest.
        where: name of the first cell of the largest ratio.
    """

    words: str
    claim: str
    num_pairs: int
    lowest: Ratio
    highest: Ratio
    where: str


def source(file: str) -> str:
    """The source of a published table, from the comment at its head."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def rows(file: str) -> list[dict[str, str]]:
    """The rows of a published table, as text; unknown values are empty."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@functools.cache
def greentrainer() -> dict[tuple[str, float | None], Published]:
    """GreenTrainer's table of known costs, by method and rho, as ratios to full training."""
    known = [row for row in rows("greentrainer.csv") if row["pmacs"] and row["hours"]]
    full = {(row["model"], row["dataset"]): row for row in known if row["method"] == "full"}
    settings: dict[tuple[str, float | None], list[tuple[float, float]]] = {}
    for row in known:
        whole = full[row["model"], row["dataset"]]
        ratios = (float(row["pmacs"]) / float(whole["pmacs"]), float(row["hours"]) / float(whole["hours"]))
        settings.setdefault((row["method"], float(row["rho"]) if row["rho"] else None), []).append(ratios)
    return {
        method: Published(
            compute=(min(compute), max(compute)), hours=(min(hours), max(hours)), num_settings=len(compute)
        )
        for method, ratios in settings.items()
        for compute, hours in [tuple(zip(*ratios, strict=True))]
    }


def greentrainer_ratios(tables: Tables, comparisons: Comparisons | None = None) -> list[Beside]:
    """Compare the sweep's methods that are in GreenTrainer's table with otherwise equal full training.

    Args:
        tables: of the sweep.
        comparisons: of the runs of the tables, if they were made before.
    """
    beside, comparisons = [], comparisons or Comparisons(tables.runs)
    for name, cells in by_method(finished(tables.cells, "window_s_mean")):
        full = cells.filter(method="full").to_dicts()
        for row in cells.to_dicts() if full else ():
            published = _published(row)
            if published is not None:
                beside.append(_beside(comparisons, name, row, full[0], published))
    return beside


def _published(row: Row) -> Published | None:
    """The published ratios of a cell's method; None if the paper has no such row."""
    params = json.loads(row["method_params"])
    paper_params = PAPERS.get(row["method"])
    if paper_params is None or any(params.get(key) != value for key, value in paper_params.items()):
        return None
    return greentrainer().get((row["method"], params.get("rho")))


def _beside(comparisons: Comparisons, name: str, row: Row, full: Row, published: Published) -> Beside:
    return Beside(
        name=name,
        method=method_words(row),
        published=published,
        measured_compute=comparisons.ratio(row, full, "padded_macs"),
        measured_time=comparisons.ratio(row, full, "window_s"),
        measured_joules=comparisons.ratio(row, full, "energy_j"),
    )


@dataclass(frozen=True, kw_only=True)
class ClaimedPairs:
    """The pairs of cells of a sweep that a published quantity compares.

    Attributes:
        words: what is compared.
        claim: a key of `CLAIMS`.
        column: what the claim is a ratio of; of power, a column of `comparisons` alone.
        pairs: rows of the cells table; the first is the numerator. Without measured joules there are none of power.
        comparisons: of the runs.
    """

    words: str
    claim: str
    column: str
    pairs: list[tuple[Row, Row]]
    comparisons: Comparisons


def claimed_pairs(tables: Tables) -> list[ClaimedPairs]:
    """The pairs that Maina et al. compare, as far as the sweep has them: full training on masked tokens."""
    cells = finished(tables.cells, "samples_per_s_mean").filter(method="full", task="mlm")
    groups = [part.to_dicts() for _, part in cells.group_by(SHARED, maintain_order=True)]
    joules = pl.when(pl.col("energy_status") == "measured", pl.col("energy_doubt").is_null()).then("energy_j")
    comparisons = Comparisons(tables.runs.with_columns(measured_power_w=joules / pl.col("window_s")))
    every = []
    for words, first, second in COMPARED:
        pairs = [(a, b) for group in groups for a in group for b in group if _is(a, b, first, second)]
        for claim, column in CLAIMS.items():
            kept = [pair for pair in pairs if column != "measured_power_w" or same_joules(*pair)]
            every.append(ClaimedPairs(words=words, claim=claim, column=column, pairs=kept, comparisons=comparisons))
    return every


def claimed_ratios(tables: Tables) -> list[Compared]:
    """Repeat the comparisons of Maina et al. that the sweep has pairs for."""
    return [compared for one in claimed_pairs(tables) if (compared := _compared(one)) is not None]


def _compared(claimed: ClaimedPairs) -> Compared | None:
    """The smallest and largest ratio of a claim over its pairs of cells; None if no pair has it."""
    ratios = [
        (ratio, a["name"])
        for a, b in claimed.pairs
        if (ratio := claimed.comparisons.ratio(a, b, claimed.column)) is not None
    ]
    if not ratios:
        return None
    ratios.sort(key=lambda pair: pair[0].ratio)
    (lowest, _), (highest, where) = ratios[0], ratios[-1]
    return Compared(
        words=claimed.words,
        claim=claimed.claim,
        num_pairs=len(ratios),
        lowest=lowest,
        highest=highest,
        where=where,
    )


def _is(a: Row, b: Row, first: tuple[str | None, ...], second: tuple[str | None, ...]) -> bool:
    """Whether two cells have the compared strategies and precisions, and share the axes not compared."""
    axes = zip(("strategy", "precision"), first, second, strict=True)
    return all((a[axis], b[axis]) == (x, y) if x else a[axis] == b[axis] for axis, x, y in axes)
