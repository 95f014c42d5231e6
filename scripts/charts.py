"""Draw a sweep's charts, each as .svg and as .html that opens without network."""

import argparse
from pathlib import Path

from joulesweep.analyse import collect, tables
from joulesweep.report import charts
from joulesweep.report.results import Results
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, required=True, help="the sweep's grid.json")
    parser.add_argument("--tables", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--output", type=Path, required=True, help="folder for the charts")
    arguments = parser.parse_args()
    results = Results(collect.read_grid(arguments.grid), tables.read(arguments.tables))
    charts.save_all(results, arguments.output)


if __name__ == "__main__":
    run_script(main, "drawing the charts")
