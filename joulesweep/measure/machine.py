"""Describe the environment of a measurement: hardware, driver, versions, code. Does not import torch."""

# changes no number: reported beside the numbers
from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from joulesweep.core import bounded
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import BoardIdentity, Environment
from joulesweep.core.places import ROOT
from joulesweep.measure import batch_system, certificate, devices, meters

VERSIONED = ("torch", "transformers", "tokenizers", "safetensors", "zeus", "nvidia-ml-py", "bitsandbytes")


@functools.cache
def probe_accelerator() -> str:
    """Return "cuda" if torch was built for the GPUs of this machine, NVIDIA's or AMD's, else "cpu".

    For a sweep that runs elsewhere, set `hardware.accelerator` in the config.

    Raises:
        UserError: there is a driver, but it does not answer.
    """
    build = torch_build()
    name, meter = next(
        ((name, meter) for name, meter in meters.of_boards().items() if build == meter.BUILD), ("", None)
    )
    if meter is None:
        return "cpu"
    problem, absent = meter.start_problem() or ("", True)
    if not absent:  # there may be boards: do not silently ignore them
        raise UserError(f"hardware.accelerator: auto cannot tell whether there is a GPU ({problem}); say cpu or cuda")
    return "cuda" if any(board.meter == name for board in devices.boards()) else "cpu"


def resolve_accelerator(accelerator: str) -> str:
    """The config's `hardware.accelerator`, with "auto" resolved by probing this machine."""
    return probe_accelerator() if accelerator == "auto" else accelerator


def describe(threads_per_process: int, boards: Sequence[devices.Board] = ()) -> Environment:
    """The environment of a run on these boards."""
    commit, dirty = _git()
    driver = bounded.within(bounded.LIMIT_S, devices.driver)[0]
    return Environment(
        hostname=socket.gethostname(),
        platform=platform.platform(),
        python=platform.python_version(),
        cpu_model=cpu_model(),
        cpu_cores=len(os.sched_getaffinity(0)),
        host_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=[_identity(board) for board in boards],
        driver=driver,
        versions={name: version(name) for name in VERSIONED},
        git_commit=commit,
        git_dirty=dirty,
        threads_per_process=threads_per_process,
        certificates=certificate.cited({board.device: board.uuid for board in boards}, driver, cpu_model=cpu_model()),
        batch=batch_system.describe(),
    )


def _identity(board: devices.Board) -> BoardIdentity:
    return BoardIdentity(
        index=board.index, name=board.name, uuid=board.uuid, memory_bytes=board.memory_bytes, mig=board.mig
    )


def cpu_model() -> str:
    """The processor's name as the kernel gives it, else the machine type."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in values.items()}.get("model name", platform.machine())


def torch_build() -> str | None:
    """The platform that torch was built for: "cuda", "hip" or None.

    Read from its version file, because its import takes a second.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8").replace(" ", "")
    if re.search("^hip:Optional.str.=['\"]", text, re.MULTILINE):
        return "hip"
    return None if re.search("^cuda:Optional.str.=None", text, re.MULTILINE) else "cuda"


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tested() -> dict[str, list[str]]:
    """The oldest and newest tested version of each library; empty if the package is used without its checkout."""
    path = ROOT / "pyproject.toml"
    if not path.exists():
        return {}
    tested: dict[str, list[str]] = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["joulesweep"]["tested"]
    return tested


def too_new() -> list[str]:
    """Check that the training libraries are of versions that Joulesweep is tested with.

    The range is in pyproject.toml, under tool.joulesweep.tested.

    Returns:
        A line for each library that is newer.

    Raises:
        UserError: a library is missing or older.
    """
    notes = []
    for package, (oldest, newest) in _tested().items():
        installed = version(package)
        if installed is None or _release(installed) < _release(oldest):
            has = f"{package} {installed}" if installed else f"no {package}"
            remedy = f'pip install "{package}>={oldest}"'
            raise UserError(f"this Python has {has}; Joulesweep works with {oldest} to {newest}: {remedy}")
        if _release(installed) > _release(newest):
            notes.append(f"{package} {installed} is newer than what Joulesweep was tested with, {oldest} to {newest}")
    return notes


def _release(text: str) -> tuple[int, ...]:
    """The first two numbers of a version: `2.13.0+cu130` is 2.13."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _git() -> tuple[str | None, bool | None]:
    """The commit of this package's checkout, and whether tracked files differ from it."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)
