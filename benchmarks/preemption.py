"""Measure what it costs that a training can be stopped and go on: `python -m benchmarks.preemption`.

First steps of trainings that listen for a signal and of others that do not, in turns in one process, and the ratio of
their CPU-seconds; then the bytes and seconds of a checkpoint of the tests' tiny model and of a larger one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests" / "support"


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--hidden", type=int, default=384, help="width of the larger model")
    args = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    with tempfile.TemporaryDirectory() as folder:
        steps(Path(folder), args.pairs, args.steps)
        checkpoint("tiny", Path(folder) / "tiny")
        checkpoint(f"{args.hidden} wide", Path(folder) / "larger", hidden_size=args.hidden, vocab_size=30522)


def steps(folder: Path, num_pairs: int, num_steps: int) -> None:
    """Compare steps of trainings that listen and of others."""
    import tiny_run
    from stopping import signals_kept

    from joulesweep.train import loop
    from joulesweep.train.assembly import assemble, prepare_process
    from joulesweep.train.checkpoint import Checkpoints, Stop

    spec, assets = tiny_run.spec(max_steps=num_steps), tiny_run.assets(folder)
    trainer = assemble(spec, assets.model_folder, assets.tokens, prepare_process(spec))
    at = Checkpoints(folder=folder / "checkpoint", work=folder)
    ratios, step_s = [], []
    for number in range(num_pairs + 1):
        spent_s = {}
        for listens in (True, False) if number % 2 else (False, True):
            with signals_kept():
                stop = Stop(trainer.place, at if listens else None)
                began_s = time.process_time()
                for _ in loop._run_epochs(trainer, stop if listens else None):
                    pass
                spent_s[listens] = (time.process_time() - began_s) / num_steps
                stop.close()
            trainer.losses = []
        if number:  # the first pair warms up
            ratios.append(spent_s[True] / spent_s[False])
            step_s.append(spent_s[False])
    deciles = statistics.quantiles(ratios, n=10)
    print(f"CPU-seconds of a step that may be stopped, over one that may not: median {statistics.median(ratios):.4f},")
    print(
        f"80 % of {num_pairs} pairs between {deciles[0]:.4f} and {deciles[-1]:.4f}; {1e3 * min(step_s):.2f} ms a step"
    )


def checkpoint(name: str, folder: Path, **sizes: int) -> None:
    """Say what a checkpoint of a model costs."""
    import tiny_run
    from stopping import stopped

    folder.mkdir()
    tiny_run.network(**sizes).save_pretrained(folder / "model")
    tiny_run.tokenizer(folder / "model")
    tokens = tiny_run.token_file(folder / "tokens.safetensors")
    assets = tiny_run.Assets(model_folder=folder / "model", tokens=tokens)
    (file,) = stopped(assets, folder).files
    print(f"{name}: a checkpoint of {file.num_bytes:,} bytes in {file.write_s:.3f} s")


if __name__ == "__main__":
    main()
