"""Exports of a sweep: files for papers, spreadsheets and other tools, in `results/<sweep>/exports/`.

Their names are known without importing a module that makes them, so that the Snakefile can ask for them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from joulesweep.analyse.columns import TABLES
from joulesweep.core import files
from joulesweep.report import charts

if TYPE_CHECKING:
    from joulesweep.report.sections import Results

#: Its power table has a row per reading: by far the most, and the file is compressed.
COMPRESSED = ("power",)
#: Of a PNG: a viewer needs 4 bytes for each.
MOST_PIXELS = 40e6
#: The files of the modules `data`, `paper` and `emissions`.
FILES = (
    *("columns.csv", "columns.md", "cells.csv", "cells.tex", "effects.tex", "emissions.csv", "emissions-estimated.csv"),
    *(f"tables/{name}.csv" + ".gz" * (name in COMPRESSED) for name in TABLES),
)


def names() -> list[str]:
    """The names of all files that `save_all` writes into the folder of exports."""
    drawn = [f"charts/{name}.{kind}" for name in charts.names() for kind in ("png", "json")]
    return [*FILES, *drawn]


def save_all(results: Results, runs_folder: Path, charts_folder: Path, folder: Path) -> None:
    """Write every export, and a card and a passport into the folder of each kept model.

    Args:
        results: of the sweep.
        runs_folder: with a folder per run.
        charts_folder: with the charts as SVG.
        folder: where the exports go.
    """
    from joulesweep.report.exports import cards, data, emissions, paper

    contents = {**data.contents(results), **paper.contents(results), **emissions.contents(results)}
    for name in FILES:
        content = contents[name]
        files.write_bytes(folder / name, content if isinstance(content, bytes) else content.encode())
    _save_charts(results, charts_folder, folder / "charts")
    cards.save_all(results, runs_folder)


def _save_charts(results: Results, charts_folder: Path, folder: Path) -> None:
    """Write each chart as PNG, and as Vega-Lite JSON with its data."""
    import vl_convert

    for name in charts.names():
        svg = (charts_folder / f"{name}.svg").read_text(encoding="utf-8")
        files.write_bytes(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=_scale(svg)))
        files.write_json(folder / f"{name}.json", charts.draw(name, results.tables).to_dict())


def _scale(svg: str) -> float:
    """How much larger than its SVG a PNG is: twice, but at most `MOST_PIXELS`."""
    width, height = re.findall(r' (?:width|height)="([\d.]+)', svg)[:2]
    return min(2.0, math.sqrt(MOST_PIXELS / (float(width) * float(height))))
