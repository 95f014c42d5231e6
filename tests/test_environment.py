"""What a number was measured on is read from this machine, and what is not there is null."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from pathlib import Path

import pynvml
import pytest

from joulesweep import environment


@pytest.fixture
def two_gpus(monkeypatch):
    """A driver with two GPUs."""
    memory = type("Memory", (), {"total": 24 * 2**30})
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: f"A{handle}",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle: memory,
        "nvmlSystemGetDriverVersion": lambda: "600.1",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


@pytest.fixture
def no_driver(monkeypatch):
    def absent():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)


def test_it_says_what_this_machine_is(no_driver):
    found = environment.describe(3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["python"] == platform.python_version()
    assert found["cpu_cores"] == len(os.sched_getaffinity(0))
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(found["versions"]) == set(environment.VERSIONED)
    assert found["threads_per_process"] == 3
    assert found["host_memory_bytes"] > 2**28
    assert (found["gpus"], found["driver"]) == ([], None)


def test_every_gpu_of_the_driver_is_described(two_gpus):
    found = environment.describe(1)
    assert found["driver"] == "600.1"
    assert found["gpus"] == [
        {"index": i, "name": f"A{i}", "uuid": f"GPU-{i}", "memory_bytes": 24 * 2**30} for i in (0, 1)
    ]


def test_a_driver_that_fails_half_way_is_no_gpus(two_gpus, monkeypatch):
    def lost(index):
        raise pynvml.NVMLError_GpuIsLost

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lost)
    assert environment.describe(1)["gpus"] == []


@pytest.mark.parametrize(
    ("built", "gpus", "found"), [(True, [{}], "cuda"), (True, [], "cpu"), (False, [{}], "cpu"), (False, [], "cpu")]
)
def test_probing_needs_both_a_build_of_torch_and_a_gpu(monkeypatch, built, gpus, found):
    monkeypatch.setattr(environment, "_torch_has_cuda", lambda: built)
    monkeypatch.setattr(environment, "_gpus", lambda: gpus)
    assert environment.probe_accelerator.__wrapped__() == found


def test_the_build_of_torch_is_read_without_importing_it():
    import torch

    assert environment._torch_has_cuda() == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("line", "has_cuda"),
    [
        ("cuda: Optional[str] = None", False),
        ("cuda : Optional[str] = None", False),
        ("cuda: Optional[str] = '13.0'", True),
    ],
)
def test_torchs_version_file_says_whether_it_was_built_with_cuda(tmp_path, monkeypatch, line, has_cuda):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\n")
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert environment._torch_has_cuda() == has_cuda


def test_without_torch_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert environment._torch_has_cuda() is False


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "VERSIONED", ("torch", "no-such-package"))
    assert environment.describe(1)["versions"]["no-such-package"] is None


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("processor\t: 0\nmodel name\t: Brand: Fast 9000\nflags\t: fpu\n\n", "Brand: Fast 9000"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", platform.machine()),  # as on ARM
        (None, platform.machine()),
    ],
)
def test_the_processor_is_the_kernels_name_or_the_machine_type(monkeypatch, cpuinfo, found):
    def read_text(path, encoding):
        assert path == Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    assert environment.cpu_model() == found


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "joulesweep" / "environment.py"))
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "--no-verify", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert environment._git() == (commit, False)
    (tmp_path / "untracked.txt").write_text("litter\n")
    assert environment._git() == (commit, False)
    (tmp_path / "code.py").write_text("2\n")
    assert environment._git() == (commit, True)


def test_outside_a_checkout_and_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "joulesweep" / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._git() == (None, None)
    monkeypatch.setenv("PATH", "")
    assert environment._git() == (None, None)
