"""Measured step time of chosen tensors against predicted cost: `python -m benchmarks.partial --json OUT`.

One process, one model of 22.7 million parameters. For each objective and rho, GreenTrainer chooses tensors; then steps
of that choice and steps of full training take turns on the same batches, each step timed in CPU-seconds (on a GPU in
seconds, the device being waited for). The ratio of the medians is set against what the choice was predicted to cost.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peer_assets import MODELS, prepare
from benchmarks.peers import CACHE, machine
from joulesweep import adaptive, launch, record, train
from joulesweep.environment import resolve_accelerator
from joulesweep.spec import from_mapping
from joulesweep.trainer import Stop, Trainer, assemble, prepare_process

RHOS = (0.4, 0.45, 0.5, 0.7)
OBJECTIVES = ("flops", "time")


def main() -> None:
    """Measure, print the table, write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--data", type=Path, help="VizWiz annotations; without them, the default config's data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=12, help="of each kind, per choice")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not launch.ALLOCATOR.items() <= os.environ.items():  # set before the process begins, as in a run
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.partial", *sys.argv[1:]],
            {**os.environ, **launch.ALLOCATOR},
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
        except Stop as refused:
            rows.append({"objective": objective, "rho": rho, "refused": refused.outcome["reason"]})
            print(refused.outcome["reason"])
            continue
        rows.append({"objective": objective, "rho": rho, **compared(trainer, args.steps)})
        told = "{objective:>5} rho {rho}: predicted {predicted:.3f}, measured {measured:.3f}, off by {off:+.1%}"
        print(told.format(**rows[-1]))
    boards: list[Any] = []
    if args.json:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(boards),
            "model": MODELS[args.model].about,
        }
        record.write_json(
            args.json, {**about, "batch_size": args.batch_size, "precision": args.precision, "rows": rows}
        )


def compared(trainer: Trainer, num_steps: int) -> dict[str, Any]:
    """Predicted and measured cost of a choice, as shares of full training."""
    trainer.open_phase("rating", 1)
    choice = adaptive.choose(trainer, 1)
    trainer.open_phase("training", 1)
    chosen, candidates = set(choice["chosen"]), set(trainer.selector.cost.names)  # type: ignore[union-attr]
    times: dict[bool, list[float]] = {True: [], False: []}
    batches = list(itertools.islice(trainer.batches(1), num_steps + 2))
    trainer.core.train()
    for (step, given), full in itertools.product(enumerate(batches), (False, True)):
        _train_only(trainer, candidates if full else chosen)
        began_s = _now(trainer)
        train._step(trainer, *given, 0.0)
        if step >= 2:  # those before allocate
            times[full].append(_now(trainer) - began_s)
    measured = statistics.median(a / b for a, b in zip(times[False], times[True], strict=True))
    predicted = choice["predicted_cost"]
    return {
        "predicted": predicted,
        "measured": measured,
        "off": measured / predicted - 1,
        "trained_share": choice["trained_share"],
        "rates": choice["rates"],
        "full_step_s": statistics.median(times[True]),
    }


def _train_only(trainer: Trainer, names: set[str]) -> None:
    for name, parameter in trainer.core.model.named_parameters():
        parameter.requires_grad_(name in names)


def _now(trainer: Trainer) -> float:
    trainer.place.synchronize()
    return time.process_time() if trainer.place.device.type == "cpu" else time.perf_counter()


if __name__ == "__main__":
    main()
