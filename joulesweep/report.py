"""The report: one HTML file that answers first, opens from disk, and asks the network for nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from joulesweep import estimate
from joulesweep.answer import MARGIN, Answer, answers
from joulesweep.charts import CHARTS
from joulesweep.stats import NO_INTERVAL
from joulesweep.tables import Tables

MAX_TIES = 6  # names in one sentence
TEMPLATES = Path(__file__).parent / "templates"

#: Larger units, largest first.
PREFIXES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((3600, "h"), (60, "min")),
    "J": ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")),
    "B": ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")),
}

#: What the runs table says of a machine, and how the report calls it.
HARDWARE = {
    "cpu_model": "CPU",
    "cpu_cores": "hardware threads granted",
    "host_memory_bytes": "memory",
    "gpus": "GPUs",
    "driver": "NVIDIA driver",
    "torch_version": "torch",
    "transformers_version": "transformers",
    "zeus_version": "zeus",
    "python": "Python",
    "platform": "platform",
    "hostname": "hosts",
}


def build(grid: dict[str, Any], tables: Tables) -> str:
    """Render the report.

    Args:
        grid: the manifest of the sweep.
        tables: what `aggregate` made of its runs.

    Returns:
        A self-contained HTML page.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        sweep=grid["sweep"],
        num_ok=tables.runs.filter(pl.col("status") == "ok").height,
        num_runs=tables.runs.height,
        statuses=tables.runs["status"].value_counts(sort=True, name="runs").rows(),
        answers=[_answer(answer) for answer in answers(tables)],
        margin=f"{MARGIN:.0%}",
        charts={name: _embedded(make(tables).to_dict()) for name, make in CHARTS.items()},
        headings=_headings(tables),
        cells=[_cell_row(row, tables) for row in tables.cells.iter_rows(named=True)],
        problems=_problems(tables.runs),
        excluded=grid["excluded"],
        environments=_environments(tables.runs),
        energy=_energy(tables.runs),
        estimates=_estimates(grid, tables.runs),
        code=_code(tables.runs),
        config=yaml.safe_dump(grid["config"], sort_keys=False, allow_unicode=True),
        bundle=_vega(),
    )


@functools.cache
def _vega() -> Markup:
    """Vega-Lite of the version that Altair writes for, with all it needs, for a script element."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return Markup(bundle.replace("</script", "<\\/script"))


def _embedded(value: object) -> Markup:
    """JSON that may stand inside a script element: no "<" is left that could end it."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))


def scaled(values: Sequence[float], unit: str) -> tuple[list[str], str]:
    """Numbers to three digits in the prefix that suits the first.

    Args:
        values: at least one, in the unit.
        unit: "s", "J", "B" (prefixes are powers of 1024) or "".

    Returns:
        The numbers as text, and the unit with its prefix.
    """
    for size, name in PREFIXES.get(unit, ()):
        if abs(values[0]) >= (2 * size if unit == "s" else size):  # 90 s reads better than 1.50 min
            return [_digits(value / size) for value in values], name
    return [_digits(value) for value in values], unit


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")


def _one(value: float, unit: str) -> str:
    (text,), name = scaled([value], unit)
    return f"{text} {name}".strip()


def _interval(row: dict[str, Any], quantity: str, unit: str) -> tuple[str, str]:
    """Mean, and its interval or the word that there is none; a dash for what is not there."""
    ends = [row[f"{quantity}_{end}"] for end in ("mean", "low", "high")]
    if ends[0] is None:
        return "–", ""
    if None in ends:
        return _one(ends[0], unit), NO_INTERVAL
    (mean, low, high), name = scaled(ends, unit)
    return f"{mean} {name}".strip(), f"[{low}, {high}]"


def _estimated(row: dict[str, Any]) -> tuple[str, str]:
    """Middle and range of an estimate."""
    ends = [row[f"estimated_energy{end}_j"] for end in ("", "_low", "_high")]
    if ends[0] is None:
        return "–", ""
    (mid, low, high), name = scaled(ends, "J")
    return f"≈ {mid} {name}", f"estimated, [{low}, {high}]"


def _memory_quantity(row: dict[str, Any]) -> str:
    return "peak_host_rss_bytes" if row["peak_gpu_allocated_bytes_mean"] is None else "peak_gpu_allocated_bytes"


