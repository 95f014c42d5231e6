from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_run

from joulesweep.core import processes

TESTS = Path(__file__).parent
#: A test has its folder's name as its mark. What takes longest runs first, so that no worker is left alone with it.
FOLDERS = ("workflow", "processes", "conformance", "benchmarks", "unit", "house")
SHARED_DATA = tiny_run.REPOSITORY.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests that take minutes each")


def pytest_configure() -> None:
    processes.seldom_look_for_cycles()  # a quarter of the time of collecting tests, 3 % of that of running them
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what they start in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def folder(item: pytest.Item) -> str:
    """The folder of a test below this one."""
    return item.path.relative_to(TESTS).parts[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
            if not config.getoption("--long"):
                item.add_marker(pytest.mark.skip(reason="takes long, and others prove most of it: --long, make long"))
        if folder(item) in FOLDERS:
            item.add_marker(folder(item))
        if folder(item) == "workflow" and not item.get_closest_marker("smoke"):
            item.add_marker("slow")
    items.sort(key=lambda item: [*FOLDERS, folder(item)].index(folder(item)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # the collector skips the libraries and thousands of tests, which took it a tenth of the time


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


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder by its name, a single time however many workers pytest has: the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}-is-made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def complete(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The checkout of a complete sweep, which no test changes."""
    import checkout

    return once("finished-sweep", checkout.finished) / "checkout"


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> tiny_run.Assets:
    """A tiny BERT and its tokens; no test writes to them."""
    return tiny_run.assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Locks and ticks of this test alone, no boards but those that it makes up, and pytest's own signals afterwards."""
    from joulesweep.launch import lease
    from joulesweep.measure import devices
    from joulesweep.measure.meters import nvidia

    places = tmp_path_factory.mktemp("places")
    monkeypatch.setattr(lease, "folder", lambda: places)
    monkeypatch.setenv("XDG_CACHE_HOME", str(places))
    monkeypatch.setattr(devices, "boards", list)
    monkeypatch.delenv(nvidia.VISIBLE, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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
