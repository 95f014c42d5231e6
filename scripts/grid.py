"""Write a sweep's manifest, `grid.json`: `python -m scripts.grid --config JSON --output FILE`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from joulesweep.config import validate
from joulesweep.files import write_json
from joulesweep.grid import manifest
from scripts import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    write_json(args.output, manifest(validate(json.loads(args.config))))


if __name__ == "__main__":
    run_script(main)
