"""The guides to a chart, a study and a column, walked through on a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import synthetic
import tiny_run

from joulesweep import aggregate, tables

GUIDES = tiny_run.REPOSITORY / "docs" / "how-to" / "extend"


def example(guide: str, number: int = 0) -> str:
    """A Python example of a guide."""
    text = (GUIDES / guide).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[number]


class Copy:
    """A copy of the package and its scripts that a stranger edits, and a sweep beside it."""

    def __init__(self, folder):
        self.folder = folder / "copy"
        for name in ("joulesweep", "scripts", "resources"):
            source = tiny_run.REPOSITORY / name
            ignored = shutil.ignore_patterns("__pycache__", "models", "datasets", "tokens")
            shutil.copytree(source, self.folder / name, ignore=ignored)
        self.grid, runs = synthetic.write_sweep(folder / "sweep", synthetic.raw_config())
        self.sweep = folder / "sweep"
        tables.write(aggregate.aggregate(self.grid, runs), self.sweep / "tables")

    def add(self, path, text):
        (self.folder / path).write_text(text, encoding="utf-8")

    def python(self, *arguments):
        environ = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def digests(self):
        scripts = ("grid", "fetch_model", "fetch_dataset", "tokenise", "train", "aggregate", "charts", "report")
        code = f"from joulesweep.digest import code_digest\nfor one in {scripts}: print(code_digest('scripts.' + one))"
        return dict(zip(scripts, self.python("-c", code).split(), strict=True))

    def report(self):
        inputs = ["--grid", str(self.sweep / "grid.json"), "--tables", str(self.sweep / "tables")]
        self.python("-m", "scripts.report", *inputs, "--output", str(self.sweep / "report.html"))
        return (self.sweep / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def test_a_chart_is_one_file(copy):
    before = copy.digests()
    copy.add("joulesweep/charts/startup.py", example("chart.md"))
    stale = {name for name, value in copy.digests().items() if value != before[name]}
    assert stale == {"charts", "report"}
    listed = "import sys; from joulesweep import charts; print(*charts.names()); assert 'altair' not in sys.modules"
    assert "startup" in copy.python("-c", listed).split()
    folder = copy.sweep / "charts"
    copy.python("-m", "scripts.charts", "--tables", str(copy.sweep / "tables"), "--output", str(folder))
    assert (folder / "startup.svg").read_text().startswith("<svg") and (folder / "startup.html").exists()
    assert (folder / "startup.rst").read_text().startswith("Seconds before the first step, by configuration.\n\nLo")
    drawn = re.findall(r'id="chart-(\w+)"', copy.report())
    assert drawn == ["pareto", "energy", "speedup", "loss", "memory", "startup", "power"]


def test_an_edited_chart_makes_charts_and_report_stale(copy):
    path = copy.folder / "joulesweep/charts/tensors.py"
    before = copy.digests()
    path.write_text(path.read_text(encoding="utf-8").replace("width=240", "width=250"), encoding="utf-8")
    assert {name for name, value in copy.digests().items() if value != before[name]} == {"charts", "report"}
