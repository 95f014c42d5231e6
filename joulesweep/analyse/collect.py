"""From records to tables.

Runs of different hardware, driver or versions never share a cell's mean: `environment` is part of a cell's key.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import polars as pl

from joulesweep.analyse import cells, drift, power_traces, rouge, run_rows
from joulesweep.analyse.columns import ANCHORS, RUNS, TABLES, UNREADABLE, named
from joulesweep.analyse.tables import Row, Tables, combined, frame
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
#: The axes of how far a step goes.
RATES = ("lr", "max_grad_norm")
#: What the boards of compared runs should share: flag, column, unit, and by how much it may differ.
UNLIKE = (
    ("limits_differ", "power_limit_w", "W", 1.0),
    ("temperatures_differ", "temperature_start_c", "°C at the start", 5.0),
)
#: What the manifest says of a run in the very words of the table.
IN_MANIFEST = (
    *named(RUNS, "cell label repeat model dataset task method strategy devices precision batching head engine"),
    *named(RUNS, "batch_size batch_size_scope micro_batch_size checkpoint_activations lr max_grad_norm"),
)
#: What the rows of another table have from their run, those of these columns that the table has.
OF_RUN = named(RUNS, "run cell name setup panel batch environment batch_size repeat")


def read_grid(path: Path) -> Mapping[str, Any]:
    """Read a sweep's `grid.json`.

    Raises:
        UserError: missing, corrupt, or something else.
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
    """Tabulate the runs of the present grid; other folders beside them are ignored.

    A run without record is a row of status "missing", one whose record cannot be read of status "unreadable". Of a run
    whose trace or summaries cannot be read the numbers of its record stay, with a flag.

    Args:
        grid: the manifest, as `joulesweep.plan.grid.manifest` makes it.
        runs_folder: holds one folder per run.
        anchors_folder: holds one folder per later day, with one folder per run that was measured again.
        lost: called with each file of a run that is corrupt or foreign.
    """
    asked, factors = cpu_estimate.asked(grid["config"]["energy"]), footprint(grid["config"]["energy"])
    found: list[Row] = []
    beside: dict[str, list[list[Row]]] = {"epochs": [], "selections": [], "devices": []}
    traces = {}
    for run, entry in grid["runs"].items():
        row, further = _read(runs_folder / run, asked, factors, lost)
        ok = row["status"] == "ok"
        files = _beside(runs_folder / run, row, lost) if ok else {}
        if (trace := files.pop("power", None)) is not None:
            traces[run] = trace
        row = combined(RUNS, _identity(run, entry), row, files)
        found.append(row if ok else {**dict.fromkeys(RUNS), **row})
        for name, made in beside.items():
            made.append(further.get(name, []))
    names = _names(found)
    for row in found:
        row.update(names[row["cell"], row["environment"]])
    finished = [row for row in found if row["status"] == "ok"]
    flag_shared_hosts(finished, _with_host_joules(found, beside["devices"]))
    flag_unlike_boards(finished)
    runs = frame(found, RUNS)
    return Tables(
        runs=runs,
        cells=cells.tabulate(runs, grid["config"]["grid"]),
        power=power_traces.tabulate(runs, traces),
        anchors=drift.tabulate(runs, asked, factors, anchors_folder) if anchors_folder else frame([], ANCHORS),
        **{name: _tabulated(name, found, made) for name, made in beside.items()},
    )


def _tabulated(name: str, runs: list[Row], made: list[list[Row]]) -> pl.DataFrame:
    """A table with rows of every run, each with what its run is called."""
    table = TABLES[name]
    same = [{key: row[key] for key in OF_RUN if key in table} for row in runs]
    return frame([combined(table, own, of_run) for of_run, of in zip(same, made, strict=True) for own in of], table)


def _with_host_joules(runs: list[Row], devices: list[list[Row]]) -> set[str]:
    """The runs of which CPU or DRAM joules were read."""
    return {
        row["run"]
        for row, of in zip(runs, devices, strict=True)
        if any(one["kind"] in meters.host_kinds() and one["status"] in READ for one in of)
    }


def _read(
    folder: Path, asked: Asked, factors: Footprint | None, lost: Callable[[Path], None]
) -> tuple[Row, dict[str, list[Row]]]:
    """A run's row of the runs table and its rows of others, whatever became of its record."""
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
    """What the files beside a record hold: columns of the runs table, and the trace as `power`."""
    found: Row = {}
    for read in (rouge.columns, lambda folder: {"power": power_traces.read(folder)}):
        try:
            found |= read(folder)
        except UserError as error:
            if isinstance(error, Corrupt):
                lost(error.path)
            run_rows.add_flag(row, "unreadable_file", str(error))
    return found


