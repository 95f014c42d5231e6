"""Compare the measured step time of chosen tensors with the predicted cost: `python -m benchmarks.partial --json OUT`.

One process, one model of 22.7 million parameters. For each objective and rho, GreenTrainer chooses tensors; then steps
of that choice and steps of full training take turns on the same batches, each step timed in CPU-seconds (on a GPU in
seconds, the device being waited for). The ratio of the medians is set against what the choice was predicted to cost.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.partial_steps import compared
from benchmarks.peer_assets import MODELS, prepare
from benchmarks.peers import CACHE, machine
from joulesweep.core import files
from joulesweep.core.spec import from_mapping
from joulesweep.launch import node
from joulesweep.measure.machine import resolve_accelerator
from joulesweep.train.assembly import assemble, prepare_process
from joulesweep.train.trainer import RunEnded

RHOS = (0.4, 0.45, 0.5, 0.7)
OBJECTIVES = ("flops", "time")


def main() -> None:
    """Measure, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--data", type=Path, help="VizWiz annotations; without them, the default config's data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=12, help="of each kind, per choice")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not node.ALLOCATOR.items() <= os.environ.items():  # set before the process begins, as in a run
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.partial", *sys.argv[1:]],
            {**os.environ, **node.ALLOCATOR},
        )
    assets = prepare(args.model, args.data, CACHE)
    common = {"lr": MODELS[args.model].lr, "batching": "packed", "max_length": 64, "epochs": 1, "repeat": 1}
    accelerator = resolve_accelerator(args.accelerator)
    base = from_mapping(
        {
            **assets.named,
            **common,
            "batch_size": args.batch_size,
            "precision": args.precision,
            "accelerator": accelerator,
        }
    )
    place = prepare_process(base)
    rows = []
    for objective, rho in itertools.product(OBJECTIVES, RHOS):
        spec = replace(base, method="greentrainer", method_params={"rho": rho, "objective": objective})
        try:
            trainer = assemble(spec, assets.model_folder, assets.tokens, place)
        except RunEnded as refused:
            rows.append({"objective": objective, "rho": rho, "refused": refused.outcome.reason})
            print(refused.outcome.reason)
            continue
        costs = compared(trainer, args.steps)
        del costs["chosen"]
        rows.append({"objective": objective, "rho": rho, **costs})
        line = "{objective:>5} rho {rho}: predicted {predicted:.3f}, measured {measured:.3f}, off by {off:+.1%}"
        print(line.format(**rows[-1]))
    boards: list[Any] = []
    if args.json:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(boards),
            "model": MODELS[args.model].about,
        }
        files.write_json(args.json, {**about, "batch_size": args.batch_size, "precision": args.precision, "rows": rows})


if __name__ == "__main__":
    main()
