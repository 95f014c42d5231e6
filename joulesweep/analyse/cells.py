"""The cells of a sweep: means over repeats, speed-up paired by seed, and what may be compared with what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from joulesweep.analyse import columns, tables
from joulesweep.analyse.statistics import Ratio, mean_interval, paired_ratio
from joulesweep.analyse.tables import Row
from joulesweep.core.spec import micro_batch
from joulesweep.measure import meters
from joulesweep.runs.headline import joined
from joulesweep.runs.identity import method_label, parameter_words

#: The axes that say how the same training is computed, beside strategy, devices and precision.
LAYOUT = ("batching", "head", "engine", "micro_batch_size", "checkpoint_activations")
#: What a baseline shares with the first configuration of the grid, beside the micro-batch size.
WAY = ("method", "method_params", "strategy", "precision", "batching", "head", "engine", "checkpoint_activations")
#: What a cell shares with its baseline; one device has both scopes of the batch size in one.
TRAINED = ("model", "dataset", "task", "batch_size", "lr", "max_grad_norm", "environment")

#: What cells share that differ in their methods alone.
BUT_METHOD = (
    "panel",
    "environment",
    "strategy",
    "devices",
    "precision",
    *LAYOUT,
    "batch_size",
    "batch_size_scope",
    "lr",
    "max_grad_norm",
)


def tabulate(runs: pl.DataFrame, axes: Mapping[str, Any]) -> pl.DataFrame:
    """Build the cells table: one row per cell and environment, in the order of the manifest.

    Args:
        runs: the runs table.
        axes: the `grid` section of the config; its first configuration makes the baseline.
    """
    rows = []
    for _, in_cell in runs.group_by("cell", maintain_order=True):
        num_runs = in_cell.height
        statuses = ", ".join(f"{n} {status}" for status, n in Counter(in_cell["status"].to_list()).items())
        ok = in_cell.filter(pl.col("status") == "ok")
        groups = [group for _, group in ok.group_by("environment", maintain_order=True)]
        for group in groups or [in_cell]:
            first = group.row(0, named=True)
            row = {key: first[key] for key in columns.IDENTITY}
            row |= {"environment": first["environment"] if groups else None, "statuses": statuses, "num_runs": num_runs}
            rows.append({**row, "num_ok": group.height if groups else 0, **_energy(group), **_means(group)})
    _compare(rows, runs, axes)
    return tables.frame(rows, columns.CELLS)


def _energy(group: pl.DataFrame) -> Row:
    """Which kind of joules the repeats of a cell have (several, if they differ), and what makes them doubtful."""
    flagged = [flags for flags in map(doubts, group["flags"], group["energy_scope"]) if flags]
    return {
        "energy_scope": joined(group["energy_scope"]),
        "energy_status": joined(group["energy_status"]),
        "energy_doubt": joined(group["energy_doubt"]),
        "num_flagged": len(flagged),
        "flags": joined(flag for flags in flagged for flag in flags),
    }


def doubts(flags: str | None, scope: str | None) -> list[str]:
    """The flags of a run that concern its numbers: not a shared host where CPU and memory are in no total."""
    in_total = set((scope or "").split("+")) & meters.host_kinds()
    return [flag for flag in (flags or "").split(", ") if flag and (in_total or flag != "shared_host")]


def _means(group: pl.DataFrame) -> dict[str, float | None]:
    """Means over the repeats of a cell; null unless every repeat has the number, joules of one scope and status."""
    row: dict[str, float | None] = {}
    one_kind = group.select("energy_scope", "energy_status").n_unique() == 1
    for quantity in columns.QUANTITIES:
        values = group[quantity].to_list()
        if None in values or (columns.RUNS[quantity].of_joules and not one_kind):
            continue
        found = mean_interval(values)
        row |= {f"{quantity}_mean": found.mean, f"{quantity}_low": found.low, f"{quantity}_high": found.high}
    # The method's range, not a confidence interval.
    for column in (*columns.ESTIMATED, "estimated_co2e_g", *(["energy_error_j"] if one_kind else [])):
        if group[column].null_count() == 0:
            row[column] = mean_interval(group[column].to_list()).mean
    return row


def undoubted(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of which no run's joules are doubtful."""
    return cells.filter(pl.col("energy_doubt").is_null())


def doubtful(cells: pl.DataFrame) -> list[str]:
    """A line per cell whose joules are doubtful: its name and why."""
    doubted = cells.drop_nulls("energy_doubt").select("name", "energy_doubt")
    return [f"{name}: {doubt}" for name, doubt in doubted.rows()]


def unranked(cells: pl.DataFrame) -> str | None:
    """Why finished cells are not ranked by their joules; None if they may be: all measured, in one scope.

    Those with doubtful joules do not count: where the others may be ranked, they are left out.

    Args:
        cells: finished cells of one panel.
    """
    cells, every = undoubted(cells), cells
    if cells.is_empty() and len(every):
        return f"the joules of every configuration are doubtful ({doubtful(every)[0]})"
    known = cells.drop_nulls("energy_j_mean")
    if known.is_empty():
        return "energy was not measured"
    if known.height < cells.height:
        return f"joules are known of {known.height} of {cells.height} configurations"
    for column, word in (("energy_status", "statuses"), ("energy_scope", "scopes")):
        values = known[column].unique(maintain_order=True).to_list()
        if len(values) > 1:
            return f"joules of different {word} are not ranked together: {', '.join(values)}"
    return None if known["energy_status"][0] == "measured" else "energy was integrated from power readings, not counted"


