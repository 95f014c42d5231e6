"""Write a sweep's exports."""

from __future__ import annotations

import math
import re
from pathlib import Path

import vl_convert

from joulesweep.core import files
from joulesweep.report import charts
from joulesweep.report.exports import FILES, cards, data, emissions, paper
from joulesweep.report.results import Results

#: Of a PNG: a viewer needs 4 bytes for each.
MOST_PIXELS = 40e6


def save_all(results: Results, runs_folder: Path, charts_folder: Path, folder: Path) -> None:
    """Write every export, and a card and a passport into the folder of each kept model.

    Args:
        results: of the sweep.
        runs_folder: with a folder per run.
        charts_folder: with the charts as SVG.
        folder: where the exports go.
    """
    contents = {**data.contents(results), **paper.contents(results), **emissions.contents(results)}
    for name in FILES:
        content = contents[name]
        files.write_bytes(folder / name, content if isinstance(content, bytes) else content.encode())
    _save_charts(results, charts_folder, folder / "charts")
    cards.save_all(results, runs_folder)


def _save_charts(results: Results, charts_folder: Path, folder: Path) -> None:
    """Write each chart as PNG, and as Vega-Lite JSON with its data."""
    for name in charts.names():
        svg = (charts_folder / f"{name}.svg").read_text(encoding="utf-8")
        files.write_bytes(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=_scale(svg)))
        files.write_json(folder / f"{name}.json", charts.draw(name, results).whole().to_dict())


def _scale(svg: str) -> float:
    """How much larger than its SVG a PNG is: twice, but at most `MOST_PIXELS`."""
    width, height = re.findall(r' (?:width|height)="([\d.]+)', svg)[:2]
    return min(2.0, math.sqrt(MOST_PIXELS / (float(width) * float(height))))
