"""Format quantities: three significant digits and a unit with its prefix."""

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
    """Format numbers to three digits, all with the prefix that suits the first.

    Args:
        values: at least one, in the unit.
        unit: "s", "J", "g" or "B" (powers of 1024); any other unit has no prefixes.

    Returns:
        The numbers as text, and the unit with its prefix.
    """
    for size, name in PREFIXES.get(unit, ()):
        if abs(values[0]) >= (2 * size if unit == "s" else size):  # 90 s reads better than 1.50 min
            return [digits(value / size) for value in values], name
    return [digits(value) for value in values], unit


def digits(value: float) -> str:
    """Format a number to three digits, without an exponent between 1e-12 and 1e15."""
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-12:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-4:
        return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:#.3g}".removesuffix(".")


def percent(fraction: float) -> str:
    """The size of a fraction in percent: two digits, whole from 10 on, never an exponent: 0.47, 61, 1,200."""
    number = 100 * abs(fraction)
    return f"{number:,.0f}" if number >= 9.95 else f"{number:.2g}" if number >= 1e-3 else "0"


def signed_percent(fraction: float) -> str:
    """The same with its sign: +0.47, −61."""
    return f"{'−' if fraction < 0 else '+'}{percent(fraction)}"


def signed(value: float, places: int) -> str:
    """A number with its sign, to so many places: +0.470, −61.0."""
    return f"{value:+.{places}f}".replace("-", "−")


def one(value: float, unit: str) -> str:
    """Format a number with its unit."""
    (text,), name = scaled([value], unit)
    return f"{text} {name}".strip()


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words as sentences list them: "a, b and c".

    Args:
        words: at least one.
        last: before the last of several.
    """
    *before, end = words
    return f"{', '.join(before)} {last} {end}" if before else end


def span(values: Iterable[float | None], unit: str) -> str | None:
    """Format the smallest and the largest of the known values, or None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    (high, low), name = scaled([max(known), min(known)], unit)
    return f"{low} {name}".strip() if low == high else f"{low} to {high} {name}".strip()
