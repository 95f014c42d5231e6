"""The report: one HTML file that answers first, opens from disk, and asks the network for nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from joulesweep import charts, equalcost, provenance, published, quantities, words
from joulesweep.answer import MARGIN, Answer, answers
from joulesweep.columns import ROUGE
from joulesweep.equalcost import EqualCost
from joulesweep.footprint import Footprint, described, footprint
from joulesweep.spec import OMISSION
from joulesweep.stats import NO_DIFFERENCE, NO_INTERVAL, Difference, Ratio
from joulesweep.tables import Tables

MAX_TIES = 6  # names in one sentence
TEMPLATES = Path(__file__).parent / "templates"
Show = Callable[[dict[str, Any], str], words.Words]  # a row of the cells table and a quantity, as text
Quality = tuple[str, str, Show]  # heading, quantity and how it is shown
Cell = tuple[tuple[str, str], float | None, str]  # (number, interval), value to sort by, class


def build(grid: dict[str, Any], tables: Tables) -> str:
    """Render the report.

    Args:
        grid: the manifest of the sweep.
        tables: what `aggregate` made of its runs.

    Returns:
        A self-contained HTML page.
    """
    factors = footprint(grid["config"]["energy"])
    qualities = _qualities(tables)
    columns = _columns(tables, qualities, factors)
    chosen = tables.selections
    sections = charts.by_section()
    drawn = [name for section, named in sections.items() if section == "charts" or len(chosen) for name in named]
    return template("report.html.j2").render(
        sweep=grid["sweep"],
        num_ok=tables.runs.filter(pl.col("status") == "ok").height,
        num_runs=tables.runs.height,
        num_flagged=tables.runs["flags"].count(),
        num_marked=tables.cells["num_flagged"].sum(),
        statuses=tables.runs["status"].value_counts(sort=True, name="runs").rows(),
        answers=[_answer(answer, qualities, factors) for answer in answers(tables)],
        margin=f"{MARGIN:.0%}",
        charts={name: embedded(charts.draw(name, tables).to_dict()) for name in drawn},
        headings=[(heading, kind) for heading, kind, _ in columns],
        cells=[[make(row) for _, _, make in columns] for row in tables.cells.iter_rows(named=True)],
        nets=tables.cells["net_energy_j_mean"].count() > 0,
        work=provenance.work(tables),
        equal_costs=[_equal_cost(found) for found in equalcost.comparisons(tables)],
        beside=[_beside(found) for found in published.beside(tables)],
        beside_source=published.source("greentrainer.csv"),
        faster=[_faster(found) for found in published.faster(tables)],
        headlines=published.rows("maina.csv"),
        faster_source=published.source("maina.csv"),
        selections=_selections(chosen),
        timed="time" in chosen["objective"],
        uncounted=sorted(set(chosen["cost_reason"].drop_nulls())),
        problems=provenance.problems(tables.runs),
        retries=provenance.retries(tables.runs),
        excluded=grid["excluded"],
        flags=provenance.flags(tables.runs),
        conditions=provenance.conditions(tables.runs),
        own_cost=provenance.own_cost(tables, factors),
        drift=provenance.drift(tables.anchors),
        certificates=provenance.certificates(tables.devices),
        environments=provenance.environments(tables.runs),
        energy=provenance.energy(tables.runs),
        boards_read=tables.devices.filter(kind="gpu").drop_nulls("energy_j").height > 0,
        factors=described(factors) if factors else [],
        estimates=provenance.estimates(grid, tables.runs),
        code=provenance.code(tables.runs),
        config=yaml.safe_dump(grid["config"], sort_keys=False, allow_unicode=True),
        bundle=vega(),
    )


def template(name: str) -> Template:
    """A page to be filled in."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


@functools.cache
def vega() -> Markup:
    """Vega-Lite of the version that Altair writes for, with all it needs, for a script element."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return Markup(bundle.replace("</script", "<\\/script"))


def embedded(value: object) -> Markup:
    """JSON that may stand inside a script element: no "<" is left that could end it."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))


