"""Exports of a sweep: files for papers, spreadsheets and other tools, in `results/<sweep>/exports/`.

Their names are known without importing a module that makes them, so that the Snakefile can ask for them.
"""

from __future__ import annotations

from joulesweep.analyse.columns import TABLES
from joulesweep.report import charts

#: Its power table has a row per reading: by far the most, and the file is compressed.
COMPRESSED = ("power",)
#: The files of the modules `data`, `paper` and `emissions`.
FILES = (
    *("columns.csv", "columns.md", "cells.csv", "cells.tex", "effects.tex", "emissions.csv", "emissions-estimated.csv"),
    *(f"tables/{name}.csv" + ".gz" * (name in COMPRESSED) for name in TABLES),
)


def names() -> list[str]:
    """The names of all files that `writing.save_all` writes into the folder of exports."""
    drawn = [f"charts/{name}.{kind}" for name in charts.names() for kind in ("png", "json")]
    return [*FILES, *drawn]
