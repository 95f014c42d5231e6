"""Fetch a data set and write its texts as JSON lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulesweep.core import files
from joulesweep.plan.config import DatasetConfig
from joulesweep.prepare import dataset, sources
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="the data set's section of the config, as JSON")
    parser.add_argument("--output", type=Path, required=True, help="where the texts go")
    parser.add_argument("--manifest", type=Path, required=True, help="where their manifest goes")
    arguments = parser.parse_args()
    lines, manifest = dataset.fetch_dataset(sources.read_section(DatasetConfig, arguments.source))
    files.write_text(arguments.output, lines)
    files.write_json(arguments.manifest, manifest)


if __name__ == "__main__":
    run_script(main, "fetching texts {output}")
