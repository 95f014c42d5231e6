"""The command `joulesweep`: check a config, list its runs, repeat some, examine the machine and certify it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from joulesweep.cli import doctor
from joulesweep.core.errors import UserError, one_of
from joulesweep.core.files import write_text
from joulesweep.core.spec import RunSpec
from joulesweep.launch.launcher import RunFailed, launch
from joulesweep.launch.progress import end_line
from joulesweep.measure import meters
from joulesweep.measure.certificate import BUDGET_S, FOLDER
from joulesweep.plan import config as config_module
from joulesweep.plan import staleness
from joulesweep.plan.grid import dataset_key, expand, manifest, model_key
from joulesweep.prepare.fetched import references
from joulesweep.runs.record import STATUSES, brief


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. Returns the exit code: 0, 1 if a run failed, 2 for bad input."""
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    try:
        if unknown and args.work is _rerun:
            raise UserError(f"unknown argument {unknown[0]}; Snakemake's follow --: joulesweep rerun … -- {unknown[0]}")
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return int(args.work(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="joulesweep", description="Energy-aware sweeps of language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="validate a config and say how many runs it has")
    check.set_defaults(work=_check)
    check.add_argument("file", nargs="?", type=Path, help="as --configfile")
    runs = commands.add_parser("runs", help="list the ids of a config's runs")
    runs.set_defaults(work=_runs)
    run = commands.add_parser("run", help="repeat one run by hand, in the foreground")
    run.add_argument("run_id")
    run.set_defaults(work=_run)
    rerun = commands.add_parser("rerun", help="re-run the runs that ended with a given status, and only those")
    rerun.add_argument("--status", action="append", required=True, help=f"{', '.join(STATUSES)}; may be repeated")
    rerun.add_argument("--dry-run", action="store_true", help="say which, and run nothing")
    rerun.add_argument("arguments", nargs="*", metavar="-- ARGUMENTS", help="for Snakemake: -- --resources gpu=2")
    rerun.set_defaults(work=_rerun)
    accept = commands.add_parser("accept", help="keep finished runs over a change of code that alters no number")
    accept.add_argument("--reason", required=True, help="why it alters none: goes into records and report")
    accept.add_argument("--dry-run", action="store_true", help="say which, and keep none")
    accept.add_argument("run_ids", nargs="*", metavar="RUN", help="default: all that are outdated")
    accept.set_defaults(work=_accept)
    for command in (check, runs, run, rerun, accept):
        command.add_argument(
            "--configfile", type=Path, default=config_module.DEFAULT, help=f"default: {config_module.DEFAULT}"
        )
    look = commands.add_parser("doctor", help="say what can be measured on this machine, and what not")
    look.add_argument("--configfile", type=Path, help="try the plug or PDU that this config names, too")
    look.add_argument("--json", action="store_true", help="as JSON")
    look.set_defaults(work=_doctor)
    prove = commands.add_parser("certify", help="measure how accurate the joules of this machine are")
    prove.add_argument(
        "--budget-s", type=float, help=f"seconds for all devices; default: {BUDGET_S:g} for each with a meter"
    )
    prove.add_argument("--out", type=Path, help=f"folder of all certificates; default: {FOLDER}")
    names = "gpu:0, a UUID, or cpu:0 for the CPU packages; default: all"
    prove.add_argument("--device", nargs="+", action="extend", default=[], metavar="DEVICE", help=names)
    prove.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: repeat the analysis of raw readings")
    prove.set_defaults(work=_certify)
    schema = commands.add_parser("schema", help="write the JSON schema of a config")
    schema.add_argument("output", type=Path)
    schema.set_defaults(work=_schema)
    return parser


def _check(args: argparse.Namespace) -> int:
    path = args.file or args.configfile
    grid = expand(*config_module.located(path))
    print(f"{path}: {len(grid.runs)} runs, {len(grid.excluded)} cells excluded")
    return 0


def _runs(args: argparse.Namespace) -> int:
    print("\n".join(expand(*config_module.located(args.configfile)).runs))
    return 0


def _run(args: argparse.Namespace) -> int:
    """Repeat a run into results/<sweep>/by-hand/<run>: the sweep's own record stays as it is."""
    config, where = config_module.located(args.configfile)
    runs = expand(config, where).runs
    if args.run_id not in runs:
        raise UserError(one_of("run", args.run_id, runs))
    spec = runs[args.run_id]
    paths = _prepared(spec, args.configfile)
    runs_folder = Path("results", config.sweep, "by-hand")
    folder = runs_folder / args.run_id
    (folder / "record.json").unlink(missing_ok=True)
    try:
        measure = config.measure.resolved(spec.accelerator)
        record = launch(
            spec,
            staleness.run_digest(spec),
            **paths,
            folder=folder,
            log=None,
            exclusive=str(measure.exclusive),
            gpus=measure.gpus,
            pinned=measure.pin_boards,
            meter_settings=meters.settings_in(config.hardware.model_dump()),
            with_snakemake=False,
        )
    except RunFailed as failure:
        print(f"FAILED {args.run_id}: {failure}", file=sys.stderr)
        return 1
    print(end_line(record, {**manifest(config), "runs": {}}, runs_folder))
    print(folder / "record.json")
    return 0


def _rerun(args: argparse.Namespace) -> int:
    """Re-run the runs of the present grid that ended with one of the statuses."""
    from joulesweep.cli import rerun
    from joulesweep.plan.sweep import Sweep  # imports Snakemake, which few commands need

    for status in args.status:
        if status not in STATUSES:
            raise UserError(f"{one_of('status', status, STATUSES)}; runs without a record need no rerun: run snakemake")
    rerun.check(args.arguments)
    sweep = Sweep(*config_module.located(args.configfile))
    records = rerun.ended(sweep, args.status)
    if not records:
        missing = rerun.num_missing(sweep)
        rest = f"; {missing} have no record: run snakemake" if missing else ""
        print(f"{args.configfile}: no run has status {' or '.join(args.status)}{rest}")
        return 0
    for row in records:
        print(f"{row.run} · {row.status}" + (f": {brief(row.reason)}" if row.reason else ""))
    if args.dry_run:
        return 0
    sys.stdout.flush()
    return 1 if rerun.rerun(sweep, [row.run for row in records], args.configfile, args.arguments) else 0


def _accept(args: argparse.Namespace) -> int:
    """Let finished runs count as measured by today's code."""
    from joulesweep.plan.sweep import Sweep, counted  # imports Snakemake, which few commands need
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


def _prepared(spec: RunSpec, configfile: Path) -> dict[str, Any]:
    """The fetched model, the tokens and the references of a run, as keyword arguments of `launch`.

    Raises:
        UserError: they are not prepared yet.
    """
    model, dataset = model_key(spec.model, spec.model_source), dataset_key(spec.dataset, spec.dataset_source)
    folder, tokens = Path("resources/models", model), Path("resources/tokens", dataset, f"{model}.safetensors")
    if not folder.is_dir() or not tokens.exists():
        raise UserError(f"{tokens}: not prepared yet; first: snakemake --cores 2 --configfile {configfile} {tokens}")
    texts = Path("resources/datasets", f"{dataset}.jsonl")
    return {"model_folder": folder, "tokens": tokens, "references": references(spec, texts)}


def _doctor(args: argparse.Namespace) -> int:
    hardware = config_module.load(args.configfile).hardware.model_dump() if args.configfile else {}
    report = doctor.examine(meters.settings_in(hardware))
    print(json.dumps(report, indent=1, ensure_ascii=False) if args.json else doctor.screen(report))
    return 0


def _certify(args: argparse.Namespace) -> int:
    """Certify devices of this machine, or repeat the analysis of raw readings."""
    from joulesweep.certify import campaign

    if args.read is not None:
        if args.device or args.budget_s is not None:
            raise UserError("--read repeats an analysis: --device and --budget-s are for measuring")
        campaign.repeat(args.read, args.out)
        return 0
    if args.budget_s is not None and not 0 < args.budget_s < float("inf"):
        raise UserError(f"--budget-s {args.budget_s:g}: expected a number of seconds above 0")
    campaign.certify(args.device, args.budget_s, args.out or FOLDER)
    return 0


def _schema(args: argparse.Namespace) -> int:
    write_text(args.output, json.dumps(config_module.json_schema(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
