"""Draw a sweep's charts, each as .svg and as .html that opens without network."""

import argparse
from pathlib import Path

from joulesweep.analyse import tables
from joulesweep.report import charts
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--output", type=Path, required=True, help="folder for the charts")
    arguments = parser.parse_args()
    charts.save_all(tables.read(arguments.tables), arguments.output)


if __name__ == "__main__":
    run_script(main, "drawing the charts")
