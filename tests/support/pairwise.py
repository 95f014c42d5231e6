"""Few cases of many in which every two values still meet: most mistakes are of one value or of two together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def chosen(cases: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of cases that have every pair of values, of two keys, which some case has; greedy, so not the fewest."""
    pairs = [_pairs(case) for case in cases]
    left, numbers = set().union(*pairs), []
    while left:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & left))
        numbers.append(best)
        left -= pairs[best]
    return sorted(numbers)


def _pairs(case: Mapping[str, Any]) -> set[tuple[str, str]]:
    return set(itertools.combinations(sorted(f"{key}={value}" for key, value in case.items()), 2))
