"""Take part in a run on several nodes, on this machine."""

from __future__ import annotations

import argparse

from joulesweep.launch import agent

HELP = "take part in a run on several nodes, on this machine"
EXAMPLES = ("joulesweep join node1:29400    # the first node prints the whole line, with the key",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("address", help="host:port at which the first node waits")


def work(args: argparse.Namespace) -> int:
    """Carry out this machine's share of the run."""
    return agent.take_part(args.address)
