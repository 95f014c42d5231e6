"""Compare ours with transformers.Trainer and Lightning: `make bench-peers`, or `python -m benchmarks.peers`.

Every contestant trains the same model on the same texts for the same whole epochs: batch size, learning rate,
schedule, weight decay, dropout, optimizer (fused AdamW), mask shares and precision are the same, texts are tokenised
beforehand. Each run is a process of its own in one and the same environment; within each seed all contestants take
their turn, and another one begins each time. Measured: CPU-seconds of the process, seconds, joules and peak memory
from before the first batch to the end of the last step, after two steps that are undone (a compiler: an epoch).
Everyone's weights are scored by our scorer on the same masked validation texts. Where ours is done within
`SHORTEST_S`, it is repeated from the same start inside its window, and its numbers are per pass: a window of three
seconds is dominated by noise from other processes.

What differs is what is compared: how texts are ordered and batched, where the head is computed, by which kernels, and
the loop around it. Masks are everyone's own draw, dropout too: validation losses differ by chance, hence the seeds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peer_assets import MODELS, REPOSITORY, Assets, prepare
from joulesweep.analyse.statistics import paired_ratio
from joulesweep.core import files
from joulesweep.core.outcome import as_json
from joulesweep.core.spec import RunSpec, from_mapping, full
from joulesweep.core.student import mean_interval
from joulesweep.launch import node
from joulesweep.measure import devices
from joulesweep.measure.devices import Board
from joulesweep.measure.machine import cpu_model, resolve_accelerator, version

SHORTEST_S = 20.0  # of a window of ours
FORMAT, VERSION = "joulesweep-peers", 1
PACKAGES = ("torch", "transformers", "accelerate", "pytorch-lightning")
UNTOLD = ("repeat", "gpus", "model_source", "dataset_source", "batching", "head", "engine")  # of the common spec
CACHE = REPOSITORY / ".cache" / "peer-assets"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to train.

    Attributes:
        about: how tables name it.
        module: the program, `python -m module JOB`.
        program: which of the module's programs, for a peer.
        changes: fields of the spec. Peers do as their spec says, too: dynamic padding and a dense head.
        needs: packages that it imports, beyond ours.
    """

    about: str
    module: str = "joulesweep.train.worker"
    program: str = "ours"
    changes: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


PACKED = {"batching": "packed", "head": "masked", "engine": "eager"}
THEIRS = {"batching": "dynamic", "head": "dense", "engine": "eager"}


def _trainer(about: str, program: str = "trainer", engine: str = "eager") -> Contestant:
    module, changes = "benchmarks.peer_trainer", {**THEIRS, "engine": engine}
    return Contestant(about=about, module=module, program=program, changes=changes, needs=("accelerate",))


def _lightning(about: str, program: str) -> Contestant:
    module, needs = "benchmarks.peer_lightning", ("pytorch_lightning", "lightning_fabric")
    return Contestant(about=about, module=module, program=program, changes=THEIRS, needs=needs)


CONTESTANTS = {
    "ours": Contestant(about="Joulesweep", changes=PACKED),
    "ours-graph": Contestant(about="Joulesweep, CUDA graph", changes={**PACKED, "engine": "graph"}),
    "trainer": _trainer("transformers.Trainer, length groups"),
    "trainer-random": _trainer("transformers.Trainer, random batches", "trainer-random"),
    "trainer-compiled": _trainer("transformers.Trainer, length groups, compiled", engine="compile"),
    "trainer-flattened": _trainer("transformers.Trainer, one row without padding", "trainer-flattened"),
    "trainer-sparse": _trainer("transformers.Trainer, length groups, ModernBERT's sparse head", "trainer-sparse"),
    "trainer-unpadded": Contestant(
        about="ModernBERT unpadded", module="benchmarks.peer_trainer", needs=("flash_attn",)
    ),
    "lightning": _lightning("Lightning Trainer, length groups", "lightning"),
    "fabric": _lightning("Lightning Fabric, length groups", "fabric"),
}
PEERS = ("trainer", "trainer-random", "trainer-compiled", "lightning", "fabric")
#: Packages that need a GPU, and what for.
ON_GPUS = {"flash_attn": "without padding ModernBERT needs flash-attn, which computes on NVIDIA GPUs alone: not run"}
#: What our speed is made of: ours with one thing taken away, or all of them.
LEVERS = {
    "not-packed": Contestant(about="Joulesweep without packing", changes={**PACKED, "batching": "dynamic"}),
    "dense-head": Contestant(about="Joulesweep without the masked head", changes={**PACKED, "head": "dense"}),
    "no-onednn": Contestant(about="Joulesweep without oneDNN", module="benchmarks.ours_without_onednn", changes=PACKED),
    "plain": Contestant(about="Joulesweep without the three", module="benchmarks.ours_without_onednn", changes=THEIRS),
    "fixed": Contestant(
        about="the same, padded to max_length",
        module="benchmarks.ours_without_onednn",
        changes={**THEIRS, "batching": "fixed"},
    ),
    "compiled": Contestant(about="Joulesweep, compiled", changes={**PACKED, "engine": "compile"}),
}


