"""Write the JSON schema of a config."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from joulesweep.core.files import write_text
from joulesweep.plan import config as config_module

HELP = "write the JSON schema of a config"
EXAMPLES = ("joulesweep schema config/schema.json",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("output", type=Path, help="the file to write")


def work(args: argparse.Namespace) -> int:
    """Write it."""
    write_text(args.output, json.dumps(config_module.json_schema(), indent=1) + "\n")
    return 0
