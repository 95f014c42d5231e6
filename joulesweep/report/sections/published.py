"""The ratios of two papers beside the sweep's, from `joulesweep.analyse.studies.published`."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies.published import Beside, Compared, claimed_ratios, greentrainer_ratios, rows, source
from joulesweep.report import numbers
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 80


def section(results: Results) -> Section | None:
    """Methods and claims beside the papers'; None if the sweep has neither."""
    methods, claims = greentrainer_ratios(results.tables, results.comparisons), claimed_ratios(results.tables)
    if not methods and not claims:
        return None
    html = filled(
        "published.html.j2",
        methods=_methods(methods) if methods else None,
        methods_source=source("greentrainer.csv"),
        claims=_claims(claims) if claims else None,
        claims_source=source("maina.csv"),
    )
    return Section(title="Beside the published figures", short="Published", html=html)


def _methods(methods: list[Beside]) -> Markup:
    """The costs of methods relative to full training, a row each, without columns that would be empty."""
    headings = {"Method": "text", "Published compute": "", "Compute here": "", "Published hours": "", "Time here": ""}
    joules = any(row.measured_joules for row in methods)
    headings |= {"Measured joules here": ""} if joules else {}
    headings |= {"Published settings": ""}
    by_method: dict[str, list[Beside]] = {}
    for row in methods:
        by_method.setdefault(row.method, []).append(row)
    lines: list[list[str | numbers.FormattedNumber]] = [
        [
            method,
            _range(same[0].published.compute),
            _over([row.measured_compute for row in same]),
            _range(same[0].published.hours),
            _over([row.measured_time for row in same]),
            *([_over([row.measured_joules for row in same])] if joules else []),
            str(same[0].published.num_settings),
        ]
        for method, same in by_method.items()
    ]
    return table(headings, lines, "Published costs of methods")


def _claims(compared: list[Compared]) -> Markup:
    """A row for each claim, a column for each comparison that the sweep has pairs for."""
    words = list(dict.fromkeys(one.words for one in compared))
    by_place = {(one.claim, one.words): one for one in compared}
    lines: list[list[str | numbers.FormattedNumber]] = [
        [
            claim["quantity"],
            (claim["figure"], f"{claim['status']}, {claim['source']}"),
            *(_pairs(by_place.get((claim["quantity"], word))) for word in words),
        ]
        for claim in rows("maina.csv")
    ]
    return table({"Claim": "text", "Published": "text", **dict.fromkeys(words, "")}, lines, "Published claims")


def _pairs(one: Compared | None) -> numbers.FormattedNumber:
    """The smallest and the largest ratio over pairs; the interval if there is one pair."""
    if one is None:
        return numbers.ABSENT
    if one.num_pairs == 1:
        return _times(one.lowest)
    return f"{one.lowest.ratio:#.3g} to {one.highest.ratio:#.3g}×", f"{one.num_pairs} pairs"


def _over(ratios: list[Ratio | None]) -> numbers.FormattedNumber:
    """The smallest and the largest of several ratios; a single one with its interval."""
    known = sorted(ratio.ratio for ratio in ratios if ratio is not None)
    if len(known) < 2:
        return _times(next((ratio for ratio in ratios if ratio is not None), None))
    return f"{known[0]:#.3g} to {known[-1]:#.3g}×", f"{len(known)} settings"


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.2f}" for end in ends)
    return f"{low}×" if low == high else f"{low} to {high}×"


def _times(ratio: Ratio | None) -> numbers.FormattedNumber:
    """A ratio with its interval and the number of pairs."""
    if ratio is None:
        return numbers.ABSENT
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:#.3g}×", ratio.verdict
    return f"{ratio.ratio:#.3g}×", f"[{ratio.low:#.3g}, {ratio.high:#.3g}], n={ratio.n}"