def _memory_quantity(row: dict[str, Any]) -> str:
    return "peak_host_rss_bytes" if row["peak_gpu_allocated_bytes_mean"] is None else "peak_gpu_allocated_bytes"


def _qualities(tables: Tables) -> list[Quality]:
    """What is shown of quality beside the loss: the share of right tokens, and what else some cell has."""
    number: Show = functools.partial(words.interval, unit="")
    of_masks = set(tables.runs["task"]) <= {OMISSION["task"]}
    every: list[Quality] = [
        ("Masked accuracy" if of_masks else "Token accuracy", "masked_accuracy", number),
        ("Choice accuracy", "choice_accuracy", number),
        *((f"ROUGE-{metric.removeprefix('rouge')}", metric, words.points) for metric in ROUGE),
    ]
    return [one for one in every if one[1] == "masked_accuracy" or tables.cells[f"{one[1]}_mean"].count()]


def _answer(answer: Answer, qualities: list[Quality], factors: Footprint | None) -> dict[str, Any]:
    """An answer in words and tiles."""
    row = answer.chosen
    return {
        "panel": answer.panel,
        "name": row["name"],
        "superlative": "least measured energy" if answer.by == "energy_j" else "least time",
        "cost": "measured energy" if answer.by == "energy_j" else "time",
        "unranked": answer.unranked,
        "doubtful": answer.doubtful[:MAX_TIES],
        "num_doubtful": len(answer.doubtful),
        "ties": ", ".join(answer.ties[:MAX_TIES]) + (" and others" if len(answer.ties) > MAX_TIES else ""),
        "num_within": answer.num_within,
        "num_cells": answer.num_cells,
        "num_ok": row["num_ok"],
        "flags": row["flags"],
        "tiles": [
            ("Time of a run", words.interval(row, "window_s", "s"), ""),
            *_energy_tiles(row, factors),
            (f"Peak memory, {_memory_place(row)}", words.interval(row, _memory_quantity(row), "B"), ""),
            ("Validation loss", words.interval(row, "validation_loss", ""), ""),
            *(
                (heading, show(row, quantity), "")
                for heading, quantity, show in qualities
                if row[f"{quantity}_mean"] is not None
            ),
        ],
        "against": answer.against,
    }


def _memory_place(row: dict[str, Any]) -> str:
    return "GPU" if _memory_quantity(row) == "peak_gpu_allocated_bytes" else "host"


def _energy_tiles(row: dict[str, Any], factors: Footprint | None) -> list[tuple[str, words.Words, str]]:
    """Joules and what follows from them; estimated ones, if no joules were read, in tiles of their own look."""
    known = row["energy_j_mean"] is not None
    integrated = ", integrated" if known and row["energy_status"] == "integrated" else ""
    scope = f" ({row['energy_scope']})" if known else ""
    tiles = [(f"Energy of a run{integrated}{scope}", words.joules(row), "")]
    for label, quantity, unit in (
        ("Net of idle power", "net_energy_j", "J"),
        ("CO2e of a run", "co2e_g", "g"),
        ("Cost of a run", "cost", (factors.currency if factors else None) or ""),
    ):
        if row[f"{quantity}_mean"] is not None:
            tiles.append((label, words.interval(row, quantity, unit), ""))
    if not known and row["estimated_energy_j"] is not None:
        tiles.append(("Energy of a run, not ranked", words.estimated_joules(row), "estimated"))
    if not known and row["estimated_co2e_g"] is not None:
        tiles.append(("CO2e of a run, of estimated joules", words.estimated_co2e(row), "estimated"))
    return tiles


