"""How long tests wait for other processes: until it is certain that they hang, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 900.0  # nothing takes that long when all is well


def wait_for(look: Callable[[], T], what: str = "it", every_s: float = 0.02) -> T:
    """What a look gives once it gives something."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(every_s)
    return found
