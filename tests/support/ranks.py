"""Many trainings in one process group of two ranks, and the gradients of each: setting the group up takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import tiny_run
import torch
import torch.distributed as dist
import traces
from torch.distributed.tensor import DTensor, Shard
from torch.optim.optimizer import register_optimizer_step_pre_hook

from joulesweep.nets import products
from joulesweep.train import loop
from joulesweep.train.trainer import RunEnded

Outcome = dict[str, Any]


def trained(on: tiny_run.Assets, folder: Path, **changes: Any) -> Outcome:
    """Two steps in this process: status, losses, validation_loss, the gradients of both steps, None where none came."""
    gradients: list[list[torch.Tensor | None]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients.append(_whole([p.grad for group in optimizer.param_groups for p in group["params"]]))

    hook = register_optimizer_step_pre_hook(keep)
    try:
        spec = tiny_run.spec(**{"max_steps": 2, "warmup_steps": 0, **changes})
        with mock.patch.object(products, "followed", traces.followed_once):
            outcome = loop.train(spec, on.model_folder, on.tokens, folder)
    except RunEnded as stop:
        return {"status": stop.outcome.status, "reason": stop.outcome.reason}
    finally:
        hook.remove()
    return {
        "status": "ok",
        "losses": outcome.losses,
        "validation_loss": outcome.epochs[-1].validation_loss,
        "counts": {name: getattr(outcome.phases[0], name) for name in ("num_texts", "num_tokens", "num_predicted")},
        "gradients": gradients,
    }


def _whole(gradients: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Copies of gradients. Those of which each rank has some rows are put together, by one exchange for all of them."""
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return [None if gradient is None else gradient.clone() for gradient in gradients]
    own = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    by_rank: list[list[torch.Tensor | None]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, own)
    whole: list[torch.Tensor | None] = []
    for gradient, parts in zip(gradients, zip(*by_rank, strict=True), strict=True):
        if isinstance(gradient, DTensor):
            assert gradient.placements == (Shard(0),)
            whole.append(torch.cat([part for part in parts if part is not None]))
        else:
            whole.append(parts[dist.get_rank()])
    return whole


def on_two(script: Path, folder: Path, **job: Any) -> None:
    """Run a script as two ranks: `SCRIPT JOB RANK`. Each leaves its results in the folder, as rank<r>.pt.

    Args:
        script: to run.
        folder: for the job's file and the results.
        job: what the script is told, besides the folder.
    """
    (folder / "job.json").write_text(json.dumps({"folder": str(folder), **job}), encoding="utf-8")
    paths = os.pathsep.join((str(tiny_run.REPOSITORY), str(tiny_run.SUPPORT)))
    environ = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder / "job.json")]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environ, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error[-3000:] for error in errors)


def joined() -> tuple[dict[str, Any], Path, int]:
    """In a script of `on_two`: join the other rank. Returns the job, its folder and this rank."""
    job, rank = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2])
    folder = Path(job["folder"])
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    return job, folder, rank


def main() -> None:
    """One of the ranks: `ranks.py JOB RANK`; the job names folder, assets by model and the trainings' changes."""
    job, folder, rank = joined()
    assets = {
        name: tiny_run.Assets(model_folder=Path(model_folder), tokens=Path(tokens))
        for name, (model_folder, tokens) in job["assets"].items()
    }
    outcomes = [trained(assets[changes.get("model", "bert")], folder, **changes) for changes in job["trainings"]]
    torch.save(outcomes, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
