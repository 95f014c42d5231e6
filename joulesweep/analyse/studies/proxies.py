"""How well stand-ins for joules do: seconds, FLOPs, watts, a power limit × time, an estimate from CPU-seconds.

Each is compared with the joules of a panel's configurations that are counted, not doubtful, and of the same kinds of
device. Estimated and integrated joules are left out: an estimate is made of seconds, and would stand for itself.
`standings` says how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from joulesweep.analyse.cells import comparable_groups, doubtful, finished
from joulesweep.analyse.comparisons import WITHIN, Comparisons, Key, key_of
from joulesweep.analyse.statistics import Fit
from joulesweep.analyse.studies.standings import ALL, GOOD, LEAST, Choice, Fits, Standing, choice, standing
from joulesweep.analyse.tables import Row, Tables
from joulesweep.reference.cpu_estimate import Asked, estimate_cpu

SECONDS, WATTS, ESTIMATE = "seconds", "mean watts", "an estimate from CPU-seconds"
#: Proxies that are worked out from columns of the runs.
PROXIES: dict[str, pl.Expr] = {
    SECONDS: pl.col("window_s"),
    "executed FLOPs": pl.col("executed_flops"),
    "useful FLOPs": pl.col("useful_flops"),
    WATTS: pl.col("counted_j") / pl.col("window_s"),
    "power limit × time": pl.col("power_limit_w") * pl.col("devices") * pl.col("window_s"),
    "time per token": 1 / pl.col("tokens_per_s"),
}
#: Why a proxy may be lacking.
LACKING = {
    "executed FLOPs": "they were not counted",
    "useful FLOPs": "they were not counted",
    "power limit × time": "no board's power limit is recorded",
    "time per token": "all configurations train on as many tokens, so it ranks as seconds do",
}
FEWEST = 3  # configurations of a panel


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The proxies of one panel.

    Attributes:
        name: of the panel; empty if the sweep has one.
        rows: of the cells table: the configurations that were compared.
        scope: kinds of device whose joules these are.
        repeats: fewest of a configuration.
        standings: of each proxy that is known.
        at_random: what a random choice costs, by what it is among.
        lacking: a reason for each proxy that is not known.
        left_out: a line per configuration that was left out, and why.
        why_not: why nothing can be said; then there are no standings.
    """

    name: str
    rows: tuple[Row, ...] = ()
    scope: str = ""
    repeats: int = 0
    standings: tuple[Standing, ...] = ()
    at_random: Mapping[str, Choice] | None = None
    lacking: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()
    why_not: str | None = None


def panels(tables: Tables, asked: Asked) -> list[Panel]:
    """The proxies of every panel with a finished run.

    Args:
        tables: of the sweep.
        asked: the config's settings for estimates, whose watts are used.
    """
    cells = finished(tables.cells, "window_s_mean")
    if cells.is_empty():
        return []
    runs = _with_proxies(tables.runs, asked)
    comparisons = Comparisons(runs)
    return [_panel(name, part, comparisons, runs) for name, part in comparable_groups(cells)]


def _column(proxy: str) -> str:
    return f"proxy {proxy}"


def _quotient(proxy: str) -> str:
    return f"joules / {proxy}"


