"""The cells of a sweep: means over repeats, speed-up paired by seed, and which cells are comparable."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from joulesweep.analyse import columns, tables
from joulesweep.analyse.comparisons import Comparisons, asked, key_of, qualities
from joulesweep.analyse.statistics import Ratio, positive_interval
from joulesweep.analyse.tables import Row
from joulesweep.core.spec import micro_batch
from joulesweep.core.student import Interval, mean_interval
from joulesweep.measure import meters
from joulesweep.runs.headline import join_unique
from joulesweep.runs.identity import method_label, parameter_words

#: The axes, besides strategy, devices and precision, that change how a training is computed and not what it learns, up
#: to rounding.
LAYOUT = ("batching", "head", "engine", "optimizer", "micro_batch_size", "checkpoint_activations")
#: Axes on which a baseline equals the first configuration of the grid, as it does on the micro-batch size.
WAY = (
    "method",
    "method_params",
    "strategy",
    "precision",
    "batching",
    "head",
    "engine",
    "optimizer",
    "checkpoint_activations",
)
#: Axes on which a cell equals its baseline. The batch size's scope is not one: on one device both mean the same.
TRAINED = ("model", "dataset", "task", "batch_size", "lr", "max_grad_norm")

#: Axes shared by cells that differ in their methods alone.
BUT_METHOD = (
    "panel",
    "environment",
    "strategy",
    "devices",
    "nodes",
    "precision",
    *LAYOUT,
    "batch_size",
    "batch_size_scope",
    "lr",
    "max_grad_norm",
)

#: Columns of which cells have the mean without an interval: the estimates have the range of their method instead.
MEANS_ALONE = (*columns.ESTIMATED, "estimated_co2e_g", "energy_error_j")
#: Columns of the runs that cells are made of.
NEEDED = tuple(
    dict.fromkeys(
        [
            *columns.IDENTITY,
            *("status", "environment", "gpus", "flags", "energy_scope", "energy_status", "energy_doubt"),
            *columns.QUANTITIES,
            *MEANS_ALONE,
        ]
    )
)


def texts_per_step(row: Row) -> int:
    """Texts of an optimizer step over all devices, of a row of the cells or runs table."""
    return int(row["batch_size"] * (row["devices"] if row["batch_size_scope"] == "per_device" else 1))


def tabulate(runs: pl.DataFrame, config: Mapping[str, Any], comparisons: Comparisons) -> pl.DataFrame:
    """Build the cells table: one row per cell and environment, in the order of the manifest.

    Args:
        runs: the runs table.
        config: the manifest's: the first configuration of its grid makes the baseline, `answer` the verdicts.
        comparisons: of the same runs.
    """
    rows = []
    for in_cell in _grouped(runs.select(NEEDED).iter_rows(named=True), "cell"):
        statuses = ", ".join(f"{n} {status}" for status, n in Counter(run["status"] for run in in_cell).items())
        groups = _grouped((run for run in in_cell if run["status"] == "ok"), "environment")
        for group in groups or [in_cell]:
            row = {key: group[0][key] for key in columns.IDENTITY}
            row |= {"statuses": statuses, "num_runs": len(in_cell), "num_ok": len(group) if groups else 0}
            row["environment"] = group[0]["environment"] if groups else None
            row["gpus"] = join_unique(run["gpus"] for run in group) if groups else None
            rows.append({**row, **_energy(group), **_means(group)})
    _compare(rows, comparisons, config)
    return tables.frame(rows, columns.CELLS)


def _grouped(runs: Iterable[Row], key: str) -> list[list[Row]]:
    """Rows by the value of a column, in the order of its first."""
    groups: dict[object, list[Row]] = {}
    for run in runs:
        groups.setdefault(run[key], []).append(run)
    return list(groups.values())


def _energy(group: Sequence[Row]) -> Row:
    """Scope, status and doubts of the joules of a cell's repeats, and their flags; different values are joined."""
    flagged = [flags for run in group if (flags := relevant_flags(run["flags"], run["energy_scope"]))]
    return {
        **{key: join_unique(run[key] for run in group) for key in ("energy_scope", "energy_status", "energy_doubt")},
        "num_flagged": len(flagged),
        "flags": join_unique(flag for flags in flagged for flag in flags),
    }


def relevant_flags(flags: str | None, scope: str | None) -> list[str]:
    """The flags that concern a run's numbers: all but a shared host, unless CPU or memory is in its joules."""
    in_total = set((scope or "").split("+")) & meters.host_kinds()
    return [flag for flag in (flags or "").split(", ") if flag and (in_total or flag != "shared_host")]


def _means(group: Sequence[Row]) -> dict[str, float | None]:
    """Means over a cell's repeats; null if a repeat lacks the number, or its joules differ in scope or status."""
    row: dict[str, float | None] = {}
    one_kind = len({(run["energy_scope"], run["energy_status"]) for run in group}) == 1
    for quantity in columns.QUANTITIES:
        values = [run[quantity] for run in group]
        if None in values or (columns.RUNS[quantity].of_joules and not one_kind):
            continue
        interval = _interval(quantity, values)
        row |= {f"{quantity}_mean": interval.mean, f"{quantity}_low": interval.low, f"{quantity}_high": interval.high}
    for column in MEANS_ALONE:
        values = [run[column] for run in group]
        if None not in values and (one_kind or not column.startswith("energy_")):
            row[column] = mean_interval(values).mean
    return row


