"""The pieces of the GPU day that train in their own process: `python -m benchmarks.gpu_items JOB`.

Each piece is a function of the job and the piece's entries, and returns numbers. What this machine cannot do is
answered `not tried` with the reason. After an error the process ends, and the parent goes on with the rest in a fresh
one: a GPU in trouble would fail every later piece too.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import platform
import shutil
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import gpu_runs
from benchmarks.gpu_common import (
    AFTER_FAILURE,
    FAILED,
    MANIFEST,
    NO_TIME,
    NOT_TRIED,
    OK,
    Job,
    NotTried,
    measured_spec,
    small_spec,
)
from joulesweep.axes.precision import PRECISIONS
from joulesweep.core import processes
from joulesweep.core.outcome import RankResult, Span, as_json
from joulesweep.core.spec import RunSpec
from joulesweep.core.work import COUNTED
from joulesweep.measure import devices
from joulesweep.measure.machine import describe, version
from joulesweep.measure.meters import nvidia

Piece = dict[str, Any]
#: How far losses may be from those of the CPU in fp32, relative.
AGREES = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 2e-3, "weights": 1e-2}
MODEL_FAILS = "this model fails"  # a run calls it unsupported; of these models it is none
DRAWN = 1e-4  # losses whose dropout differs are further apart, relative
SAME = 1e-6  # sums may come in another order, products from another library
COMPILER = os.environ.get("CXX", "g++")
#: What a host waits in, by its names in the CUDA runtime.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
PROFILED = 10  # steps
LOOK_STEPS = 16  # steps between checks of the clock


def main() -> NoReturn:
    """Carry out the pieces of a job, each answered as it ends."""
    processes.die_with_parent()
    gc.disable()  # until the first training: it would walk what is imported several times
    job = Job.read(Path(sys.argv[1]))
    for piece in job.pieces:
        name = piece["piece"]
        needs_s = piece.get("needs_s", 0.0)
        if job.left_s <= needs_s:
            reason = f"{NO_TIME}: it needs {needs_s:g} s, there were {job.left_s:.1f}" if job.left_s > 0 else NO_TIME
            job.answer(name, NOT_TRIED, reason=reason)
            continue
        began_s = time.monotonic()
        try:
            numbers = PIECES[piece["do"]](job, piece)
        except Exception as error:
            status, reason = judged(error)
            job.answer(name, status, reason=reason, took_s=time.monotonic() - began_s)
            if status == NOT_TRIED:
                continue
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(AFTER_FAILURE)
        job.answer(name, OK, **{key: value for key, value in piece.items() if key not in ("piece", "do")}, **numbers)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what a process group or a compiler does at the end is of no interest


def judged(error: Exception) -> tuple[str, str]:
    """Status and reason for a piece that ended with an exception."""
    outcome = getattr(error, "outcome", None)  # of a run that stopped with a result
    if isinstance(error, NotTried):
        return NOT_TRIED, str(error)
    if outcome is not None:
        refused = outcome.status == "unsupported" and MODEL_FAILS not in outcome.reason
        return NOT_TRIED if refused else FAILED, f"{outcome.status}: {outcome.reason}"
    return FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]


def machine(job: Job, piece: Piece) -> dict[str, Any]:
    """Facts about this machine, and what compiling would need."""
    import torch

    described = as_json(describe(1, [_board(board) for board in job.boards]))
    del described["hostname"]
    cuda = torch.cuda.is_available() and job.accelerator == "cuda"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return {
        "environment": described,
        "pack": json.loads((job.pack.root / MANIFEST).read_text(encoding="utf-8")) | {"files": None},
        "kernel": platform.release(),
        "cuda": torch.version.cuda,
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "num_multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if cuda else None,
        "nccl": list(torch.cuda.nccl.version()) if cuda else None,
        "triton": version("triton"),
        "compiler": shutil.which(COMPILER) is not None,
        "python_header": header.exists(),
        "boards": [nvml_facts(board) for board in job.boards],
    }


def _board(described: Mapping[str, Any]) -> devices.Board:
    return devices.Board(**{key: value for key, value in described.items() if key != "device"})


def nvml_facts(board: Mapping[str, Any]) -> dict[str, Any]:
    """The driver's facts about a board, without setting anything; None for those that it does not report."""
    handle = nvidia.nvml_call("nvmlDeviceGetHandleByIndex", board["index"]) if board["index"] is not None else None
    asked = {
        "persistence": "nvmlDeviceGetPersistenceMode",
        "limit_mw": "nvmlDeviceGetEnforcedPowerLimit",
        "default_limit_mw": "nvmlDeviceGetPowerManagementDefaultLimit",
        "limits_mw": "nvmlDeviceGetPowerManagementLimitConstraints",
        "ecc": "nvmlDeviceGetEccMode",
        "architecture": "nvmlDeviceGetArchitecture",
    }
    facts = {name: None if handle is None else nvidia.nvml_call(function, handle) for name, function in asked.items()}
    facts["num_processes"] = None
    if (
        handle is not None
        and (processes := nvidia.nvml_call("nvmlDeviceGetComputeRunningProcesses", handle)) is not None
    ):
        facts["num_processes"] = len(processes)
    return {**board, **facts}


