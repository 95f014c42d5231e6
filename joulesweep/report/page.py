"""Build the report: one HTML file that starts with the answer, opens from disk, and needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from joulesweep.analyse.tables import Tables
from joulesweep.core.errors import one_of
from joulesweep.report import charts, sections, theme
from joulesweep.report.badges import badges
from joulesweep.report.figure import Figure, Key
from joulesweep.report.markup import embedded, filled, vega
from joulesweep.report.results import Results

#: Legend's marks: SVG paths of Vega's shapes, 12 × 12.
PATHS = {
    "circle": "M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "square": "M1.5 1.5h9v9h-9z",
    "triangle-up": "M6 1l5 9.5h-10z",
    "diamond": "M6 0.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
    "cross": "M4.2 1h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    "triangle-down": "M6 11l5-9.5h-10z",
    "triangle-right": "M11 6l-9.5-5v10z",
    "triangle-left": "M1 6l9.5-5v10z",
}


def build(manifest: Mapping[str, Any], tables: Tables) -> str:
    """Render the report: every section with content, and its charts.

    Args:
        manifest: of the sweep.
        tables: of the sweep, from `aggregate`.

    Returns:
        A self-contained HTML page.

    Raises:
        LookupError: a chart names an unknown section.
    """
    results, of_section = Results(manifest, tables), charts.by_section()
    for section, names in of_section.items():
        if section not in sections.names():
            raise LookupError(f"{', '.join(names)}: {one_of('section', section, sections.names())}")
    parts = [(name, section, of_section.get(name, [])) for name, section in sections.made(results).items()]
    figures = {name: charts.draw(name, results) for _, _, drawn in parts for name in drawn}
    page = filled(
        "report.html.j2",
        sweep=manifest["sweep"],
        about=about(results),
        badges=badges(results),
        sections=[
            (name.replace("_", "-"), section, [(one, figures[one]) for one in drawn]) for name, section, drawn in parts
        ],
        legends={name: legend(figure.keys) for name, figure in figures.items() if figure.plots},
        views={name: views(figure) for name, figure in figures.items() if figure.plots},
        config=Markup(theme.themed(str(embedded({**theme.config(), "legend": legend_config()})))),
        bundle=vega() if any(figure.plots for figure in figures.values()) else "",
    )
    return str(page)


def about(results: Results) -> str:
    """What was swept, in a line: configurations, seeds, models, machines."""
    runs, cells = results.tables.runs, results.tables.cells["cell"].n_unique()
    repeats = runs["repeat"].n_unique()
    words = [
        ", ".join(runs["model"].unique(maintain_order=True)[:3])
        + " on "
        + ", ".join(runs["dataset"].unique(maintain_order=True)[:3]),
        f"{cells:,} configurations × {repeats} {'seed' if repeats == 1 else 'seeds'}",
        ", ".join(
            (
                runs["gpus"].drop_nulls().unique(maintain_order=True).to_list()
                or runs["cpu_model"].drop_nulls().unique(maintain_order=True).to_list()
            )[:3]
        ),
    ]
    return " · ".join(filter(None, words))


def legend_config() -> dict[str, Any]:
    """Legends of a page's plots: filled below them; colours and shapes that filter have buttons instead."""
    return {**theme.config()["legend"], "orient": "bottom"}


def legend(keys: Sequence[Key]) -> dict[str, list[dict[str, str]]]:
    """The buttons of a legend, by the axis that they are about."""
    groups: dict[str, list[dict[str, str]]] = {}
    for key in keys:
        colour = theme.VARIABLES[key.colour] if key.colour else "chart-ink"
        groups.setdefault(key.axis, []).append(
            {"value": key.value, "label": key.label, "colour": colour, "path": PATHS[key.shape or "circle"]}
        )
    return groups


def views(figure: Figure) -> Markup:
    """The plots of a figure as JSON for a script element."""
    return Markup("[" + ",".join(view.replace("<", "\\u003c") for view in figure.views()) + "]")
