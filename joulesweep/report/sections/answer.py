"""What to use: a sentence, a card for each recommendation, and how sure it is."""

from __future__ import annotations

from typing import Any

from joulesweep.analyse.comparisons import memory_quantity
from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies.decision import Decision, Pick, configuration, sentence
from joulesweep.analyse.studies.payback import payback, words
from joulesweep.analyse.tables import Row
from joulesweep.core import quantities
from joulesweep.report import numbers
from joulesweep.report.chart_parts import some
from joulesweep.report.markup import filled
from joulesweep.report.numbers import change_with_interval
from joulesweep.report.sections import Results, Section

PLACE = 10


def section(results: Results) -> Section:
    """The answer of each set of comparable configurations; one table of all first if there are several."""
    html = filled(
        "answer.html.j2",
        decisions=[_worded(decision, results) for decision in results.decisions],
        why=results.why_empty,
        unfinished=_unfinished(results),
    )
    return Section(title="Which configuration, and what does it cost?", short="Answer", html=html)


def _unfinished(results: Results) -> str | None:
    """What may still change the answer: runs that are to be done. What ran out of memory or diverged is an outcome."""
    counts = dict(results.tables.runs["status"].value_counts().rows())
    open_runs = {status: counts[status] for status in ("missing", "unreadable") if status in counts}
    if not open_runs:
        return None
    return f"{sum(open_runs.values())} of {results.num_runs} runs are not done yet: the answer may change."


def _worded(decision: Decision, results: Results) -> dict[str, Any]:
    """An answer in words and cards."""
    return {
        "panel": decision.panel,
        "sentence": sentence(decision),
        "cards": [_card(pick, decision, results) for pick in decision.picks],
        "row": _summary(decision, results),
        "payback": _payback(decision, results),
        "sure": decision.sure,
        "resolved": _resolved(decision),
        "settle": decision.settle,
        "baseline": decision.baseline["name"],
        "baseline_why": decision.baseline_why,
        "unranked": decision.unranked,
        "doubtful": some(decision.doubtful),
        "verdicts": decision.verdicts if decision.told else {},
        "margin": f"{100 * decision.margin:g} %",
        "ties": some(decision.ties),
    }


def _payback(decision: Decision, results: Results) -> str | None:
    """When the sweep is paid back, if it has one set of comparable configurations."""
    paid = payback(decision, results.spent) if len(results.decisions) == 1 else None
    return None if paid is None else words(paid, quantities.one(paid.spent, paid.unit))


def _card(pick: Pick, decision: Decision, results: Results) -> dict[str, Any]:
    row = pick.row
    cost = numbers.joules(row)[0] if row["energy_j_mean"] is not None else quantities.one(row["window_s_mean"], "s")
    lines = [("time", quantities.one(row["window_s_mean"], "s"), _told(pick.ratios["time"]))]
    if decision.by == "window_s" and row["energy_j_mean"] is None:
        lines = []
    lines.append((f"{_memory_place(row)} memory", numbers.memory(row)[0], _told(pick.ratios["memory"])))
    lines += _footprint(row, results)
    return {
        "role": ", ".join(pick.roles),
        "words": configuration(row),
        "name": row["name"],
        "cost": cost,
        "of": _of(row),
        "saving": _told(pick.ratios["energy" if row["energy_j_mean"] is not None else "time"]),
        "lines": lines,
        "above": numbers.above_best(row)[0],
        "verdict": row["quality_verdict"],
        "flags": row["flags"],
    }


def _of(row: Row) -> str:
    """What the largest number of a card is."""
    if row["energy_j_mean"] is None:
        return "time"
    return f"{'' if row['energy_status'] == 'measured' else row['energy_status'] + ' '}energy ({row['energy_scope']})"


def _footprint(row: Row, results: Results) -> list[tuple[str, str, str]]:
    """Emissions and cost; estimated joules and their emissions where none were read."""
    currency = (results.factors.currency if results.factors else None) or ""
    lines = []
    for label, quantity, unit in (("CO2e", "co2e_g", "g"), ("cost", "cost", currency)):
        if row[f"{quantity}_mean"] is not None:
            lines.append((label, quantities.one(row[f"{quantity}_mean"], unit), ""))
    if row["energy_j_mean"] is None and row["estimated_energy_j"] is not None:
        lines.append(("energy, a guess", *numbers.estimated_joules(row)))
    if row["energy_j_mean"] is None and row["estimated_co2e_g"] is not None:
        lines.append(("CO2e, a guess", *numbers.estimated_co2e(row)))
    return lines


def _memory_place(row: Row) -> str:
    return "host" if memory_quantity(row) == "peak_host_rss_bytes" else "GPU"


def _told(ratio: Ratio | None) -> str:
    return "" if ratio is None else change_with_interval(ratio.ratio, ratio.low, ratio.high)


def _summary(decision: Decision, results: Results) -> list[str | numbers.FormattedNumber]:
    """The row of the table over all sets of configurations."""
    if not decision.picks:
        return [decision.panel, "none yet", "–", "–", "–", "–"]
    pick = decision.picks[0]
    return [
        decision.panel,
        configuration(pick.row),
        numbers.joules(pick.row),
        _told(pick.ratios["energy" if decision.by == "energy_j" else "time"]) or "–",
        quantities.one(pick.row["window_s_mean"], "s"),
        numbers.above_best(pick.row),
    ]


def _resolved(decision: Decision) -> str:
    """What the sweep can tell apart."""
    told = decision.resolution
    if told is None:
        return "One repeat cannot tell a difference from chance: no interval, no verdict."
    cost, quality = "energy" if decision.by == "energy_j" else "time", decision.measure.removeprefix("validation_")
    halves = ((told.quality, quality.replace("_", " ")), (told.cost, cost))
    parts = [f"±{quantities.percent(half)} % of {word}" for half, word in halves if half]
    return f"With {told.repeats} seeds this sweep resolves {' and '.join(parts)}." if parts else ""