def main() -> None:
    """Run the comparison, print its table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--data", type=Path, help="VizWiz annotations; without them, the default config's data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16-mixed", "bf16-mixed"), default="fp32")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-steps", type=int, help="fewer steps than the epochs have: for a quick look only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, help="peak learning rate; without it, the model's")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--levers", action="store_true", help="also ours without each of its advantages")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--plain-environment", action="store_true", help="everyone without our allocator settings")
    parser.add_argument("--assets", type=Path, default=CACHE, help="folder of fetched models and texts")
    parser.add_argument("--json", type=Path, help="where the result goes")
    args = parser.parse_args()
    if args.data is not None and not args.data.is_file():
        parser.error(f"--data: {args.data}: no such file")
    report = compare(args)
    print(table(report))
    if args.json:
        files.write_json(args.json, report)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run every contestant once per seed, and summarise."""
    accelerator = resolve_accelerator(args.accelerator)
    assets = prepare(args.model, args.data, args.assets)
    base = base_spec(args, assets, accelerator)
    boards = devices.pool("auto")[:1] if accelerator == "cuda" else []
    environ = shared_environment(base, boards, plain=args.plain_environment)
    names = contestants([*args.peers, *MODELS[args.model].peers], args.levers, accelerator)
    refused = {name: reason for name in names if (reason := lacking(CONTESTANTS_AND_LEVERS[name]))}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="joulesweep-peers-") as scratch:
        for seed in range(1, args.seeds + 1):
            for place, name in enumerate(turns([name for name in names if name not in refused], seed)):
                job = Job(name=name, seed=seed, base=base, assets=assets, boards=boards, folder=Path(scratch))
                result = job.run(environ)
                runs.append({"contestant": name, "seed": seed, "turn": place + 1, **result})
                if result["status"] != "ok":
                    refused[name] = result["reason"]
                print(progress(runs[-1]), file=sys.stderr, flush=True)
    kept = [run for run in runs if run["contestant"] not in refused]
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": machine(boards),
        "model": f"{args.model}: {MODELS[args.model].about}",
        "dataset": base.dataset,
        "whole_epochs": args.max_steps is None,
        "allocator_settings": {} if args.plain_environment else node.ALLOCATOR,
        "spec": {key: value for key, value in full(base).items() if key not in UNTOLD},
        "measure": "cpu" if accelerator == "cpu" else "wall",
        "contestants": summarise(kept, "samples_per_cpu_s" if accelerator == "cpu" else "samples_per_s"),
        "left_out": {CONTESTANTS_AND_LEVERS[name].about: reason for name, reason in refused.items()},
        "runs": runs,
    }


CONTESTANTS_AND_LEVERS = {**CONTESTANTS, **LEVERS}


def contestants(peers: Sequence[str], levers: bool, accelerator: str) -> list[str]:
    """The contestants: ours first, which all others are compared with."""
    graph = ["ours-graph"] if accelerator == "cuda" else []
    return ["ours", *graph, *peers, *(LEVERS if levers else ())]


def turns(names: Sequence[str], seed: int) -> list[str]:
    """The contestants in the order of this seed, which starts with a different one each time."""
    first = (seed - 1) % len(names)
    return [*names[first:], *names[:first]]


def lacking(contestant: Contestant) -> str | None:
    """Reason why a contestant cannot run here, or None."""
    missing = [name for name in contestant.needs if importlib.util.find_spec(name) is None]
    if missing and missing[0] in ON_GPUS:
        return ON_GPUS[missing[0]]
    return f"not installed: {', '.join(missing)}; see make bench-peers" if missing else None


