"""Drift between days: runs measured again on a later day, beside what they gave first. Never averaged in."""

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
    """The anchors table: each day's records in `folder/<YYYY-MM-DD>/<run>/`, those of the present grid.

    Args:
        runs: the runs table.
        asked: what the config says of estimates.
        factors: what turns joules into emissions and cost.
        folder: of the anchors; one that is not there holds none.

    A record that cannot be read (corrupt, foreign, of an older version) is a row of status "unreadable": drift is a
    check, and never stops the sweep.
    """
    originals = {row["run"]: row for row in runs.iter_rows(named=True)}
    found = []
    for path in sorted(folder.glob("????-??-??/*/record.json")):
        original = originals.get(path.parent.name)
        if original is not None:
            found.append({"day": path.parent.parent.name, **_row(original, path, asked, factors)})
    return frame(found, ANCHORS)


def _row(original: Row, path: Path, asked: Asked, factors: Footprint | None) -> Row:
    try:
        again, _ = run_rows.read(path, asked, factors)
    except UserError:
        return {**{key: original[key] for key in FIRST}, "status": UNREADABLE}
    return _drift(original, again)


def _drift(original: Row, again: Row) -> Row:
    """One row: both numbers, and their ratio where they may be compared."""
    both_ok = original["status"] == again["status"] == "ok"
    same_environment = original["environment"] == again["environment"] if original["environment"] else None
    kinds = [(row["energy_scope"], row["energy_status"]) for row in (original, again) if row.get("energy_scope")]
    same_scope = kinds[0] == kinds[1] if len(kinds) == 2 else None
    codes = [{row["code_digest"], *(row["accepted_codes"] or "").split()} for row in (original, again)]
    same_code = bool(codes[0] & codes[1]) if original["code_digest"] else None
    comparable = both_ok and same_environment and same_code
    row = {
        **{key: original[key] for key in FIRST},
        "status": again["status"],
        **{f"anchor_{key}": again.get(key) for key in AGAIN},
        "same_environment": same_environment,
        "same_code": same_code,
        "same_scope": same_scope,
        "window_ratio": _ratio(again, original, "window_s") if comparable else None,
        "energy_ratio": _ratio(again, original, "energy_j") if comparable and same_scope else None,
    }
    return check(row, ANCHORS)


def _ratio(again: Row, original: Row, quantity: str) -> float | None:
    return again[quantity] / original[quantity] if original[quantity] else None
