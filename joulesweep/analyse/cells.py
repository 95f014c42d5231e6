"""The cells of a sweep: means over repeats, speed-up paired by seed, and which cells are comparable."""

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
from joulesweep.runs.headline import join_unique
from joulesweep.runs.identity import method_label, parameter_words

#: The axes, besides strategy, devices and precision, that change how a training is computed and not what it learns.
LAYOUT = ("batching", "head", "engine", "micro_batch_size", "checkpoint_activations")
#: Axes on which a baseline equals the first configuration of the grid, as it does on the micro-batch size.
WAY = ("method", "method_params", "strategy", "precision", "batching", "head", "engine", "checkpoint_activations")
#: Axes on which a cell equals its baseline. The batch size's scope is not one: on one device both mean the same.
TRAINED = ("model", "dataset", "task", "batch_size", "lr", "max_grad_norm", "environment")

#: Axes shared by cells that differ in their methods alone.
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
    """Scope, status and doubts of the joules of a cell's repeats, and their flags; different values are joined."""
    flagged = [flags for flags in map(relevant_flags, group["flags"], group["energy_scope"]) if flags]
    return {
        "energy_scope": join_unique(group["energy_scope"]),
        "energy_status": join_unique(group["energy_status"]),
        "energy_doubt": join_unique(group["energy_doubt"]),
        "num_flagged": len(flagged),
        "flags": join_unique(flag for flags in flagged for flag in flags),
    }


def relevant_flags(flags: str | None, scope: str | None) -> list[str]:
    """The flags that concern a run's numbers: all but a shared host, unless CPU or memory is in its joules."""
    in_total = set((scope or "").split("+")) & meters.host_kinds()
    return [flag for flag in (flags or "").split(", ") if flag and (in_total or flag != "shared_host")]


def _means(group: pl.DataFrame) -> dict[str, float | None]:
    """Means over a cell's repeats; null if a repeat lacks the number, or its joules differ in scope or status."""
    row: dict[str, float | None] = {}
    one_kind = group.select("energy_scope", "energy_status").n_unique() == 1
    for quantity in columns.QUANTITIES:
        values = group[quantity].to_list()
        if None in values or (columns.RUNS[quantity].of_joules and not one_kind):
            continue
        interval = mean_interval(values)
        row |= {f"{quantity}_mean": interval.mean, f"{quantity}_low": interval.low, f"{quantity}_high": interval.high}
    # The method's range, not a confidence interval.
    for column in (*columns.ESTIMATED, "estimated_co2e_g", *(["energy_error_j"] if one_kind else [])):
        if group[column].null_count() == 0:
            row[column] = mean_interval(group[column].to_list()).mean
    return row


