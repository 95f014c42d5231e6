"""Keep finished runs over a change of code that alters no number."""

from __future__ import annotations

import argparse

from joulesweep.cli import add_config
from joulesweep.core.errors import UserError, one_of
from joulesweep.plan import config as config_module
from joulesweep.plan import staleness

HELP = "keep finished runs over a change of code that alters no number"
EXAMPLES = ('joulesweep accept --reason "only a message changed" --dry-run',)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--reason", required=True, help="why it alters none: goes into records and report")
    parser.add_argument("--dry-run", action="store_true", help="say which, and keep none")
    parser.add_argument("run_ids", nargs="*", metavar="RUN", help="default: all that are outdated")
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Let finished runs count as measured by today's code."""
    from joulesweep.plan.sweep import Sweep, counted  # imports Snakemake, which --help does not need
    from joulesweep.runs import record

    if not args.reason.strip():
        raise UserError("--reason: say why the change alters no number; records and report cite it")
    sweep = Sweep(*config_module.located(args.configfile))
    outdated = sweep.outdated()
    for run in args.run_ids:
        if run not in outdated:
            raise UserError(one_of("outdated run", run, outdated))
    chosen = {run: row for run, row in outdated.items() if run in (args.run_ids or outdated)}
    if not chosen:
        print(f"{args.configfile}: no finished run was measured by other code than today's")
        return 0
    for run, row in chosen.items():
        today = staleness.run_digest(sweep.spec(run))
        print(f"{run} · {row.status} · {row.code_digest} to {today}")
        if not args.dry_run:
            record.accept(sweep.record_path(run), today, args.reason.strip())
    kept = "would be kept" if args.dry_run else "kept"
    print(f"{counted(list(chosen.values()))} {kept}")
    return 0
