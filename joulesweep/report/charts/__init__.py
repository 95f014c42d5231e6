"""Charts of a sweep: one file per chart, discovered by name.

A chart is a module `joulesweep/report/charts/<name>.py` with

* a docstring, which is its caption in Snakemake's report;
* `draw(results)`: a `Figure`; `figure.nothing` says why there is nothing to draw;
* `SECTION`: the section of the report that shows the chart. If the report omits that section, it omits the chart;
* optionally `PLACE`: charts with a lower one come first, those without one last.

No other file needs an edit. Names and captions are available without importing Altair.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulesweep.report.figure import Figure
    from joulesweep.report.results import Results

LAST = 1000  # PLACE of a chart without one


def names() -> list[str]:
    """The names of all charts, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def caption(name: str) -> str:
    """A chart's caption: the docstring of its file."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def load(name: str) -> ModuleType:
    """Import one chart's module."""
    return importlib.import_module(f"joulesweep.report.charts.{name}")


def draw(name: str, results: Results) -> Figure:
    """Draw one chart."""
    figure: Figure = load(name).draw(results)
    return figure


def by_section() -> dict[str, list[str]]:
    """The charts of each section of the report, in the order of the page."""
    sections: dict[str, list[str]] = {}
    for name in sorted(names(), key=lambda name: getattr(load(name), "PLACE", LAST)):
        sections.setdefault(load(name).SECTION, []).append(name)
    return sections


def save_all(results: Results, folder: Path) -> None:
    """Write every chart as `<name>.svg` and as self-contained `<name>.html`, and its caption as `<name>.rst`."""
    from joulesweep.report import markup

    folder.mkdir(parents=True, exist_ok=True)
    for name in names():
        figure = draw(name, results)
        spec = figure.whole().to_dict()
        (folder / f"{name}.svg").write_text(markup.svg(spec), encoding="utf-8")
        page = markup.filled("chart.html.j2", title=figure.title, spec=markup.embedded(spec), bundle=markup.vega())
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
        (folder / f"{name}.rst").write_text(caption(name) + "\n", encoding="utf-8")
