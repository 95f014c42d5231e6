"""Train the task of one of our runs with `transformers.Trainer`, with its best documented settings for short texts.

Dynamic padding by transformers' collator, fused AdamW, nothing clipped (it computes the norm all the same), logged or
saved; batches of like lengths, or random ones, which pad more and learn better. Two ways without padding, or less work:
`trainer-flattened` puts the texts of a batch into one row, which transformers' attention keeps apart by their positions
(decoders alone); `trainer-sparse` lets ModernBERT compute its head at the predicted places.
"""

from __future__ import annotations

import functools
from typing import Any

from accelerate.utils import is_compiled_module
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

from benchmarks.peer_common import Task, Window, main

WRAPPED = "_original_forward"  # what accelerate keeps when it wraps a model's forward
PRECISIONS: dict[str, dict[str, bool]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "fp16-mixed": {"fp16": True},
    "bf16-mixed": {"bf16": True},
}


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships no complete types
    """Opens the window before the first batch is fetched, closes it after the last step."""

    def __init__(self, window: Window | None) -> None:
        self.window = window

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        if self.window:
            self.window.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        if self.window and state.global_step == state.max_steps:
            self.window.end()


def fit(
    task: Task, num_steps: int, window: Window | None, sampling: str = "group_by_length", way: str = "padded"
) -> None:
    """Train for a number of steps; the way is "padded", "flattened" or "sparse"."""
    trainer = built(task, num_steps, _Watch(window), sampling, way)
    trainer.train()
    check(trainer)
    # All that is done to the model in place, which would keep a second training from doing it.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False)
    vars(task.model).pop("_is_accelerate_prepared", None)


def built(task: Task, num_steps: int, watch: TrainerCallback, sampling: str, way: str = "padded") -> Trainer:
    """A Trainer for a number of steps, which may train more than once."""
    spec = task.spec
    task.model.sparse_prediction = way == "sparse"  # read by ModernBERT alone
    arguments = TrainingArguments(
        output_dir=str(task.folder / "trainer"),
        per_device_train_batch_size=spec.batch_size,
        max_steps=num_steps,
        train_sampling_strategy=sampling,
        max_grad_norm=0.0,
        torch_compile=spec.engine == "compile",
        use_cpu=spec.accelerator == "cpu",
        seed=spec.repeat,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,  # the collator uses special_tokens_mask
        dataloader_num_workers=task.num_workers,
        dataloader_persistent_workers=task.num_workers > 0,
        dataloader_pin_memory=spec.accelerator == "cuda",
        **PRECISIONS[spec.precision],
    )
    return Trainer(
        model=task.model,
        args=arguments,
        train_dataset=task.examples,
        data_collator=DataCollatorWithFlattening() if way == "flattened" else task.collator,
        processing_class=task.collator.tokenizer,
        callbacks=[watch],
        optimizers=task.optimizer(),
    )


def check(trainer: Trainer) -> None:
    """Check that the trained model was compiled and used mixed precision as requested.

    Raises:
        RuntimeError: it was not.
    """
    mixes = trainer.args.bf16 or trainer.args.fp16
    compiled = is_compiled_module(trainer.model_wrapped)
    if trainer.args.torch_compile is not compiled or mixes is not hasattr(trainer.model, WRAPPED):
        raise RuntimeError("transformers.Trainer did not compile, or did not use mixed precision, as configured")


if __name__ == "__main__":
    main(
        {
            "trainer": fit,
            "trainer-random": functools.partial(fit, sampling="random"),
            "trainer-flattened": functools.partial(fit, sampling="random", way="flattened"),
            "trainer-sparse": functools.partial(fit, way="sparse"),
        }
    )
