"""Make the report of what is finished, beside a sweep that goes on: Snakemake and its lock have no part in it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from joulesweep.cli import add_config
from joulesweep.cli.status import sweep_folder
from joulesweep.core import files
from joulesweep.core.errors import UserError
from joulesweep.launch import lease

HELP = "make the report of the runs that are finished, while the others go on"
EXAMPLES = ("joulesweep report", "joulesweep report results/default")

LEAST_PRIORITY = 19  # what is being measured on this machine keeps its cores


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", nargs="?", type=Path, help="results/<sweep>; default: that of the config")
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Make tables, charts and page of the finished runs in the sweep's folder `partial`; print the answer."""
    os.nice(LEAST_PRIORITY)
    os.environ["POLARS_MAX_THREADS"] = "1"
    folder = sweep_folder(args)
    if not (folder / "grid.json").exists():
        raise UserError(f"{folder}: no sweep has begun there: it has no grid.json")
    for holder in lease.holders():
        print(f"note: {holder} is measured on this machine, and may notice the work of this report", file=sys.stderr)
    from joulesweep.report import ending  # tables and charts, which --help does not need

    page = make(folder)
    print("\n".join([*ending.lines(page.parent), f"Report: {page.resolve()}"]))
    return 0


def make(folder: Path) -> Path:
    """Write `partial/` of a sweep's folder, each file atomically and the page last; return the page's path.

    Raises:
        UserError: the manifest cannot be read.
    """
    from joulesweep.analyse import collect, tables
    from joulesweep.report import charts
    from joulesweep.report.page import build
    from joulesweep.report.results import Results

    grid, partial = collect.read_grid(folder / "grid.json"), folder / "partial"
    made = collect.aggregate(grid, folder / "runs", folder / "anchors")
    tables.write(made, partial / "tables")
    (partial / "charts").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=partial, prefix=".charts.") as scratch:
        charts.save_all(Results(grid, made), Path(scratch))
        for path in sorted(Path(scratch).iterdir()):
            path.replace(partial / "charts" / path.name)
    files.write_text(partial / "report.html", build(grid, made))
    return partial / "report.html"
