"""Shared by the peers' programs: the same model, texts, optimizer and schedule as ours, and one measured window.

A program is started with the same job file as a run of ours (`joulesweep.train.worker`) and leaves the same
`rank0.json`:

    imports · model · ids · score | 2 steps, undone | training | score
                                                    |##########|  CPU-seconds, seconds, joules, peak memory

Both the first and the last score are ours, on the fixed validation masks: equal first scores show equal weights.
Settings of the process are ours too (`assembly.prepare_process`): no attention by cuDNN, and TF32 only where the
precision says so.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, DataCollatorForLanguageModeling

from joulesweep.axes.task import TASKS
from joulesweep.core.files import write_json
from joulesweep.core.outcome import Quality, as_json
from joulesweep.core.spec import RunSpec, from_mapping
from joulesweep.measure.devices import Board
from joulesweep.measure.window import Meter
from joulesweep.train import memory
from joulesweep.train.assembly import assemble, attention, measured_boards, prepare_process
from joulesweep.train.corpus import Corpus, load, split
from joulesweep.train.scoring import score
from joulesweep.train.trainer import RankContext, learning_rate


@dataclass(frozen=True, kw_only=True)
class Task:
    """The model, texts and settings that a peer trains with.

    Attributes:
        spec: the inputs of our run that it is compared with.
        place: the device.
        model: as transformers builds it.
        collator: transformers' own: pads to the longest of the batch; with task mlm it draws 80/10/10 masks.
        examples: the training texts as ids; with task mlm special tokens are marked, so that it need not look.
        folder: where the program may write.
    """

    spec: RunSpec
    place: RankContext
    model: torch.nn.Module
    collator: DataCollatorForLanguageModeling
    examples: list[dict[str, list[int]]]
    folder: Path

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each training text."""
        return [len(example["input_ids"]) for example in self.examples]

    @property
    def num_workers(self) -> int:
        """Number of collating processes: on a GPU they keep up with it, on the CPU they would cost CPU time."""
        return 4 if self.spec.accelerator == "cuda" else 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the texts; the last may be smaller."""
        return math.ceil(len(self.examples) / self.spec.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.spec.max_steps or (self.spec.epochs or 0) * self.steps_per_epoch

    @property
    def num_texts(self) -> int:
        """Number of texts in all steps, counting repeats."""
        epochs, steps = divmod(self.num_steps, self.steps_per_epoch)
        return epochs * len(self.examples) + min(steps * self.spec.global_batch_size, len(self.examples))

    def optimizer(self) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        """The fused AdamW and the schedule of our run."""
        spec, every = self.spec, list(self.model.parameters())
        groups = [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": spec.weight_decay},
            {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=spec.lr, fused=True)
        share = lambda step: learning_rate(spec, step, self.num_steps) / spec.lr  # noqa: E731
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


class Window:
    """The measured span of a peer: from before its first batch until its last step has finished."""

    def __init__(self, meter: Meter, device: torch.device) -> None:
        self.meter, self.stack, self.cpu_s = meter, ExitStack(), 0.0
        self.peaks = memory.Peaks(device, 1)

    def begin(self) -> None:
        """Open the window."""
        self.stack.enter_context(self.meter.window())
        self.cpu_s = -time.process_time()

    def end(self) -> None:
        """Wait for the device and close the window."""
        self.meter.synchronize()
        self.cpu_s += time.process_time()
        self.stack.close()
        self.peaks.note([])

    def measurement(self) -> dict[str, Any]:
        """The measured values, under the names of a run's measurement."""
        return {
            "total_window_s": self.meter.window_s,
            "num_passes": 1,
            "energy": self.meter.readings(),
            "cpu_s": self.cpu_s,
            "peak_memory": self.peaks.peak(),
        }


#: Trains a task for a number of steps; the window is None during warm-up.
Fit = Callable[[Task, int, "Window | None"], None]


def main(fits: dict[str, Fit]) -> None:
    """Carry out the job file on the command line with a peer's program."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    spec, model_folder, tokens = from_mapping(job["spec"]), Path(job["model_folder"]), Path(job["tokens"])
    place = prepare_process(spec)
    task = _task(spec, model_folder, tokens, place, path.parent)
    began = _score(task, model_folder, tokens)
    boards = [Board(**board) for board in job["boards"]]
    meter = Meter(measured_boards(spec, boards, place), host=True, synchronize=place.synchronize)
    fit = fits[job["program"]]
    _warm_up(task, fit)
    window = Window(meter, place.device)
    fit(task, task.num_steps, window)
    measurement = window.measurement() | {"num_texts": task.num_texts, "num_steps": task.num_steps}
    measurement["attention"] = attention(task.model)
    epochs = [began, _score(task, model_folder, tokens)]
    left = {"status": "ok", "measurement": measurement, "epochs": epochs}
    write_json(path.parent / "rank0.json", as_json(left))


def _task(spec: RunSpec, model_folder: Path, tokens: Path, place: RankContext, folder: Path) -> Task:
    """The model and the training texts of our split."""
    model = _model(model_folder, spec.task).to(place.device)
    corpus = load(tokens, spec.max_length, spec.task)
    source = spec.dataset_source
    texts, _ = split(
        corpus, source.get("split", "random"), source.get("validation_fraction", 0.2), source.get("split_seed", 0)
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    return Task(
        spec=spec,
        place=place,
        model=model,
        collator=DataCollatorForLanguageModeling(
            tokenizer,
            mlm=spec.task == "mlm",
            mlm_probability=spec.mask_probability,  # no multiple of 8: batch × length is one, texts have ten tokens
        ),
        examples=[_example(corpus, spec.task, text) for text in texts.tolist()],
        folder=folder,
    )


def _score(task: Task, model_folder: Path, tokens: Path) -> Quality:
    """Our scorer's loss for the model's weights, in a temporary model of ours."""
    spec = replace(task.spec, batching="dynamic", head="masked", engine="eager")
    judge = assemble(spec, model_folder, tokens, task.place)
    return score(judge, {f"model.{name}": value for name, value in memory.copy_weights(task.model, []).items()})


def _model(folder: Path, task: str) -> torch.nn.Module:
    """The model as transformers builds it; if the folder has no weights, random ones with the same seed as ours."""
    auto: Any = getattr(transformers, TASKS[task].auto_class)
    model: torch.nn.Module
    if any(folder.glob("*.safetensors")):
        model = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    else:
        model = auto.from_config(AutoConfig.from_pretrained(folder, local_files_only=True)).float()
    model.config.use_cache = False  # type: ignore[union-attr] # of keys and values: for generation alone, as ours says too
    return model


def _example(corpus: Corpus, task: str, text: int) -> dict[str, list[int]]:
    span = slice(int(corpus.offsets[text]), int(corpus.offsets[text + 1]))
    special = {"special_tokens_mask": (~corpus.learned[span]).long().tolist()} if task == "mlm" else {}
    return {"input_ids": corpus.ids[span].tolist(), **special}


def _warm_up(task: Task, fit: Fit) -> None:
    """Undo as many steps as ours do; with a compiler a whole epoch, so that no compilation is in the window."""
    weights = memory.copy_weights(task.model, [])
    task.model.train()
    fit(task, task.steps_per_epoch if task.spec.engine == "compile" else task.spec.warmup_steps, None)
    memory.load_weights(task.model, weights)
    task.model.zero_grad(set_to_none=True)
    task.model.train()
    torch.manual_seed(task.spec.repeat * 1000)
