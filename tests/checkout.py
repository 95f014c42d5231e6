"""A copy of this checkout with a sweep of its own, in which tests run real Snakemake."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import tiny_run
import yaml
from tiny_run import REPOSITORY

COPIED = (
    "Snakefile",
    "rules",
    "envs",
    "scripts",
    "config",
    "profiles",
    "joulesweep",
    "resources/cpu_watts.csv",
    "resources/gpus.csv",
    "resources/carbon_intensity.csv",
    "resources/published",
)


class Checkout:
    """A copy of this checkout with a config of its own, and Snakemake run in it."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.environ = environment() | (environ or {})
        for variable in ("JOULESWEEP_LOCKS", "XDG_CACHE_HOME"):  # locks and ticks of its own: tests must not meet
            place = folder.with_name(f"{folder.name}-{variable.lower()}")
            place.mkdir(parents=True)
            self.environ[variable] = str(place)
        self.wrapped: Callable[[list[str]], list[str]] = list  # around every command
        for name in COPIED:
            source, target = REPOSITORY / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        tiny_run.model(folder / "data" / "model")
        texts = (" ".join(f"word{(i + j) % 90}" for j in range(1 + i % 12)) for i in range(100))
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / "data" / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
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

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=300
        )

    def start(self) -> subprocess.Popen[str]:
        """Snakemake in the background."""
        return subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

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


def environment() -> dict[str, str]:
    dropped = ("PYTHONPATH", "COVERAGE_PROCESS_START")
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, "OMP_NUM_THREADS": "1"}
