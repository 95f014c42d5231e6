from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkout import Checkout, finished


@pytest.fixture
def complete(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The checkout of a complete sweep, which no test changes."""
    return once("finished-sweep", finished) / "checkout"


@pytest.fixture
def sweep(tmp_path: Path, complete: Path) -> Iterator[Checkout]:
    """A checkout whose sweep is complete: a copy of the one that is run once, down to the times of its files."""
    checkout = Checkout(tmp_path / "checkout")
    shutil.rmtree(checkout.folder)
    shutil.copytree(complete, checkout.folder, symlinks=True)
    yield checkout
    checkout.end()
    shutil.rmtree(checkout.folder)
