"""The first line of the page: whether joules were measured, and what became of the runs."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from joulesweep.report.chart_parts import some
from joulesweep.report.results import Results

#: Outcomes in words, for a number of configurations or runs.
OUTCOMES = {
    "oom": "out of memory",
    "diverged": "diverged",
    "unsupported": "unsupported here",
    "timeout": "timed out",
    "missing": "not done yet",
    "unreadable": "with an unreadable record",
}


class Badge(NamedTuple):
    """A short statement.

    Attributes:
        text: the statement.
        good: whether nothing about it asks for the reader's care.
    """

    text: str
    good: bool


def badges(results: Results) -> list[Badge]:
    """The statements about a sweep, the good ones first."""
    runs = results.tables.runs
    made = [_energy(runs), Badge(f"{results.num_ok} of {results.num_runs} runs ok", results.num_ok == results.num_runs)]
    made += [_outcome(status, runs.filter(status=status)) for status in OUTCOMES if status in set(runs["status"])]
    flagged = runs.drop_nulls("flags").select(pl.col("flags").str.split(", ")).explode("flags")["flags"]
    counts = flagged.value_counts(sort=True).rows()
    made += [Badge(f"{number} {_runs(number)} {flag.replace('_', ' ')}", False) for flag, number in counts[:3]]
    if len(counts) > 3:
        made.append(Badge(f"{len(counts) - 3} more kinds of flag", False))
    return sorted(made, key=lambda badge: not badge.good)


def _energy(runs: pl.DataFrame) -> Badge:
    ok = runs.filter(pl.col("status") == "ok")
    if ok.is_empty():
        return Badge("no run finished", False)
    statuses = dict(ok["energy_status"].value_counts(sort=True).rows())
    doubtful = ok["energy_doubt"].count()
    if doubtful:
        return Badge(f"joules of {doubtful} {_runs(doubtful)} are doubtful", False)
    if set(statuses) == {"measured"}:
        return Badge(f"all joules measured ({some(ok['energy_scope'].unique(maintain_order=True).to_list())})", True)
    if "measured" not in statuses:
        word = "integrated from power readings" if "integrated" in statuses else "not measured"
        return Badge(f"energy {word}", False)
    return Badge(f"joules measured in {statuses['measured']} of {ok.height} runs", False)


def _outcome(status: str, runs: pl.DataFrame) -> Badge:
    """How many runs ended so, and in which configurations."""
    names = runs["name"].unique(maintain_order=True).to_list()
    return Badge(f"{runs.height} {_runs(runs.height)} {OUTCOMES[status]}: {some(names, 2)}", False)


def _runs(number: int) -> str:
    return "run" if number == 1 else "runs"
