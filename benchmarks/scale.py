"""What Snakemake takes for a sweep of 10,080 runs: `python -m benchmarks.scale --checkout ../before --checkout .`.

In a temporary copy of each checkout it makes a sweep whose runs are finished on disk (see `benchmarks.scale_sweep`: the
records are made up, Snakemake's notes are Snakemake's own), and measures, the checkouts in turns:

    start       a dry run of one finished file: Python, imports, config, grid
    fresh       a dry run before anything exists
    silent      the same with --quiet, which makes the plan and prints nothing of it
    no-op       a dry run with nothing to do
    added       a dry run after one more learning rate: 480 runs
    check       joulesweep check
    status      joulesweep status
    executed    the 480 runs, each replaced by a shell script that makes empty files

Wall seconds, CPU-seconds of the process and those it waited for, and the largest resident memory of one of them. Per
executed run, the dry run of the same jobs and the script alone are taken off.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import yaml

from benchmarks.scale_sweep import RUNS_PER_VALUE, lr_values
from joulesweep.measure.machine import cpu_model

ROOT = Path(__file__).parent.parent
MAKER = Path(__file__).with_name("scale_sweep.py")
#: In the place of `python` in the rules' commands. With only builtins: the cost of a process, and hardly more.
SCRIPT = """#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
        --output) : > "$2" ;;
        --folder) for name in record.json spec.json steps.jsonl epochs.jsonl power.jsonl summaries.jsonl; do
                : > "$2/$name"
            done ;;
    esac
    shift
