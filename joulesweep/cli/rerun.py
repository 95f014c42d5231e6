"""Re-run finished runs that ended with a given status, then rebuild the tables and the report.

Nothing is deleted in advance: Snakemake removes a record when it starts that run. So a killed rerun loses only the runs
that were in progress, like any sweep; every other record is either the new or the old one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from joulesweep.cli import Parser, add_config
from joulesweep.core import processes
from joulesweep.core.errors import UserError, one_of
from joulesweep.plan import config as config_module
from joulesweep.report import exports
from joulesweep.runs import record
from joulesweep.runs.record import STATUSES, RunRecord, brief

if TYPE_CHECKING:
    from joulesweep.plan.sweep import Sweep

HELP = "re-run the runs that ended with a given status, and only those"
EXAMPLES = (
    "joulesweep rerun --status oom --dry-run",
    "joulesweep rerun --status oom --status timeout -- --resources gpu=2",
)

#: Options that set Snakemake's number of jobs; without any of them, all cores of this machine are used.
HOW_MANY = re.compile(r"--(cores|jobs|profile|workflow-profile|executor)\b|-[cje]")
OTHER_CONFIG = re.compile(r"--config|-C")
PROFILE = Path("profiles/default/profile.yaml")  # Snakemake loads it by itself
ANALYSIS = ("grid", "aggregate", "charts", "exports", "report")  # rules


def arguments(parser: Parser) -> None:
    """Add the arguments."""
    bad = ", ".join(status for status in STATUSES if status != "ok")
    again = f"{bad}; may be given several times; ok repeats finished runs, at their cost"
    parser.add_argument("--status", action="append", required=True, help=again)
    parser.add_argument("--dry-run", action="store_true", help="say which, and run nothing")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENTS", help="for Snakemake: -- --resources gpu=2")
    parser.advice = "Snakemake's follow --: joulesweep rerun … -- {}"
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Re-run the runs of the present grid that ended with one of the statuses."""
    from joulesweep.plan.sweep import Sweep  # imports Snakemake, which --help does not need

    for status in args.status:
        if status not in STATUSES:
            raise UserError(f"{one_of('status', status, STATUSES)}; runs without a record need no rerun: run snakemake")
    check(args.arguments)
    sweep = Sweep(*config_module.located(args.configfile))
    records = ended(sweep, args.status)
    if not records:
        missing = num_missing(sweep)
        rest = f"; {missing} have no record: run snakemake" if missing else ""
        print(f"{args.configfile}: no run has status {' or '.join(args.status)}{rest}")
        return 0
    for row in records:
        print(f"{row.run} · {row.status}" + (f": {brief(row.reason)}" if row.reason else ""))
    if args.dry_run:
        return 0
    sys.stdout.flush()
    return 1 if rerun(sweep, [row.run for row in records], args.configfile, args.arguments) else 0


def ended(sweep: Sweep, statuses: Collection[str]) -> list[RunRecord]:
    """Records of the present grid with one of the statuses, in the grid's order.

    Raises:
        UserError: a record is corrupt or foreign.
    """
    paths = [path for path in _records(sweep, sweep.runs) if path.exists()]
    try:
        return [row for row in map(record.read, paths) if row.status in statuses]
    except UserError as error:
        raise UserError(f"{error}; delete it and run snakemake") from None


def num_missing(sweep: Sweep) -> int:
    """Number of runs of the present grid without a record."""
    return sum(not path.exists() for path in _records(sweep, sweep.runs))


def check(arguments: Sequence[str]) -> None:
    """Refuse arguments for Snakemake that would select another sweep.

    Raises:
        UserError: they contain a config, or begin with a word that is not an option.
    """
    other = next((word for word in arguments if OTHER_CONFIG.match(word)), None)
    if other is not None:
        raise UserError(f"{other}: after -- no config is taken; the sweep's own is given before it: --configfile FILE")
    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"{arguments[0]}: a config follows --configfile, Snakemake's arguments follow --")


def rerun(sweep: Sweep, runs: Sequence[str], configfile: Path, arguments: Sequence[str]) -> int:
    """Re-run some runs, then rebuild the report of all.

    Missing and stale runs are not run; if there are any, or if a run fails, the report is the partial one.

    Args:
        sweep: the sweep.
        runs: ids of runs that have a record.
        configfile: its config.
        arguments: further arguments for Snakemake, such as `--resources gpu=2`.

    Returns:
        Snakemake's exit code: the first that is not 0.
    """
    has_job_limit = any(HOW_MANY.match(word) for word in [*arguments, *_profile()])
    common = ["--configfile", str(configfile), *([] if has_job_limit else ["--cores", "all"]), *arguments]
    # Write the manifest first: as long as it is outdated, Snakemake ignores --force for what depends on it.
    code = _snakemake([f"{sweep.folder}/grid.json", *common])
    if code:
        return code
    # Only targets are forced. The report is not a target here: it would also run what is missing or stale.
    code = _snakemake([*map(str, _records(sweep, runs)), "--force", *common])
    analysed = _snakemake([*_analysis(sweep), *common])
    return code or analysed


def _profile() -> list[str]:
    """The options that Snakemake takes from the workflow's default profile."""
    options = yaml.safe_load(PROFILE.read_text(encoding="utf-8")) if PROFILE.exists() else None
    return [f"--{option}" for option in options or ()]


def _analysis(sweep: Sweep) -> list[str]:
    """Snakemake's arguments for the report of the existing records; no rule that trains is allowed."""
    if len(sweep.current()) < len(sweep.runs) or not all(Path(path).exists() for path in sweep.anchors()):
        return ["partial"]
    targets = (f"{sweep.folder}/report.html", f"{sweep.folder}/exports/{exports.names()[0]}")
    return [*targets, "--allowed-rules", *ANALYSIS]


def _records(sweep: Sweep, runs: Sequence[str]) -> list[Path]:
    return [sweep.record_path(run) for run in runs]


def _snakemake(arguments: list[str]) -> int:
    """Run Snakemake and return its exit code; after an interrupt, wait for it, then exit."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    child = subprocess.Popen(command, preexec_fn=processes.die_with_parent)
    interrupted = False
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal told Snakemake as well: let it end its jobs
            interrupted = True
        else:
            break
    if interrupted:
        raise SystemExit(code or 130)
    return code
