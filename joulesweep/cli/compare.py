"""Compare sweeps, or one sweep on several hosts, cell by cell."""

from __future__ import annotations

import argparse
import json
import string
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from joulesweep.core.errors import UserError

if TYPE_CHECKING:
    from joulesweep.analyse.studies.across import Comparison, Match, Quantity, Side

HELP = "compare sweeps, or one sweep on several hosts, cell by cell"
EXAMPLES = (
    "joulesweep compare results/default results/mine",
    "joulesweep compare results/default /mnt/other-host/results/default --json",
    "joulesweep compare a30/results/study-hardware a100/results/study-hardware h200/results/study-hardware",
)
WIDTH = 100  # characters of a line
NAME = 32  # of the column of names
#: The columns of ratios: how wide, and how many digits after the point.
QUANTITIES = {"energy": (16, 2), "time": (15, 2), "memory": (15, 2), "loss": (18, 3)}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    about = "results/SWEEP, or a folder with its tables"
    parser.add_argument("a", type=Path, metavar="A", help=f"{about}: what the others are compared with")
    parser.add_argument("others", type=Path, nargs="+", metavar="B", help=about)
    parser.add_argument("--json", action="store_true", help="as JSON")


def work(args: argparse.Namespace) -> int:
    """Print the comparison of the first with each other, and which takes the fewest joules."""
    from joulesweep.analyse.studies import across  # imports Polars and SciPy, which --help does not need

    folders = [args.a, *args.others]
    if len(folders) > len(string.ascii_uppercase):
        raise UserError(f"compare: {len(folders)} folders, at most {len(string.ascii_uppercase)}")
    sides = [across.read(folder, name) for folder, name in zip(folders, string.ascii_uppercase, strict=False)]
    comparisons = [across.compare(sides[0], other) for other in sides[1:]]
    answer = across.fewest_words(sides)
    if args.json:
        each = [_json(comparison) for comparison in comparisons]
        whole = {**(each[0] if len(each) == 1 else {"comparisons": each}), "answer": answer}
        print(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(_screen(sides, comparisons, answer)))
    return 0


def _json(comparison: Comparison) -> dict[str, object]:
    from joulesweep.analyse.studies import across

    sides = (comparison.a, comparison.b)
    return {
        **{side.name.lower(): {"folder": str(side.folder), "machine": side.machine} for side in sides},
        "cells": list(across.as_rows(comparison)),
        "unmatched": [vars(one) for one in comparison.unmatched],
        "notes": list(across.notes(comparison)),
    }


def _screen(sides: Sequence[Side], comparisons: Sequence[Comparison], answer: str) -> Iterator[str]:
    """The comparisons, in lines of at most `WIDTH` characters where names allow it."""
    for side in sides:
        yield from _wrapped(f"{side.name}  {side.folder}: {_machine(side)}", "   ")
    yield ""
    yield from _wrapped(answer)
    for comparison in comparisons:
        yield ""
        if len(comparisons) > 1:
            yield f"{comparison.b.name} over {comparison.a.name}"
        yield from _one(comparison)


def _one(comparison: Comparison) -> Iterator[str]:
    """The comparison of two sides."""
    from joulesweep.analyse.studies import across

    for note in across.notes(comparison):
        yield from _wrapped(note)
    if comparison.matches:
        yield ""
        yield from _table(comparison.matches)
    else:
        yield "No cell is in both."
    if comparison.unmatched:
        yield ""
        yield f"Not compared: {len(comparison.unmatched)}"
        for one in comparison.unmatched:
            yield from _wrapped(f"{one.side}: {one.name}: {one.why}", "  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _machine(side: Side) -> str:
    """What a side ran on; a digest shortened."""
    if not side.machine:
        return "no finished run"
    words = {heading: f"{value:.8}" if heading == "code" else value for heading, value in side.machine.items()}
    return ", ".join(f"{heading} {value}" for heading, value in words.items())


def _table(matches: list[Match]) -> Iterator[str]:
    yield _line("cell", "n", list(QUANTITIES))
    several = len({match.environments for match in matches}) > 1
    shown: tuple[str, str] | None = None
    for match in matches:
        if several and match.environments != shown:
            shown = match.environments
            yield f"-- {shown[0]} against {shown[1]}"
        name = f"{match.name}{'*' if match.by == 'axes' else ''}"
        n = f"{match.n[0]}" if match.n[0] == match.n[1] else "/".join(map(str, match.n))
        if len(name) > NAME:
            yield name
            name = ""
        yield _line(name, n, [_entry(getattr(match, one), digits) for one, (_, digits) in QUANTITIES.items()])


def _line(name: str, n: str, entries: list[str]) -> str:
    columns = (entry.rjust(width) for entry, (width, _) in zip(entries, QUANTITIES.values(), strict=True))
    return f"{name:<{NAME}} {n:>3}{''.join(columns)}".rstrip()


def _entry(quantity: Quantity, digits: int) -> str:
    """A ratio with its interval: `0.94 0.93-0.95`; `~` before one that the boards' sensors may explain."""
    ratio = quantity.ratio
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{_number(ratio.ratio, digits)} n=1"
    mark = "~" if quantity.may_be_sensors else ""
    return f"{mark}{_number(ratio.ratio, digits)} {_number(ratio.low, digits)}-{_number(ratio.high, digits)}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 100 else f"{value:.3g}"
