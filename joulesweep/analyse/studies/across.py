"""Compare sweeps, or one sweep on several hosts: cell by cell, two at a time, never pooled.

A cell is matched with the one of the same id, else with the one of the same axes. Ratios are B / A. The loss is paired
by seed, since runs of one seed see the same texts, masks and order wherever they run. Joules, seconds and bytes are
not: a seed says nothing about how fast a host is, and pairs of unrelated runs would only lose degrees of freedom. Their
interval is Welch's on logs, from each side's own spread over the seeds. It does not cover what all runs of a side
share: the accuracy of a board's own sensor is stated apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, variance

import polars as pl

from joulesweep.analyse.columns import IDENTITY, RUNS, named
from joulesweep.analyse.statistics import Contrast, Ratio, paired_ratio, times
from joulesweep.analyse.tables import Row
from joulesweep.core.errors import UserError

#: Share by which a board's own sensor may be off in all of its runs (Part-time Power Measurements, arXiv 2312.02741).
SENSOR = 0.05
#: How far two sensors can move a ratio of joules: it may be this much larger, or smaller, than the truth.
SENSORS = (1 + SENSOR) / (1 - SENSOR)
#: The axes of a cell: what identifies it, apart from names that depend on the rest of the sweep.
AXES = tuple(name for name in IDENTITY if name not in ("cell", "name", "label", "setup", "panel", "batch", "lr_rule"))
#: What two sides may differ in, by heading.
MACHINE = {
    "host": "hostname",
    "GPU": "gpus",
    "processor": "cpu_model",
    "driver": "driver",
    "torch": "torch_version",
    "transformers": "transformers_version",
    "code": "code_digest",
}
#: Columns of the runs table that are needed; other ones may lack in tables of another version.
NEEDED = named(
    RUNS,
    " ".join(
        [
            *("run cell name panel repeat status environment accelerator gpu_uuids", *AXES, *MACHINE.values()),
            "energy_j energy_status energy_scope energy_doubt energy_reason window_s validation_loss",
            "peak_gpu_allocated_bytes peak_host_rss_bytes",
        ]
    ),
)
UNLIKE = "only the axes are the same: other settings, sources or the accelerator differ"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the sweeps.

    Attributes:
        name: how sentences call it: A, B, …
        folder: as the user named it.
        runs: its runs, with the columns `NEEDED`.
        machine: what its finished runs ran on, by heading of `MACHINE`, joined if they differ.
    """

    name: str
    folder: Path
    runs: pl.DataFrame
    machine: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """The ratio of a quantity in two cells.

    Attributes:
        ratio: second over first with its interval; None if there is none.
        reason: why not; None if there is one.
        beyond_sensors: of joules on boards: whether the interval excludes 1 even if both sensors are off by `SENSOR`;
            None for everything else, and on one and the same board.
    """

    ratio: Ratio | None
    reason: str | None = None
    beyond_sensors: bool | None = None

    @property
    def may_be_sensors(self) -> bool:
        """Whether a difference is shown that the sensors alone may have made."""
        return self.ratio is not None and self.ratio.verdict in ("higher", "lower") and self.beyond_sensors is False


@dataclass(frozen=True, kw_only=True)
class Match:
    """Two cells that are compared.

    Attributes:
        name: the name of the cell in A; names depend on the sweep.
        environments: what each ran on: GPU or processor.
        by: "cell" for the same id, "axes" for the same axes alone.
        n: finished runs of A and of B.
        energy: joules of one training.
        time: seconds of one training.
        memory: peak bytes, of the fullest GPU or of the host.
        loss: validation loss, paired by seed.
    """

    name: str
    environments: tuple[str, str]
    by: str
    n: tuple[int, int]
    energy: Quantity
    time: Quantity
    memory: Quantity
    loss: Quantity


