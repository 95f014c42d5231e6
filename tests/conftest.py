from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests that take minutes each")


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for another one, or for a real sweep of this machine."""
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))


@pytest.fixture(autouse=True)
def planted_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test in this process depends on which library of products is the faster one here: oneDNN is."""
    kernels = sys.modules.get("joulesweep.nets.onednn")
    if kernels is not None:
        monkeypatch.setattr(kernels._Try, "seconds", lambda one: 1.0 if type(one.layer) is kernels.Linear else 2.0)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Whatever a test starts ends with it, however the test ends."""
    from joulesweep.core import processes

    before = processes.children()
    processes.adopt(orphans=True)
    yield
    processes.kill_children(but=before)
    processes.adopt(orphans=False)


@pytest.fixture
def shared_data() -> Path:
    """Real data files beside the checkout; absent for most people."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data is absent")
    return SHARED_DATA


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """A test that trains in this process leaves no setting of PyTorch to the next one."""
    import torch
    import torch.distributed as dist

    threads, matmul, rng = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state()
    convolutions = torch.backends.cudnn.allow_tf32
    attention, switch = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.enable_cudnn_sdp
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    switch(attention)
    torch.set_rng_state(rng)
    if dist.is_initialized():
        dist.destroy_process_group()