def _columns(tables: Tables, qualities: list[Quality], factors: Footprint | None) -> list[tuple[str, str, Any]]:
    """The table of configurations: heading, class, and what makes a row of the cells table an entry; if needed."""
    cells = tables.cells
    kinds = cells.drop_nulls("energy_j_mean").select("energy_status", "energy_scope").unique(maintain_order=True).rows()
    currency = (factors.currency if factors else None) or ""

    def number(quantity: str, unit: str) -> Any:  # noqa: ANN401 - a function
        return lambda row: (words.interval(row, quantity, unit), row[f"{quantity}_mean"], "")

    def shown(quantity: str, show: Any) -> Any:  # noqa: ANN401 - functions
        return lambda row: (show(row, quantity), row[f"{quantity}_mean"], "")

    def energy(row: dict[str, Any]) -> Cell:
        text, remark = words.joules(row)
        kind = f"{row['energy_status']}, {row['energy_scope']}" if row["energy_j_mean"] and len(kinds) > 1 else ""
        return (text, " ".join(filter(None, [remark, kind]))), row["energy_j_mean"], ""

    every: list[tuple[str, str, Any, bool]] = [
        ("Configuration", "text", lambda row: ((_marked(row), ""), None, "text"), True),
        ("Part", "text", lambda row: ((row["panel"], ""), None, "text"), cells["panel"].n_unique() > 1),
        ("Runs", "text", lambda row: ((row["statuses"], ""), None, "text"), True),
        ("Time", "", number("window_s", "s"), True),
        ("Speed-up", "", lambda row: (words.speedup(row), row["speedup"], ""), True),
        (_energy_heading(kinds), "", energy, True),
        ("Net of idle", "", number("net_energy_j", "J"), cells["net_energy_j_mean"].count() > 0),
        ("CO2e", "", number("co2e_g", "g"), factors is not None and factors.g_per_kwh is not None),
        ("Cost", "", number("cost", currency), factors is not None and factors.price_per_kwh is not None),
        (
            "Estimated energy",
            "estimated",
            lambda row: (words.estimated_joules(row), row["estimated_energy_j"], "estimated"),
            cells["estimated_energy_j"].count() > 0,
        ),
        (
            "Estimated CO2e",
            "estimated",
            lambda row: (words.estimated_co2e(row), row["estimated_co2e_g"], "estimated"),
            cells["estimated_co2e_g"].count() > 0,
        ),
        ("Peak memory", "", lambda row: number(_memory_quantity(row), "B")(row), True),
        ("Tokens/s", "", number("tokens_per_s", ""), True),
        *(
            (heading, "", shown(quantity, words.percent), cells[f"{quantity}_mean"].count() > 0)
            for quantity, (heading, _) in provenance.WORK.items()
        ),
        ("Validation loss", "", number("validation_loss", ""), True),
        *((heading, "", shown(quantity, show), True) for heading, quantity, show in qualities),
    ]
    return [(heading, kind, make) for heading, kind, make, needed in every if needed]


def _equal_cost(found: EqualCost) -> dict[str, Any]:
    """A comparison of methods at equal cost, as text."""
    cost = {"cpu_s": "CPU-seconds", "elapsed_s": "seconds"}.get(found.by, f"joules, scope {found.scope}")
    verdicts = {"lower": "A lower", "higher": "B lower", NO_INTERVAL: "–"}
    return {
        "name": found.name,
        "cost": cost,
        "unranked": found.unranked,
        "sentences": found.sentences,
        "pairs": [
            {
                "a": pair.a,
                "b": pair.b,
                "cost": quantities.one(pair.cost, "J" if found.by == "energy_j" else "s"),
                "losses": [f"{loss:.3f}" for loss in (pair.loss_a, pair.loss_b)],
                "difference": _signed(pair.difference),
                "n": pair.difference.n,
                "verdict": verdicts.get(pair.difference.verdict, NO_DIFFERENCE),
            }
            for pair in found.pairs
        ],
    }


