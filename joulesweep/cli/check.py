"""Validate a config and say what it has to run."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulesweep.cli import add_config
from joulesweep.plan import config as config_module
from joulesweep.plan.grid import expand

HELP = "validate a config and say how many cells and runs it has"
EXAMPLES = ("joulesweep check", "joulesweep check config/mine.yaml")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", nargs="?", type=Path, help="as --configfile")
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Validate, and count."""
    path = args.file or args.configfile
    config, where = config_module.located(path)
    grid = expand(config, where)
    num_cells = len(grid.runs) // config.grid.repeats
    print(f"{path}: {_many(num_cells, 'cell')}, {_many(len(grid.runs), 'run')}, {len(grid.excluded)} cells excluded")
    return 0


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