def _interval(quantity: str, values: list[float]) -> Interval:
    """Mean and interval of a quantity: from logs where it is positive, of a share never beyond 0 and 1."""
    share = columns.RUNS[quantity].show in ("percent", "points")
    if min(values) > 0 and not share:
        return positive_interval(values)
    interval = mean_interval(values)
    if interval.low is None or interval.high is None:
        return interval
    low = max(interval.low, 0.0) if min(values) >= 0 else interval.low
    return dataclasses.replace(interval, low=low, high=min(interval.high, 1.0) if share else interval.high)


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


def _compare(rows: list[Row], comparisons: Comparisons, config: Mapping[str, Any]) -> None:
    """Fill in what each cell is compared with, the ratios, and the verdict on its quality.

    The baseline of a cell trains and computes as the grid's first configuration does, with the cell's own model, texts,
    batch size and learning rate; that of a panel is the first of these. Where it did not finish, the first cell that
    did stands in, and the row says so.
    """
    if not rows:
        return
    first_micro = config["grid"]["micro_batch_size"][0]
    for group in _groups(rows, TRAINED):
        alike = [row for row in group if _is_way(row, rows[0], first_micro)]
        for row in group:
            if row["num_ok"]:
                _speed_up(row, *_baseline(row, group, alike), comparisons)
    margin, quality = asked(config)
    for group in _groups(rows, ("model", "dataset", "task")):
        finished_rows = [row for row in group if row["num_ok"]]
        baseline, why = _panel_baseline(group, rows[0], first_micro)
        fit = comparisons.fit(finished_rows[0]["panel"], quality)
        verdicts = {} if fit is None else qualities(fit, quality, margin)
        for row in finished_rows:
            row |= {"compared_with": baseline["name"], "compared_why": why}
            if row is not baseline:
                for name, ratio in comparisons.ratios(row, baseline).items():
                    row |= _ratio_columns(f"{name}_ratio", ratio)
            if (of_best := verdicts.get(key_of(row))) is not None:
                row |= {"above_best": of_best.above_best, "quality_verdict": of_best.verdict}
                row |= {"above_best_low": of_best.low, "above_best_high": of_best.high}


def _groups(rows: list[Row], axes: Sequence[str]) -> Iterator[list[Row]]:
    """The cells that share some axes and an environment; those without an ok run are in the groups of each."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    for group in groups.values():
        for environment in dict.fromkeys(row["environment"] for row in group if row["num_ok"]):
            yield [row for row in group if row["environment"] in (environment, None)]


def _ratio_columns(name: str, ratio: Ratio | None) -> Row:
    return {} if ratio is None else {name: ratio.ratio, f"{name}_low": ratio.low, f"{name}_high": ratio.high}


def _speed_up(row: Row, baseline: Row, why: str | None, comparisons: Comparisons) -> None:
    """Fill in a cell's baseline and its speed-up over it."""
    row |= {"baseline": baseline["name"], "baseline_why": why, "is_baseline": baseline is row}
    if baseline is row:
        row |= {"speedup": 1.0, "speedup_verdict": "baseline"}
    elif (ratio := comparisons.ratio(row, baseline, "samples_per_s")) is not None:
        row |= {**_ratio_columns("speedup", ratio), "speedup_n": ratio.n, "speedup_verdict": ratio.verdict}


def _is_way(row: Row, first: Row, first_micro: int | None) -> bool:
    """Whether a cell computes as the grid's first configuration does."""
    micro = micro_batch(first_micro, row)  # None if the batch is not larger
    return row["micro_batch_size"] == micro and all(row[axis] == first[axis] for axis in WAY)


def _baseline(row: Row, group: list[Row], alike: list[Row]) -> tuple[Row, str | None]:
    """The baseline of a finished cell: of its own number of devices and scope of the batch if there is one.

    Args:
        row: the cell.
        group: the cells that it trains like, in the order of the grid.
        alike: those that compute as the grid's first configuration does.

    Returns:
        The baseline, and why another one stands in for it.
    """
    finished_ones = [other for other in alike if other["num_ok"]]
    if finished_ones:
        axes = ("devices", "batch_size_scope")
        return max(finished_ones, key=lambda other: [other[axis] == row[axis] for axis in axes]), None
    stand_in = next(other for other in group if other["num_ok"])
    return stand_in, _why_not(alike[0]) if alike else None


def _panel_baseline(group: list[Row], first: Row, first_micro: int | None) -> tuple[Row, str | None]:
    """The baseline of a panel, and why another one stands in for the first configuration."""
    alike = [row for row in group if _is_way(row, first, first_micro)]
    chosen = next(row for row in [*alike, *group] if row["num_ok"])
    return chosen, None if not alike or chosen is alike[0] else _why_not(alike[0])


#: What became of a cell, by the status of its first run.
ENDED = {
    "oom": "ran out of memory",
    "diverged": "diverged",
    "unsupported": "cannot run here",
    "timeout": "took too long",
    "unreadable": "has unreadable records",
}


def _why_not(row: Row) -> str:
    """Why a cell is no baseline."""
    status = row["statuses"].split(" ", 1)[1].split(",")[0]
    return f"{row['name']} {ENDED.get(status, 'has not run yet')}"


def by_method(cells: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Sets of cells that differ in their methods alone, each with a text of what they share.

    Args:
        cells: finished cells.
    """
    groups = [part for _, part in cells.group_by(BUT_METHOD, maintain_order=True) if part["cell"].n_unique() > 1]
    return [(_shared(part.row(0, named=True)), part) for part in groups]


def method_words(row: Row) -> str:
    """The label of the method of a row of the runs or cells table: `greentrainer(rho=0.7)`."""
    return _method_words(row["method"], row["method_params"])


@functools.cache
def _method_words(method: str, params_json: str) -> str:
    return method_label(method, json.loads(params_json))


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
