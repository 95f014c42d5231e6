"""The ratios of two papers beside the sweep's, from `joulesweep.analyse.studies.published`."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies.published import Beside, Faster, greentrainer_ratios, rows, source, speed_ratios
from joulesweep.report import numbers
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 80
HEADINGS = {
    "Texts per second here": "text",
    "Pairs": "",
    "Smallest ratio": "",
    "Largest ratio": "",
    "Largest for": "text",
}


def section(results: Results) -> Section | None:
    """Methods and speeds beside the papers'; None if the sweep has neither."""
    methods, speeds = greentrainer_ratios(results.tables), speed_ratios(results.tables)
    if not methods and not speeds:
        return None
    html = filled(
        "published.html.j2",
        methods=_methods(methods) if methods else None,
        methods_source=source("greentrainer.csv"),
        speeds=table(HEADINGS, map(_speed, speeds), "Published speeds") if speeds else None,
        headlines=rows("maina.csv"),
        speeds_source=source("maina.csv"),
    )
    return Section(title="Beside the published figures", html=html)


def _methods(methods: list[Beside]) -> Markup:
    """The costs of methods relative to full training, without columns that would be empty or constant."""
    entries: dict[str, tuple[str, list[str | numbers.FormattedNumber]]] = {
        "Method": ("text", [row.method for row in methods]),
        "Otherwise": ("text", [row.name for row in methods]),
        "Published compute": ("", [_range(row.published.compute) for row in methods]),
        "Compute here, counted": ("", [_times(row.measured_compute) for row in methods]),
        "Published hours": ("", [_range(row.published.hours) for row in methods]),
        "Time here": ("", [_times(row.measured_time) for row in methods]),
        "Measured joules here": ("", [_times(row.measured_joules) for row in methods]),
        "Published settings": ("", [str(row.published.num_settings) for row in methods]),
    }
    if len({row.name for row in methods}) == 1:
        del entries["Otherwise"]
    if all(row.measured_joules is None for row in methods):
        del entries["Measured joules here"]
    headings = {heading: kind for heading, (kind, _) in entries.items()}
    return table(headings, zip(*(column for _, column in entries.values()), strict=True), "Published costs of methods")


def _speed(row: Faster) -> list[str | numbers.FormattedNumber]:
    return [row.words, str(row.num_pairs), _times(row.lowest), _times(row.highest), row.where]


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