def losses(job: Job, piece: Piece) -> dict[str, Any]:
    """Losses of four steps of a small model, against the packed ones of the CPU in fp32."""
    spec = small_spec(piece["model"], job.accelerator, **piece["spec"])
    outcome = _train(job, spec)
    expected = json.loads(job.pack.references.read_text(encoding="utf-8")).get(piece["model"], {}).get(spec.batching)
    if expected is None:
        raise NotTried(f"the pack has no losses of {piece['model']} with batching {spec.batching}")
    skipped = outcome.num_skipped_steps
    alike = 1 if skipped else len(expected)  # after a step that loss scaling left out, the rest are other steps
    apart = max(abs(loss / other - 1) for loss, other in list(zip(outcome.losses, expected, strict=True))[:alike])
    allowed = allowed_apart(spec.precision)
    return {"losses": outcome.losses, "apart": apart, "allowed": allowed, "agrees": apart <= allowed} | {
        "num_skipped_steps": skipped,
        "startup_s": outcome.startup_s,
    }


def allowed_apart(precision: str) -> float:
    """Largest allowed relative difference between losses in a precision and those in fp32."""
    row = PRECISIONS[precision]
    return AGREES["weights" if row.weights != "float32" else "tf32" if row.tf32 else row.autocast or "float32"]


def dropout(job: Job, piece: Piece) -> dict[str, Any]:
    """Check that each step draws its own dropout, and that a second training draws the same.

    Every step has all texts and a learning rate of next to nothing: without dropout all losses were the same.
    """
    same = {"batching": "fixed", "batch_size": 128, "epochs": 6, "max_steps": None, "lr": 1e-12}
    spec = small_spec("gpt2-dropout", job.accelerator, **same, **piece["spec"])
    first, again = (_train(job, spec).losses for _ in range(2))
    spread = (max(first) - min(first)) / min(first)
    apart = max(abs(loss / other - 1) for loss, other in zip(again, first, strict=True))
    numbers = {"losses": first, "spread": spread, "repeated_apart": apart}
    return {**numbers, "agrees": spread > DRAWN and apart <= SAME}


def speed(job: Job, piece: Piece) -> dict[str, Any]:
    """Measure a training; the result is judged later, with the trace of the meters."""
    spec = measured_spec(job.scale.encoder, job.accelerator, **piece["spec"])
    outcome = _train(job, spec)
    counts = {name: sum(getattr(phase, name) for phase in outcome.training) for name in COUNTED}
    measured = {**as_json(outcome), **counts, "samples_per_s": counts["num_texts"] / outcome.window_s}
    for name in ("span", "epochs", "losses", "summaries", "quality"):
        del measured[name]
    return {
        "measurement": {**measured, "window_s": outcome.window_s},
        "span": as_json(outcome.span),
        "first_loss": outcome.losses[0],
        "last_loss": outcome.losses[-1],
    }


def left_out(job: Job, piece: Piece) -> dict[str, Any]:
    """Refuse a piece that the miniature skips."""
    raise NotTried("the miniature compiles nothing")


