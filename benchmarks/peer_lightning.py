"""Train the task of one of our runs with Lightning: its Trainer with `barebones`, and Fabric with a plain loop.

Both get the collator, the sampler of like lengths and the fused AdamW that `transformers.Trainer` gets.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.peer_common import Task, Window, main

PRECISIONS = {"fp32": "32-true", "tf32": "32-true", "fp16-mixed": "16-mixed", "bf16-mixed": "bf16-mixed"}


class _Module(lightning.LightningModule):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self, task: Task, window: Window | None) -> None:
        super().__init__()
        self.model, self.task, self.window = task.model, task, window

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = self.task.optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if self.window:
            self.window.begin()

    def on_train_end(self) -> None:
        if self.window:
            self.window.end()


def fit(task: Task, num_steps: int, window: Window | None) -> None:
    """Train for a number of steps with Lightning's Trainer."""
    trainer = lightning.Trainer(
        barebones=True, max_epochs=-1, max_steps=num_steps, use_distributed_sampler=False, **_where(task)
    )
    trainer.fit(_Module(task, window), _loader(task))
    task.model.to(task.place.device)  # Lightning moves it to the CPU when it is done


def fit_fabric(task: Task, num_steps: int, window: Window | None) -> None:
    """Train for a number of steps with a plain loop on Fabric."""
    fabric = Fabric(**_where(task))
    optimizer, schedule = task.optimizer()
    model, optimizer = fabric.setup(task.model, optimizer)
    loader = fabric.setup_dataloaders(_loader(task), use_distributed_sampler=False)
    if window:
        window.begin()
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, num_steps):
        fabric.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    if window:
        window.end()


def _where(task: Task) -> dict[str, Any]:
    if task.spec.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    device = "gpu" if task.spec.accelerator == "cuda" else "cpu"
    return {"accelerator": device, "devices": 1, "precision": PRECISIONS[task.spec.precision]}


def _loader(task: Task) -> DataLoader[Any]:
    size = task.spec.batch_size
    return DataLoader(
        task.examples,  # type: ignore[arg-type]  # a list is a data set
        batch_size=size,
        sampler=LengthGroupedSampler(size, lengths=task.lengths),
        collate_fn=task.collator,
        num_workers=task.num_workers,
        persistent_workers=task.num_workers > 0,
        pin_memory=task.spec.accelerator == "cuda",
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # it would have a data loader with workers, which cost CPU-seconds here
    main({"lightning": fit, "fabric": fit_fabric})
