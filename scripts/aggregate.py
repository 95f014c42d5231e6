"""Build a sweep's tables from its records."""

import argparse
from pathlib import Path

from joulesweep.analyse import collect, tables
from joulesweep.core import files
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, required=True, help="the sweep's grid.json")
    parser.add_argument("--runs", type=Path, required=True, help="folder with one folder per run")
    parser.add_argument("--anchors", type=Path, help="folder with one folder per later day of runs measured again")
    parser.add_argument("--output", type=Path, required=True, help="folder for the parquet files")
    arguments = parser.parse_args()
    grid = collect.read_grid(arguments.grid)
    made = collect.aggregate(grid, arguments.runs, arguments.anchors, lost=files.mark_corrupt)
    tables.write(made, arguments.output)


if __name__ == "__main__":
    run_script(main, "making the tables")
