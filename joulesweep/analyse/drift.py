"""Drift between days: runs measured again on a later day, compared with the first time. They enter no mean."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from joulesweep.analyse import run_rows
from joulesweep.analyse.columns import ANCHORS, RUNS, UNREADABLE, named
from joulesweep.analyse.tables import Row, check, frame
from joulesweep.core.errors import UserError
from joulesweep.reference.cpu_estimate import Asked
from joulesweep.reference.footprint import Footprint

FIRST = named(ANCHORS, "run name panel window_s energy_j")
AGAIN = named(RUNS, "window_s energy_j total_energy_j energy_status energy_scope")


def tabulate(runs: pl.DataFrame, asked: Asked, factors: Footprint | None, folder: Path) -> pl.DataFrame:
    """Build the anchors table from each day's records in `folder/<YYYY-MM-DD>/<run>/` of runs in the present grid.

    Args:
        runs: the runs table.
        asked: the config's settings for estimates.
        factors: convert joules into emissions and cost.
        folder: of the anchors; may be missing.

    A record that cannot be read (corrupt, foreign, of an older version) becomes a row of status "unreadable", and never
    stops the sweep.
    """
    originals = {row["run"]: row for row in runs.iter_rows(named=True)}
    rows = []
    for path in sorted(folder.glob("????-??-??/*/record.json")):
        original = originals.get(path.parent.name)
        if original is not None:
            rows.append({"day": path.parent.parent.name, **_row(original, path, asked, factors)})
    return frame(rows, ANCHORS)


def _row(original: Row, path: Path, asked: Asked, factors: Footprint | None) -> Row:
    try:
        later, _ = run_rows.read(path, asked, factors)
    except UserError:
        return {**{key: original[key] for key in FIRST}, "status": UNREADABLE}
    return _drift(original, later)


def _drift(original: Row, later: Row) -> Row:
    """One row: both measurements, and their ratio if they are comparable."""
    both_ok = original["status"] == later["status"] == "ok"
    same_environment = original["environment"] == later["environment"] if original["environment"] else None
    kinds = [(row["energy_scope"], row["energy_status"]) for row in (original, later) if row.get("energy_scope")]
    same_scope = kinds[0] == kinds[1] if len(kinds) == 2 else None
    codes = [{row["code_digest"], *(row["accepted_codes"] or "").split()} for row in (original, later)]
    same_code = bool(codes[0] & codes[1]) if original["code_digest"] else None
    comparable = both_ok and same_environment and same_code
    row = {
        **{key: original[key] for key in FIRST},
        "status": later["status"],
        **{f"anchor_{key}": later.get(key) for key in AGAIN},
        "same_environment": same_environment,
        "same_code": same_code,
        "same_scope": same_scope,
        "window_ratio": _ratio(later, original, "window_s") if comparable else None,
        "energy_ratio": _ratio(later, original, "energy_j") if comparable and same_scope else None,
    }
    return check(row, ANCHORS)


def _ratio(later: Row, original: Row, quantity: str) -> float | None:
    return later[quantity] / original[quantity] if original[quantity] else None
