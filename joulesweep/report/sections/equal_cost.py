"""The validation losses of methods at equal cost, from `joulesweep.analyse.studies.equal_cost`."""

from __future__ import annotations

from typing import Any

from joulesweep.analyse.statistics import NO_DIFFERENCE, NO_INTERVAL, Difference
from joulesweep.analyse.studies.equal_cost import EqualCost, Pair, comparisons
from joulesweep.core.quantities import one, signed
from joulesweep.report import numbers
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 50
HEADINGS = {
    "Method A": "text",
    "Method B": "text",
    "At a cost of": "",
    "Loss of A": "",
    "Loss of B": "",
    "A − B": "",
    "n": "",
    "Shown": "text",
}
VERDICTS = {"lower": "A lower", "higher": "B lower", NO_INTERVAL: "–"}


def section(results: Results) -> Section | None:
    """The comparisons; None if no two methods are comparable."""
    parts = [_worded(comparison) for comparison in comparisons(results.tables)]
    return Section(title="At equal cost", html=filled("equal_cost.html.j2", parts=parts)) if parts else None


def _worded(comparison: EqualCost) -> dict[str, Any]:
    """The comparisons of one set of methods, as text."""
    scope = f"joules, scope {comparison.scope}"
    return {
        "name": comparison.name,
        "cost": {"cpu_s": "CPU-seconds", "elapsed_s": "seconds"}.get(comparison.by, scope),
        "unranked": comparison.unranked,
        "sentences": comparison.sentences,
        "table": table(
            HEADINGS,
            [_row(pair, "J" if comparison.by == "energy_j" else "s") for pair in comparison.pairs],
            f"At equal cost: {comparison.name}",
        ),
    }


def _row(pair: Pair, unit: str) -> list[str | numbers.FormattedNumber]:
    losses = (f"{loss:.3f}" for loss in (pair.loss_a, pair.loss_b))
    verdict = VERDICTS.get(pair.difference.verdict, NO_DIFFERENCE)
    return [
        *(pair.a, pair.b, one(pair.cost, unit), *losses),
        *(_signed(pair.difference), str(pair.difference.n), verdict),
    ]


def _signed(difference: Difference) -> numbers.FormattedNumber:
    """A difference of losses and its interval, with signs, to as many decimals as the losses."""
    ends = (difference.mean, difference.low, difference.high)
    mean, *interval = (signed(value, 3) for value in ends if value is not None)
    return mean, f"[{', '.join(interval)}]" if interval else difference.verdict
