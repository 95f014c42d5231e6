"""Which cases of a test the quick tier tries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(number: int, cases: Iterable[Any]) -> list[Any]:
    """Cases as parameters of a test, a tuple for several names; those after the first few are `slow`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if place < number else pytest.mark.slow)
        for place, case in enumerate(cases)
    ]