def _compare(rows: list[Row], runs: pl.DataFrame, axes: Mapping[str, Any]) -> None:
    """Fill in each cell's baseline and its speed-up over it.

    The baseline trains by the method of the grid's first configuration and computes as that does, with the same model,
    texts, batch size and learning rate. It is the same way for all: where it did not finish there is no speed-up,
    rather than one over something else.
    """
    ok = runs.filter(pl.col("status") == "ok").select("cell", "environment", "repeat", "samples_per_s")
    speeds: dict[tuple[str, str], dict[int, float]] = {}
    for cell, environment, repeat, speed in ok.drop_nulls().filter(pl.col("samples_per_s") > 0).iter_rows():
        speeds.setdefault((cell, environment), {})[repeat] = speed
    baselines: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        micro = micro_batch(axes["micro_batch_size"][0], row)  # None where the batch is no larger
        if row["num_ok"] and row["micro_batch_size"] == micro and all(row[axis] == rows[0][axis] for axis in WAY):
            baselines.setdefault(_trained(row), []).append(row)
    for row in rows if ok.height else ():
        choices = baselines.get(_trained(row), [])
        if not row["num_ok"] or not choices:
            continue
        same = _nearest(row, choices)
        row |= {"baseline": same["name"], "is_baseline": same is row}
        if same is row:
            row |= {"speedup": 1.0, "speedup_verdict": "baseline"}
            continue
        mine, theirs = (speeds.get((cell["cell"], cell["environment"]), {}) for cell in (row, same))
        common = sorted(mine.keys() & theirs.keys())
        if common:
            found = paired_ratio([mine[seed] for seed in common], [theirs[seed] for seed in common])
            row |= {"speedup": found.ratio, "speedup_low": found.low, "speedup_high": found.high}
            row |= {"speedup_n": found.n, "speedup_verdict": found.verdict}


def _trained(row: Row) -> tuple[object, ...]:
    return tuple(row[axis] for axis in TRAINED)


def _nearest(row: Row, choices: list[Row]) -> Row:
    """Of several baselines the one with the row's own number of devices and scope of the batch size."""
    axes = ("devices", "batch_size_scope")
    return max(choices, key=lambda choice: [choice[axis] == row[axis] for axis in axes])


def paired_values(
    runs: pl.DataFrame, a: tuple[str, str], b: tuple[str, str], quantity: str
) -> list[tuple[float, float]]:
    """The values of one quantity in two cells, paired by repeat.

    Args:
        runs: the runs table.
        a: (cell, environment) of the first.
        b: (cell, environment) of the second.
        quantity: a numeric column of the runs.
    """
    first, second = (
        runs.filter(pl.col("cell") == cell, pl.col("environment") == environment)
        .select("repeat", quantity)
        .drop_nulls()
        for cell, environment in (a, b)
    )
    return first.join(second, on="repeat", suffix="_b").sort("repeat").select(quantity, f"{quantity}_b").rows()


def ratio_of(runs: pl.DataFrame, a: Row, b: Row, quantity: str) -> Ratio | None:
    """How many times larger a quantity is in one cell than in another; None where no seed has it in both.

    Args:
        runs: the runs table.
        a: a row of the cells table.
        b: another.
        quantity: a numeric column of the runs; pairs with a number that is not positive are left out.
    """
    first, second = ((row["cell"], row["environment"]) for row in (a, b))
    pairs = [pair for pair in paired_values(runs, first, second, quantity) if min(pair) > 0]
    return paired_ratio([x for x, _ in pairs], [y for _, y in pairs]) if pairs else None


def same_joules(a: Row, b: Row) -> bool:
    """Whether both cells have measured joules of the same devices, none of them doubtful."""
    read = all(row["energy_j_mean"] is not None and row["energy_doubt"] is None for row in (a, b))
    measured = read and a["energy_status"] == b["energy_status"] == "measured"
    return measured and a["energy_scope"] == b["energy_scope"]


def by_method(cells: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The sets of cells that differ in their methods alone, and in words what they share.

    Args:
        cells: finished cells.
    """
    groups = [part for _, part in cells.group_by(BUT_METHOD, maintain_order=True) if part["cell"].n_unique() > 1]
    return [(_shared(part.row(0, named=True)), part) for part in groups]


def method_words(row: Row) -> str:
    """The method of a row of the runs or cells table as labels say it: `greentrainer(rho=0.7)`."""
    return method_label(row["method"], json.loads(row["method_params"]))


def _shared(row: Row) -> str:
    """A cell's panel, and its name without its method; a plain full training has none in its name."""
    method = " ".join([row["method"], *parameter_words(row["method"], json.loads(row["method_params"]))])
    return " · ".join(filter(None, [row["panel"], row["name"].removeprefix(f"{method} ")]))


def finished(cells: pl.DataFrame, needed: str) -> pl.DataFrame:
    """Cells with a finished run that have the needed number."""
    return cells.filter(pl.col("num_ok") > 0).drop_nulls(needed)


def panels(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """What may be compared, apart: one part per model, data set and environment; the name is empty if there is one."""
    return [(str(name), part) for (name,), part in frame.group_by("panel", maintain_order=True)]


def front(cells: pl.DataFrame, cost: str, value: str) -> list[str]:
    """Ids of the cells that no other beats in both columns (lower is better), cheapest first."""
    best, kept = float("inf"), []
    for row in cells.sort(cost, value).iter_rows(named=True):
        if row[value] < best:
            best = row[value]
            kept.append(row["cell"])
    return kept
