"""Repeat one run by hand, in the foreground."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from joulesweep.cli import add_config
from joulesweep.core import interrupts
from joulesweep.core.errors import UserError, brief_repr, nearest
from joulesweep.core.spec import RunSpec
from joulesweep.launch import stage
from joulesweep.launch.attempts import Attempt
from joulesweep.launch.checkpoints import RunPreempted
from joulesweep.launch.launcher import launch
from joulesweep.launch.node import RunFailed
from joulesweep.launch.progress import end_line
from joulesweep.measure import meters
from joulesweep.plan import config as config_module
from joulesweep.plan import staleness
from joulesweep.plan.grid import dataset_key, evaluation_paths, expand, manifest, model_key
from joulesweep.prepare.fetched import references

HELP = "repeat one run by hand, in the foreground"
EXAMPLES = (
    "joulesweep run single-fp32-bs32-r1-0123456789    # its id; joulesweep runs lists all",
    "joulesweep run ddp-2x4-fp32-bs32-r1-0123456789 --rendezvous node1:29400    # on the first of two nodes",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run_id", help="of a run; its record goes to results/<sweep>/by-hand")
    parser.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help="of a run on several nodes: where this one waits for the others, each started by joulesweep join",
    )
    add_config(parser)


def work(args: argparse.Namespace) -> int:
    """Repeat a run into results/<sweep>/by-hand/<run>: the sweep's own record stays as it is."""
    config, where = config_module.located(args.configfile)
    runs = expand(config, where).runs
    if args.run_id not in runs:
        near = nearest(args.run_id, runs)
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(f"unknown run {brief_repr(args.run_id)}; {hint}joulesweep runs lists all {len(runs)}")
    spec = runs[args.run_id]
    paths = _prepared(spec, args.configfile)
    runs_folder = Path("results", config.sweep, "by-hand")
    folder = runs_folder / args.run_id
    (folder / "record.json").unlink(missing_ok=True)
    try:
        measure = config.measure.resolved(spec.accelerator)
        with Attempt(folder) as attempt, stage.telling(folder, lambda begun: None):
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
                grace_s=measure.grace_s,
                attempt=attempt.name,
                rendezvous=args.rendezvous,
            )
            attempt.ended(record)
    except RunPreempted as preempted:
        print(f"{args.run_id}: {preempted}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except RunFailed as failure:
        print(f"FAILED {args.run_id}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped: {args.run_id} left no record; the same command begins it again", file=sys.stderr)
        return interrupts.EXIT_CODE
    print(end_line(record, {**manifest(config), "runs": {}}, runs_folder))
    print(folder / "record.json")
    return 0


def _prepared(spec: RunSpec, configfile: Path) -> dict[str, Any]:
    """The fetched model, the tokens and the references of a run, as keyword arguments of `launch`.

    Raises:
        UserError: they are not prepared yet.
    """
    model, dataset = model_key(spec.model, spec.model_source), dataset_key(spec.dataset, spec.dataset_source)
    folder, tokens = Path("resources/models", model), Path("resources/tokens", dataset, f"{model}.safetensors")
    evaluated = evaluation_paths(spec, model)
    lacking = next((path for path in (tokens, *evaluated) if not path.exists()), None if folder.is_dir() else tokens)
    if lacking is not None:
        first = f"snakemake --cores 2 --configfile {configfile} {lacking}"
        raise UserError(f"{lacking}: not prepared yet; first: {first}")
    texts = Path("resources/datasets", f"{dataset}.jsonl")
    return {
        "model_folder": folder,
        "tokens": tokens,
        "references": references(spec, texts),
        "evaluations": evaluated,
    }
