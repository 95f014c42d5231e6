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
from fake_meters import Boards

from joulesweep.core.errors import UserError
from joulesweep.core.outcome import as_json
from joulesweep.measure import devices, machine
from joulesweep.measure.meters import nvidia


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A driver with two GPUs."""
    nvidia.nvml.cache_clear()
    boards = Boards(tmp_path, [{"uuid": f"GPU-{i}", "name": f"A{i}", "memory_mib": 24 * 2**10} for i in (0, 1)])
    boards.install(monkeypatch)
    yield boards
    nvidia.nvml.cache_clear()


@pytest.fixture
def no_driver(monkeypatch):
    def absent():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    nvidia.nvml.cache_clear()
    yield
    nvidia.nvml.cache_clear()


def test_it_says_what_this_machine_is(no_driver):
    found = machine.describe(3)
    json.dumps(as_json(found), allow_nan=False)
    assert found.python == platform.python_version()
    assert found.cpu_cores == len(os.sched_getaffinity(0))
    assert found.versions["torch"] == importlib.metadata.version("torch")
    assert set(found.versions) == set(machine.VERSIONED)
    assert found.threads_per_process == 3
    assert found.host_memory_bytes > 2**28
    assert (found.gpus, found.driver) == ([], None)


def test_the_boards_of_the_run_are_described_and_no_others(two_gpus):
    _, second = devices.boards()
    found = machine.describe(1, [second])
    assert found.driver == "999.01"
    assert as_json(found.gpus) == [
        {"index": 1, "name": "A1", "uuid": "GPU-1", "memory_bytes": 24 * 2**30, "mig": False},
    ]
    assert machine.describe(1).gpus == [], "a run on the CPU that meters no board has none"
    json.dumps(as_json(found), allow_nan=False)


def test_a_slice_has_no_index_and_perhaps_no_known_size(two_gpus):
    (board,) = devices.pool("auto", {"CUDA_VISIBLE_DEVICES": "MIG-5"})
    assert as_json(machine.describe(1, [board]).gpus) == [
        {"index": None, "name": "MIG slice", "uuid": "MIG-5", "memory_bytes": None, "mig": True}
    ]


@pytest.mark.parametrize(("built", "found"), [(True, "cuda"), (False, "cpu")])
def test_probing_needs_a_gpu_and_a_build_of_torch_for_it(two_gpus, monkeypatch, built, found):
    monkeypatch.setattr(machine, "torch_build", lambda: "cuda" if built else None)
    assert machine.probe_accelerator.__wrapped__() == found


@pytest.mark.parametrize("built", [True, False])
def test_without_a_gpu_the_cpu_is_used_whatever_torch_was_built_for(no_driver, monkeypatch, built):
    monkeypatch.setattr(machine, "torch_build", lambda: "cuda" if built else None)
    assert machine.probe_accelerator.__wrapped__() == "cpu"


def test_boards_that_all_fail_are_no_gpus(two_gpus, monkeypatch):
    monkeypatch.setattr(machine, "torch_build", lambda: "cuda")
    for i in (0, 1):
        two_gpus.set(i, lost=1)
    assert machine.probe_accelerator.__wrapped__() == "cpu"


def test_only_auto_looks_at_the_machine(monkeypatch):
    monkeypatch.setattr(machine, "probe_accelerator", lambda: "found")
    assert [machine.resolve_accelerator(name) for name in ("auto", "cpu", "cuda")] == ["found", "cpu", "cuda"]


def test_the_build_of_torch_is_read_without_importing_it():
    import torch

    assert machine.torch_build() == ("cuda" if torch.version.cuda else None)


@pytest.mark.parametrize(
    ("line", "build"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda : Optional[str] = None", None),
        ("cuda: Optional[str] = '13.0'", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.4'", "hip"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", None),
    ],
)
def test_torchs_version_file_says_what_it_was_built_with(tmp_path, monkeypatch, line, build):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\n")
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert machine.torch_build() == build


def test_without_torch_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert machine.torch_build() is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "VERSIONED", ("torch", "no-such-package"))
    assert machine.describe(1).versions["no-such-package"] is None


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
    assert machine.cpu_model() == found


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "--no-verify", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert machine._git() == (commit, False)
    (tmp_path / "untracked.txt").write_text("litter\n")
    assert machine._git() == (commit, False)
    (tmp_path / "code.py").write_text("2\n")
    assert machine._git() == (commit, True)


def test_outside_a_checkout_and_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine._git() == (None, None)
    monkeypatch.setenv("PATH", "")
    assert machine._git() == (None, None)


def test_a_driver_that_does_not_answer_is_no_reason_to_train_on_the_cpu_in_silence(monkeypatch):
    def mismatch():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    monkeypatch.setattr(machine, "torch_build", lambda: "cuda")
    nvidia.nvml.cache_clear()
    machine.probe_accelerator.cache_clear()
    try:
        with pytest.raises(UserError, match=r"hardware\.accelerator: auto cannot tell .* say cpu or cuda"):
            machine.resolve_accelerator("auto")
        assert machine.resolve_accelerator("cpu") == "cpu"
    finally:
        nvidia.nvml.cache_clear()
        machine.probe_accelerator.cache_clear()
