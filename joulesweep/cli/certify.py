"""Measure how accurate the joules of this machine are."""

from __future__ import annotations

import argparse
from pathlib import Path

from joulesweep.core.errors import UserError
from joulesweep.measure.certificate import BUDGET_S, FOLDER

HELP = "measure how accurate the joules of this machine are"
EXAMPLES = ("joulesweep certify", "joulesweep certify --device gpu:0 --budget-s 300")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--budget-s", type=float, help=f"seconds for all devices; default: {BUDGET_S:g} for each with a meter"
    )
    parser.add_argument("--out", type=Path, help=f"folder of all certificates; default: {FOLDER}")
    devices = "gpu:0, a UUID, or cpu:0 for the CPU packages; default: all"
    parser.add_argument("--device", nargs="+", action="extend", default=[], metavar="DEVICE", help=devices)
    again = "measure nothing: repeat the analysis of raw readings"
    parser.add_argument("--read", type=Path, metavar="FILE", help=again)


def work(args: argparse.Namespace) -> int:
    """Certify devices of this machine, or repeat the analysis of raw readings."""
    from joulesweep.certify import campaign  # --help does not need it

    if args.read is not None:
        if args.device or args.budget_s is not None:
            raise UserError("--read repeats an analysis: --device and --budget-s are for measuring")
        campaign.repeat(args.read, args.out)
        return 0
    if args.budget_s is not None and not 0 < args.budget_s < float("inf"):
        raise UserError(f"--budget-s {args.budget_s:g}: expected a number of seconds above 0")
    campaign.certify(args.device, args.budget_s, args.out or FOLDER)
    return 0
