"""From records to tables.

Runs of different hardware, driver or versions never share a cell's mean: `environment` is part of a cell's key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from joulesweep import cells, record
from joulesweep.errors import UserError
from joulesweep.estimate import Estimate, estimate_cpu
from joulesweep.spec import OMISSION, short_hash
from joulesweep.tables import EPOCHS, ESTIMATED, RUNS, Tables, check, frame

MISSING = "no record: not run yet, or it failed"


def read_grid(path: Path) -> dict[str, Any]:
    """Read a sweep's `grid.json`.

    Raises:
        UserError: missing, corrupt, or something else.
    """
    grid = record.read_json(path, "grid manifest")
    if grid.get("format") != "joulesweep-grid" or grid.get("version") != 1:
        raise UserError(f"{path}: not a grid manifest of version 1")
    return grid


def aggregate(grid: dict[str, Any], runs_folder: Path, allow_missing: bool = False) -> Tables:
    """Tabulate the runs of the present grid; other folders beside them are ignored.

    Args:
        grid: the manifest, as `joulesweep.grid.manifest` makes it.
        runs_folder: holds one folder per run.
        allow_missing: whether a run without record becomes a row of status "missing".

    Raises:
        UserError: a record is missing (unless allowed), corrupt or foreign; the line names its file.
    """
    rows, epochs = [], []
    for run, entry in grid["runs"].items():
        path = runs_folder / run / "record.json"
        if allow_missing and not path.exists():
            rows.append({**_identity(run, entry, {}), "status": "missing", "reason": MISSING})
            continue
        found = record.read(path)
        try:
            row = {**_identity(run, entry, found["spec"]), **_outputs(found, grid["config"]["energy"])}
            check(row, RUNS)
            per_epoch = list(_epochs(row, found, grid["config"]["energy"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: corrupt run record: {type(error).__name__}: {error}") from None
        rows.append(row)
        epochs += per_epoch
    names = _names(rows)
    for row in rows + epochs:
        row.update(names[row["cell"], row.get("environment")])
    runs = frame(rows, RUNS)
    return Tables(runs=runs, cells=cells.tabulate(runs, grid["config"]["grid"]), epochs=frame(epochs, EPOCHS))


def _identity(run: str, entry: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a run; the method's parameters are in the spec alone."""
    params = spec.get("method_params")
    batch = f"{entry['batch_size']}" + ("/device" if entry["batch_size_scope"] == "per_device" else "")
    return {
        "run": run,
        **entry,
        "batch": batch,
        "method_params": None if params is None else json.dumps(params, sort_keys=True),
    }


def _outputs(found: dict[str, Any], energy: dict[str, Any]) -> dict[str, Any]:
    """The columns that come from a record."""
    same = {key: found[key] for key in ("status", "reason", "oom_bytes", "started", "finished", "code_digest")}
    row = {**same, "accelerator": found["spec"]["accelerator"], **_environment(found["environment"])}
    if found["status"] != "ok":
        return row
    measurement = found["measurement"]
    memory = {f"peak_{key}": value for key, value in measurement["peak_memory"].items()}
    given = {**measurement, **memory, **found["quality"]}
    row |= {key: given[key] for key in RUNS if key in given and key != "energy_j"}
    guess = _estimate(found, energy, measurement["cpu_s"], measurement["window_s"])
    return {
        **row,
        **_energy(measurement["energy"], row["accelerator"]),
        **_estimate_columns(guess),
        **_estimate_method(guess),
    }


def _environment(environment: dict[str, Any]) -> dict[str, Any]:
    versions = environment["versions"]
    same = {key: environment[key] for key in RUNS if key in environment and key != "gpus"}
    return {
        **same,
        "gpus": ", ".join(gpu["name"] for gpu in environment["gpus"]) or None,
        **{f"{name}_version": versions.get(name) for name in ("torch", "transformers", "zeus")},
        "environment": fingerprint(environment),
    }


def fingerprint(environment: dict[str, Any]) -> str:
    """Hash of what must agree for two runs to share a mean: boards, driver, versions.

    Host names, board UUIDs and the cores granted to one job may differ: a cluster spreads equal jobs over equal nodes.
    """
    versions = environment["versions"]
    return short_hash(
        {
            "cpu_model": environment["cpu_model"],
            "host_memory_gib": round(environment["host_memory_bytes"] / 2**30),
            "gpus": [[gpu["name"], gpu["memory_bytes"]] for gpu in environment["gpus"]],
            "driver": environment["driver"],
            "torch": versions.get("torch"),
            "transformers": versions.get("transformers"),
        }
    )


