"""Write a sweep's report: one HTML file."""

import argparse
from pathlib import Path

from joulesweep import aggregate, files, report, tables
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, required=True, help="the sweep's grid.json")
    parser.add_argument("--tables", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file")
    arguments = parser.parse_args()
    page = report.build(aggregate.read_grid(arguments.grid), tables.read(arguments.tables))
    files.write_text(arguments.output, page)


if __name__ == "__main__":
    run_script(main)