def warm_cache(job: Job, piece: Piece) -> dict[str, Any]:
    """Compile the measured model once, beside pieces that need no quiet machine, so that later ones reuse it."""
    spec = measured_spec(job.scale.encoder, job.accelerator, min_seconds=0.0, max_steps=2, **piece["spec"])
    began_s = time.monotonic()
    _train(job, spec)
    return {"compile_s": time.monotonic() - began_s}


def partial(job: Job, piece: Piece) -> dict[str, Any]:
    """Predicted and measured seconds of a step of chosen tensors, and joules of its steps and of full ones."""
    from benchmarks.partial_steps import compared, train_only
    from joulesweep.measure.window import Meter
    from joulesweep.train.adaptive import choosing
    from joulesweep.train.assembly import measured_boards

    spec = measured_spec(
        piece["model"],
        job.accelerator,
        method="greentrainer",
        batching="packed",
        batch_size=job.scale.batches[0],
        precision=piece["precision"],
        method_params={"rho": piece["rho"], "objective": piece["objective"]},
    )
    trainer = _kept_trainer(job, spec)
    trainer.spec = spec
    try:
        trainer.selector = choosing.selector(trainer)
    except ValueError as error:
        raise NotTried(str(error)) from None
    numbers = compared(trainer, job.scale.num_steps)
    boards = measured_boards(spec, [_board(board) for board in job.boards], trainer.place)
    meter = Meter(boards, host=True, synchronize=trainer.place.synchronize)
    batches = list(itertools.islice(trainer.batches(1), job.scale.num_steps))
    train_only(trainer, set(numbers["chosen"]))
    numbers["chosen"] = _window(job, trainer, meter, batches)
    train_only(trainer, set(trainer.selector.cost.names))  # type: ignore[union-attr]
    if spec.model not in _FULL:
        _FULL[spec.model] = _window(job, trainer, meter, batches)
    return {**numbers, "full": _FULL[spec.model]}


def _kept_trainer(job: Job, spec: RunSpec) -> Any:  # noqa: ANN401 - a Trainer
    """The trainer of a model, built once per process: objectives and shares are measured on the same one."""
    from joulesweep.train import assembly

    if spec.model not in _TRAINERS:
        _TRAINERS.clear()
        _fresh()
        place = assembly.prepare_process(spec)
        _TRAINERS[spec.model] = assembly.assemble(
            spec, job.pack.model(spec.model), job.pack.tokens(spec.dataset), place
        )
    return _TRAINERS[spec.model]


_TRAINERS: dict[str, Any] = {}
_FULL: dict[str, dict[str, Any]] = {}  # the window of full training, by model


def _window(job: Job, trainer: Any, meter: Any, steps: Sequence[Any]) -> dict[str, Any]:  # noqa: ANN401
    """Repeat steps without learning for the shortest window; return their number and the meter's readings."""
    from joulesweep.train import loop

    num_steps = 0
    with meter.window():
        for batches, num_predicted in itertools.cycle(steps):
            loop._step(trainer, batches, num_predicted, 0.0)
            num_steps += 1
            if num_steps % LOOK_STEPS == 0:
                trainer.place.synchronize()
                if time.monotonic() - meter.begin_s > job.scale.window_s * 2 / 3:
                    break
    return {"num_steps": num_steps, **seen_by(meter)}


def seen_by(meter: Any) -> dict[str, Any]:  # noqa: ANN401 - a Meter
    """What is needed to judge a meter's window later."""
    span = Span(begin_s=meter.begin_s, end_s=meter.end_s)
    return {"window_s": meter.window_s, "energy": as_json(meter.readings()), "span": as_json(span)}


def profile(job: Job, piece: Piece) -> dict[str, Any]:
    """Time of some steps by kernel, copy and wait, and how long the device was idle."""
    import torch

    from joulesweep.train import loop, memory
    from joulesweep.train.assembly import assemble, prepare_process

    spec = measured_spec(job.scale.encoder, job.accelerator, max_steps=2 * PROFILED, **piece["spec"])
    _fresh()
    place = prepare_process(spec)
    trainer = assemble(spec, job.pack.model(spec.model), job.pack.tokens(spec.dataset), place)
    loop._warm_up(trainer, memory.Peaks(place.device, 1))
    trainer.core.train()
    with contextlib.closing(trainer.steps()) as steps:  # pinned, as in a training
        profiled_steps = list(itertools.islice(steps, PROFILED))
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if place.device.type == "cuda" else []
    seconds = min(_steps_s(trainer, profiled_steps) for _ in range(2))  # before the profiler, which slows launches down
    with torch.profiler.profile(activities=kinds) as profiler:
        profiled_s = _steps_s(trainer, profiled_steps)
    path = job.scratch / "profile.json"
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    path.unlink()
    return {
        "num_steps": len(profiled_steps),
        "seconds": seconds,
        "profiled_s": profiled_s,
        **summed_up(events, seconds),
    }


