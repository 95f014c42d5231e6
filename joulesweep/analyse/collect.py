"""Combine the records of a sweep into tables.

Runs of different hardware, driver or versions never share a cell's mean: `environment` is part of a cell's key.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import polars as pl

from joulesweep.analyse import cells, drift, effects, items, ledger, power_traces, rouge, run_rows, spikes
from joulesweep.analyse.columns import ANCHORS, RUNS, TABLES, UNREADABLE, named
from joulesweep.analyse.comparisons import Comparisons
from joulesweep.analyse.tables import Row, Tables, combined, frame
from joulesweep.axes.strategy import spread
from joulesweep.core.errors import Corrupt, UserError
from joulesweep.core.files import read_json
from joulesweep.core.spec import OMISSION
from joulesweep.measure import meters
from joulesweep.reference import cpu_estimate
from joulesweep.reference.cpu_estimate import Asked
from joulesweep.reference.footprint import Footprint, footprint
from joulesweep.runs.headline import READ
from joulesweep.runs.identity import parameter_words

MISSING = "no record: not run yet, or it failed"
#: The axes that set the size of a step.
RATES = ("lr", "max_grad_norm")
#: Conditions that compared runs should share: flag, column, unit, and the largest difference allowed.
UNLIKE = (
    ("limits_differ", "power_limit_w", "W", 1.0),
    ("temperatures_differ", "temperature_start_c", "°C at the start", 5.0),
)
#: Columns whose names are also keys of a run in the manifest.
IN_MANIFEST = (
    *named(RUNS, "cell label repeat model dataset task method strategy devices nodes precision batching head engine"),
    *named(RUNS, "optimizer"),
    *named(RUNS, "batch_size batch_size_scope micro_batch_size checkpoint_activations lr lr_rule max_grad_norm"),
)
#: What runs had before there was the axis.
BEFORE = {"optimizer": OMISSION["optimizer"]}
#: Columns that rows of other tables copy from their run, where the table has them.
OF_RUN = named(RUNS, "run cell name setup panel batch environment batch_size repeat")


def read_grid(path: Path) -> Mapping[str, Any]:
    """Read a sweep's `grid.json`.

    Raises:
        UserError: the file is missing, corrupt, or not a grid manifest.
    """
    grid = read_json(path, "grid manifest")
    if grid.get("format") != "joulesweep-grid" or grid.get("version") != 1:
        raise UserError(f"{path}: not a grid manifest of version 1")
    return grid


def aggregate(
    grid: Mapping[str, Any],
    runs_folder: Path,
    anchors_folder: Path | None = None,
    lost: Callable[[Path], None] = lambda path: None,
) -> Tables:
    """Tabulate the runs of the present grid, ignoring other folders beside them.

    A run without a record becomes a row of status "missing", one with an unreadable record a row of status
    "unreadable". A run with an unreadable trace or summaries keeps the numbers of its record, and gets a flag.

    Args:
        grid: the manifest, as `joulesweep.plan.grid.manifest` makes it.
        runs_folder: holds one folder per run.
        anchors_folder: holds one folder per later day, with one folder per run that was measured again.
        lost: called with each file of a run that is corrupt or foreign.
    """
    asked, factors = cpu_estimate.asked(grid["config"]["energy"]), footprint(grid["config"]["energy"])
    rows: list[Row] = []
    other_rows: dict[str, list[list[Row]]] = {name: [] for name in run_rows.OTHERS}
    for run, entry in grid["runs"].items():
        row, others = _read(runs_folder / run, asked, factors, lost)
        ok = row["status"] == "ok"
        files = _beside(runs_folder / run, row, lost) if ok else {}
        row = combined(RUNS, _identity(run, entry), row, files)
        rows.append(row if ok else {**dict.fromkeys(RUNS), **row})
        for name, per_run in other_rows.items():
            per_run.append(others.get(name, []))
    traces = _traces(rows, runs_folder, lost)
    of_items = [_items(row, runs_folder / row["run"]) for row in rows if row["status"] == "ok"]
    names = _names(rows)
    for row in rows:
        row.update(names[row["cell"], row["environment"]])
    finished = [row for row in rows if row["status"] == "ok"]
    recorded = {row["run"]: (row, devices) for row, devices in zip(rows, other_rows["devices"], strict=True)}
    flag_shared_hosts(finished, _with_host_joules(rows, other_rows["devices"]))
    flag_unlike_boards(finished)
    runs = frame(rows, RUNS)
    comparisons = Comparisons(runs)
    tabulated_cells = cells.tabulate(runs, grid["config"], comparisons)
    return Tables(
        runs=runs,
        cells=tabulated_cells,
        effects=frame(effects.tabulate(tabulated_cells, grid["config"], comparisons), TABLES["effects"]),
        power=power_traces.tabulate(runs, traces),
        anchors=drift.tabulate(runs, asked, factors, anchors_folder) if anchors_folder else frame([], ANCHORS),
        attempts=ledger.tabulate(grid, runs_folder.parent, asked, recorded),
        evaluation_items=items.tabulate(of_items),
        **{name: _tabulated(name, rows, per_run) for name, per_run in other_rows.items()},
    )


def _tabulated(name: str, runs: list[Row], per_run: list[list[Row]]) -> pl.DataFrame:
    """Build a table from the rows of every run, each with the columns `OF_RUN` of its run."""
    table = TABLES[name]
    of_runs = [{key: row[key] for key in OF_RUN if key in table} for row in runs]
    pairs = zip(of_runs, per_run, strict=True)
    return frame([combined(table, row, of_run) for of_run, rows in pairs for row in rows], table)


def _with_host_joules(runs: list[Row], devices: list[list[Row]]) -> set[str]:
    """The runs with measured CPU or DRAM joules."""
    return {
        row["run"]
        for row, run_devices in zip(runs, devices, strict=True)
        if any(device["kind"] in meters.host_kinds() and device["status"] in READ for device in run_devices)
    }


def _read(
    folder: Path, asked: Asked, factors: Footprint | None, lost: Callable[[Path], None]
) -> tuple[Row, dict[str, list[Row]]]:
    """A run's row of the runs table and its rows of the others, also for a missing or unreadable record."""
    path = folder / "record.json"
    if not path.exists():
        return {"status": "missing", "reason": MISSING}, {}
    try:
        return run_rows.read(path, asked, factors)
    except UserError as error:
        if isinstance(error, Corrupt):
            lost(error.path)
        return {"status": UNREADABLE, "reason": str(error)}, {}


