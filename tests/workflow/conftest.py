from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import Checkout


def finish(folder: Path) -> None:
    """Run a whole sweep of two runs in a folder's checkout."""
    output = Checkout(folder / "checkout").run()
    assert "[1/2] single fp32 bs8 r" in output
    assert re.search(r"\[2/2\] single fp32 bs8 r\d · [\d.]+ s · [\d.]+ J est\. · loss [\d.]+", output)


@pytest.fixture
def finished(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The checkout of a complete sweep, which no test changes."""
    return once("finished-sweep", finish) / "checkout"


@pytest.fixture
def sweep(tmp_path: Path, finished: Path) -> Iterator[Checkout]:
    """A checkout whose sweep is complete: a copy of the one that is run once, down to the times of its files."""
    checkout = Checkout(tmp_path / "checkout")
    shutil.rmtree(checkout.folder)
    shutil.copytree(finished, checkout.folder, symlinks=True)
    yield checkout
    checkout.end()
    shutil.rmtree(checkout.folder)
