"""Measure what a run's process spends before its first step: `python -m benchmarks.startup --repeats 7 --json OUT`.

Each repeat starts fresh processes, every other time in the opposite order: Python alone, torch alone, the libraries
as anyone would import them, and a run's process (`benchmarks.startup_probe`): `joulesweep.train.worker` with the
functions that bring it from stage to stage wrapped, so that the stages are those of a run, in whatever order it comes
to them. CPU-seconds are user and system time over all threads; the environment is that of a run with one thread for
torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from joulesweep.core.spec import RunSpec, full
from joulesweep.launch.node import child_environment
from joulesweep.measure.machine import cpu_model
from joulesweep.plan.config import load
from joulesweep.plan.sweep import Sweep

ROOT = Path(__file__).parent.parent
PLAIN = (
    "from transformers import AutoModelForMaskedLM; from transformers.models.bert.modeling_bert import BertForMaskedLM;"
    "from zeus.monitor import ZeusMonitor"
)
IMPORTS = {"python": "pass", "torch": "import torch", "torch, transformers, Zeus, plainly imported": PLAIN}
#: The shortest training that takes a step.
SHORT: dict[str, Any] = {"epochs": None, "max_steps": 1, "idle_s": 0.0, "min_seconds": 0.0}
#: What the stages inside the worker are called in the table, in the order in which a run comes to them.
STAGES = {
    "interpreter": "Python itself",
    "torch": "torch",
    "transformers": "transformers, without a model",
    "model": "class, weights",
    "data": "tokens read",
    "meter": "Zeus, connected",
    "rest": "the rest, with the forward and backward pass of the first step",
    "before": "up to the first optimizer step",
    "score": "score of the untrained model, not counted above",
    "whole": "the whole process, with one step",
}


def main() -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="JSON file")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), args.repeats)
    _print(report)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Medians over the repeats, with machine and date: {what: {stage: [CPU-seconds, seconds]}}."""
    jobs = _jobs(folder)
    todo: dict[str, list[str]] = {name: ["-c", code] for name, code in IMPORTS.items()}
    for name, job in jobs.items():
        todo[f"run: {name}"] = ["-m", "benchmarks.startup_probe", str(job), str(folder / "stages.json")]
    stages_of: dict[str, list[dict[str, list[float]]]] = {name: [] for name in todo}
    for i in range(repeats + 1):  # the first time fills the disk cache
        for name in list(todo)[:: -1 if i % 2 else 1]:
            stages = _started(todo[name], folder / "stages.json")
            if i:
                stages_of[name].append(stages)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "zeus")},
        "repeats": repeats,
        "median_cpu_s_and_wall_s": {name: _medians(rows) for name, rows in stages_of.items()},
    }


def _jobs(folder: Path) -> dict[str, Path]:
    """Job files as `launch.node` writes them: a tiny random model and, if it was fetched, the default one."""
    import tiny_run

    assets = tiny_run.assets(folder)
    jobs = {"tiny random BERT": _job(folder / "tiny", tiny_run.spec(max_steps=1), assets.model_folder, assets.tokens)}
    sweep = Sweep(load(ROOT / "config/config.yaml"))
    run = next(run for run in sweep.runs if sweep.spec(run).devices == 1)
    model = ROOT / "resources/models" / sweep.model(run)
    tokens = ROOT / f"resources/tokens/{sweep.tokens(run)}.safetensors"
    if model.is_dir() and tokens.is_file():
        name = f"default sweep's {sweep.spec(run).model}"
        jobs[name] = _job(folder / "default", dataclasses.replace(sweep.spec(run), **SHORT), model, tokens)
    return jobs


def _job(folder: Path, spec: RunSpec, model: Path, tokens: Path) -> Path:
    folder.mkdir(exist_ok=True)
    paths = {"model_folder": str(model), "tokens": str(tokens), "folder": str(folder)}
    (folder / "job.json").write_text(json.dumps({"spec": full(spec), "boards": [], **paths}), encoding="utf-8")
    return folder / "job.json"


def _started(arguments: list[str], output: Path) -> dict[str, list[float]]:
    """Run one process; return its stages, if it writes them, and its CPU-seconds and seconds."""
    output.unlink(missing_ok=True)
    began_s = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *arguments, str(began_s)],
        cwd=ROOT, env=child_environment(num_threads=1, boards=()), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    log = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {child.returncode}\n{log}")
    stages: dict[str, list[float]] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    return {**stages, "whole": [usage.ru_utime + usage.ru_stime, time.monotonic() - began_s]}


def _medians(rows: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {stage: [round(statistics.median(row[stage][i] for row in rows), 3) for i in range(2)] for stage in rows[0]}


def _print(report: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    print(f"{report['date']}, {report['cores']} cores of {report['cpu']}, Python {report['python']}, {versions}")
    print(f"Medians of {report['repeats']} processes each.\n")
    print(f"{'':66}{'CPU-seconds':>12}{'seconds':>10}")
    for name, stages in report["median_cpu_s_and_wall_s"].items():
        if len(stages) > 1:
            print(name)
        for stage, (cpu_s, wall_s) in sorted(stages.items(), key=lambda item: list(STAGES).index(item[0])):
            print(f"{f'  {STAGES[stage]}' if len(stages) > 1 else name:66}{cpu_s:12.2f}{wall_s:10.2f}")


if __name__ == "__main__":
    main()
