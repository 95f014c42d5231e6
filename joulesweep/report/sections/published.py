"""What two papers published beside what the sweep measured: `joulesweep.analyse.studies.published` in words."""

from __future__ import annotations

from markupsafe import Markup

from joulesweep.analyse.statistics import Ratio
from joulesweep.analyse.studies.published import Beside, Faster, beside, faster, rows, source
from joulesweep.report import numbers
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 50
HEADINGS = {
    "Texts per second here": "text",
    "Pairs": "",
    "Smallest ratio": "",
    "Largest ratio": "",
    "Largest for": "text",
}


def section(results: Results) -> Section | None:
    """Methods and speeds beside the papers'; None where the sweep has neither."""
    methods, speeds = beside(results.tables), faster(results.tables)
    if not methods and not speeds:
        return None
    html = filled(
        "published.html.j2",
        methods=_methods(methods) if methods else None,
        methods_source=source("greentrainer.csv"),
        speeds=table(HEADINGS, map(_speed, speeds)) if speeds else None,
        headlines=rows("maina.csv"),
        speeds_source=source("maina.csv"),
    )
    return Section(title="Beside the published figures", html=html)


def _methods(methods: list[Beside]) -> Markup:
    """The costs of methods over full training's; joules and what the cells share only where they tell something."""
    entries: dict[str, tuple[str, list[str | numbers.Words]]] = {
        "Method": ("text", [one.method for one in methods]),
        "Otherwise": ("text", [one.name for one in methods]),
        "Published compute": ("", [_range(one.published.compute) for one in methods]),
        "Compute here, counted": ("", [_times(one.measured_compute) for one in methods]),
        "Published hours": ("", [_range(one.published.hours) for one in methods]),
        "Time here": ("", [_times(one.measured_time) for one in methods]),
        "Measured joules here": ("", [_times(one.measured_joules) for one in methods]),
        "Published settings": ("", [str(one.published.num_settings) for one in methods]),
    }
    if len({one.name for one in methods}) == 1:
        del entries["Otherwise"]
    if all(one.measured_joules is None for one in methods):
        del entries["Measured joules here"]
    headings = {heading: kind for heading, (kind, _) in entries.items()}
    return table(headings, zip(*(column for _, column in entries.values()), strict=True))


def _speed(row: Faster) -> list[str | numbers.Words]:
    return [row.words, str(row.num_pairs), _times(row.lowest), _times(row.highest), row.where]


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.2f}" for end in ends)
    return f"{low}×" if low == high else f"{low} to {high}×"


def _times(ratio: Ratio | None) -> numbers.Words:
    """A ratio, and its interval with the number of pairs."""
    if ratio is None:
        return numbers.ABSENT
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:#.3g}×", ratio.verdict
    return f"{ratio.ratio:#.3g}×", f"[{ratio.low:#.3g}, {ratio.high:#.3g}], n={ratio.n}"
