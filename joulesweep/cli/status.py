"""Say how a sweep is going, from another terminal or another machine on the same disk: no lock, nothing written."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulesweep.cli import add_config
from joulesweep.core.errors import UserError
from joulesweep.core.quantities import one
from joulesweep.launch import eta, lease
from joulesweep.launch import state as state_module
from joulesweep.launch.eta import duration
from joulesweep.launch.state import Living, State
from joulesweep.plan import config as config_module
from joulesweep.plan.grid import expand

if TYPE_CHECKING:
    from rich.text import Text

HELP = "say how a sweep is going, while it runs or after"
EXAMPLES = (
    "joulesweep status",
    "joulesweep status --watch",
    "joulesweep status results/default --json",
)

WIDTH = 110
MOST_LINES = 12  # of each list
WORDS = {
    "starts": "starts",
    "waits": "waits",
    "settles": "waits for boards and machine to settle",
    "trains": "loads its model and texts, warms up",
    "writes": "writes its record",
}
NOT_DONE = {
    "running": "on the way",
    "waiting": "waiting",
    "preempted": "preempted",
    "failed": "failed",
    "missing": "to do",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", nargs="?", type=Path, help="results/<sweep>; default: that of the config")
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with the state of every run")
    parser.add_argument("--watch", action="store_true", help="again and again, until all runs are done or Ctrl-C")
    parser.add_argument("--every-s", type=float, default=2.0, metavar="S", help="seconds between looks; default: 2")


def work(args: argparse.Namespace) -> int:
    """Print the state, once or again and again."""
    if args.json and args.watch:
        raise UserError("--json is for one look, --watch for many: give one of them")
    if not 0.1 <= args.every_s <= 3600:
        raise UserError(f"--every-s {args.every_s:g}: expected 0.1 to 3600 seconds")
    folder = sweep_folder(args)
    if not (folder / "grid.json").exists():
        return _not_begun(folder, args)
    if args.watch:
        return _watch(folder, args.every_s)
    state = state_module.read(folder)
    print(json.dumps(as_json(state), indent=1, ensure_ascii=False) if args.json else "\n".join(screen(state)))
    return 0


def sweep_folder(args: argparse.Namespace) -> Path:
    """The folder of the sweep that the command line names, or that the config does."""
    return args.folder or Path("results", config_module.load(args.configfile).sweep)


def _not_begun(folder: Path, args: argparse.Namespace) -> int:
    """Say that nothing is there yet, and how to begin."""
    if args.folder:
        raise UserError(f"{folder}: no sweep has begun there: it has no grid.json")
    grid = expand(*config_module.located(args.configfile))
    if args.json:
        print(json.dumps({"folder": str(folder), "num_runs": len(grid.runs), "begun": False}))
    else:
        start = f"snakemake --cores 2 --configfile {args.configfile}"
        print(f"{folder}: nothing has begun; {len(grid.runs)} runs to do: {start}")
    return 0


def _watch(folder: Path, every_s: float) -> int:
    """Look again and again; on a terminal in one place, into a file or a pipe one look below the other."""
    from rich.console import Console  # no other command needs it
    from rich.live import Live

    console = Console(highlight=False)
    state = state_module.read(folder)
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, transient=True) as live:
        while state.num_finished < state.num_runs:
            if console.is_terminal:
                live.update(_styled(screen(state, console.height - 1)), refresh=True)
            else:
                print("\n".join([*screen(state), ""]), flush=True)
            time.sleep(every_s)
            state = state_module.read(folder)
    console.print(_styled(screen(state)), soft_wrap=True)
    return 0


def _styled(lines: list[str]) -> Text:
    """Lines for a terminal: headings bold, failures red."""
    from rich.text import Text

    text = Text()
    for i, line in enumerate(lines):
        is_heading = i == 0 or (line.endswith(":") and not line.startswith(" "))
        style = "bold red" if line.startswith("failed") else "bold" if is_heading else ""
        text.append(line + "\n" * (i < len(lines) - 1), style)
    return text


def as_json(state: State) -> dict[str, Any]:
    """The state as JSON values; times are UTC, ISO 8601."""
    row = dataclasses.asdict(state)
    row["begun"] = True
    row["num_finished"] = state.num_finished
    if state.eta:
        row["eta"]["basis"] = state.eta.basis
    return row


def screen(state: State, height: int | None = None) -> list[str]:
    """The state as lines of at most `WIDTH` columns.

    Args:
        state: of the sweep.
        height: the most lines; without it, all.
    """
    lines = [_head(state)]
    for title, rows in (
        ("on the way", [line for row in state.living for line in _living(row)]),
        ("joules so far", list(_joules(state))),
        ("left", list(_left(state))),
        ("preempted", _preempted(state)),
        ("failed, to be repeated by the next snakemake", _failed(state)),
        ("stopped, with a record", _stopped(state)),
        ("who holds the machine", [f"{_what(holder.what)}: {holder}" for holder in state.machine]),
    ):
        lines += ["", f"{title}:", *(f"  {line}" for line in rows)] if rows else []
    lines += ["", *_ending(state)] if state.num_finished == state.num_runs else []
    return lines[:height]


def _head(state: State) -> str:
    counts = state.counts
    parts = [f"{counts[name]} {NOT_DONE.get(name, name)}" for name in sorted(counts, key=_order)]
    return f"{state.folder}: {state.num_finished} of {state.num_runs} runs done ({', '.join(parts)})"


def _order(name: str) -> int:
    names = ("ok", "oom", "diverged", "unsupported", "timeout", "corrupt", *state_module.UNFINISHED)
    return names.index(name)


def _living(row: Living) -> Iterator[str]:
    """A run on the way: its label, what it does, and since when."""
    what = _steps(row) if row.steps else WORDS[row.stage]
    if row.stage == "waits":
        what = f"waits for {row.waits_for or 'its turn'}"
    where = "" if row.here else f", on {row.host}"
    yield f"{row.label}: {what}, {duration(row.stage_s)} so far{where}"
    if row.whom and row.stage == "waits":
        yield f"  {row.whom}"


def _steps(row: Living) -> str:
    steps = row.steps
    assert steps is not None
    epoch = f"epoch {row.epoch} of {row.num_epochs}, " if row.epoch else ""
    again = f"pass {steps.num_passes} of the same training, " if steps.num_passes > 1 else ""
    rest = f", {duration(steps.left_s)} left" if steps.left_s else ""
    over = steps.step == steps.num_steps
    text = f"{again}{epoch}step {steps.step:,} of {steps.num_steps:,}{rest}"
    return "scores the trained model" if over and not again else text


def _joules(state: State) -> Iterator[str]:
    for kind, row in state.joules.items():
        runs = f"{row.num_runs} run{'s' if row.num_runs > 1 else ''}"
        doubt = f", {row.num_doubtful} of them doubtful" if row.num_doubtful else ""
        amount = "no joules are known" if row.energy_j is None else one(row.energy_j, "J")
        yield f"{kind:<10}  {amount} of {runs}{doubt}"


def _left(state: State) -> Iterator[str]:
    num_left = state.num_runs - state.num_finished
    if not num_left:
        return
    if state.eta is None:
        yield f"{num_left} runs; no run has finished yet, so how long is not known"
    else:
        yield f"about {duration(state.eta.left_s)}" + (
            f", done at {eta.until(state.eta.left_s)}" if state.living else ""
        )
        yield state.eta.basis
    if not state.living and state.is_worked_on:
        yield "no run is on the way at this moment: a workflow fetches, tokenises, starts the next one or makes tables"
    elif not state.living:
        yield "nothing runs here now: the same snakemake command goes on"


def _preempted(state: State) -> list[str]:
    rows = [f"{row.label}: goes on after step {row.step:,} of {row.num_steps:,}" for row in state.preempted]
    return [*rows[:MOST_LINES], *_more(len(rows))]


def _failed(state: State) -> list[str]:
    rows = [
        (
            f"{row.label}: {row.last_line}",
            f"  its output: {row.log}",
            *([f"  its batch job's: {row.batch_log}"] if row.batch_log else []),
        )
        for row in state.failures[:MOST_LINES]
    ]
    lines = [
        textwrap.shorten(line, WIDTH, placeholder=" …") if i == 0 else line
        for row in rows
        for i, line in enumerate(row)
    ]
    return [*lines, *_more(len(state.failures))]


def _stopped(state: State) -> list[str]:
    rows = [f"{row.label}: {row.status}: {row.reason}" for row in state.stopped[:MOST_LINES]]
    return [*(textwrap.shorten(row, WIDTH, placeholder=" …") for row in rows), *_more(len(state.stopped))]


def _more(number: int) -> list[str]:
    return [f"and {number - MOST_LINES} more: --json lists all"] if number > MOST_LINES else []


def _what(lock: str) -> str:
    return lease.MACHINE if lock == "node" else f"board {lock}"


def _ending(state: State) -> list[str]:
    """The answer, and where the report is; until it is made, that it is not."""
    from joulesweep.report import ending  # the tables, which no look at a sweep on its way needs

    page = Path(state.folder, "report.html")
    if not page.exists():
        return ["All runs are done; the report is being made, or the next snakemake makes it."]
    try:
        answer = ending.lines(Path(state.folder))
    except UserError as error:
        answer = [f"No answer can be read: {error}"]
    return [*answer, f"Report: {page.resolve()}"]
