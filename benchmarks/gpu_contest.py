"""A contestant that stays: it builds its model once and then trains whenever it is told to, one window each time.

`python -m benchmarks.gpu_contest JOB` says "ready" on a line of JSON, then answers each line that it reads with the
numbers of a window. All contestants have the same model, texts, optimizer, schedule and precision, and start each
window from the same weights. A peer's window opens after its first steps: its processes that collate are up by then.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

from joulesweep import process
from joulesweep.spec import RunSpec, from_mapping

SKIPPED = 3  # steps of a peer before its window
TRIED = 12  # by so many steps it is found how many fill a window
MOST_STEPS = 20_000
THEIRS = {"batching": "dynamic", "head": "dense", "engine": "eager", "min_seconds": 0.0}
OURS = {
    "ours": {"batching": "packed", "head": "masked", "engine": "graph"},
    "ours-eager": {"batching": "packed", "head": "masked", "engine": "eager"},
}
#: Peers by name: what is left out of the best settings.
PEERS = ("trainer", "trainer-default", "lightning")

Turn = Callable[[], dict[str, Any]]


def main() -> int:
    """Build, say so, and train at every line of the standard input."""
    process.die_with_parent()
    answers = _own_output()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        turn = _built(job)
    except Exception as error:
        outcome = getattr(error, "outcome", None)
        if outcome is None and not isinstance(error, ModuleNotFoundError):
            raise
        _say(answers, {"left_out": outcome["reason"] if outcome else f"not installed: {error.name}"})  # type: ignore[attr-defined]
        return 0
    _say(answers, {"ready": True})
    for _ in sys.stdin:
        _say(answers, turn())
    return 0


def _own_output() -> IO[str]:
    """The standard output for answers alone: whatever else is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], found: dict[str, Any]) -> None:
    answers.write(json.dumps(found) + "\n")
    answers.flush()


def _built(job: dict[str, Any]) -> Turn:
    spec = from_mapping(job["spec"])
    return _ours(job, spec) if job["name"] in OURS else _peer(job, spec)


def _ours(job: dict[str, Any], spec: RunSpec) -> Turn:
    """The product's own trainer, warmed up; a turn is its training over and over until the window is full."""
    from benchmarks.gpu_items import seen_by
    from joulesweep import memory, train
    from joulesweep.meter import Meter
    from joulesweep.trainer import assemble, measured_boards, prepare_process

    spec = replace(spec, **OURS[job["name"]])
    place = prepare_process(spec)
    trainer = assemble(spec, Path(job["model_folder"]), Path(job["tokens"]), place)
    meter = Meter(measured_boards(spec, job["boards"], place), host=True, synchronize=place.synchronize)
    start = train._warm_up(trainer, memory.Peaks(place.device, 1))
    assert start is not None  # min_seconds is set

    def turn() -> dict[str, Any]:
        num_passes = 0
        with meter.window():
            while num_passes == 0 or train._is_short(trainer, time.monotonic() - meter.begin_s):
                train._repeat(trainer, start)
                num_passes += 1
        counts = {
            name: num_passes * sum(phase[name] for phase in trainer.phases) for name in ("num_texts", "num_steps")
        }
        return {**counts, **seen_by(meter)}

    return turn


def _peer(job: dict[str, Any], spec: RunSpec) -> Turn:
    """A peer's own training of as many steps as fill a window."""
    fit, changes = _fit(job["name"])  # before anything of transformers is imported that looks for accelerate
    from benchmarks import peer_common
    from benchmarks.gpu_items import seen_by
    from joulesweep import memory
    from joulesweep.meter import Meter
    from joulesweep.trainer import measured_boards, prepare_process

    class LateWindow(peer_common.Window):
        """A window that a watcher opens when `skip` steps are done."""

        skip = SKIPPED

    spec = replace(spec, **THEIRS)
    place = prepare_process(spec)
    folders = Path(job["model_folder"]), Path(job["tokens"])
    task = peer_common._task(spec, *folders, place, Path(job["folder"]))
    if changes:
        task = _plain(task)
    meter = Meter(measured_boards(spec, job["boards"], place), host=True, synchronize=place.synchronize)
    weights = memory.copy_weights(task.model, [])

    def trained(num_steps: int) -> dict[str, Any]:
        memory.load_weights(task.model, weights)
        task.model.train()
        window = LateWindow(meter, place.device)
        fit(task, num_steps, window)
        steps = num_steps - (SKIPPED if job["name"] != "lightning" else 0)
        return {"num_steps": steps, "num_texts": steps * spec.batch_size, **seen_by(meter)}

    @functools.cache
    def num_steps() -> int:
        """As many as fill a window: found out when it is this one's turn for the first time, and nobody else works."""
        tried = trained(SKIPPED + (TRIED if job["seconds"] > 1 else 2))
        longer = 2 if job["name"] == "lightning" else 1  # its window holds the start of its processes
        return min(MOST_STEPS, max(4, round(longer * job["seconds"] * tried["num_steps"] / tried["window_s"])))

    trained(SKIPPED + 2)  # allocator and kernels
    return lambda: trained(SKIPPED + num_steps())


def _plain(task: Any) -> Any:  # noqa: ANN401 - a Task
    """The same with the default loader: no processes of its own, padding to the longest text and no further."""
    from transformers import DataCollatorForLanguageModeling

    from benchmarks.peer_common import Task

    class Plain(Task):
        @property
        def num_workers(self) -> int:
            return 0

    collator = DataCollatorForLanguageModeling(task.collator.tokenizer, mlm_probability=task.spec.mask_probability)
    given = {one.name: getattr(task, one.name) for one in fields(task)}
    return Plain(**{**given, "collator": collator})


def _fit(name: str) -> tuple[Any, bool]:
    """A peer's program, and whether its loader is the default one."""
    if name == "lightning":
        from benchmarks import peer_lightning

        return peer_lightning.fit, False
    from benchmarks import peer_trainer

    class Watch(peer_trainer._Watch):  # type: ignore[misc] # transformers ships no complete types
        """Opens the window after the first steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            pass

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            if self.window and state.global_step == self.window.skip:
                self.window.begin()
            super().on_step_end(args, state, control)

    peer_trainer._Watch = Watch
    if name == "trainer-default":
        return (lambda task, num_steps, window: peer_trainer.fit(task, num_steps, window, sampling="random")), True
    return peer_trainer.fit, False


if __name__ == "__main__":
    sys.exit(main())
