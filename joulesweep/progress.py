"""One line when a run starts and one when it ends, for the person who watches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from joulesweep.energy import estimated, headline
from joulesweep.quantities import one
from joulesweep.record import brief


def start_line(run: str, grid: dict[str, Any], runs_folder: Path) -> str:
    """`[ 5/24] ddp2 bf16-mixed bs32 r1 starts`; an anchor is `[anchor]`."""
    return f"{_head(run, grid, runs_folder, _num_finished(grid, runs_folder) + 1)} starts"


def end_line(record: dict[str, Any], grid: dict[str, Any], runs_folder: Path) -> str:
    """`[ 5/24] ddp2 bf16-mixed bs32 r1 · 2.9 s · 41 J est. · loss 3.90`, or the status and its reason."""
    head = _head(record["run"], grid, runs_folder, _num_finished(grid, runs_folder))
    if record["status"] != "ok":
        return f"{head} · {record['status']}: {brief(record['reason'])}"
    window_s = record["measurement"]["window_s"]
    parts = [f"{window_s:.1f} s", _joules(record, grid), f"loss {record['quality']['validation_loss']:.2f}"]
    return " · ".join([head, *filter(None, parts)])


def _head(run: str, grid: dict[str, Any], runs_folder: Path, position: int) -> str:
    entry = grid["runs"].get(run)
    if entry is None:  # a run of another grid, by hand
        return f"[by hand] {run}"
    total = len(grid["runs"])
    if runs_folder.parent.name == "anchors":  # one folder per day
        return f"[anchor] {entry['label']} r{entry['repeat']}"
    return f"[{position:>{len(str(total))}}/{total}] {entry['label']} r{entry['repeat']}"


def _num_finished(grid: dict[str, Any], runs_folder: Path) -> int:
    return sum((runs_folder / run / "record.json").exists() for run in grid["runs"])


def _joules(record: dict[str, Any], grid: dict[str, Any]) -> str | None:
    """The run's joules by the rule of the tables, else estimated ones if the config asks for them, else nothing."""
    measurement = record["measurement"]
    exclusive = measurement["conditions"]["exclusive"]
    found = headline(measurement["energy"], record["spec"]["accelerator"], exclusive)
    if found["energy_reason"] is None:
        return one(found["energy_j"], "J") + (" int." if found["energy_status"] == "integrated" else "")
    guess = estimated(record, grid["config"]["energy"], measurement["cpu_s"], measurement["window_s"])
    return f"{one(guess.mid_j, 'J')} est." if guess else None
