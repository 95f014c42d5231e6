"""Charts of a sweep: one file per chart, found by its name.

A chart is a module `joulesweep/charts/<name>.py` with

* a docstring, which is its caption in Snakemake's report;
* `draw(tables)`: an Altair chart; `theme.empty` says why there is nothing to draw;
* perhaps `PLACE`: charts with a lower one come first, those without one last;
* perhaps `SECTION`: the section of the report that it opens, without it, `charts`. It is left out where
  the section is.

Nothing else needs to be edited. Names and captions are known without importing Altair.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulesweep.tables import Tables
    from joulesweep.theme import Chart

LAST = 1000  # the place of a chart without one


def names() -> list[str]:
    """Every chart there is, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def caption(name: str) -> str:
    """What a chart shows, in sentences: its file's docstring."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def load(name: str) -> ModuleType:
    """Import one chart's module."""
    return importlib.import_module(f"joulesweep.charts.{name}")


def draw(name: str, tables: Tables) -> Chart:
    """Draw one chart."""
    return load(name).draw(tables)


def by_section() -> dict[str, list[str]]:
    """The charts of each section of the report, in the order in which they are shown."""
    sections: dict[str, list[str]] = {}
    for name in sorted(names(), key=lambda name: getattr(load(name), "PLACE", LAST)):
        sections.setdefault(getattr(load(name), "SECTION", "charts"), []).append(name)
    return sections


def save_all(tables: Tables, folder: Path) -> None:
    """Write every chart as `<name>.svg`, as `<name>.html` that needs no network, and its caption as `<name>.rst`."""
    folder.mkdir(parents=True, exist_ok=True)
    actions = {"export": True, "source": False, "compiled": False, "editor": False}
    for name in names():
        chart = draw(name, tables)
        chart.save(folder / f"{name}.svg")
        chart.save(folder / f"{name}.html", inline=True, embed_options={"renderer": "svg", "actions": actions})
        (folder / f"{name}.rst").write_text(caption(name) + "\n", encoding="utf-8")
