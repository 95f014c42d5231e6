"""Write a sweep's exports: tables as CSV and LaTeX, charts as PNG and Vega-Lite, emissions, cards of kept models."""

import argparse
from pathlib import Path

from joulesweep.analyse import collect, tables
from joulesweep.report.exports import writing
from joulesweep.report.results import Results
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, required=True, help="the sweep's grid.json")
    parser.add_argument("--tables", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--runs", type=Path, required=True, help="folder with one folder per run")
    parser.add_argument("--charts", type=Path, required=True, help="folder with the charts as SVG")
    parser.add_argument("--output", type=Path, required=True, help="folder for the exports")
    arguments = parser.parse_args()
    results = Results(collect.read_grid(arguments.grid), tables.read(arguments.tables))
    writing.save_all(results, arguments.runs, arguments.charts, arguments.output)


if __name__ == "__main__":
    run_script(main, "writing the exports")