def _steps_s(trainer: Any, steps: Sequence[Any]) -> float:  # noqa: ANN401 - a Trainer
    """Seconds of some steps without learning."""
    from joulesweep.train import loop

    trainer.place.synchronize()
    began_s = time.monotonic()
    for batches, num_predicted in steps:
        loop._step(trainer, batches, num_predicted, 0.0)
    trainer.place.synchronize()
    return time.monotonic() - began_s


def summed_up(events: Sequence[Mapping[str, Any]], seconds: float, most: int = 12) -> dict[str, Any]:
    """Summary of a chrome trace for the device and the host.

    Args:
        events: of the trace; times in microseconds.
        seconds: that the same steps took without the profiler.
        most: rows of each table.

    Returns:
        device: {num_kernels, num_copies, busy_s, span_s (first to last work), idle_share: of the seconds without the
        profiler, kernels: the longest by name}, null where nothing ran on one; waits: number and seconds by name;
        launches; host: the longest operators.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    work = sorted((e for e in whole if e.get("cat") in DEVICE_WORK), key=lambda e: float(e["ts"]))
    runtime = [event for event in whole if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    summary: dict[str, Any] = {
        "device": None,
        "waits": _by_name([event for event in runtime if event["name"] in WAITS], most),
        "num_launches": sum("Launch" in event["name"] for event in runtime),
        "host": _by_name([event for event in whole if event.get("cat") == "cpu_op"], most),
    }
    if work:
        busy_us, span_us = _covered(work)
        summary["device"] = {
            "num_kernels": sum(event["cat"] == "kernel" for event in work),
            "num_copies": sum(event["cat"] == "gpu_memcpy" for event in work),
            "busy_s": busy_us / 1e6,
            "span_s": span_us / 1e6,
            "idle_share": max(0.0, 1 - busy_us / 1e6 / seconds),
            "kernels": _by_name([event for event in work if event["cat"] == "kernel"], most),
        }
    return summary


def _by_name(events: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """Number and total seconds of events by name, the longest first."""
    durations: dict[str, list[float]] = {}
    for event in events:
        durations.setdefault(str(event["name"])[:120], []).append(float(event["dur"]))
    table = [{"name": name, "number": len(times), "seconds": sum(times) / 1e6} for name, times in durations.items()]
    return sorted(table, key=lambda row: -row["seconds"])[:most]


def _covered(work: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds covered by sorted intervals, and seconds from the first to the last."""
    covered = 0.0
    first = reached = float(work[0]["ts"])
    for event in work:
        begin, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered, reached - first


def _train(job: Job, spec: RunSpec) -> RankResult:
    """Train in this process with our own function."""
    from joulesweep.train import loop
    from joulesweep.train.assembly import prepare_process

    prepare_process(spec)  # what this machine cannot do is refused before anything is cleared away
    _fresh()
    boards = [_board(board) for board in job.boards]
    return loop.train(spec, job.pack.model(spec.model), job.pack.tokens(spec.dataset), job.scratch, boards)


def _fresh() -> None:
    """Free everything of the previous training: its graphs form a cycle with their memory, and compiled code stays."""
    import torch

    if not torch.cuda.is_available():  # small models, and no graphs
        return
    gc.unfreeze()
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    torch.cuda.empty_cache()


#: By the entry "do" of a piece.
PIECES: dict[str, Callable[[Job, Piece], dict[str, Any]]] = {
    "machine": machine,
    "losses": losses,
    "dropout": dropout,
    "speed": speed,
    "left_out": left_out,
    "warm_cache": warm_cache,
    "partial": partial,
    "profile": profile,
    **gpu_runs.PIECES,
}


if __name__ == "__main__":
    main()