def _answer(answer: Answer) -> dict[str, Any]:
    """An answer in words and tiles."""
    row = answer.chosen
    on_gpu = _memory_quantity(row) == "peak_gpu_allocated_bytes"
    measured = row["energy_j_mean"] is not None
    tiles = [
        ("Time of a run", _interval(row, "window_s", "s"), ""),
        ("Energy of a run", _interval(row, "energy_j", "J") if measured else ("not measured", ""), ""),
        ("Peak memory, " + ("GPU" if on_gpu else "host"), _interval(row, _memory_quantity(row), "B"), ""),
        ("Validation loss", _interval(row, "validation_loss", ""), ""),
        ("Masked accuracy", _interval(row, "masked_accuracy", ""), ""),
    ]
    if not measured and row["estimated_energy_j"] is not None:
        tiles.insert(2, ("Energy of a run, not ranked", _estimated(row), "estimated"))
    return {
        "panel": answer.panel,
        "name": row["name"],
        "superlative": "least measured energy" if answer.by == "energy_j" else "least time",
        "cost": "measured energy" if answer.by == "energy_j" else "time",
        "ties": ", ".join(answer.ties[:MAX_TIES]) + (" and others" if len(answer.ties) > MAX_TIES else ""),
        "num_within": answer.num_within,
        "num_cells": answer.num_cells,
        "num_ok": row["num_ok"],
        "tiles": tiles,
        "against": answer.against,
    }


def _headings(tables: Tables) -> list[tuple[str, str]]:
    """Columns of the table of configurations: heading and class."""
    first = [("Configuration", "text"), *([("Part", "text")] if tables.cells["panel"].n_unique() > 1 else [])]
    energy = [("Measured energy", ""), *([("Estimated energy", "estimated")] if _has_estimates(tables) else [])]
    rest = [("Peak memory", ""), ("Tokens/s", ""), ("Validation loss", ""), ("Masked accuracy", "")]
    return [*first, ("Runs", "text"), ("Time", ""), ("Speed-up", ""), *energy, *rest]


def _has_estimates(tables: Tables) -> bool:
    return tables.cells["estimated_energy_j"].count() > 0


def _cell_row(row: dict[str, Any], tables: Tables) -> list[tuple[tuple[str, str], float | None, str]]:
    """One configuration as ((number, interval), value to sort by, class) per column."""

    def number(quantity: str, unit: str) -> tuple[tuple[str, str], float | None, str]:
        return _interval(row, quantity, unit), row[f"{quantity}_mean"], ""

    def text(key: str) -> tuple[tuple[str, str], None, str]:
        return (row[key], ""), None, "text"

    unmeasured = row["num_ok"] and row["energy_j_mean"] is None
    return [
        text("name"),
        *([text("panel")] if tables.cells["panel"].n_unique() > 1 else []),
        text("statuses"),
        number("window_s", "s"),
        (_speedup(row), row["speedup"], ""),
        (("not measured", ""), None, "") if unmeasured else number("energy_j", "J"),
        *([(_estimated(row), row["estimated_energy_j"], "estimated")] if _has_estimates(tables) else []),
        number(_memory_quantity(row), "B"),
        number("tokens_per_s", ""),
        number("validation_loss", ""),
        number("masked_accuracy", ""),
    ]


def _speedup(row: dict[str, Any]) -> tuple[str, str]:
    if row["speedup"] is None:
        return "–", ""
    if row["speedup_low"] is None:
        return f"{row['speedup']:#.3g}×", row["speedup_verdict"]
    return f"{row['speedup']:#.3g}×", f"[{row['speedup_low']:#.3g}, {row['speedup_high']:#.3g}]"


def _problems(runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Runs that are not ok, those of one configuration and reason together."""
    keys = ["name", "panel", "status", "reason"]
    groups = runs.filter(pl.col("status") != "ok").group_by(keys, maintain_order=True)
    return groups.agg(pl.col("repeat").sort().cast(pl.String).str.join(", ").alias("repeats")).to_dicts()


def _environments(runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Every environment with what is known of it; several values are listed."""
    parts = runs.drop_nulls("environment").group_by("environment", maintain_order=True)
    shown: dict[str, Callable[[Any], str]] = {"host_memory_bytes": lambda value: _one(value, "B")}
    return [
        {
            "id": name,
            "num_runs": part.height,
            "facts": {
                word: ", ".join(shown.get(key, str)(value) for value in part[key].drop_nulls().unique().sort())
                or "none"
                for key, word in HARDWARE.items()
            },
        }
        for (name,), part in parts
    ]


def _energy(runs: pl.DataFrame) -> list[dict[str, Any]]:
    """How the joules of the finished runs came about."""
    keys = ["energy_status", "energy_scope", "energy_method", "energy_reason"]
    return runs.filter(pl.col("status") == "ok").group_by(keys, maintain_order=True).len("num_runs").to_dicts()


def _estimates(grid: dict[str, Any], runs: pl.DataFrame) -> dict[str, Any] | None:
    """How the estimated joules came about, or None if the config asked for none."""
    if not grid["config"]["energy"]["estimate"]:
        return None
    methods = runs.drop_nulls("estimated_energy_method").group_by("estimated_energy_method", maintain_order=True)
    return {
        "methods": methods.len("num_runs").rows(),
        "source": "the config (energy.cpu_watts)" if grid["config"]["energy"]["cpu_watts"] else estimate.source(),
        "margin": f"{estimate.MARGIN:.0%}",
    }


def _code(runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Which code made the records."""
    keys = ["git_commit", "git_dirty", "code_digest"]
    return runs.drop_nulls("code_digest").group_by(keys, maintain_order=True).len("num_runs").to_dicts()