def _beside(folder: Path, row: Row, lost: Callable[[Path], None]) -> Row:
    """Read the summaries and the losses beside a record: columns of the runs table."""
    columns: Row = {}
    for read in (rouge.columns, spikes.columns):
        try:
            columns |= read(folder)
        except UserError as error:
            if isinstance(error, Corrupt):
                lost(error.path)
            run_rows.add_flag(row, "unreadable_file", str(error))
    return columns


def _items(row: Row, folder: Path) -> pl.DataFrame:
    """The scores of the items of a run's evaluations; a run with a corrupt file of them gets a flag."""
    try:
        return items.read(folder)
    except Corrupt as error:  # the run is not repeated for it: its record has the metrics
        run_rows.add_flag(row, "unreadable_file", str(error))
        return items.nothing()


def _traces(rows: list[Row], runs_folder: Path, lost: Callable[[Path], None]) -> pl.DataFrame:
    """Read the power traces of the finished runs; a run with a corrupt one gets a flag."""

    def flag(place: int, error: Corrupt) -> None:
        lost(error.path)
        run_rows.add_flag(ok[place], "unreadable_file", str(error))

    ok = [row for row in rows if row["status"] == "ok"]
    places = [i for i, row in enumerate(rows) if row["status"] == "ok"]
    traces = power_traces.read_all([runs_folder / row["run"] for row in ok], flag)
    return traces.with_columns(pl.Series(places, dtype=pl.UInt32)[traces["place"]].alias("place"))


def _identity(run: str, entry: Mapping[str, Any]) -> Row:
    """The columns that come from the manifest."""
    batch = f"{entry['batch_size']}" + ("/device" if entry["batch_size_scope"] == "per_device" else "")
    params = json.dumps(entry["method_params"], sort_keys=True)
    # A manifest older than an axis lacks it.
    axes = {key: entry.get(key, BEFORE.get(key)) for key in IN_MANIFEST}
    return {"run": run, "batch": batch, "method_params": params, **axes}


def flag_shared_hosts(ok: list[Row], with_host_joules: Set[str]) -> None:
    """Flag the runs whose CPU or DRAM joules include another run's share, since their windows overlap on one host.

    A run itself flags the overlaps that it sees when it ends; this also finds runs that began later. Runs with
    exclusive use of their node are not flagged.

    Args:
        ok: rows of the finished runs.
        with_host_joules: the runs with CPU or DRAM joules.
    """
    by_host: dict[str, list[Row]] = {}
    for row in ok:
        if row["window_begin"] and row["window_end"]:
            by_host.setdefault(row["hostname"], []).append(row)
    for same_host in by_host.values():
        same_host.sort(key=lambda row: row["window_begin"])
        latest = same_host[0]
        for row in same_host[1:]:
            if row["window_begin"] < latest["window_end"]:
                for run, other in ((row, latest), (latest, row)):
                    if run["run"] in with_host_joules and run["exclusive"] != "node":
                        _flag_shared(run, other)
            latest = max(latest, row, key=lambda run: run["window_end"])


