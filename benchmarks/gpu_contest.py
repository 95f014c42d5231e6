"""A resident contestant: it builds its model once, then trains one window per request.

`python -m benchmarks.gpu_contest JOB` says "ready" on a line of JSON, then reads lines, each a batch size, and answers
each with the numbers of a window. All contestants have the same model, texts, optimizer, schedule and precision, and
start each window from the same weights. A peer's window opens after its first steps, when its processes that collate
are up; what a compiler compiles is compiled before, for every length of the texts.

    trainer            transformers.Trainer: batches of like lengths, padded to the longest, four collating processes
    trainer-compiled   the same, compiled for shapes that vary
    trainer-plain      random batches, collated by the process that trains; the optimizer, too, is ours
    lightning          Lightning's Trainer, with the data of the first
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

from joulesweep.core import processes
from joulesweep.core.spec import RunSpec, from_mapping
from joulesweep.measure.devices import Board

SKIPPED = 3  # steps of a peer before its window
TRIED = 12  # steps that Lightning tries, to find how many fill a window
MOST_STEPS = 20_000
OURS = {
    "ours": {"batching": "packed", "head": "masked", "engine": "graph"},
    "ours-eager": {"batching": "packed", "head": "masked", "engine": "eager"},
}
THEIRS = {"batching": "dynamic", "head": "dense", "engine": "eager", "min_seconds": 0.0}
COMPILED = "trainer-compiled"
#: Settings of transformers.Trainer, by the contestant's name: how it draws batches.
TRAINERS = {"trainer": "group_by_length", COMPILED: "group_by_length", "trainer-plain": "random"}
#: What each contestant's spec has of its own.
WAYS: dict[str, dict[str, Any]] = {
    **OURS,
    **dict.fromkeys((*TRAINERS, "lightning"), THEIRS),
    COMPILED: {**THEIRS, "engine": "compile"},
}

Turn = Callable[[int], dict[str, Any]]  # of a batch size


def main() -> int:
    """Build, report ready, and train for every line of the standard input."""
    processes.die_with_parent()
    gc.disable()  # while things are imported and built, which then stay
    answers = _own_output()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        turn = built(job)
    except Exception as error:
        outcome = getattr(error, "outcome", None)
        if outcome is None and not isinstance(error, ModuleNotFoundError):
            raise
        _say(answers, {"left_out": outcome.reason if outcome else f"not installed: {error.name}"})  # type: ignore[attr-defined]
        return 0
    gc.freeze()
    gc.enable()
    _say(answers, {"ready": True})
    for line in sys.stdin:
        _say(answers, turn(int(line)))
    return 0


def _own_output() -> IO[str]:
    """Reserve the standard output for answers: redirect all other output to the log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def built(job: Mapping[str, Any]) -> Turn:
    """The contestant of a job file, with everything done that comes before its first window.

    Args:
        job: name; specs by batch size; model_folder, tokens, folder, boards; and seconds of a window.
    """
    specs = {int(size): from_mapping(spec) for size, spec in job["specs"].items()}
    if job["name"] in OURS:
        return _ours(job, specs)
    return _trainer(job, specs) if job["name"] in TRAINERS else _lightning(job, specs)


def _boards(job: Mapping[str, Any]) -> list[Board]:
    return [Board(**{key: value for key, value in board.items() if key != "device"}) for board in job["boards"]]


def _ours(job: Mapping[str, Any], specs: Mapping[int, RunSpec]) -> Turn:
    """Our own trainer, warmed up for each size; a turn is its training, repeated until the window is full."""
    from benchmarks.gpu_items import seen_by
    from joulesweep.measure.window import Meter
    from joulesweep.train import loop, memory
    from joulesweep.train.assembly import assemble, measured_boards, prepare_process

    place = prepare_process(next(iter(specs.values())))
    made = {}
    for size, spec in specs.items():
        trainer = assemble(spec, Path(job["model_folder"]), Path(job["tokens"]), place)
        made[size] = trainer, loop._warm_up(trainer, memory.Peaks(place.device, 1))
    boards = measured_boards(next(iter(specs.values())), _boards(job), place)
    meter = Meter(boards, host=True, synchronize=place.synchronize)

    def turn(size: int) -> dict[str, Any]:
        trainer, start = made[size]
        assert start is not None  # min_seconds is set
        num_passes = 0
        with meter.window():
            while num_passes == 0 or loop._is_short(trainer, time.monotonic() - meter.begin_s):
                loop._repeat(trainer, start)
                num_passes += 1
        phases = trainer.phases
        num_texts, num_steps = (
            sum(phase.counts["num_texts"] for phase in phases),
            sum(phase.num_steps for phase in phases),
        )
        counts = {"num_texts": num_passes * num_texts, "num_steps": num_passes * num_steps}
        return {**counts, **seen_by(meter)}

    return turn


