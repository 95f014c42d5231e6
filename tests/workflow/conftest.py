from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import Checkout


@pytest.fixture
def sweep(tmp_path: Path, complete: Path) -> Iterator[Checkout]:
    """A checkout whose sweep is complete: a copy of the one that is run once."""
    checkout = Checkout(tmp_path / "checkout", complete=complete)
    yield checkout
    checkout.end()
    shutil.rmtree(checkout.folder)
