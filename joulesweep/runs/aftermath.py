"""What a workflow says when it ends early: which runs failed, were preempted or stopped, and how to go on."""

# changes no number: what is said at the end
from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from joulesweep.core.places import CHECKPOINT
from joulesweep.runs import attempted

MOST_NAMES = 4  # of stopped runs


def lines(folders: Iterable[Path]) -> list[str]:
    """A line for each run that failed or was preempted, and one line for all that were stopped from outside.

    Args:
        folders: of all runs of the sweep.
    """
    begun = [folder for folder in folders if folder.is_dir() and not (folder / "record.json").exists()]
    preempted = [folder for folder in begun if (folder / CHECKPOINT).exists()]
    begun = [folder for folder in begun if folder not in preempted]
    stopped = [folder.name for folder in begun if was_stopped(folder)]
    failed = [folder for folder in begun if folder.name not in stopped and (folder / "run.log").exists()]
    told = [f"PREEMPTED {folder.name}: the next snakemake goes on with it" for folder in preempted]
    told += [f"FAILED {folder.name}; its output: {folder / 'run.log'}" for folder in failed]
    if stopped:
        names = [*stopped[:MOST_NAMES], *([f"and {len(stopped) - MOST_NAMES} more"] if stopped[MOST_NAMES:] else [])]
        runs = f"{len(stopped)} run{'s' if len(stopped) > 1 else ''}"
        told.append(
            f"Stopped with {runs} on the way, nothing else is lost: {', '.join(names)}. Go on with: {command()}"
        )
    return told


def was_stopped(folder: Path) -> bool:
    """Whether the last attempt at a run was ended from outside: one that has no end was killed."""
    of_run = attempted.notes(folder / attempted.FILE)
    return bool(of_run) and of_run[-1].get("status", attempted.STOPPED) == attempted.STOPPED


def command() -> str:
    """The command line of this process, as its user gave it."""
    name, *words = sys.argv
    return shlex.join(["snakemake" if Path(name).name == "__main__.py" else Path(name).name, *words])
