"""Measure what short weights cost in loss: `python -m benchmarks.bf16`.

BERT-tiny learns VizWiz's questions (or the default config's texts) in fp32, bf16-true and bf16-kahan, from the same
start and on the same masks and order per seed. Printed: validation loss, and its difference from fp32, paired by seed,
as mean with 95 % interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.peer_assets import prepare
from benchmarks.peers import CACHE, PACKED, base_spec
from joulesweep.core.spec import from_mapping, full
from joulesweep.core.student import mean_interval
from joulesweep.train.loop import train

PRECISIONS = ("fp32", "bf16-true", "bf16-kahan")


def main() -> None:
    """Train with all precisions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="VizWiz annotations; without them, the default config's data set")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 1e-4, 2e-5])
    parser.add_argument("--assets", type=Path, default=CACHE, help="folder of fetched models and texts")
    args = parser.parse_args()
    print("| lr | precision | validation loss | minus fp32's |\n|---|---|---:|---:|")
    for lr in args.lrs:
        losses = {name: [loss(args, lr, name, seed) for seed in range(1, args.seeds + 1)] for name in PRECISIONS}
        for name, values in losses.items():
            more = mean_interval([value - exact for value, exact in zip(values, losses["fp32"], strict=True)])
            difference = "" if name == "fp32" else f"{more.mean:+.4f} [{more.low:+.4f}, {more.high:+.4f}]"
            print(f"| {lr:g} | {name} | {mean_interval(values).mean:.4f} | {difference} |", flush=True)


def loss(args: argparse.Namespace, lr: float, precision: str, seed: int) -> float:
    """Validation loss after the last epoch."""
    settings = {"batch_size": 32, "precision": precision, "epochs": args.epochs, "max_steps": None, "lr": lr}
    assets = prepare("tiny", args.data, args.assets)
    spec = base_spec(argparse.Namespace(model="tiny", **settings), assets, "cpu")
    spec = from_mapping({**full(spec), **PACKED, "repeat": seed, "idle_s": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(spec, assets.model_folder, assets.tokens, Path(folder))
    return outcome.epochs[-1].validation_loss


if __name__ == "__main__":
    main()
