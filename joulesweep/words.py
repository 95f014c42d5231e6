"""Numbers as text: three digits, a unit with its prefix, an interval, and a word for what is not there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from joulesweep.stats import NO_INTERVAL
from joulesweep.tables import Row

Words = tuple[str, str]  # a number, and below it its interval or a remark

#: Prefixed units, largest first.
PREFIXES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((3600, "h"), (60, "min")),
    "J": ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")),
    "B": ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")),
    "g": ((1e6, "t"), (1e3, "kg"), (1, "g"), (1e-3, "mg"), (1e-6, "µg")),
}
ABSENT: Words = ("–", "")


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


def interval(row: Row, quantity: str, unit: str) -> Words:
    """Mean of a cell and its interval, or the word that there is none; a dash for what is not there."""
    ends = [row[f"{quantity}_{end}"] for end in ("mean", "low", "high")]
    if ends[0] is None:
        return ABSENT
    if None in ends:
        return one(ends[0], unit), NO_INTERVAL
    (mean, low, high), name = scaled(ends, unit)
    return f"{mean} {name}".strip(), f"[{low}, {high}]"


def percent(row: Row, quantity: str) -> Words:
    """Mean share of a cell and its interval, in percent."""
    ends = {f"{quantity}_{end}": row[f"{quantity}_{end}"] for end in ("mean", "low", "high")}
    return interval({name: value and 100 * value for name, value in ends.items()}, quantity, "%")


def points(row: Row, quantity: str) -> Words:
    """Mean share of a cell and its interval, times 100 and to one decimal, as ROUGE is usually given."""
    ends = [row[f"{quantity}_{end}"] for end in ("mean", "low", "high")]
    texts = [f"{100 * value:.1f}" for value in ends if value is not None]
    if not texts:
        return ABSENT
    return texts[0], f"[{', '.join(texts[1:])}]" if len(texts) > 1 else NO_INTERVAL


def joules(row: Row) -> Words:
    """Mean joules of a cell, with what they may be off by; where there are none, what kept them from being known."""
    if row["energy_j_mean"] is not None:
        mean, between = interval(row, "energy_j", "J")
        error_j, doubt = row["energy_error_j"], "doubtful" if row["energy_doubt"] else ""
        known = error_j is not None and row["energy_j_mean"] > 0
        error = f"off by at most {one(100 * error_j / row['energy_j_mean'], '%')}" if known else ""
        return mean, ", ".join(filter(None, [doubt, between, error]))
    if not row["num_ok"]:
        return ABSENT
    if row["energy_scope"] is None:
        return "below resolution" if "below_resolution" in (row["energy_status"] or "") else "not measured", ""
    return "not averaged", row["energy_status"] if ", " in row["energy_status"] else f"scopes {row['energy_scope']}"


def estimated_joules(row: Row) -> Words:
    """Middle and range of a cell's estimate."""
    ends = [row[f"estimated_energy{end}_j"] for end in ("", "_low", "_high")]
    if ends[0] is None:
        return ABSENT
    (mid, low, high), name = scaled(ends, "J")
    return f"≈ {mid} {name}", f"estimated, [{low}, {high}]"


def estimated_co2e(row: Row) -> Words:
    """Emissions of a cell's estimated joules."""
    found = row["estimated_co2e_g"]
    return ABSENT if found is None else (f"≈ {one(found, 'g')}", "estimated")


def speedup(row: Row) -> Words:
    """A cell's speed-up over its baseline."""
    if row["speedup"] is None:
        return ABSENT
    if row["speedup_low"] is None:
        return f"{row['speedup']:#.3g}×", row["speedup_verdict"]
    return f"{row['speedup']:#.3g}×", f"[{row['speedup_low']:#.3g}, {row['speedup_high']:#.3g}]"
