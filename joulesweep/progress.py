"""One line when a run starts and one when it ends, for the person who watches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from joulesweep.estimate import estimate_cpu


def start_line(run: str, grid: dict[str, Any], runs_folder: Path) -> str:
    """`[ 5/24] ddp2 bf16-mixed bs32 r1 starts`."""
    return f"{_head(run, grid, _num_finished(grid, runs_folder) + 1)} starts"


def end_line(record: dict[str, Any], grid: dict[str, Any], runs_folder: Path) -> str:
    """`[ 5/24] ddp2 bf16-mixed bs32 r1 · 2.9 s · 41 J est. · loss 3.90`, or the status and its reason."""
    head = _head(record["run"], grid, _num_finished(grid, runs_folder))
    if record["status"] != "ok":
        return f"{head} · {record['status']}: {record['reason']}"
    window_s = record["measurement"]["window_s"]
    parts = [f"{window_s:.1f} s", _joules(record, grid), f"loss {record['quality']['validation_loss']:.2f}"]
    return " · ".join([head, *filter(None, parts)])


def _head(run: str, grid: dict[str, Any], position: int) -> str:
    entry = grid["runs"].get(run)
    if entry is None:  # a run of another grid, by hand
        return f"[by hand] {run}"
    total = len(grid["runs"])
    return f"[{position:>{len(str(total))}}/{total}] {entry['label']} r{entry['repeat']}"


def _num_finished(grid: dict[str, Any], runs_folder: Path) -> int:
    return sum((runs_folder / run / "record.json").exists() for run in grid["runs"])


def _joules(record: dict[str, Any], grid: dict[str, Any]) -> str | None:
    """The joules that were read, else estimated ones if the config asks for them, else nothing."""
    energy = record["measurement"]["energy"]
    rows = [row["energy_j"] for row in energy if row["status"] in ("measured", "integrated")]
    if rows:
        return f"{sum(rows):.3g} J"
    wanted, machine = grid["config"]["energy"], record["environment"]
    if not wanted["estimate"]:
        return None
    guess = estimate_cpu(
        record["measurement"]["cpu_s"],
        record["measurement"]["window_s"],
        machine["cpu_model"],
        machine["cpu_cores"],
        wanted["cpu_watts"],
    )
    return f"{guess.mid_j:.3g} J est."