def base_spec(args: argparse.Namespace, assets: Assets, accelerator: str) -> RunSpec:
    """The spec that all contestants share."""
    length = {"max_steps": args.max_steps} if args.max_steps else {"epochs": args.epochs}
    return from_mapping(
        {
            **assets.named,
            **length,
            "batch_size": args.batch_size,
            "precision": args.precision,
            "lr": args.lr or MODELS[args.model].lr,
            "lr_warmup_fraction": 0.1,
            "max_length": 64,
            "repeat": 1,
            "accelerator": accelerator,
        }
    )


def shared_environment(spec: RunSpec, boards: Sequence[Board], plain: bool) -> dict[str, str]:
    """The environment of every process: that of a sweep's runs, with or without its allocator settings."""
    environ = node.child_environment(spec.threads_per_device, boards)
    return {name: value for name, value in environ.items() if not (plain and name in node.ALLOCATOR)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of one contestant."""

    name: str
    seed: int
    base: RunSpec
    assets: Assets
    boards: Sequence[Board]
    folder: Path

    @property
    def contestant(self) -> Contestant:
        """The contestant that trains."""
        return CONTESTANTS_AND_LEVERS[self.name]

    def spec(self) -> RunSpec:
        """The shared spec with this contestant's way and seed."""
        again = {"min_seconds": SHORTEST_S} if self.contestant.program == "ours" else {}
        return from_mapping({**full(self.base), **self.contestant.changes, **again, "repeat": self.seed})

    def run(self, environ: dict[str, str]) -> dict[str, Any]:
        """Train in a fresh process; return the measurements, or status and reason of the failure."""
        folder = self.folder / f"{self.name}-{self.seed}"
        folder.mkdir(parents=True)
        log = folder / "log"
        job = {
            "spec": full(self.spec()),
            "model_folder": str(self.assets.model_folder),
            "tokens": str(self.assets.tokens),
            "folder": str(folder),
            "boards": as_json(self.boards),
            "program": self.contestant.program,
        }
        files.write_json(folder / "job.json", job)
        command = [sys.executable, "-m", self.contestant.module, str(folder / "job.json")]
        before_s = children_cpu_s()
        with log.open("wb") as output:
            code = subprocess.run(
                command, cwd=REPOSITORY, env=environ, stdout=output, stderr=subprocess.STDOUT, check=False
            ).returncode
        process_cpu_s = children_cpu_s() - before_s
        result = json.loads(path.read_text(encoding="utf-8")) if (path := folder / "rank0.json").exists() else None
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
        shutil.rmtree(folder)
        if result is None or result["status"] != "ok":
            return {"status": "failed", "reason": result["reason"] if result else f"exit code {code}: {last}"}
        return {"status": "ok", "process_cpu_s": process_cpu_s, **numbers(result, self.base.accelerator)}


def children_cpu_s() -> float:
    """CPU-seconds of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def numbers(result: dict[str, Any], accelerator: str) -> dict[str, Any]:
    """A run's numbers from the files of its process, in the same form for ours and for peers."""
    measured = result.get("measurement", result)  # a rank of ours leaves it at the top
    if "phases" in measured:
        measured["num_texts"] = sum(phase["num_texts"] for phase in measured["phases"] if phase["kind"] == "training")
    num_texts, num_passes, memory = measured["num_texts"], measured["num_passes"], measured["peak_memory"]
    window_s = measured["total_window_s"] / num_passes
    kind = "gpu" if accelerator == "cuda" else "cpu"
    joules = [row["total_energy_j"] for row in measured["energy"] if row["kind"] == kind]
    known = bool(joules) and None not in joules
    return {
        "num_texts": num_texts,
        "num_steps": measured["num_steps"],
        "cpu_s": measured["cpu_s"],
        "window_s": window_s,
        "samples_per_cpu_s": num_texts / measured["cpu_s"],
        "samples_per_s": num_texts / window_s,
        "j_per_sample": math.fsum(joules) / num_passes / num_texts if known else None,
        "peak_memory_bytes": memory["gpu_reserved_bytes" if kind == "gpu" else "host_rss_bytes"],
        "first_validation_loss": result["epochs"][0]["validation_loss"],
        "validation_loss": result["epochs"][-1]["validation_loss"],
    }


def summarise(runs: Sequence[dict[str, Any]], speed: str) -> list[dict[str, Any]]:
    """One row per contestant: means with intervals over seeds, and comparisons with ours, paired by seed.

    Args:
        runs: finished ones; every contestant has every seed.
        speed: which number the ratio is of.

    Raises:
        ValueError: contestants did not begin from the same weights or did not train on as many texts.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        by_name.setdefault(run["contestant"], []).append(run)
    ours = by_name.get("ours")
    rows = []
    for name in (name for name in CONTESTANTS_AND_LEVERS if name in by_name):
        theirs = by_name[name]
        row: dict[str, Any] = {"contestant": name, "about": CONTESTANTS_AND_LEVERS[name].about, "n": len(theirs)}
        for key in ("samples_per_cpu_s", "samples_per_s", "j_per_sample", "peak_memory_bytes", "validation_loss"):
            row[key] = _interval([run[key] for run in theirs])
        row["process_cpu_s"] = _interval([run["process_cpu_s"] for run in theirs])
        row["ours_over_this"] = row["loss_minus_ours"] = None
        if ours is not None and name != "ours":
            _check_comparable(ours, theirs)
            ratio = paired_ratio([run[speed] for run in ours], [run[speed] for run in theirs])
            row["ours_over_this"] = {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "n": ratio.n}
            pairs = zip(theirs, ours, strict=True)
            row["loss_minus_ours"] = _interval([a["validation_loss"] - b["validation_loss"] for a, b in pairs])
        rows.append(row)
    return rows


def _check_comparable(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        who = f"{b['contestant']}, seed {b['seed']}"
        if (a["seed"], a["num_texts"], a["num_steps"]) != (b["seed"], b["num_texts"], b["num_steps"]):
            raise ValueError(f"{who}: {b['num_texts']} texts in {b['num_steps']} steps, ours {a['num_texts']}")
        if not math.isclose(a["first_validation_loss"], b["first_validation_loss"], rel_tol=1e-3):
            raise ValueError(f"{who}: begins at loss {b['first_validation_loss']}, ours {a['first_validation_loss']}")


def _interval(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not values:
        return None
    interval = mean_interval(known)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def machine(boards: Sequence[Board]) -> dict[str, Any]:
    """Machine and date, without the machine's name."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [board.name for board in boards],
        "driver": devices.driver() if boards else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def progress(run: dict[str, Any]) -> str:
    """One line about a finished run."""
    if run["status"] != "ok":
        return f"seed {run['seed']} {run['contestant']}: {run['reason']}"
    return (
        f"seed {run['seed']} {run['contestant']}: {run['samples_per_cpu_s']:.1f} samples/CPU-s, "
        f"{run['samples_per_s']:.1f} samples/s, loss {run['first_validation_loss']:.4f} to {run['validation_loss']:.4f}"
    )


HEADER = ("", "samples/CPU-s", "samples/s", "J/sample", "peak MB", "validation loss", "loss − ours", "ours / this")


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table with what it was measured on."""
    spec, place, settings = report["spec"], report["machine"], report["allocator_settings"]
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items() if version)
    length = f"{spec['epochs']} epoch(s)" if report["whole_epochs"] else f"{spec['max_steps']} steps, not whole epochs"
    rows = [
        (
            row["about"],
            _said(row["samples_per_cpu_s"], 1),
            _said(row["samples_per_s"], 1),
            _said(row["j_per_sample"], 5),
            _said(row["peak_memory_bytes"], 0, unit=1e6, bare=True),
            _said(row["validation_loss"], 3),
            _said(row["loss_minus_ours"], 3),
            _said(row["ours_over_this"], 2, key="ratio"),
        )
        for row in report["contestants"]
    ]
    lines = [
        f"{report['model']} · {report['dataset']} · {spec['precision']} · batch {spec['batch_size']} · {length} · "
        f"{report['contestants'][0]['n'] if report['contestants'] else 0} seed(s), 95 % intervals · "
        f"{'our allocator settings' if settings else 'plain environment'} for everyone",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *rows)),
        "",
        *(f"Left out: {about}: {reason}" for about, reason in report["left_out"].items()),
        f"{place['date']} · {place['cpu']}, {place['cores']} cores, {spec['threads_per_device']} thread per process"
        f"{''.join(' · ' + name for name in place['gpus'])} · Python {place['python']} · {versions}",
    ]
    return "\n".join(lines)


def _said(value: dict[str, Any] | None, digits: int, unit: float = 1, key: str = "mean", bare: bool = False) -> str:
    """A mean with its interval, as text of a cell."""
    if value is None:
        return "–"
    text = f"{value[key] / unit:.{digits}f}"
    if bare or value["low"] is None:
        return text
    return f"{text} ({value['low'] / unit:.{digits}f} to {value['high'] / unit:.{digits}f})"


if __name__ == "__main__":
    main()