@dataclass(frozen=True, kw_only=True)
class Unmatched:
    """A cell that is not compared: its side, its name and why."""

    side: str
    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of two sweeps."""

    a: Side
    b: Side
    matches: list[Match]
    unmatched: list[Unmatched]


def read(folder: Path, name: str = "") -> Side:
    """Read one side: a sweep's folder, or its folder of tables.

    Args:
        folder: of the sweep.
        name: how sentences call it; without one, `compare` calls the two A and B.

    Raises:
        UserError: it has no runs table, or one that lacks a needed column.
    """
    paths = [folder / "tables" / "runs.parquet", folder / "runs.parquet"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no tables/runs.parquet and no runs.parquet; expected results/SWEEP or its tables")
    try:
        runs = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: no table of a sweep: {str(error).splitlines()[0]}") from None
    if lacking := [name for name in NEEDED if name not in runs.columns]:
        raise UserError(f"{path}: no column {', '.join(lacking)}; make the tables again with this Joulesweep")
    return side(runs, folder, name)


def side(runs: pl.DataFrame, folder: Path, name: str) -> Side:
    """A side of these runs, with what the finished ones ran on."""
    runs = runs.select(NEEDED)
    ok = runs.filter(status="ok")
    machine = {heading: ", ".join(map(str, ok[key].drop_nulls().unique().sort())) for heading, key in MACHINE.items()}
    machine = {heading: value for heading, value in machine.items() if value}
    return Side(name=name, folder=folder, runs=runs, machine=machine)


def compare(a: Side, b: Side) -> Comparison:
    """Compare two sides, in the order of the first's runs and then of the other's."""
    a, b = replace(a, name=a.name or "A"), replace(b, name=b.name or "B")
    cells_a, cells_b = _cells(a.runs), _cells(b.runs)
    by_axes = {_axes(rows): cell for cell, rows in cells_b.items()}
    pairs = {}
    for cell, rows in cells_a.items():
        other = cell if cell in cells_b else by_axes.get(_axes(rows))
        if other is not None:
            pairs[cell] = other
    matches, unmatched = [], []
    for cell, rows in cells_a.items():
        if cell not in pairs:
            unmatched.append(Unmatched(side=a.name, name=_name(rows), why=f"not in {b.name}"))
            continue
        others = cells_b[pairs[cell]]
        lacking = [(of.name, one) for of, one in ((a, rows), (b, others)) if not _environments(one)]
        if lacking:
            why = "; ".join(f"no finished run in {of}: {_statuses(one)}" for of, one in lacking)
            unmatched.append(Unmatched(side=f"{a.name} and {b.name}", name=_name(rows), why=why))
        by = "cell" if pairs[cell] == cell else "axes"
        names = (a.name, b.name)
        matches += [_match(x, y, by, names) for x in _environments(rows) for y in _environments(others)]
    for cell, rows in cells_b.items():
        if cell not in pairs.values():
            unmatched.append(Unmatched(side=b.name, name=_name(rows), why=f"not in {a.name}"))
    return Comparison(a=a, b=b, matches=matches, unmatched=unmatched)


def _cells(runs: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {str(cell): part for (cell,), part in runs.group_by("cell", maintain_order=True)}


def _axes(rows: pl.DataFrame) -> tuple[object, ...]:
    return rows.select(AXES).row(0)


def _name(rows: pl.DataFrame) -> str:
    """A cell's name, with its panel where the sweep has several."""
    panel, name = rows.select("panel", "name").row(0)
    return " · ".join(filter(None, [panel, name]))


def _statuses(rows: pl.DataFrame) -> str:
    counts = rows["status"].value_counts(sort=True, name="runs").rows()
    return ", ".join(f"{number} {status}" for status, number in counts)


