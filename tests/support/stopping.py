"""A training in attempts, each of which is asked to stop in a step; alone, or as one of two ranks."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ranks
import tiny_run
import torch
import torch.distributed as dist
from outcomes import told
from safetensors.torch import load_file

from joulesweep.core.outcome import Preempted, RankResult
from joulesweep.core.processes import LISTENS
from joulesweep.nets import onednn
from joulesweep.train import loop
from joulesweep.train.checkpoint import Checkpoints

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
Learned = tuple[list[Any], dict[str, torch.Tensor]]


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Keep this process's own reaction to the signals that stop a training."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def stopped(on: tiny_run.Assets, folder: Path) -> Preempted:
    """A training that is asked to stop in its first step."""
    step = loop._step

    def signalled(trainer: Any, *rest: Any) -> torch.Tensor:
        if (folder / f"{LISTENS}0").exists():
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(trainer, *rest)

    at = Checkpoints(folder=folder / "checkpoint", work=folder)
    loop._step = signalled
    try:
        with signals_kept():
            result = loop.train(tiny_run.spec(), on.model_folder, on.tokens, folder, (), at)
    finally:
        loop._step = step
    assert isinstance(result, Preempted)
    return result


def attempts(on: tiny_run.Assets, folder: Path, stops: Sequence[Sequence[int]] = (), **changes: Any) -> Learned:
    """Train in this process; each attempt but the last is asked to stop in a step, of each rank. Returns `learned`."""
    rank = int(os.environ.get("RANK", "0"))
    spec = tiny_run.spec(**{"epochs": 3, "keep_model": "last", **changes})
    at = Checkpoints(folder=folder / "checkpoint", work=folder)
    step = loop._step
    for stop in (*stops, None):

        def signalled(trainer: Any, *rest: Any, stop: Sequence[int] | None = stop) -> torch.Tensor:
            if stop and len(trainer.losses) + 1 == stop[rank] and (folder / f"{LISTENS}{rank}").exists():
                os.kill(os.getpid(), SIGNALS[rank])
            return step(trainer, *rest)

        loop._step = signalled
        try:
            with signals_kept():
                result = loop.train(spec, on.model_folder, on.tokens, folder / "run", (), at)
        finally:
            loop._step = step
        if stop is not None:
            assert isinstance(result, Preempted), result
            assert max(stop) <= result.step <= max(stop) + 1
            at = Checkpoints(folder=at.folder, work=folder, step=result.step, elapsed_s=at.elapsed_s + 1.0)
    assert isinstance(result, RankResult)
    return learned(told(result), None if rank else folder / "run" / "model")


def learned(outcome: dict[str, Any], model: Path | None) -> Learned:
    """What a training learned and counted, without times; and the weights that rank 0 saved."""
    timed = {"elapsed_s", "cpu_s", "rates"}
    epochs, phases = (
        [{key: row[key] for key in row if key not in timed} for row in outcome[name]] for name in ("epochs", "phases")
    )
    weights = load_file(next(model.glob("*.safetensors"))) if model else {}
    return [outcome["losses"], epochs, phases, outcome["quality"], outcome["num_steps"]], weights


def main() -> None:
    """One of two ranks: `stopping.py JOB RANK`; the job names folder, assets, and trainings with their stops."""
    job, folder, rank = ranks.joined()
    assets = tiny_run.Assets(model_folder=Path(job["model_folder"]), tokens=Path(job["tokens"]))
    onednn._Try.seconds = lambda one: 1.0 if type(one.layer) is onednn.Linear else 2.0  # else each training its own
    results = []
    for number, (stops, changes) in enumerate(job["trainings"]):
        (folder / str(number)).mkdir(exist_ok=True)
        results.append(attempts(assets, folder / str(number), stops, **changes))
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
