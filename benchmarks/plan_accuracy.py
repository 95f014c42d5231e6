"""How near plans are: real sweeps replayed, each run predicted from those that ended before it.

    python -m benchmarks.plan_accuracy results/default results/mine …

For each sweep and for all: the median error and the share of runs within their 90 % range, for seconds, CPU-seconds and
joules, before a cell had a finished run and afterwards; and of all that was still to do after a quarter and a half of
the runs. Goals: 30 % before, 15 % afterwards, 90 % within. Runs that waited for cores which others used are counted:
their seconds say more of the others than of the plan, their CPU-seconds do not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from joulesweep.analyse import beliefs, past_runs, planning
from joulesweep.analyse.beliefs import Facts
from joulesweep.analyse.collect import read_grid
from joulesweep.analyse.estimator import Job
from joulesweep.analyse.planning import Expected, Past, Replayed
from joulesweep.core.files import MALFORMED
from joulesweep.core.spec import from_mapping
from joulesweep.reference.cpu_estimate import Asked

GOALS = {False: 0.30, True: 0.15}
COVERED = 0.90
#: Quantities, by what `Past` calls them. CPU-seconds take the place of the seconds.
QUANTITIES = {"window_s": "seconds of the window", "cpu_s": "CPU-seconds of it", "energy_j": "joules of it"}


def ended(folder: Path) -> tuple[list[Past], list[Past]]:
    """The runs of a sweep that ended, the latest last: with their seconds, and with CPU-seconds in their place."""
    grid, found = read_grid(folder / "grid.json"), []
    asked = Asked(True)
    for run, entry in grid["runs"].items():
        try:
            record = json.loads((folder / "runs" / run / "record.json").read_bytes())
            past_runs.check(record, run)
        except (OSError, *MALFORMED):
            continue
        row = past_runs.of_record(_job(run, entry, record, folder.parent.parent, asked), record, asked)
        cpu_s = record["measurement"]["cpu_s"] if record["measurement"] else None
        found.append((record["finished"], row, replace(row, window_s=cpu_s, waited=0.0)))
    found.sort(key=lambda one: one[0])
    return [row for _, row, _ in found], [row for *_, row in found]


def _job(run: str, entry: Mapping[str, Any], record: Mapping[str, Any], root: Path, asked: Asked) -> Job:
    """A run as it is planned: with its work, if model and texts still lie beside the results."""
    spec, machine = from_mapping(record["spec"]), record["environment"]
    counted = beliefs.work(spec, *beliefs.fetched(spec, root))
    board = next(((row["name"], row["memory_bytes"]) for row in machine["gpus"]), None)
    facts = Facts(cpu_model=machine["cpu_model"], cpu_cores=machine["cpu_cores"], board=board)
    return beliefs.job(run, entry, spec, counted, facts, asked)


def replayed(folder: Path) -> dict[str, list[Replayed]]:
    """The replayed runs of a sweep, by quantity."""
    by_s, by_cpu_s = ended(folder)
    seconds = planning.replay(by_s)
    return {"window_s": seconds, "cpu_s": planning.replay(by_cpu_s), "energy_j": seconds}


def table(runs: dict[str, list[Replayed]]) -> list[str]:
    """A line per quantity, before and after the cell had a run."""
    lines = []
    for quantity, words in QUANTITIES.items():
        name = "window_s" if quantity == "cpu_s" else quantity
        for seen, goal in GOALS.items():
            near = planning.accuracy(runs[quantity], name, seen)
            if near is None:
                continue
            when = "afterwards" if seen else "before"
            met = near.median <= goal and near.covered >= COVERED
            lines.append(
                f"  {words:<22} {when:<10} {near.num:>4} runs  median error {100 * near.median:5.1f} %"
                f"  within range {100 * near.covered:3.0f} %  {'met' if met else 'missed'}"
            )
    return lines


def rest(past: Sequence[Past], share: float) -> str | None:
    """What the plan said of all that was to do after a share of the runs, and what it took; None of a short sweep."""
    begin = math.floor(share * len(past))
    later = [row for row in past[begin:] if row.status == "ok"]
    if not begin or not later:
        return None
    plan = planning.predict(past[:begin], [row.job for row in later], Expected(status=None))
    if plan.seconds is None:
        return None
    took_s = math.fsum((row.window_s or 0.0) + (row.around_s or 0.0) for row in later)
    inside = "within" if plan.seconds.low <= took_s <= plan.seconds.high else "beyond"
    planned = f"{plan.seconds.mid:.0f} s [{plan.seconds.low:.0f}, {plan.seconds.high:.0f}]"
    return f"  after {begin} of {len(past)}: {planned} planned for the rest, it took {took_s:.0f} s: {inside}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay sweeps, print how near their plans were. Returns 1 where a sweep has nothing to replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="results/<sweep>, with its grid.json")
    every: dict[str, list[Replayed]] = {quantity: [] for quantity in QUANTITIES}
    for folder in parser.parse_args(arguments).folders:
        past, runs = ended(folder)[0], replayed(folder)
        if not runs["window_s"]:
            print(f"{folder}: no run ended after another", file=sys.stderr)
            return 1
        waited = sum(row.waited > 0 for row in past)
        print(f"{folder}: {len(past)} runs, {waited} of which waited for cores that others used")
        print("\n".join([*table(runs), *filter(None, (rest(past, share) for share in (0.25, 0.5)))]))
        for quantity, rows in runs.items():
            every[quantity] += rows
    print("all sweeps")
    print("\n".join(table(every)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
