"""Quantities as text: three digits, and a unit with its prefix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

#: Prefixed units, largest first.
PREFIXES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((3600, "h"), (60, "min")),
    "J": ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")),
    "B": ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")),
    "g": ((1e6, "t"), (1e3, "kg"), (1, "g"), (1e-3, "mg"), (1e-6, "µg")),
}


def scaled(values: Sequence[float], unit: str) -> tuple[list[str], str]:
    """Numbers to three digits in the prefix that suits the first.

    Args:
        values: at least one, in the unit.
        unit: "s", "J", "g", "B" (prefixes are powers of 1024), or any other, which has no prefixes.

    Returns:
        The numbers as text, and the unit with its prefix.
    """
    for size, name in PREFIXES.get(unit, ()):
        if abs(values[0]) >= (2 * size if unit == "s" else size):  # 90 s reads better than 1.50 min
            return [digits(value / size) for value in values], name
    return [digits(value) for value in values], unit


def digits(value: float) -> str:
    """Three digits, and no exponent where anybody would count the zeros."""
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-12:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-4:
        return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:#.3g}".removesuffix(".")


def one(value: float, unit: str) -> str:
    """A number with its unit."""
    (text,), name = scaled([value], unit)
    return f"{text} {name}".strip()


def span(values: Iterable[float | None], unit: str) -> str | None:
    """Smallest and largest of the values that are there, or None."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    (high, low), name = scaled([max(known), min(known)], unit)
    return f"{low} {name}".strip() if low == high else f"{low} to {high} {name}".strip()