def _trainer(job: Mapping[str, Any], specs: Mapping[int, RunSpec]) -> Turn:
    """transformers.Trainer, built once, because a second one would compile the same model again."""
    name = job["name"]
    if name == COMPILED:
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "1"  # else every new size would be compiled for itself
    from benchmarks import peer_trainer  # before anything of transformers is imported that looks for accelerate
    from benchmarks.gpu_items import seen_by
    from joulesweep.train import memory

    task, meter = _task(job, specs)
    if name == "trainer-plain":
        task = _plain(task)
    watch = _watch()
    trainer = peer_trainer.built(task, MOST_STEPS, watch, TRAINERS[name])
    weights = memory.copy_weights(task.model, [])

    def trained(size: int, seconds: float, examples: Any = None) -> Timed:  # noqa: ANN401 - texts as ids
        memory.load_weights(task.model, weights)
        task.model.train()
        trainer.optimizer, trainer.lr_scheduler = task.optimizer()
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = size
        trainer.args.train_sampling_strategy = TRAINERS[name] if examples is None else "sequential"
        trainer.args.max_steps = MOST_STEPS if examples is None else len(examples) // size
        trainer.train_dataset = task.examples if examples is None else examples
        watch.timed = Timed(meter, seconds)
        trainer.train()
        return watch.timed

    for size in specs:  # warm up allocator, kernels and compiled code
        trained(size, float("inf"), _every_length(task, size) if name == COMPILED else task.examples[: 5 * size])
    peer_trainer.check(trainer)

    def turn(size: int) -> dict[str, Any]:
        before = num_compiled()
        timed = trained(size, job["seconds"])
        if num_compiled() != before:  # the window holds a compilation: once more
            timed = trained(size, job["seconds"])
        return {"num_steps": timed.num_steps, "num_texts": timed.num_steps * size, **seen_by(meter)}

    return turn


def _watch() -> Any:  # noqa: ANN401 - transformers ships no complete types
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc] # likewise
        """Ends a training when its window is full."""

        timed: Timed

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            if self.timed.step_done():
                control.should_training_stop = True

    return Watch()


class Timed:
    """A window of the meter that opens after a peer's first steps, and closes when it is full.

    Args:
        meter: whose window.
        seconds: of it.
    """

    def __init__(self, meter: Any, seconds: float) -> None:  # noqa: ANN401 - a Meter
        self.meter, self.seconds = meter, seconds
        self.num_done = 0
        self.window: Any = None

    @property
    def num_steps(self) -> int:
        """In the window."""
        return self.num_done - SKIPPED

    def step_done(self) -> bool:
        """Count a step; return whether it was the last one."""
        self.num_done += 1
        if self.seconds == float("inf"):  # nothing is measured
            return False
        if self.num_done == SKIPPED:
            self.window = self.meter.window()
            self.window.__enter__()
            return False
        full = self.num_done > SKIPPED and time.monotonic() - self.meter.begin_s >= self.seconds
        if full:
            self.window.__exit__(None, None, None)  # waits for the device
        return full


def num_compiled() -> int:
    """Number of graphs that PyTorch has compiled in this process."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _every_length(task: Any, size: int) -> list[Any]:  # noqa: ANN401 - a Task
    """A batch for each length of the texts."""
    by_length = {len(example["input_ids"]): example for example in task.examples}
    return [by_length[length] for length in sorted(by_length, reverse=True) for _ in range(size)]


def _task(job: Mapping[str, Any], specs: Mapping[int, RunSpec]) -> tuple[Any, Any]:
    """A peer's model and texts, and its meter."""
    from benchmarks import peer_common
    from joulesweep.measure.window import Meter
    from joulesweep.train.assembly import measured_boards, prepare_process

    spec = next(iter(specs.values()))
    place = prepare_process(spec)
    task = peer_common._task(spec, Path(job["model_folder"]), Path(job["tokens"]), place, Path(job["folder"]))
    return task, Meter(measured_boards(spec, _boards(job), place), host=True, synchronize=place.synchronize)


def _plain(task: Any) -> Any:  # noqa: ANN401 - a Task
    """The Trainer without collating processes."""
    from benchmarks.peer_common import Task

    class Plain(Task):
        @property
        def num_workers(self) -> int:
            return 0

    return Plain(**{field.name: getattr(task, field.name) for field in fields(task)})


def _lightning(job: Mapping[str, Any], specs: Mapping[int, RunSpec]) -> Turn:
    """Lightning's Trainer, built for each window, which includes the start of its processes: it is twice as long."""
    from benchmarks import peer_common, peer_lightning
    from benchmarks.gpu_items import seen_by
    from joulesweep.train import memory

    task, meter = _task(job, specs)
    weights = memory.copy_weights(task.model, [])

    def trained(size: int, num_steps: int) -> dict[str, Any]:
        memory.load_weights(task.model, weights)
        task.model.train()
        sized = replace(task, spec=replace(task.spec, batch_size=size))
        peer_lightning.fit(sized, num_steps, peer_common.Window(meter, task.place.device))
        return {"num_steps": num_steps, "num_texts": num_steps * size, **seen_by(meter)}

    @functools.cache
    def num_steps(size: int) -> int:
        """Number of steps that fill a window, measured in this contestant's first turn, when no other one works."""
        tried = trained(size, TRIED)
        return min(MOST_STEPS, max(4, round(2 * job["seconds"] * TRIED / tried["window_s"])))

    trained(next(iter(specs)), SKIPPED)  # allocator and kernels
    return lambda size: trained(size, num_steps(size))


if __name__ == "__main__":
    sys.exit(main())
