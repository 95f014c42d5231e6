"""Exports of a sweep: files for papers, spreadsheets and other tools, in `results/<sweep>/exports/`.

An export is a module `joulesweep/report/exports/<name>.py` with `contents(results)`: the content of each of its files
in `FILES`, as text, or as bytes of a binary file. Charts are exported beside them. `names` imports no such module, so
that the Snakefile can ask for it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from joulesweep.analyse.columns import TABLES
from joulesweep.core import files
from joulesweep.report import charts

if TYPE_CHECKING:
    from joulesweep.report.sections import Results

#: Its power table has a row per reading: by far the most, and the file is compressed.
COMPRESSED = ("power",)
#: What each module writes; of `data` also a file per table.
FILES = {
    "data": ("columns.csv", "columns.md", *(f"tables/{name}.csv" + ".gz" * (name in COMPRESSED) for name in TABLES)),
    "paper": ("cells.csv", "cells.tex"),
    "emissions": ("emissions.csv", "emissions-estimated.csv"),
}


def names() -> list[str]:
    """The names of all files that `save_all` writes into the folder of exports."""
    drawn = [f"charts/{name}.{kind}" for name in charts.names() for kind in ("png", "json")]
    return [*(file for made in FILES.values() for file in made), *drawn]


def save_all(results: Results, runs_folder: Path, charts_folder: Path, folder: Path) -> None:
    """Write every export, and a card and a passport into the folder of each kept model.

    Args:
        results: of the sweep.
        runs_folder: with a folder per run.
        charts_folder: with the charts as SVG.
        folder: where the exports go.
    """
    for module, named in FILES.items():
        contents = importlib.import_module(f"joulesweep.report.exports.{module}").contents(results)
        for name in named:
            content = contents[name]
            files.write_bytes(folder / name, content if isinstance(content, bytes) else content.encode())
    _save_charts(results, charts_folder, folder / "charts")
    importlib.import_module("joulesweep.report.exports.cards").save_all(results, runs_folder)


def _save_charts(results: Results, charts_folder: Path, folder: Path) -> None:
    """Write each chart as PNG, at twice the size of its SVG, and as Vega-Lite JSON with its data."""
    import vl_convert

    for name in charts.names():
        svg = (charts_folder / f"{name}.svg").read_text(encoding="utf-8")
        files.write_bytes(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))
        files.write_json(folder / f"{name}.json", charts.draw(name, results.tables).to_dict())
