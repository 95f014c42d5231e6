"""List the ids of a config's runs."""

from __future__ import annotations

import argparse

from joulesweep.cli import add_config
from joulesweep.plan import config as config_module
from joulesweep.plan.grid import expand

HELP = "list the ids of a config's runs"
EXAMPLES = ("joulesweep runs --configfile config/mine.yaml",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Print one id a line."""
    print("\n".join(expand(*config_module.located(args.configfile)).runs))
    return 0