def _energy(rows: list[dict[str, Any]], accelerator: str) -> dict[str, Any]:
    """Measured joules of a run: null unless all that computed was measured (every GPU, else the CPU or SoC)."""
    kinds = ("gpu",) if accelerator == "cuda" else ("cpu", "soc")
    main = [row for row in rows if row["kind"] in kinds]
    lacking = [row for row in main if row["status"] != "measured" or row["energy_j"] is None]
    if not main or lacking:
        reasons = [f"{row['device']}: {row['reason']}" for row in lacking if row["reason"]]
        return {
            "energy_status": _joined(row["status"] for row in lacking) or "unavailable",
            "energy_method": _joined(row["method"] for row in lacking),
            "energy_reason": "; ".join(reasons) or "the record names no energy meter",
        }
    measured = [row for row in rows if row["status"] == "measured" and row["energy_j"] is not None]
    return {
        "energy_j": math.fsum(row["energy_j"] for row in measured),
        "energy_scope": "+".join(dict.fromkeys(row["kind"] for row in measured)),
        "energy_status": "measured",
        "energy_method": _joined(row["method"] for row in measured),
    }


def _joined(values: Iterable[str | None]) -> str | None:
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def _estimate(found: dict[str, Any], energy: dict[str, Any], cpu_s: float, wall_s: float) -> Estimate | None:
    """Estimated joules; of CPU runs alone, since nothing is guessed of a GPU."""
    if not energy["estimate"] or found["spec"]["accelerator"] != "cpu":
        return None
    where = found["environment"]
    return estimate_cpu(cpu_s, wall_s, where["cpu_model"], where["cpu_cores"], energy["cpu_watts"])


def _estimate_columns(guess: Estimate | None) -> dict[str, Any]:
    values = (guess.mid_j, guess.low_j, guess.high_j) if guess else (None, None, None)
    return dict(zip(ESTIMATED, values, strict=True))


def _estimate_method(guess: Estimate | None) -> dict[str, Any]:
    return {"estimated_energy_method": guess.method if guess else None}


def _epochs(row: dict[str, Any], found: dict[str, Any], energy: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the epochs table; joules are estimated, cumulative."""
    for epoch in found["epochs"] if found["status"] == "ok" else ():
        guess = _estimate(found, energy, epoch["cpu_s"], epoch["elapsed_s"])
        given = {**{key: row.get(key) for key in EPOCHS}, **{key: epoch[key] for key in EPOCHS if key in epoch}}
        yield {**check(given, EPOCHS), **_estimate_columns(guess)}


def _names(rows: list[dict[str, Any]]) -> dict[tuple[str, str | None], dict[str, str]]:
    """`name`, `setup` and `panel` of every (cell, environment): what varies is named, what does not is left out."""
    axes = ("model", "dataset", "task", "environment", "batching", "lr")
    varying = [axis for axis in axes if len({row.get(axis) for row in rows if row.get(axis) is not None}) > 1]
    names = {}
    for row in rows:
        words = {axis: _word(axis, row.get(axis)) for axis in varying}
        extra = [words[axis] for axis in ("batching", "lr") if axis in varying]
        setup = " ".join([_setup(row), *extra])
        panel = " · ".join(words[axis] for axis in axes[:4] if words.get(axis))
        name = f"{setup} bs{row['batch']}"
        names[row["cell"], row.get("environment")] = {"setup": setup, "panel": panel, "name": name}
    return names


def _word(axis: str, value: object) -> str:
    """A value in a name: learning rates and environments need to say what they are."""
    if value is None:
        return ""
    return {"lr": f"lr{value}", "environment": f"environment {value!s:.4}"}.get(axis, str(value))


def _setup(row: dict[str, Any]) -> str:
    params = json.loads(row["method_params"] or "{}")
    method = [row["method"]] if row["method"] != OMISSION["method"] or params else []
    spread = row["strategy"] + (f"{row['devices']}" if row["devices"] > 1 else "")
    return " ".join([*method, *(f"{key}={value}" for key, value in params.items()), spread, row["precision"]])