def _with_proxies(runs: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """The runs with a column for each proxy, and one for joules over it."""
    counted = pl.when(pl.col("energy_status") == "measured", pl.col("energy_doubt").is_null()).then("energy_j")
    runs = runs.with_columns(counted_j=counted)
    estimates = [_estimate(row, asked) for row in runs.iter_rows(named=True)]
    columns = {_column(name): proxy for name, proxy in PROXIES.items()}
    runs = runs.with_columns(pl.Series(_column(ESTIMATE), estimates, dtype=pl.Float64), **columns)
    names = [*PROXIES, ESTIMATE]
    return runs.with_columns(**{_quotient(name): pl.col("counted_j") / pl.col(_column(name)) for name in names})


def _estimate(row: Row, asked: Asked) -> float | None:
    """Joules of the processor as software estimates them, from CPU-seconds and published watts; None where unknown."""
    cpu_s, window_s, model, cores = (row[key] for key in ("cpu_s", "window_s", "cpu_model", "cpu_cores"))
    if None in (cpu_s, window_s, model, cores):
        return None
    return estimate_cpu(cpu_s, (row["nodes"] or 1) * window_s, model, cores, asked.cpu_watts).mid_j


def _panel(name: str, cells: pl.DataFrame, comparisons: Comparisons, runs: pl.DataFrame) -> Panel:
    counted = cells.filter(pl.col("energy_doubt").is_null(), energy_status="measured").drop_nulls("energy_j_mean")
    if counted.is_empty():
        return Panel(name=name, why_not=_why_uncounted(cells, runs))
    scope = str(counted["energy_scope"].mode(maintain_order=True)[0])
    same = counted.filter(energy_scope=scope)
    complete = same.filter(pl.col("num_ok") == pl.col("num_runs"))
    rows = (complete if len(complete) >= FEWEST else same).to_dicts()
    left_out = tuple(_left_out(cells, {key_of(row) for row in rows}, scope))
    told = Panel(
        name=name,
        rows=tuple(rows),
        scope=scope,
        repeats=min(row["num_ok"] for row in rows),
        left_out=left_out,
    )
    joules = comparisons.fit(name, "energy_j")
    if joules is None or len(rows) < FEWEST:
        few = f"joules were counted of {len(rows)} configuration{'s' if len(rows) > 1 else ''}, and {FEWEST} are needed"
        return replace(told, why_not=few)
    if joules.variance is None:
        once = "every configuration was measured once, so nothing tells the noise: set grid.repeats to 3 or more"
        return replace(told, why_not=once)
    standings, lacking = [], {}
    for proxy in [*PROXIES, ESTIMATE]:
        fits = _fits(proxy, name, rows, comparisons, joules)
        if fits is None:
            lacking[proxy] = LACKING.get(proxy, "it is not known of every configuration")
        else:
            standings.append(standing(proxy, fits, _sets(rows)))
    at_random = {key: choice(joules, among, among, 1) for key, among in _sets(rows).items()}
    return replace(told, standings=tuple(standings), at_random=at_random, lacking=lacking)


def _why_uncounted(cells: pl.DataFrame, runs: pl.DataFrame) -> str:
    """Why no configuration of a panel has joules that count."""
    if len(lines := doubtful(cells)):
        return f"the joules of every configuration are doubtful ({lines[0]})"
    if "integrated" in set(cells["energy_status"]):
        return "energy was integrated from power readings, not counted"
    reasons = runs.filter(pl.col("status") == "ok").drop_nulls("energy_reason")["energy_reason"].unique()
    why = f" ({sorted(reasons)[0]})" if len(reasons) else ""
    return f"no joule was measured{why}"


def _left_out(cells: pl.DataFrame, kept: set[Key], scope: str) -> list[str]:
    """A line for each configuration that is not compared."""
    lines = []
    for row in cells.to_dicts():
        if key_of(row) in kept:
            continue
        if row["energy_doubt"]:
            why = f"doubtful joules: {row['energy_doubt']}"
        elif row["energy_j_mean"] is None or row["energy_status"] != "measured":
            why = f"energy {row['energy_status'] or 'unavailable'}"
        elif row["energy_scope"] != scope:
            why = f"joules of {row['energy_scope']}, the others' are of {scope}"
        else:
            why = f"of its runs: {row['statuses']}"
        lines.append(f"{row['name']}: {why}")
    return lines


def _sets(rows: Sequence[Row]) -> dict[str, list[Key]]:
    """What a choice may be among: all, and those whose quality is within the margin, if that is a choice."""
    good = [key_of(row) for row in rows if row["quality_verdict"] == WITHIN]
    return {**({GOOD: good} if len(good) > 1 else {}), ALL: [key_of(row) for row in rows]}


def _fits(proxy: str, panel: str, rows: Sequence[Row], comparisons: Comparisons, joules: Fit) -> Fits | None:
    """The fits of a proxy; None if a configuration lacks it, or if it says what seconds say."""
    fit, quotient = (comparisons.fit(panel, name) for name in (_column(proxy), _quotient(proxy)))
    if fit is None or quotient is None or not all(key_of(row) in fit and key_of(row) in quotient for row in rows):
        return None
    if proxy == "time per token":
        seconds = comparisons.fit(panel, _column(SECONDS))
        assert seconds is not None
        apart = [fit.mean_of(key_of(row)) - seconds.mean_of(key_of(row)) for row in rows]
        if max(apart) - min(apart) < LEAST:
            return None
    return Fits(joules=joules, proxy=fit, quotient=quotient)