def _flag_shared(row: Row, other: Row) -> None:
    text = f"{other['run']} was measured on {row['hostname']} at the same time; CPU and DRAM joules hold its share"
    run_rows.add_flag(row, "shared_host", text)


def flag_unlike_boards(ok: list[Row]) -> None:
    """Flag the runs of a panel that compares joules across different boards, power limits or temperatures.

    The sensors of equal boards differ by some percent, which no interval over seeds covers. Runs on one board and on
    several are comparable if the one is among the several.
    """
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in ok:
        if "gpu" in (row.get("energy_scope") or "").split("+"):
            panels.setdefault((row["panel"], row["environment"]), []).append(row)
    for compared in panels.values():
        boards = sorted(
            {row["gpu_uuids"] for row in compared if row["gpu_uuids"]}, key=lambda uuids: (len(uuids), uuids)
        )
        sets = [set(uuids.split(", ")) for uuids in boards]
        nested = all(smaller <= larger for smaller, larger in itertools.pairwise(sets))
        differences = {"boards_differ": "" if nested else f"runs on {'; '.join(boards)}"}
        for flag, column, unit, most in UNLIKE:
            values = [row[column] for row in compared if row[column] is not None]
            apart = bool(values) and max(values) - min(values) > most
            differences[flag] = f"{min(values):g} to {max(values):g} {unit}" if apart else ""
        for row, (flag, text) in itertools.product(compared, differences.items()):
            if text:
                run_rows.add_flag(row, flag, f"compared with others: {text}")


def _names(runs: list[Row]) -> dict[tuple[str, str | None], dict[str, str]]:
    """`name`, `setup` and `panel` of every (cell, environment), from the axes that vary in the sweep."""
    axes = ("model", "dataset", "task", "environment", *cells.LAYOUT, *RATES)
    values = {axis: {row.get(axis) for row in runs} for axis in axes}
    # Only ok runs count as environments: a failed run may have seen none of its boards.
    values["environment"] = {row["environment"] for row in runs if row["status"] == "ok"}
    varying = [axis for axis in axes if len(values[axis]) > 1]
    machines, names = _machines([row for row in runs if row["status"] == "ok"]), {}
    for row in runs:
        words = {axis: _word(axis, row.get(axis)) for axis in varying}
        words |= {"environment": machines.get(row.get("environment"), "")} if "environment" in varying else {}
        extra = [words[axis] for axis in (*cells.LAYOUT, *RATES) if axis in varying]
        setup = " ".join([_setup(row), *extra])
        panel = " · ".join(words[axis] for axis in axes[:4] if words.get(axis))
        name = f"{setup} bs{row['batch']}"
        names[row["cell"], row.get("environment")] = {"setup": setup, "panel": panel, "name": name}
    return names


#: What tells environments apart, in the order in which names take it up: column, and its word before the value.
TELLING = (("driver", "driver "), ("torch_version", "torch "), ("transformers_version", "transformers "))


def _machines(ok: list[Row]) -> dict[str | None, str]:
    """Environments in words: the boards or the processor, and what else tells them apart."""
    rows = {row["environment"]: row for row in ok}
    words = {env: _hardware(row) for env, row in rows.items()}
    for column, before in TELLING:
        alike, longer = Counter(words.values()), {}
        for env in [env for env, word in words.items() if alike[word] > 1]:
            same = {rows[other][column] for other, word in words.items() if word == words[env]}
            told = f"{words[env]}, {before}{rows[env][column] or 'unknown'}"
            longer[env] = told if len(same) > 1 else words[env]
        words |= longer
    alike = Counter(words.values())
    return {env: word if alike[word] == 1 else f"{word}, {env!s:.4}" for env, word in words.items()}


def _hardware(row: Row) -> str:
    """The boards of a run, else its processor."""
    return str(row["gpus"] or row["cpu_model"]).removeprefix("NVIDIA ")


def _word(axis: str, value: Any) -> str:  # noqa: ANN401 - of any axis
    """A value as names show it, with its axis if the value alone would be unclear."""
    if axis == "micro_batch_size":
        return f"micro{value}" if value else "whole"
    if axis == "max_grad_norm":
        return f"clip{value:g}" if value else "unclipped"
    if value is None:
        return ""
    return {
        "lr": f"lr{value}",
        "head": f"{value}-head",
        "checkpoint_activations": "checkpointed" if value else "stored",
    }.get(axis, str(value))


def _setup(row: Row) -> str:
    placed = spread(row["strategy"], row["devices"], row["nodes"])
    return " ".join([*_method(row["method"], row["method_params"]), placed, row["precision"]])


@functools.cache
def _method(method: str, params_json: str) -> list[str]:
    """A method as names show it, with its parameters; plain full training is not mentioned."""
    params = json.loads(params_json)
    return [*([method] if method != OMISSION["method"] or params else []), *parameter_words(method, params)]
