"""Which cases of a test the quick tier tries."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest


def first(number: int, cases: Iterable[Any]) -> list[Any]:
    """Cases as parameters of a test; those after the first few are `slow`."""
    cases = list(cases)
    return among(cases[:number], cases, mark=pytest.mark.slow)


def among(
    quick: Container[Any],
    cases: Iterable[Any],
    name: Callable[[Any], str] | None = None,
    mark: pytest.MarkDecorator = pytest.mark.product,
) -> list[Any]:
    """Cases as parameters of a test; those that are not quick have the mark.

    Args:
        quick: the cases without it.
        cases: a tuple is the values of several names.
        name: of a case; without it pytest names them.
        mark: which leaves a case out of the quick tier.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name(case) if name else None,
            marks=() if case in quick else mark,
        )
        for case in cases
    ]