def undoubted(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells without doubtful joules."""
    return cells.filter(pl.col("energy_doubt").is_null())


def doubtful(cells: pl.DataFrame) -> list[str]:
    """A line per cell whose joules are doubtful: its name and why."""
    doubted = cells.drop_nulls("energy_doubt").select("name", "energy_doubt")
    return [f"{name}: {doubt}" for name, doubt in doubted.rows()]


def why_not_ranked(cells: pl.DataFrame) -> str | None:
    """The reason not to rank finished cells by their joules; None if all are measured, in one scope.

    Cells with doubtful joules are ignored, unless there are no others.

    Args:
        cells: finished cells of one panel.
    """
    cells, all_cells = undoubted(cells), cells
    if cells.is_empty() and len(all_cells):
        return f"the joules of every configuration are doubtful ({doubtful(all_cells)[0]})"
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

    The baseline trains and computes as the grid's first configuration does, with the cell's own model, texts, batch
    size and learning rate. If the baseline did not finish, the cell has no speed-up: none is taken over another way.
    """
    ok = runs.filter(pl.col("status") == "ok").select("cell", "environment", "repeat", "samples_per_s")
    speeds: dict[tuple[str, str], dict[int, float]] = {}
    for cell, environment, repeat, speed in ok.drop_nulls().filter(pl.col("samples_per_s") > 0).iter_rows():
        speeds.setdefault((cell, environment), {})[repeat] = speed
    baselines: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        micro = micro_batch(axes["micro_batch_size"][0], row)  # None if the batch is not larger
        if row["num_ok"] and row["micro_batch_size"] == micro and all(row[axis] == rows[0][axis] for axis in WAY):
            baselines.setdefault(_trained(row), []).append(row)
    for row in rows if ok.height else ():
        choices = baselines.get(_trained(row), [])
        if not row["num_ok"] or not choices:
            continue
        baseline = _nearest(row, choices)
        row |= {"baseline": baseline["name"], "is_baseline": baseline is row}
        if baseline is row:
            row |= {"speedup": 1.0, "speedup_verdict": "baseline"}
            continue
        mine, theirs = (speeds.get((cell["cell"], cell["environment"]), {}) for cell in (row, baseline))
        common = sorted(mine.keys() & theirs.keys())
        if common:
            ratio = paired_ratio([mine[seed] for seed in common], [theirs[seed] for seed in common])
            row |= {"speedup": ratio.ratio, "speedup_low": ratio.low, "speedup_high": ratio.high}
            row |= {"speedup_n": ratio.n, "speedup_verdict": ratio.verdict}


def _trained(row: Row) -> tuple[object, ...]:
    return tuple(row[axis] for axis in TRAINED)


def _nearest(row: Row, choices: list[Row]) -> Row:
    """The baseline that matches the row's number of devices, then its scope of the batch size."""
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
    """The ratio of a quantity in one cell to that in another, paired by seed; None if they share no seed.

    Args:
        runs: the runs table.
        a: a row of the cells table.
        b: another.
        quantity: a numeric column of the runs; pairs with a zero or negative number are left out.
    """
    first, second = ((row["cell"], row["environment"]) for row in (a, b))
    pairs = [pair for pair in paired_values(runs, first, second, quantity) if min(pair) > 0]
    return paired_ratio([x for x, _ in pairs], [y for _, y in pairs]) if pairs else None


def same_joules(a: Row, b: Row) -> bool:
    """Whether both cells have measured joules of the same kinds of device, without doubts."""
    read = all(row["energy_j_mean"] is not None and row["energy_doubt"] is None for row in (a, b))
    measured = read and a["energy_status"] == b["energy_status"] == "measured"
    return measured and a["energy_scope"] == b["energy_scope"]


def by_method(cells: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Sets of cells that differ in their methods alone, each with a text of what they share.

    Args:
        cells: finished cells.
    """
    groups = [part for _, part in cells.group_by(BUT_METHOD, maintain_order=True) if part["cell"].n_unique() > 1]
    return [(_shared(part.row(0, named=True)), part) for part in groups]


def method_words(row: Row) -> str:
    """The label of the method of a row of the runs or cells table: `greentrainer(rho=0.7)`."""
    return method_label(row["method"], json.loads(row["method_params"]))


def _shared(row: Row) -> str:
    """A cell's panel, and its name without the method, which names of plain full training lack anyway."""
    method = " ".join([row["method"], *parameter_words(row["method"], json.loads(row["method_params"]))])
    return " · ".join(filter(None, [row["panel"], row["name"].removeprefix(f"{method} ")]))


def finished(cells: pl.DataFrame, needed: str) -> pl.DataFrame:
    """Cells with a finished run and a value in the needed column."""
    return cells.filter(pl.col("num_ok") > 0).drop_nulls(needed)


def comparable_groups(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Groups of comparable rows, by model, data set and environment; the name is empty if there is one group."""
    return [(str(name), part) for (name,), part in frame.group_by("panel", maintain_order=True)]


def pareto_front(cells: pl.DataFrame, cost: str, value: str) -> list[str]:
    """Ids of the cells on the Pareto front of two columns (lower is better), cheapest first."""
    best, kept = float("inf"), []
    for row in cells.sort(cost, value).iter_rows(named=True):
        if row[value] < best:
            best = row[value]
            kept.append(row["cell"])
    return kept
