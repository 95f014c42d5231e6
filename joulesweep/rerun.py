"""Take up again runs that ended with a status: Snakemake makes exactly their records anew, then the analysis.

Nothing is deleted before: Snakemake removes a record when it starts that very run. So a rerun that is killed loses the
runs it was busy with, as any sweep does, and every other record is the new one or still the old one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from joulesweep import process, record
from joulesweep.workflow import Sweep

#: What tells Snakemake how many jobs at once; without any of them it is told the cores of this machine.
HOW_MANY = re.compile(r"--(cores|jobs|profile|workflow-profile|executor)\b|-[cje]")
ANALYSIS = ("grid", "aggregate", "charts", "report")  # rules


def ended(sweep: Sweep, statuses: Collection[str]) -> list[dict[str, Any]]:
    """Records of the present grid with one of the statuses, in the grid's order.

    Raises:
        UserError: a record is corrupt or foreign.
    """
    paths = [path for path in _records(sweep, sweep.runs) if path.exists()]
    return [found for found in map(record.read, paths) if found["status"] in statuses]


def rerun(sweep: Sweep, runs: Sequence[str], configfile: Path, arguments: Sequence[str]) -> int:
    """Make the records of some runs anew, and the report of all.

    Runs that are missing or stale stay so, and then the report is the partial one.

    Args:
        sweep: the sweep.
        runs: ids of runs that have a record.
        configfile: its config.
        arguments: further ones for Snakemake, such as `--resources gpu=2`.

    Returns:
        Snakemake's exit code.
    """
    told = any(HOW_MANY.match(word) for word in arguments)
    common = ["--configfile", str(configfile), *([] if told else ["--cores", "all"]), *arguments]
    # The manifest by itself: while it is to be written, Snakemake overlooks that what depends on it is forced.
    code = _snakemake([f"{sweep.folder}/grid.json", *common])
    # Only targets are forced. The report is none here: it would bring along what is missing or stale.
    code = code or _snakemake([*map(str, _records(sweep, runs)), "--force", *common])
    return code or _snakemake([*_analysis(sweep), *common])


def _analysis(sweep: Sweep) -> list[str]:
    """Snakemake's arguments for the report of what is there; no rule that trains is allowed."""
    needed = [*_records(sweep, sweep.runs), *map(Path, sweep.anchors())]
    if not all(path.exists() for path in needed):
        return ["partial"]
    return [f"{sweep.folder}/report.html", "--allowed-rules", *ANALYSIS]


def _records(sweep: Sweep, runs: Sequence[str]) -> list[Path]:
    return [Path(sweep.folder, "runs", run, "record.json") for run in runs]


def _snakemake(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "snakemake", *arguments]
    child = subprocess.Popen(command, preexec_fn=process.die_with_parent)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the terminal told Snakemake as well: let it end its jobs
            continue