done
"""
GOALS = {"fresh": "< 20 s", "no-op": "< 15 s, < 500 MB", "added": "< 15 s"}
GOAL_MS = 15


@dataclass(frozen=True)
class Cost:
    """Of a process and those it waited for."""

    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass
class Measured:
    """A checkout's copy, and what was measured there."""

    name: str
    source: Path
    folder: Path
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of everything that is started in the copy."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        place = self.folder.with_name(f"{self.folder.name}-caches")
        return {**kept, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(place), "JOULESWEEP_LOCKS": str(place / "locks")}

    def take(self, what: str, *command: str, **environ: str) -> None:
        """Run a command in the copy and keep its cost."""
        print(f"{self.name}: {what}", file=sys.stderr, flush=True)
        self.costs.setdefault(what, []).append(self.run(*command, **environ))

    def run(self, *command: str, **environ: str) -> Cost:
        """Run a command in the copy; its output goes to a file.

        Raises:
            SystemExit: it failed; with the end of its output.
        """
        log = self.folder.with_name(f"{self.folder.name}.log")
        began_s = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environ | environ, stdout=file, stderr=subprocess.STDOUT
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"{' '.join(command)}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
        return Cost(time.perf_counter() - began_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)

    def make(self, step: str, *more: str) -> None:
        """A step of making the sweep, with the code of the checkout."""
        path = os.pathsep.join(map(str, (self.source, self.source / "tests" / "support")))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        where = {} if self.folder.exists() else {"cwd": self.source}
        subprocess.run(
            [sys.executable, str(MAKER), step, *more],
            **{"cwd": self.folder, **where},
            env=self.environ | {"PYTHONPATH": path},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def finish(self) -> None:
        """Fetch the model and the texts for real, and make up the rest of a finished sweep."""
        self.run(*SNAKEMAKE, "--until", "tokenise", "grid", "--quiet", "all")
        for step in ("fill", "touch"):
            print(f"{self.name}: {step}", file=sys.stderr, flush=True)
            self.make(step)

    def set_values(self, values: list[float]) -> None:
        """Give the grid other learning rates."""
        path = self.folder / "config" / "config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["grid"]["lr"] = values
        path.write_text(yaml.safe_dump(config), encoding="utf-8")


SNAKEMAKE = (sys.executable, "-m", "snakemake", "--cores", "2")
JOULESWEEP = (sys.executable, "-m", "joulesweep.cli.main")


def measure(checkouts: list[Measured], num_runs: int, repeats: int, executed: bool) -> None:
    """Make the sweeps and measure them, one checkout after the other at each step."""

    def each(work: Callable[[Measured], object]) -> None:
        for one in checkouts:
            work(one)

    def turns(what: str, *command: str, **environ: str) -> None:
        for i in range(repeats):
            for one in checkouts[:: -1 if i % 2 else 1]:
                one.take(what, *command, **environ)

    each(lambda one: one.make("copy", str(one.folder), "--runs", str(num_runs)))
    turns("fresh", *SNAKEMAKE, "-n")
    turns("silent", *SNAKEMAKE, "-n", "--quiet")
    each(Measured.finish)
    turns("start", *SNAKEMAKE, "-n", "results/large/grid.json")
    turns("no-op", *SNAKEMAKE, "-n")
    each(_nothing_to_do)
    turns("check", *JOULESWEEP, "check", PYTHONPATH=".")
    each(lambda one: one.set_values([*lr_values(num_runs), 0.5]))
    turns("added", *SNAKEMAKE, "-n")
    each(lambda one: (one.folder / "results/large/report.html").unlink())  # its answer cannot be read from such tables
    turns("status", *JOULESWEEP, "status", PYTHONPATH=".")
    if executed:
        each(_execute)


def _nothing_to_do(one: Measured) -> None:
    """Make sure that the last dry run had nothing to do: else something else was measured."""
    said = one.folder.with_name(f"{one.folder.name}.log").read_text(encoding="utf-8")
    if "Nothing to be done" not in said:
        raise SystemExit(f"{one.name}: the sweep is not finished:\n{said[-2000:]}")


def _execute(one: Measured) -> None:
    """Execute the added runs with a script in the place of Python."""
    binaries = one.folder.with_name(f"{one.folder.name}-bin")
    binaries.mkdir()
    python, script = binaries / "python3", binaries / "python"
    python.symlink_to(sys.executable)
    script.write_text(SCRIPT, encoding="utf-8")
    script.chmod(0o755)
    packages = sysconfig.get_path("purelib")
    training = (str(python), *SNAKEMAKE[1:], "--omit-from", "aggregate")
    one.take("planned to execute", *training, "-n", PYTHONPATH=packages)
    one.take("executed", *training, PYTHONPATH=packages)
    alone = one.folder.with_name(f"{one.folder.name}-alone")
    alone.mkdir()
    line = f"for i in $(seq {RUNS_PER_VALUE}); do bash -c '{script} --folder {alone}; true'; done"
    one.take("scripts alone", "bash", "-c", line)


def per_run_ms(costs: dict[str, list[Cost]], of: str) -> float:
    """Milliseconds of Snakemake per executed run, beyond its plan and the run's own process; of wall_s or cpu_s."""
    whole, plan, own = (getattr(costs[what][0], of) for what in ("executed", "planned to execute", "scripts alone"))
    return float((whole - plan - own) / RUNS_PER_VALUE * 1000)


def table(checkouts: list[Measured]) -> list[str]:
    """The results as lines of Markdown; medians."""
    lines = ["| what | " + " | ".join(one.name for one in checkouts) + " | goal |"]
    lines.append("|---" * (len(checkouts) + 2) + "|")
    for what in checkouts[0].costs:
        cells = [_cell(one.costs[what]) for one in checkouts]
        lines.append(f"| {what} | {' | '.join(cells)} | {GOALS.get(what, '')} |")
    if "executed" in checkouts[0].costs:
        own = [(per_run_ms(one.costs, "wall_s"), per_run_ms(one.costs, "cpu_s")) for one in checkouts]
        cells = [f"{wall_ms:.1f} ms, {cpu_ms:.1f} CPU-ms" for wall_ms, cpu_ms in own]
        lines.append(f"| per executed run | {' | '.join(cells)} | < {GOAL_MS} ms |")
    return lines


def _cell(costs: list[Cost]) -> str:
    wall_s, cpu_s = (statistics.median(getattr(cost, of) for cost in costs) for of in ("wall_s", "cpu_s"))
    return f"{wall_s:.1f} s, {cpu_s:.1f} CPU-s, {max(cost.peak_mb for cost in costs):.0f} MB"


def main() -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_080, help=f"a multiple of {RUNS_PER_VALUE}")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--checkout", type=Path, action="append", help="may be repeated; default: this one")
    parser.add_argument("--no-execution", action="store_true", help="dry runs only")
    parser.add_argument("--folder", type=Path, help="make the copies there and keep them")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.runs % RUNS_PER_VALUE or not args.runs:
        parser.error(f"--runs {args.runs}: a multiple of {RUNS_PER_VALUE}")
    with tempfile.TemporaryDirectory() as temporary:
        base = (args.folder or Path(temporary)).resolve()
        sources = [path.resolve() for path in args.checkout or [ROOT]]
        checkouts = [Measured(path.name, path, base / f"{i}-{path.name}") for i, path in enumerate(sources)]
        measure(checkouts, args.runs, args.repeats, not args.no_execution)
    about = f"{datetime.date.today()} · {cpu_model()} · {os.cpu_count()} cores"
    about += f" · Python {platform.python_version()} · Snakemake {version('snakemake')} · {args.runs} runs"
    print("\n".join([about, "", *table(checkouts)]))
    if args.json:
        costs = {one.name: {what: list(map(asdict, row)) for what, row in one.costs.items()} for one in checkouts}
        args.json.write_text(json.dumps({"about": about, "costs": costs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