def _signed(found: Difference) -> words.Words:
    """A difference of losses and its interval, with signs, to as many decimals as the losses."""
    mean, *ends = (
        f"{value:+.3f}".replace("-", "−") for value in (found.mean, found.low, found.high) if value is not None
    )
    return mean, f"[{', '.join(ends)}]" if ends else found.verdict


def _beside(found: published.Beside) -> dict[str, Any]:
    """A method's published and measured costs over full training's, as text."""
    return {
        "name": found.name,
        "method": found.method,
        "settings": found.published.num_settings,
        "compute_published": _range(found.published.compute),
        "hours": _range(found.published.hours),
        **{key: _times(getattr(found, f"measured_{key}")) for key in ("compute", "time", "joules")},
    }


def _faster(found: published.Faster) -> dict[str, Any]:
    """A comparison of speeds, as text."""
    ends = {"lowest": _times(found.lowest), "highest": _times(found.highest)}
    return {"words": found.words, "num_pairs": found.num_pairs, "where": found.where, **ends}


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.2f}" for end in ends)
    return f"{low}×" if low == high else f"{low} to {high}×"


def _times(found: Ratio | None) -> words.Words:
    """A ratio, and its interval with the number of pairs."""
    if found is None:
        return words.ABSENT
    if found.low is None or found.high is None:
        return f"{found.ratio:#.3g}×", found.verdict
    return f"{found.ratio:#.3g}×", f"[{found.low:#.3g}, {found.high:#.3g}], n={found.n}"


def _selections(selections: pl.DataFrame) -> list[dict[str, str]]:
    """What the choices of each configuration cost: means over choices and repeats, and the largest gap, as text."""
    same = pl.col("name", "panel", "objective", "rho").first()
    costs = ("floor", "predicted_cost", "counted_cost", "rating_s", "step_s")
    shares = pl.col(*costs, "trained_share", "importance_share")
    means = pl.when(shares.null_count() == 0).then(shares.mean())  # some would pass for all
    numbers = pl.col("num_chosen", "num_candidates").mean()
    groups = selections.group_by("cell", "environment", maintain_order=True)
    found = groups.agg(same, means, numbers, pl.col("gap").max(), runs=pl.col("run").n_unique(), choices=pl.len())

    def text(value: float | None, factor: float = 1, unit: str = "") -> str:
        return words.ABSENT[0] if value is None else quantities.one(factor * value, unit)

    return [
        {
            "name": row["name"] + (f" · {row['panel']}" if row["panel"] else ""),
            "choices": f"{row['choices']} in {row['runs']} runs",
            "objective": row["objective"],
            "rho": "–" if row["rho"] is None else f"{row['rho']:g}",
            **{key: text(row[f"{key}_cost"]) for key in ("predicted", "counted")},
            "floor": text(row["floor"]),
            "step": text(row["step_s"], 1000, "ms"),
            "rating": text(row["rating_s"], 1000, "ms"),
            "tensors": f"{text(row['num_chosen'])} of {row['num_candidates']:g}",
            "parameters": text(row["trained_share"], 100, "%"),
            "importance": text(row["importance_share"], 100, "%"),
            "gap": "< 0.01 %" if row["gap"] < 1e-4 else text(row["gap"], 100, "%"),
        }
        for row in found.iter_rows(named=True)
    ]


def _energy_heading(kinds: list[tuple[str, str]]) -> str:
    """Status and scope in the heading where all joules share them, else they are in the entries."""
    if len(kinds) != 1:
        return "Energy" if kinds else "Measured energy"
    status, scope = kinds[0]
    return f"{status.capitalize()} energy ({scope})"


def _marked(row: dict[str, Any]) -> str:
    """A configuration's name, with a mark if runs of it are flagged."""
    if not row["num_flagged"]:
        return str(row["name"])
    title = f"{row['num_flagged']} of {row['num_ok']} runs flagged: {row['flags']}"
    mark = Markup('{} <span class="flag" role="img" title="{}" aria-label="{}">⚑</span>')
    return mark.format(row["name"], title, title)
