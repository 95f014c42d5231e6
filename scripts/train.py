"""Carry out one run: `python -m scripts.train --job JSON …`; the job has the spec and the code digest."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from joulesweep.core import interrupts
from joulesweep.core.errors import UserError
from joulesweep.core.files import read_json
from joulesweep.core.spec import from_mapping
from joulesweep.launch import stage
from joulesweep.launch.attempts import Attempt
from joulesweep.launch.checkpoints import RunPreempted
from joulesweep.launch.launcher import check_granted, launch
from joulesweep.launch.node import GRACE_S, RunFailed
from joulesweep.launch.progress import end_line, start_line
from joulesweep.measure.meters import settings_in
from joulesweep.plan import intact
from joulesweep.prepare.fetched import references
from joulesweep.runs import attempted
from joulesweep.runs.identity import run_id
from scripts import note_versions, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--job", "--model-folder", "--tokens", "--texts", "--grid", "--folder", "--log"):
        parser.add_argument(name, required=True, type=str if name == "--job" else Path)
    parser.add_argument("--evaluations", nargs="*", type=Path, default=[], help="what each evaluation reads")
    parser.add_argument("--gpus", required=True, type=int, help="number of GPUs that Snakemake grants")
    parser.add_argument("--minutes", type=int, help="after which a batch system ends the job")
    parser.add_argument("--attempt", type=int, default=1, help="2 and more: Snakemake tries again what failed")
    args = parser.parse_args()
    if args.attempt > 1 and not attempted.is_worth_another(attempted.notes(args.folder / attempted.FILE)):
        sys.exit(f"{args.folder.name}: not tried again: it failed of itself, or was stopped; its output: {args.log}")
    note_versions()
    job, grid, runs = json.loads(args.job), read_json(args.grid, "grid"), args.folder.parent
    spec, measure = from_mapping(job["spec"]), grid["config"]["measure"]
    check_granted(spec, measure["exclusive"], args.gpus)
    check_inputs(args)

    def tell(begun: str) -> None:
        if begun == "settles":  # whatever it waited for is its own now
            print(start_line(run_id(spec), grid, runs), file=sys.stderr, flush=True)

    paths = {name: getattr(args, name) for name in ("model_folder", "tokens", "folder", "log")}
    try:
        with Attempt(args.folder, args.minutes) as attempt, stage.telling(args.folder, tell):
            record = launch(
                spec,
                job["code"],
                references=references(spec, args.texts),
                evaluations=args.evaluations,
                exclusive=measure["exclusive"],
                gpus=measure["gpus"],
                pinned=measure["pin_boards"],
                meter_settings=settings_in(grid["config"].get("hardware", {})),
                grace_s=measure.get("grace_s", GRACE_S),
                attempt=attempt.name,
                **paths,
            )
            if (record.reason or "").endswith(attempted.HOST_OOM) and attempted.may_ask_for_more(args.folder):
                (args.folder / "record.json").unlink()
                raise RunFailed(f"{attempted.HOST_OOM}; the next attempt asks the batch system for more memory")
            if record.status == "unsupported":
                check_inputs(args)
            interrupts.ignore()  # the record is there: the workflow shall learn of it
            attempt.ended(record)
    except RunPreempted as preempted:
        print(f"{run_id(spec)}: {preempted}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except RunFailed as failure:
        sys.exit(f"{run_id(spec)}: {failure}; its output: {args.log}")
    print(end_line(record, grid, runs), file=sys.stderr, flush=True)


def check_inputs(args: argparse.Namespace) -> None:
    """Refuse damaged inputs, before and after: for the training, a model that cannot be read is an unsupported one.

    Raises:
        UserError: one is damaged; then the run has no record.
    """
    for path in intact.damaged(intact.inputs(args.model_folder, args.tokens)):
        (args.folder / "record.json").unlink(missing_ok=True)
        raise UserError(f"{path}: damaged; the next start of the workflow makes it again")


if __name__ == "__main__":
    run_script(main)
