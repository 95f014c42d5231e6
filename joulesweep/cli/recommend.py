"""Recommend a configuration of a finished sweep, within limits."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from joulesweep.cli import add_config
from joulesweep.cli.status import sweep_folder
from joulesweep.core.errors import UserError, brief_repr

HELP = "say which configuration to use, and how sure that is"
EXAMPLES = (
    "joulesweep recommend",
    "joulesweep recommend --within 2% --max-memory 24GB --max-time 1h --max-kwh 0.5 --gpus 1",
    "joulesweep recommend results/default/partial --json",
)

#: Units of the limits, by kind: what a number with this unit is in the base unit.
UNITS: dict[str, dict[str, float]] = {
    "memory": {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "time": {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400},
    "fraction": {"%": 0.01, "": 1},
}
FORMS = {"memory": "24GB or 16GiB", "time": "90s, 45min, 1h or 2d", "fraction": "1% or 0.01"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", nargs="?", type=Path, help="results/<sweep>, or its partial; default: of the config")
    add_config(parser)
    parser.add_argument("--within", metavar="MARGIN", help="how much worse than the best is no worse: 1%% or 0.01")
    parser.add_argument("--max-memory", metavar="SIZE", help="peak memory of a GPU, or of the host: 24GB, 16GiB")
    parser.add_argument("--max-time", metavar="TIME", help="of one training: 90s, 45min, 1h")
    parser.add_argument("--max-kwh", type=float, metavar="KWH", help="measured energy of one training")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs at most, or processes on the CPU")
    parser.add_argument("--json", action="store_true", help="as JSON")


def work(args: argparse.Namespace) -> int:
    """Print the decisions; 1 if no configuration meets the limits."""
    margin = None if args.within is None else _amount("fraction", args.within, "--within")
    if margin is not None and not 0 < margin < 1:
        raise UserError(f"--within: must be above 0 and below 1 (100%), got {brief_repr(args.within)}")
    amounts = {
        "memory_bytes": None if args.max_memory is None else _amount("memory", args.max_memory, "--max-memory"),
        "time_s": None if args.max_time is None else _amount("time", args.max_time, "--max-time"),
        "kwh": args.max_kwh,
        "devices": args.gpus,
    }
    for option, value in (("--max-kwh", args.max_kwh), ("--gpus", args.gpus)):
        if value is not None and not 0 < value < 1e300:
            raise UserError(f"{option}: must be above 0, got {value:g}")
    from joulesweep.analyse.studies.decision import Limits, sentence  # the tables, which --help does not need
    from joulesweep.report import ending

    decisions = ending.made(sweep_folder(args), limits=Limits(**amounts), margin=margin)
    if args.json:
        print(
            json.dumps([{"sentence": sentence(one), **_plain(one)} for one in decisions], indent=2, ensure_ascii=False)
        )
    else:
        print("\n\n".join("\n".join(ending.told(one)) for one in decisions) or ending.NOTHING)
    return 0 if any(one.picks for one in decisions) else 1


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """A decision as JSON takes it; of rows of the cells table what is not null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _amount(kind: str, text: str, option: str) -> float:
    """A number with its unit, in the base unit of its kind."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z%]*)\s*", text)
    units = UNITS[kind]
    if match is None or match[2].lower() not in units:
        raise UserError(f"{option}: a number with its unit, such as {FORMS[kind]}, got {brief_repr(text)}")
    amount = float(match[1]) * units[match[2].lower()]
    if not 0 < amount < 1e300:
        raise UserError(f"{option}: must be above 0, got {brief_repr(text)}")
    return amount