def _identity(run: str, entry: Mapping[str, Any]) -> Row:
    """What the manifest says of a run."""
    batch = f"{entry['batch_size']}" + ("/device" if entry["batch_size_scope"] == "per_device" else "")
    params = json.dumps(entry["method_params"], sort_keys=True)
    # A manifest of before an axis lacks it.
    return {"run": run, "batch": batch, "method_params": params, **{key: entry.get(key) for key in IN_MANIFEST}}


def flag_shared_hosts(ok: list[Row], with_host_joules: Set[str]) -> None:
    """Flag the runs whose CPU or DRAM joules hold another run's share: their windows overlap on one host.

    A run sees those that overlap when it ends; here also those that began later are seen. Runs that were alone on
    their node by arrangement are left as they are.

    Args:
        ok: rows of the finished runs.
        with_host_joules: the runs that have such joules.
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
                for one, other in ((row, latest), (latest, row)):
                    if one["run"] in with_host_joules and one["exclusive"] != "node":
                        _flag_shared(one, other)
            latest = max(latest, row, key=lambda one: one["window_end"])


def _flag_shared(row: Row, other: Row) -> None:
    text = f"{other['run']} was measured on {row['hostname']} at the same time; CPU and DRAM joules hold its share"
    run_rows.add_flag(row, "shared_host", text)


def flag_unlike_boards(ok: list[Row]) -> None:
    """Flag the runs of a panel whose boards' joules are compared across boards, limits or temperatures that differ.

    Boards of one kind differ by some percent in what their sensors say, which no interval over seeds holds. Runs on one
    board and on several may be compared if the one is among the several.
    """
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in ok:
        if "gpu" in (row.get("energy_scope") or "").split("+"):
            panels.setdefault((row["panel"], row["environment"]), []).append(row)
    for same in panels.values():
        boards = sorted({row["gpu_uuids"] for row in same if row["gpu_uuids"]}, key=lambda one: (len(one), one))
        sets = [set(uuids.split(", ")) for uuids in boards]
        nested = all(one <= other for one, other in itertools.pairwise(sets))
        found = {"boards_differ": "" if nested else f"runs on {'; '.join(boards)}"}
        for flag, column, unit, most in UNLIKE:
            values = [row[column] for row in same if row[column] is not None]
            apart = bool(values) and max(values) - min(values) > most
            found[flag] = f"{min(values):g} to {max(values):g} {unit}" if apart else ""
        for row, (flag, text) in itertools.product(same, found.items()):
            if text:
                run_rows.add_flag(row, flag, f"compared with others: {text}")


def _names(found: list[Row]) -> dict[tuple[str, str | None], dict[str, str]]:
    """`name`, `setup` and `panel` of every (cell, environment): what varies is named, what does not is left out."""
    axes = ("model", "dataset", "task", "environment", *cells.LAYOUT, *RATES)
    values = {axis: {row.get(axis) for row in found} for axis in axes}
    # A run without numbers makes no environment of its own: it may have found none of its boards.
    values["environment"] = {row["environment"] for row in found if row["status"] == "ok"}
    varying = [axis for axis in axes if len(values[axis]) > 1]
    names = {}
    for row in found:
        words = {axis: _word(axis, row.get(axis)) for axis in varying}
        extra = [words[axis] for axis in (*cells.LAYOUT, *RATES) if axis in varying]
        setup = " ".join([_setup(row), *extra])
        panel = " · ".join(words[axis] for axis in axes[:4] if words.get(axis))
        name = f"{setup} bs{row['batch']}"
        names[row["cell"], row.get("environment")] = {"setup": setup, "panel": panel, "name": name}
    return names


def _word(axis: str, value: Any) -> str:  # noqa: ANN401 - of any axis
    """A value in a name: those that do not speak for themselves say what they are."""
    if axis == "micro_batch_size":
        return f"micro{value}" if value else "whole"
    if axis == "max_grad_norm":
        return f"clip{value:g}" if value else "unclipped"
    if value is None:
        return ""
    return {
        "lr": f"lr{value}",
        "environment": f"environment {value!s:.4}",
        "head": f"{value}-head",
        "checkpoint_activations": "checkpointed" if value else "stored",
    }.get(axis, str(value))


def _setup(row: Row) -> str:
    params = json.loads(row["method_params"])
    method = [row["method"]] if row["method"] != OMISSION["method"] or params else []
    spread = row["strategy"] + (f"{row['devices']}" if row["devices"] > 1 else "")
    return " ".join([*method, *parameter_words(row["method"], params), spread, row["precision"]])
