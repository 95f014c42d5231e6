"""From records to tables.

Runs of different hardware, driver or versions never share a cell's mean: `environment` is part of a cell's key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from joulesweep import anchors, cells, power, record, rouge, rows
from joulesweep.errors import UserError
from joulesweep.footprint import footprint
from joulesweep.spec import OMISSION, parameter_words
from joulesweep.tables import ANCHORS, EPOCHS, RUNS, SELECTIONS, Tables, frame

MISSING = "no record: not run yet, or it failed"
OF_RUN = ("run", "cell", "batch", "batch_size", "repeat")  # what an epoch or a choice has from its run


def read_grid(path: Path) -> dict[str, Any]:
    """Read a sweep's `grid.json`.

    Raises:
        UserError: missing, corrupt, or something else.
    """
    grid = record.read_json(path, "grid manifest")
    if grid.get("format") != "joulesweep-grid" or grid.get("version") != 1:
        raise UserError(f"{path}: not a grid manifest of version 1")
    return grid


def aggregate(
    grid: dict[str, Any], runs_folder: Path, allow_missing: bool = False, anchors_folder: Path | None = None
) -> Tables:
    """Tabulate the runs of the present grid; other folders beside them are ignored.

    Args:
        grid: the manifest, as `joulesweep.grid.manifest` makes it.
        runs_folder: holds one folder per run.
        allow_missing: whether a run without record becomes a row of status "missing".
        anchors_folder: holds one folder per later day, with one folder per run that was measured again.

    Raises:
        UserError: a record is missing (unless allowed), corrupt or foreign, or a summary is; the line names the file.
    """
    energy = grid["config"]["energy"]
    factors = footprint(energy)
    found, epochs, selections = [], [], []
    for run, entry in grid["runs"].items():
        path = runs_folder / run / "record.json"
        if allow_missing and not path.exists():
            found.append({**_identity(run, entry), "status": "missing", "reason": MISSING})
            continue
        row, per_epoch, choices = rows.read(path, energy, factors)
        scores = rouge.columns(path.parent) if row["status"] == "ok" else {}
        found.append({**_identity(run, entry), **row, **scores})
        of_run = {key: found[-1][key] for key in OF_RUN}
        epochs += [{**of_run, **epoch} for epoch in per_epoch]
        selections += [{**of_run, **choice} for choice in choices]
    names = _names(found)
    for row in found + epochs + selections:
        row.update(names[row["cell"], row.get("environment")])
    flag_shared_hosts([row for row in found if row["status"] == "ok"])
    runs = frame(found, RUNS)
    no_anchors = frame([], ANCHORS)
    return Tables(
        runs=runs,
        cells=cells.tabulate(runs, grid["config"]["grid"]),
        epochs=frame(epochs, EPOCHS),
        selections=frame(selections, SELECTIONS),
        power=power.tabulate(runs, runs_folder),
        anchors=anchors.tabulate(runs, energy, factors, anchors_folder) if anchors_folder else no_anchors,
    )


def _identity(run: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a run."""
    batch = f"{entry['batch_size']}" + ("/device" if entry["batch_size_scope"] == "per_device" else "")
    return {
        "run": run,
        **entry,
        "batch": batch,
        "method_params": json.dumps(entry["method_params"], sort_keys=True),
    }


def flag_shared_hosts(ok: list[dict[str, Any]]) -> None:
    """Flag the runs whose CPU or DRAM joules hold another run's share: their windows overlap on one host.

    A run sees those that overlap when it ends; here also those that began later are seen. Runs that were alone on
    their node by arrangement are left as they are.
    """
    by_host: dict[str, list[dict[str, Any]]] = {}
    for row in ok:
        if row["window_begin"] and row["window_end"]:
            by_host.setdefault(row["hostname"], []).append(row)
    for same_host in by_host.values():
        same_host.sort(key=lambda row: row["window_begin"])
        latest = same_host[0]
        for row in same_host[1:]:
            if row["window_begin"] < latest["window_end"]:
                _flag_shared(row, latest)
                _flag_shared(latest, row)
            latest = max(latest, row, key=lambda one: one["window_end"])


def _flag_shared(row: dict[str, Any], other: dict[str, Any]) -> None:
    if row["exclusive"] != "node" and row["host_joules"]:
        text = f"{other['run']} was measured on {row['hostname']} at the same time; CPU and DRAM joules hold its share"
        rows.add_flag(row, "shared_host", text)


#: The axes of how far a step goes.
RATES = ("lr", "max_grad_norm")


def _names(found: list[dict[str, Any]]) -> dict[tuple[str, str | None], dict[str, str]]:
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


def _setup(row: dict[str, Any]) -> str:
    params = json.loads(row["method_params"])
    method = [row["method"]] if row["method"] != OMISSION["method"] or params else []
    spread = row["strategy"] + (f"{row['devices']}" if row["devices"] > 1 else "")
    return " ".join([*method, *parameter_words(row["method"], params), spread, row["precision"]])
