"""A copy of this checkout with a sweep of its own, in which tests run real Snakemake."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tiny_run
import warm_snakemake
import yaml
from patience import PATIENCE_S
from tiny_run import REPOSITORY

from joulesweep.measure.sensors import cache_folder

COPIED = (
    "Snakefile",
    "rules",
    "envs",
    "scripts",
    "config",
    "pyproject.toml",
    "profiles",
    "joulesweep",
    "resources/cpu_watts.csv",
    "resources/gpus.csv",
    "resources/carbon_intensity.csv",
    "resources/published",
)

#: Python reads it at its start: a process that trains waits as long as the gate is closed.
GATE = """
import os, sys, time
while "joulesweep.train.worker" in sys.orig_argv and os.path.exists({closed!r}):
    time.sleep(0.01)
"""


class Checkout:
    """A copy of this checkout with a config of its own, and Snakemake run in it."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None, complete: Path | None = None) -> None:
        """Make the copy, or copy another one with all that was run in it, down to the times of its files."""
        self.folder = folder
        self.environ = environment() | (environ or {})
        for variable in ("JOULESWEEP_LOCKS", "XDG_CACHE_HOME"):  # locks and ticks of its own: tests must not meet
            place = folder.with_name(f"{folder.name}-{variable.lower()}")
            place.mkdir(parents=True)
            self.environ[variable] = str(place)
        drawn_with = Path(self.environ["XDG_CACHE_HOME"], "joulesweep")
        drawn_with.mkdir()
        for kept in cache_folder().glob("vega-*.js"):  # the same for all, and a second's work in each
            shutil.copy2(kept, drawn_with)
        self.closed = folder.with_name(f"{folder.name}-closed")
        gate = folder.with_name(f"{folder.name}-gate") / "sitecustomize.py"
        gate.parent.mkdir()
        gate.write_text(GATE.format(closed=str(self.closed)), encoding="utf-8")
        self.environ.setdefault("PYTHONPATH", str(gate.parent))
        self.started: list[subprocess.Popen[str]] = []
        self.wrapped: Callable[[list[str]], list[str]] = list  # around every command
        self.config = {
            "sweep": "tiny",
            "models": {"tiny": {"source": {"local": "data/model"}}},
            "datasets": {"words": {"source": {"local": "data/texts.jsonl"}, "format": "jsonl", "field": "text"}},
            "grid": {
                "model": ["tiny"],
                "dataset": ["words"],
                "precision": ["fp32"],
                "batch_size": [8],
                "lr": [0.001],
                "repeats": 2,
            },
            "train": {"epochs": 1},
            "hardware": {"accelerator": "cpu"},
            "energy": {"estimate": True},
        }
        if complete:
            shutil.copytree(complete, folder, symlinks=True)
        else:
            self._fill()

    def _fill(self) -> None:
        """Copy what a sweep reads from this checkout, and make a model, texts and a config."""
        folder = self.folder
        for name in COPIED:
            source, target = REPOSITORY / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)  # what is compiled stays so: times of change are copied too
            else:
                shutil.copy2(source, target)
        tiny_run.model(folder / "data" / "model")
        texts = (" ".join(f"word{(i + j) % 90}" for j in range(1 + i % 12)) for i in range(100))
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / "data" / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.write_config()

    def write_config(self) -> None:
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs in a file."""
        file = self.folder / path
        before = file.read_text(encoding="utf-8")
        assert old in before
        file.write_text(before.replace(old, new, 1), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return self.wrapped([sys.executable, "-m", "snakemake", "--cores", "2", *arguments])

    def snakemake(self, *arguments: str, warm: bool = True) -> subprocess.CompletedProcess[str]:
        """Snakemake from beginning to end; a warm one is not started, but forked from one that is."""
        command = self.command(*arguments)
        if warm and self.wrapped is list:
            return warm_snakemake.run(command, self.folder, self.environ)
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Snakemake in the background, in a process group of its own; `end` ends it if the test does not."""
        child = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(child)
        return child

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context in which a run that starts does not end: its process waits before it does anything."""
        self.closed.touch()
        try:
            yield
        finally:
            self.closed.unlink()

    def workers(self) -> list[int]:
        """Processes that train in this checkout."""
        return [pid for pid, line in self.processes() if "joulesweep.train.worker" in line]

    def processes(self) -> Iterator[tuple[int, str]]:
        """Processes that work in this checkout, each with its command line, whose words NUL separates."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(self.folder):
                    yield int(entry.name), (entry / "cmdline").read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """Kill whatever still works in this checkout, and wait until it is gone."""
        for child in self.started:
            if child.poll() is None:
                child.kill()
                child.communicate()
        self.started.clear()
        while found := [pid for pid, _ in self.processes()]:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def run(self, *arguments: str) -> str:
        done = self.snakemake(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def planned(self) -> dict[str, int]:
        """Jobs by rule that a dry run lists; empty when there is nothing to be done."""
        output = self.run("-n")
        if "Nothing to be done" in output:
            return {}
        table = output.partition("Job stats:")[2].partition("total")[0]
        return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}

    def records(self) -> dict[str, int]:
        """Modification times of the records by run."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.runs.glob("*/record.json")}

    @property
    def runs(self) -> Path:
        return self.folder / "results" / "tiny" / "runs"


def finished(folder: Path) -> None:
    """A checkout in a folder, in which a whole sweep of two runs was run."""
    output = Checkout(folder / "checkout").run()
    assert "[1/2] single fp32 bs8 r" in output
    assert re.search(r"\[2/2\] single fp32 bs8 r\d · [\d.]+ s · [\d.]+ J est\. · loss [\d.]+", output)


def prepared(folder: Path, complete: Path, environ: dict[str, str] | None = None) -> Checkout:
    """A copy of one without its results: model, texts and tokens are there, which take longer than a run."""
    checkout = Checkout(folder, environ, complete)
    shutil.rmtree(folder / "results")
    return checkout


def environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"}
