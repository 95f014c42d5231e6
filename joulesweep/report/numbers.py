"""Format numbers for the report: three significant digits, SI prefix, interval, placeholder for missing values."""

from __future__ import annotations

from collections.abc import Callable

from joulesweep.analyse.columns import QUALITY, ROUGE, RUNS, Column
from joulesweep.analyse.comparisons import memory_quantity
from joulesweep.analyse.statistics import NO_INTERVAL
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import one, scaled, signed
from joulesweep.core.spec import OMISSION

FormattedNumber = tuple[str, str]  # a number, and the interval or remark shown below it

ABSENT: FormattedNumber = ("–", "")


def interval(row: Row, quantity: str, unit: str) -> FormattedNumber:
    """A cell's mean with its interval; "n=1, no interval" for one repeat, "–" if missing."""
    ends = [row[f"{quantity}_{end}"] for end in ("mean", "low", "high")]
    if ends[0] is None:
        return ABSENT
    if None in ends:
        return one(ends[0], unit), NO_INTERVAL
    (mean, low, high), name = scaled(ends, unit)
    return f"{mean} {name}".strip(), f"[{low}, {high}]"


def percent(row: Row, quantity: str) -> FormattedNumber:
    """A cell's mean share with its interval, in percent."""
    ends = {f"{quantity}_{end}": row[f"{quantity}_{end}"] for end in ("mean", "low", "high")}
    return interval({name: value and 100 * value for name, value in ends.items()}, quantity, "%")


def points(row: Row, quantity: str) -> FormattedNumber:
    """A cell's mean share with its interval, times 100 and to one decimal, as is usual for ROUGE."""
    ends = [row[f"{quantity}_{end}"] for end in ("mean", "low", "high")]
    texts = [f"{100 * value:.1f}" for value in ends if value is not None]
    if not texts:
        return ABSENT
    return texts[0], f"[{', '.join(texts[1:])}]" if len(texts) > 1 else NO_INTERVAL


def _number(row: Row, quantity: str) -> FormattedNumber:
    """A cell's mean with its interval, in the column's unit; units with a slash are left to the heading."""
    unit = RUNS[quantity].unit or ""
    return interval(row, quantity, "" if "/" in unit else {"bytes": "B"}.get(unit, unit))


#: Formats of a mean, by the names that columns of the runs table use.
FORMATS: dict[str, Callable[[Row, str], FormattedNumber]] = {"number": _number, "percent": percent, "points": points}
#: Measures of quality other than the loss.
QUALITIES = tuple(column for column in (RUNS[name] for name in (*QUALITY[1:], *ROUGE)) if column.heading is not None)


def shown(row: Row, column: Column) -> FormattedNumber:
    """A cell's mean with its interval, in the format of its column.

    Args:
        row: of the cells table.
        column: of the runs table.
    """
    return FORMATS[column.show](row, column.name)


def heading(column: Column, tables: Tables) -> str:
    """A column's heading in the report; accuracy is named after masked tokens only if every task hides tokens."""
    if column.name == "masked_accuracy" and not set(tables.runs["task"]) <= {OMISSION["task"]}:
        return "Token accuracy"
    return column.heading or column.name


def memory(row: Row) -> FormattedNumber:
    """A cell's mean peak memory with its interval."""
    return interval(row, memory_quantity(row), "B")


def joules(row: Row) -> FormattedNumber:
    """A cell's mean joules with their interval; if there are none, the reason."""
    if row["energy_j_mean"] is not None:
        mean, between = interval(row, "energy_j", "J")
        return mean, ", ".join(filter(None, ["doubtful" if row["energy_doubt"] else "", between]))
    if not row["num_ok"]:
        return ABSENT
    if row["energy_scope"] is None:
        return "below resolution" if "below_resolution" in (row["energy_status"] or "") else "not measured", ""
    return "not averaged", row["energy_status"] if ", " in row["energy_status"] else f"scopes {row['energy_scope']}"


def estimated_joules(row: Row) -> FormattedNumber:
    """Middle and range of a cell's estimated joules."""
    ends = [row[f"estimated_energy{end}_j"] for end in ("", "_low", "_high")]
    if ends[0] is None:
        return ABSENT
    (mid, low, high), name = scaled(ends, "J")
    return f"≈ {mid} {name}", f"estimated, [{low}, {high}]"


def estimated_co2e(row: Row) -> FormattedNumber:
    """Emissions of a cell's estimated joules."""
    grams = row["estimated_co2e_g"]
    return ABSENT if grams is None else (f"≈ {one(grams, 'g')}", "estimated")


def above_best(row: Row) -> FormattedNumber:
    """By how much a cell's quality is worse than the best of its panel, in percent, with its interval."""
    share, low, high = (row[f"above_best{end}"] for end in ("", "_low", "_high"))
    if share is None:
        return ABSENT
    places = 1 if share < 0.0995 else 0
    if low is None or high is None:
        return f"+{100 * share:.{places}f} %", NO_INTERVAL
    return f"+{100 * share:.{places}f} %", f"[{100 * low:.{places}f}, {100 * high:.{places}f}]"


def change(row: Row, quantity: str) -> FormattedNumber:
    """A cell's change against the baseline, in percent, with its interval."""
    ratio, low, high = (row[f"{quantity}_ratio{end}"] for end in ("", "_low", "_high"))
    if ratio is None:
        return ABSENT
    text, _, interval = change_with_interval(ratio, low, high).partition(" [")
    return text, f"[{interval}" if interval else NO_INTERVAL


def change_of(ratio: float) -> str:
    """A ratio as a change in percent with its sign: "−60 %", "+0.2 %"."""
    percent = 100 * (ratio - 1)
    text = f"{percent:+,.0f}" if abs(percent) >= 9.95 else f"{percent:+.1f}"
    return f"{text.replace('-', '−')} %"


def change_with_interval(ratio: float, low: float | None, high: float | None) -> str:
    """A ratio as a change in percent, with its interval if it has one: "−60 % [−61, −59]"."""
    if low is None or high is None:
        return change_of(ratio)
    places = 0 if abs(ratio - 1) >= 0.0995 else 1
    ends = [signed(100 * (end - 1), places) for end in (low, high)]
    return f"{change_of(ratio)} [{', '.join(ends)}]"
