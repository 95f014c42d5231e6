"""The progress lines that are printed when a run starts and ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joulesweep.core.outcome import Measurement
from joulesweep.core.quantities import one
from joulesweep.launch import eta
from joulesweep.reference.cpu_estimate import asked
from joulesweep.runs.headline import estimated, headline
from joulesweep.runs.record import RunRecord, brief


def start_line(run: str, grid: Mapping[str, Any], runs_folder: Path) -> str:
    """`[ 5/24] ddp2 bf16-mixed bs32 r1 starts`; an anchor is `[anchor]`."""
    return f"{_head(run, grid, runs_folder, _num_finished(grid, runs_folder) + 1)} starts"


def end_line(record: RunRecord, grid: Mapping[str, Any], runs_folder: Path) -> str:
    """`[ 5/24] ddp2 bf16-mixed bs32 r1 · 2.9 s · 41 J est. · loss 3.90 · about 6 min left, done at 14:32`.

    A run that stopped has its status and the reason instead of the numbers.
    """
    head = _head(record.run, grid, runs_folder, _num_finished(grid, runs_folder))
    measured, quality, rest = record.measurement, record.quality, _rest(record.run, grid, runs_folder)
    if measured is None or quality is None:
        return " · ".join(filter(None, [head, f"{record.status}: {brief(record.reason or '')}", rest]))
    parts = [f"{measured.window_s:.1f} s", _joules(record, measured, grid), f"loss {quality.validation_loss:.2f}", rest]
    return " · ".join([head, *filter(None, parts)])


def _rest(run: str, grid: Mapping[str, Any], runs_folder: Path) -> str | None:
    """`about 6 min left, done at 14:32`; None for an anchor, and where nothing is left or known."""
    if run not in grid["runs"] or runs_folder.parent.name == "anchors":
        return None
    done = {run: (runs_folder / run / "record.json").exists() for run in grid["runs"]}
    left = [run for run in done if not done[run]]
    took = eta.finished((run for run in done if done[run]), runs_folder) if left else []
    rest = eta.remaining(grid["runs"], took, left, {})
    return f"about {eta.duration(rest.left_s)} left, done at {eta.until(rest.left_s)}" if rest else None


def _head(run: str, grid: Mapping[str, Any], runs_folder: Path, position: int) -> str:
    entry = grid["runs"].get(run)
    if entry is None:  # a run of another grid, by hand
        return f"[by hand] {run}"
    total = len(grid["runs"])
    if runs_folder.parent.name == "anchors":  # one folder per day
        return f"[anchor] {entry['label']} r{entry['repeat']}"
    return f"[{position:>{len(str(total))}}/{total}] {entry['label']} r{entry['repeat']}"


def _num_finished(grid: Mapping[str, Any], runs_folder: Path) -> int:
    return sum((runs_folder / run / "record.json").exists() for run in grid["runs"])


def _joules(record: RunRecord, measured: Measurement, grid: Mapping[str, Any]) -> str | None:
    """The run's headline energy; else the estimate, if the config asks for one; else None."""
    energy = headline(measured.energy, record.spec.accelerator, measured.conditions.exclusive)
    if energy.energy_j is not None:
        return one(energy.energy_j, "J") + (" int." if energy.energy_status == "integrated" else "")
    guess = estimated(record, asked(grid["config"]["energy"]), measured.cpu_s, measured.window_s)
    return f"{one(guess.mid_j, 'J')} est." if guess else None
