"""Configurations and effects for a paper: chosen columns as CSV, and LaTeX tables with units, intervals and captions.

The LaTeX needs the package booktabs. A number has as many digits as its interval allows: two of the half-width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from joulesweep.analyse import cells
from joulesweep.analyse.comparisons import asked, memory_quantity
from joulesweep.analyse.tables import Row
from joulesweep.core.quantities import PREFIXES
from joulesweep.report.exports.data import csv_text
from joulesweep.report.numbers import QUALITIES
from joulesweep.report.results import Results

#: Columns of the cells table in `cells.csv`: what a cell is, what it cost, how good it is, and against what.
IDENTITY = (
    *("panel", "name", "model", "dataset", "task", "method", "method_params", "strategy", "devices", "precision"),
    *("batch_size", "batch_size_scope", "lr", "gpus", "num_ok", "num_runs", "statuses", "num_flagged", "flags"),
)
JOULES = ("energy_status", "energy_scope", "energy_error_j", "energy_doubt")
MEANS = (
    *("energy_j", "window_s", "validation_loss", "masked_accuracy", "peak_gpu_allocated_bytes"),
    *("peak_host_rss_bytes", "tokens_per_s", "co2e_g"),
)
ESTIMATES = ("estimated_energy_j", "estimated_energy_low_j", "estimated_energy_high_j")
RATIOS = ("energy_ratio", "time_ratio", "memory_ratio", "loss_ratio")
COMPARED = (
    *("compared_with", "compared_why"),
    *(f"{name}{end}" for name in (*RATIOS, "above_best") for end in ("", "_low", "_high")),
    "quality_verdict",
)
CHOSEN = (
    *IDENTITY,
    *JOULES,
    *(f"{name}_{end}" for name in MEANS for end in ("mean", "low", "high")),
    *ESTIMATES,
    *COMPARED,
)
#: Columns of the effects table that say which change it is.
CHANGE = ("kind", "axis", "from_value", "to_value", "other_axis", "other_value")
#: Heads of the effects' columns, by quantity.
QUANTITIES = {
    "energy_j": "Energy",
    "window_s": "Time",
    **dict.fromkeys(("peak_gpu_allocated_bytes", "peak_host_rss_bytes"), "Peak memory"),
    **{column.name: column.heading or column.name for column in QUALITIES},
    "validation_loss": "Validation loss",
}
#: Characters with a meaning in LaTeX, and characters that its fonts may lack.
ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "·": r"\textperiodcentered{}",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "…": r"\ldots{}",
}
MISSING = "--"
DOUBTFUL = r"$^{\dagger}$"
#: Marks of a verdict on quality; of `within` none.
VERDICTS = {"beyond": r"$^{\times}$", "cannot be told yet": "$^{?}$"}


def contents(results: Results) -> dict[str, str]:
    """The three files."""
    table = results.tables.cells
    return {
        "cells.csv": csv_text(table.select(CHOSEN)),
        "cells.tex": _cells_tex(results),
        "effects.tex": _effects_tex(results),
    }


def escaped(text: str) -> str:
    """A text in which no character has a meaning to LaTeX; a control character becomes a space."""
    return "".join(ESCAPES.get(sign, sign if sign.isprintable() else " ") for sign in text)


def number(ends: Sequence[float | None], size: float = 1.0) -> str:
    """A mean and the ends of its interval, divided by a size, with the digits that the interval allows."""
    mean, low, high = (None if value is None else value / size for value in ends)
    if mean is None:
        return MISSING
    if low is None or high is None:
        return _fixed(mean, _decimals(abs(mean) / 10))
    decimals = _decimals((high - low) / 2 or abs(mean) / 10)
    return f"{_fixed(mean, decimals)} [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def _decimals(half_width: float) -> int:
    """Digits after the point that show two digits of a half-width."""
    return 2 if half_width <= 0 else min(max(1 - math.floor(math.log10(half_width)), 0), 9)


def _fixed(value: float, decimals: int) -> str:
    """A number with so many digits after the point, and LaTeX's minus."""
    return f"{value:,.{decimals}f}".replace(",", "{,}").replace("-", "$-$")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A column of numbers in the LaTeX table.

    Attributes:
        title: its head, without the unit.
        unit: of the values: a key of `PREFIXES`, or any other, which has no prefixes.
        ends: mean, lower and upper end, from a row of the cells table.
        mark: what follows the number, from such a row.
    """

    title: str
    unit: str
    ends: Callable[[Row], tuple[float | None, ...]]
    mark: Callable[[Row], str] = lambda row: ""


def _mean(title: str, unit: str, quantity: Callable[[Row], str], mark: Callable[[Row], str] = lambda row: "") -> Shown:
    """A column of means with their intervals."""
    ends = ("mean", "low", "high")
    return Shown(
        title=title, unit=unit, ends=lambda row: tuple(row[f"{quantity(row)}_{end}"] for end in ends), mark=mark
    )


def _ratio(title: str, name: str) -> Shown:
    """A column of ratios to the baseline with their intervals."""
    return Shown(title=title, unit="", ends=lambda row: tuple(row[f"{name}{end}"] for end in ("", "_low", "_high")))


def _above_best(row: Row) -> tuple[float | None, ...]:
    """By how many percent a cell is worse than the best, with its interval."""
    values = (row[f"above_best{end}"] for end in ("", "_low", "_high"))
    return tuple(None if value is None else 100 * value for value in values)


def _shown(results: Results) -> Iterator[Shown]:
    """The columns that some cell has a value for."""
    rows = results.tables.cells.rows(named=True)
    every = (
        _mean("Energy", "J", lambda row: "energy_j", lambda row: DOUBTFUL if row["energy_doubt"] else ""),
        Shown(title="Estimated energy", unit="J", ends=lambda row: tuple(row[name] for name in ESTIMATES)),
        _ratio("Energy ratio", "energy_ratio"),
        _mean("Time", "s", lambda row: "window_s"),
        _ratio("Time ratio", "time_ratio"),
        _mean("Peak memory", "B", memory_quantity),
        _mean("Validation loss", "nat/token", lambda row: "validation_loss"),
        Shown(
            title=r"Worse than best (\%)",
            unit="",
            ends=_above_best,
            mark=lambda row: VERDICTS.get(row["quality_verdict"], ""),
        ),
    )
    return (column for column in every if any(column.ends(row)[0] is not None for row in rows))


def _prefix(column: Shown, rows: Iterable[Row]) -> tuple[float, str]:
    """The size and the name of the unit that suits most values of a column: that of their median."""
    values = sorted(abs(mean) for row in rows if (mean := column.ends(row)[0]) is not None)
    median = values[len(values) // 2] if values else 0.0
    fits = ((size, name) for size, name in PREFIXES.get(column.unit, ()) if median >= size)
    return next(fits, (1.0, column.unit))


def _cells_tex(results: Results) -> str:
    table = results.tables.cells
    rows, columns = table.rows(named=True), list(_shown(results))
    units = [_prefix(column, rows) for column in columns]
    heads = [
        column.title + (f" ({escaped(name)})" if name else "") for column, (_, name) in zip(columns, units, strict=True)
    ]
    head = _line(["Configuration", "$n$", *heads])
    body = _body(results, columns, [size for size, _ in units])
    return _table(results, "cells", _caption(results), f"l{'r' * (1 + len(columns))}", head, body)


def _table(results: Results, name: str, caption: str, columns: str, head: str, body: Iterable[str]) -> str:
    """A table as a float; the body begins each of its groups with a rule."""
    lines = [
        "% Made by Joulesweep; needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering\footnotesize",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{results.manifest['sweep']}-{name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(entries: Iterable[str]) -> str:
    return " & ".join(entries) + r" \\"


def _body(results: Results, columns: Sequence[Shown], sizes: Sequence[float]) -> Iterator[str]:
    """The rows, under a head for each panel where there are several."""
    groups = cells.comparable_groups(results.tables.cells)
    for panel, part in groups:
        yield r"\midrule"
        if len(groups) > 1:
            yield _line([rf"\multicolumn{{{2 + len(columns)}}}{{l}}{{\textit{{{escaped(panel)}}}}}"])
        for row in part.iter_rows(named=True):
            pairs = zip(columns, sizes, strict=True)
            numbers = [number(column.ends(row), size) + column.mark(row) for column, size in pairs]
            # A configuration without a finished run says what became of it.
            name = escaped(row["name"]) + ("" if row["num_ok"] else f" ({escaped(row['statuses'])})")
            yield _line([name, str(row["num_ok"]), *numbers])


def _caption(results: Results) -> str:
    """What the numbers are, how many they rest on, and what the brackets mean."""
    table = results.tables.cells
    counts = sorted(set(table.filter(pl.col("num_ok") > 0)["num_ok"]))
    n = f"$n = {counts[0]}$" if len(counts) == 1 else "$n$"
    sentences = [
        f"Sweep {escaped(results.manifest['sweep'])}: means over the {n} finished seeds of each configuration",
        "in brackets 95\\,\\% confidence intervals over the seeds" + (", none where $n = 1$" if 1 in counts else ""),
    ]
    text = "; ".join(sentences) + ". A number is of one training. "
    return text + " ".join(_remarks(results))


def _remarks(results: Results) -> Iterator[str]:
    """A sentence for each thing that the numbers need."""
    table, (margin, measure) = results.tables.cells, asked(results.manifest["config"])
    known = table.drop_nulls("energy_j_mean")
    for status, scope in known.select("energy_status", "energy_scope").unique(maintain_order=True).rows():
        share = known.filter(energy_status=status, energy_scope=scope).select(
            (pl.col("energy_error_j") / pl.col("energy_j_mean")).max()
        )
        largest = share.item()
        error = "" if largest is None else f", off by at most {100 * largest:.2g}\\,\\%"
        yield (
            f"Energy is {escaped(status)} (scope {escaped(scope)}){error};"
            " the accuracy of the board's own sensor, about $\\pm$5\\,\\%, is apart."
            if "gpu" in scope.split("+")
            else f"Energy is {escaped(status)} (scope {escaped(scope)}){error}."
        )
    if known.is_empty():
        yield "Energy was not measured."
    if known["energy_doubt"].count():
        yield f"{DOUBTFUL}Contradicted by its own cross-check."
    if table["estimated_energy_j"].count():
        yield "Estimated energy is a range from CPU-seconds and the processor's watts, not a confidence interval."
    if table["energy_ratio"].count() or table["time_ratio"].count():
        baselines = table["compared_with"].drop_nulls().unique(maintain_order=True).to_list()
        against = escaped(baselines[0]) if len(baselines) == 1 else "the baseline of the group"
        yield f"A ratio is to {against}, paired by seed."
    if table["above_best"].count():
        yield f"{QUANTITIES[measure]}: in percent worse than the group's best. The margin is {100 * margin:.3g}\\,\\%;"
        yield rf"a mark says {VERDICTS['beyond']}beyond it, {VERDICTS['cannot be told yet']}cannot be told yet."


def _effects_tex(results: Results) -> str:
    """A row per change of an axis, and below it the values of other axes on which it depends."""
    effects = results.tables.effects.filter(pl.col("kind") != "share")
    quantities = effects["quantity"].unique(maintain_order=True).to_list()
    head = _line(["Change", "Pairs", *(QUANTITIES[name] for name in quantities)])
    caption = (
        f"Sweep {escaped(results.manifest['sweep'])}: what a change does, all else equal: after / before, the "
        "geometric mean over the pairs of configurations that differ in it alone; in brackets 95\\,\\% confidence "
        "intervals."
    )
    return _table(
        results, "effects", caption, f"l{'r' * (1 + len(quantities))}", head, _effect_body(effects, quantities)
    )


def _effect_body(effects: pl.DataFrame, quantities: Sequence[str]) -> Iterator[str]:
    panels = cells.comparable_groups(effects)
    for panel, part in panels:
        yield r"\midrule"
        if len(panels) > 1:
            yield _line([rf"\multicolumn{{{2 + len(quantities)}}}{{l}}{{\textit{{{escaped(panel)}}}}}"])
        for _, rows in part.group_by(*CHANGE, maintain_order=True):
            by_quantity = {row["quantity"]: row for row in rows.iter_rows(named=True)}
            one = rows.row(0, named=True)
            numbers = [
                number([row["ratio"], row["low"], row["high"]]) if (row := by_quantity.get(name)) else MISSING
                for name in quantities
            ]
            counts = rows["num_pairs"].to_list()  # fewer where not every cell has joules
            pairs = "--".join(map(str, sorted({min(counts), max(counts)})))
            yield _line([_change(one), pairs, *numbers])


def _change(row: Row) -> str:
    """A change in words; one that depends on another axis stands below the change itself."""
    words = escaped(f"{row['from_value']} → {row['to_value']}")
    return words if row["kind"] == "effect" else rf"\quad {words}, at {escaped(row['other_value'])}"
