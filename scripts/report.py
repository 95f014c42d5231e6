"""Write a sweep's report: one HTML file."""

import argparse
from pathlib import Path

from joulesweep.analyse import collect, tables
from joulesweep.core import files
from joulesweep.report.page import build
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, required=True, help="the sweep's grid.json")
    parser.add_argument("--tables", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file")
    arguments = parser.parse_args()
    page = build(collect.read_grid(arguments.grid), tables.read(arguments.tables))
    files.write_text(arguments.output, page)


if __name__ == "__main__":
    run_script(main, "writing the report")