def _environments(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """The finished runs of a cell, apart for each environment."""
    return [part for _, part in rows.filter(status="ok").group_by("environment", maintain_order=True)]


def _match(a: pl.DataFrame, b: pl.DataFrame, by: str, names: tuple[str, str]) -> Match:
    memory = "peak_gpu_allocated_bytes"
    if a[memory].null_count() or b[memory].null_count():
        memory = "peak_host_rss_bytes"
    one_kind = a["accelerator"][0] == b["accelerator"][0]
    return Match(
        name=_name(a),
        environments=(_hardware(a), _hardware(b)),
        by=by,
        n=(a.height, b.height),
        energy=_energy(a, b, names),
        time=_unpaired(a, b, "window_s"),
        memory=_unpaired(a, b, memory)
        if one_kind
        else Quantity(ratio=None, reason="memory of a GPU is not that of a host"),
        loss=_paired(a, b, "validation_loss"),
    )


def _hardware(rows: pl.DataFrame) -> str:
    """What a cell's runs ran on."""
    column = "gpus" if rows["accelerator"][0] == "cuda" else "cpu_model"
    return ", ".join(rows[column].drop_nulls().unique(maintain_order=True)) or "unknown"


def _energy(a: pl.DataFrame, b: pl.DataFrame, names: tuple[str, str]) -> Quantity:
    sides = list(zip(names, (a, b), strict=True))
    reasons = [f"{of}: {reason}" for of, rows in sides if (reason := _why_no_joules(rows))]
    if reasons:
        return Quantity(ratio=None, reason="; ".join(reasons))
    scopes = [rows["energy_scope"][0] for rows in (a, b)]
    if scopes[0] != scopes[1]:
        return Quantity(ratio=None, reason=f"scopes differ: {scopes[0]} in {names[0]}, {scopes[1]} in {names[1]}")
    ratio = unpaired_ratio(b["energy_j"].to_list(), a["energy_j"].to_list())
    boards = [set(rows["gpu_uuids"].drop_nulls()) for rows in (a, b)]
    if "gpu" not in scopes[0].split("+") or (boards[0] == boards[1] and len(boards[0]) == 1):
        return Quantity(ratio=ratio)
    is_beyond = ratio.low is not None and ratio.high is not None and (ratio.low > SENSORS or ratio.high < 1 / SENSORS)
    return Quantity(ratio=ratio, beyond_sensors=is_beyond)


def _why_no_joules(rows: pl.DataFrame) -> str | None:
    """Why the joules of a cell's runs are not compared; None if they are measured, of one scope, without doubt."""
    if doubts := rows["energy_doubt"].drop_nulls().to_list():
        return f"doubtful: {doubts[0]}"
    if statuses := sorted(set(rows["energy_status"]) - {"measured"}):
        return str(rows["energy_reason"].drop_nulls().first() or f"{', '.join(statuses)}, not measured")
    return None if rows["energy_scope"].n_unique() == 1 else "its runs have joules of different scopes"


def _unpaired(a: pl.DataFrame, b: pl.DataFrame, quantity: str) -> Quantity:
    values = [rows[quantity].to_list() for rows in (a, b)]
    if any(value is None or value <= 0 for part in values for value in part):
        return Quantity(ratio=None, reason=f"a run has no {quantity} above 0")
    return Quantity(ratio=unpaired_ratio(values[1], values[0]))


def _paired(a: pl.DataFrame, b: pl.DataFrame, quantity: str) -> Quantity:
    pairs = a.join(b, on="repeat", suffix="_b").filter(pl.min_horizontal(quantity, f"{quantity}_b") > 0)
    if pairs.is_empty():
        return Quantity(ratio=None, reason="no seed in common")
    pairs = pairs.sort("repeat")
    return Quantity(ratio=paired_ratio(pairs[f"{quantity}_b"].to_list(), pairs[quantity].to_list()))


def unpaired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Ratio a / b of geometric means with Welch's 95 % interval on logs, which lets the spreads differ.

    Args:
        a: positive values, at least one.
        b: positive values, at least one.
    """
    logs = [[math.log(value) for value in values] for values in (a, b)]
    log, n = fmean(logs[0]) - fmean(logs[1]), min(len(a), len(b))
    if n < 2:
        return Contrast(log=log, error=None, degrees=0, n=n).ratio()
    parts = [variance(part) / len(part) for part in logs]
    squares = sum(part**2 / (len(of) - 1) for part, of in zip(parts, logs, strict=True))
    degrees = sum(parts) ** 2 / squares if squares else float(n - 1)  # without noise any number will do
    return Contrast(log=log, error=math.sqrt(sum(parts)), degrees=degrees, n=n).ratio()


def notes(comparison: Comparison) -> Iterator[str]:
    """What to know before reading the ratios, a sentence each."""
    matches = comparison.matches
    yield (
        f"Ratios are {comparison.b.name} / {comparison.a.name} with 95 % intervals. "
        "Loss is paired by seed; energy, time and memory are not, and each "
        "interval is from the spread over the seeds of each side."
    )
    if any(match.energy.beyond_sensors is not None for match in matches):
        yield (
            f"Energy, on different boards: each board's own sensor may be off by about {SENSOR:.0%}, which no interval "
            f"covers. A ratio between {1 / SENSORS:.2f} and {SENSORS:.2f} may be the sensors' (marked ~)."
        )
    if any(match.by == "axes" for match in matches):
        yield f"Marked with *: {UNLIKE}."
    for reason in dict.fromkeys(match.energy.reason for match in matches if match.energy.reason):
        number = sum(match.energy.reason == reason for match in matches)
        yield f"No ratio of energy of {number} of {len(matches)}: {reason}."


def as_rows(comparison: Comparison) -> Iterator[Row]:
    """The matches as JSON objects."""
    for match in comparison.matches:
        row: Row = {"name": match.name, "matched_by": match.by, "a": match.environments[0], "b": match.environments[1]}
        row |= {"n_a": match.n[0], "n_b": match.n[1]}
        for name in ("energy", "time", "memory", "loss"):
            quantity: Quantity = getattr(match, name)
            row[name] = {**(vars(quantity.ratio) if quantity.ratio else {"ratio": None}), "reason": quantity.reason}
        yield {**row, "energy_beyond_sensors": match.energy.beyond_sensors}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the side with the fewest joules stands against another, over the cells that both measured.

    Attributes:
        other: name of the other side.
        fewer: ratios of joules, lowest first, that are lower whatever the two sensors do.
        sensors: those that are lower, as far as the sensors can be trusted alike.
        rest: all others: no difference is shown, there is one run, or it takes more.
    """

    other: str
    fewer: list[Ratio]
    sensors: list[Ratio]
    rest: list[Ratio]


def fewest_joules(sides: Sequence[Side]) -> tuple[str, list[Standing]] | None:
    """The side that takes the fewest joules, by the mean of logs over the cells that all have, and how surely.

    Args:
        sides: two or more, each with a name.

    Returns:
        Its name and its standing against each other side; None where no cell has measured joules on all.
    """
    against_first = [_by_name(compare(sides[0], other)) for other in sides[1:]]
    shared = [name for name in against_first[0] if all(name in one for one in against_first)] if against_first else []
    if not shared:
        return None
    means = [0.0, *(fmean(math.log(one[name].ratio) for name in shared) for one in against_first)]
    best = sides[means.index(min(means))]
    return best.name, [_standing(compare(other, best)) for other in sides if other is not best]


def _by_name(comparison: Comparison) -> dict[str, Ratio]:
    """The ratios of joules by the cell's name, without cells that a side ran on two kinds of machine."""
    number = Counter(one.name for one in comparison.matches)
    known = [one for one in comparison.matches if number[one.name] == 1]
    return {one.name: one.energy.ratio for one in known if one.energy.ratio is not None}


def _standing(comparison: Comparison) -> Standing:
    standing = Standing(other=comparison.a.name, fewer=[], sensors=[], rest=[])
    for match in comparison.matches:
        if (ratio := match.energy.ratio) is not None:
            kind = standing.rest if ratio.verdict != "lower" else standing.fewer
            (standing.sensors if ratio.verdict == "lower" and match.energy.may_be_sensors else kind).append(ratio)
    for kind in (standing.fewer, standing.sensors, standing.rest):
        kind.sort(key=lambda ratio: ratio.ratio)
    return standing


def fewest_words(sides: Sequence[Side]) -> str:
    """Which side takes the fewest measured joules, in a sentence; or why that cannot be told."""
    result = fewest_joules(sides)
    if result is None:
        return "Which takes the fewest joules cannot be told: no configuration has measured joules on every side."
    best, standings = result
    parts = []
    for one in standings:
        number = len(one.fewer) + len(one.sensors) + len(one.rest)
        words = [f"fewer than {one.other} in {len(one.fewer)} of {number} configurations{_between(one.fewer)}"]
        if one.sensors:
            words.append(f"in {len(one.sensors)}{_between(one.sensors)} its sensors may have made the difference")
        if one.rest:
            words.append(f"in {len(one.rest)}{_between(one.rest)} fewer is not shown")
        parts.append(", ".join(words))
    lead = "takes the fewest measured joules" if all(one.fewer for one in standings) else "may take the fewest joules"
    return f"{best} {lead}: {'; '.join(parts)}."


def _between(ratios: Sequence[Ratio]) -> str:
    """The span of ratios, as ` (× 0.52 to × 0.61)`; of one, its interval."""
    if not ratios:
        return ""
    low, high = ratios[0], ratios[-1]
    if low is high:
        return f" ({times(low)})"
    return f" ({_only(low)} to {_only(high)})"


def _only(ratio: Ratio) -> str:
    """A ratio without its interval."""
    return times(ratio).partition(",")[0]
