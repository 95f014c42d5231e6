"""The guides to a chart, a study and a column, walked through on a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import synthetic
import tiny_run

from joulesweep.analyse import tables

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
        self.sweep = folder / "sweep"
        synthetic.write_sweep(self.sweep, synthetic.raw_config())
        self.aggregate()

    def add(self, path, text):
        (self.folder / path).write_text(text, encoding="utf-8")

    def edit(self, path, old, new):
        text = (self.folder / path).read_text(encoding="utf-8")
        assert old in text
        self.add(path, text.replace(old, new, 1))

    def aggregate(self):
        inputs = ["--grid", str(self.sweep / "grid.json"), "--runs", str(self.sweep / "runs")]
        self.python("-m", "scripts.aggregate", *inputs, "--output", str(self.sweep / "tables"))

    def python(self, *arguments):
        environ = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def digests(self):
        scripts = ("grid", "fetch_model", "fetch_dataset", "tokenise", "train", "aggregate", "charts", "report")
        code = "from joulesweep.plan.staleness import code_digest\n"
        code += f"for one in {scripts}: print(code_digest('scripts.' + one))"
        return dict(zip(scripts, self.python("-c", code).split(), strict=True))

    def report(self):
        inputs = ["--grid", str(self.sweep / "grid.json"), "--tables", str(self.sweep / "tables")]
        self.python("-m", "scripts.report", *inputs, "--output", str(self.sweep / "report.html"))
        return (self.sweep / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


@pytest.mark.slow
def test_a_chart_is_one_file(copy):
    before = copy.digests()
    copy.add("joulesweep/report/charts/startup.py", example("chart.md"))
    stale = {name for name, value in copy.digests().items() if value != before[name]}
    assert stale == {"charts", "report"}
    listed = (
        "import sys; from joulesweep.report import charts; print(*charts.names()); assert 'altair' not in sys.modules"
    )
    assert "startup" in copy.python("-c", listed).split()
    folder = copy.sweep / "charts"
    copy.python(
        "-m",
        "scripts.charts",
        "--grid",
        str(copy.sweep / "grid.json"),
        "--tables",
        str(copy.sweep / "tables"),
        "--output",
        str(folder),
    )
    assert (folder / "startup.svg").read_text().startswith("<svg") and (folder / "startup.html").exists()
    assert (folder / "startup.rst").read_text().startswith("Seconds before the first step, by configuration.\n\nLo")
    drawn = re.findall(r'id="figure-(\w+)"', copy.report())
    assert drawn == ["quality", "ladder", "effects", "loss", "startup"]


@pytest.mark.slow
def test_an_edited_chart_makes_charts_and_report_stale(copy):
    before = copy.digests()
    copy.edit("joulesweep/report/charts/tensors.py", "MAX_PLOTS = 12", "MAX_PLOTS = 13")
    assert {name for name, value in copy.digests().items() if value != before[name]} == {"charts", "report"}


@pytest.mark.slow
def test_a_study_is_one_file(copy):
    copy.add("joulesweep/studies/steady.py", example("study.md"))
    told = copy.python("-m", "joulesweep.cli.main", "study", "steady", str(copy.sweep))
    assert re.match(r"Repeats of \S+ \S+ bs\d+ spread most, by [\d.]+ % \(standard deviation, n = 3\)\.\n", told)
    assert "Do repeats of a configuration take the same time?" in copy.python("-m", "joulesweep.cli.main", "study")


@pytest.mark.slow
def test_a_section_is_one_file(copy):
    before, page = copy.digests(), copy.report()
    copy.add("joulesweep/report/sections/steadiness.py", example("study.md", 1))
    assert {name for name, value in copy.digests().items() if value != before[name]} == {"report"}
    sections = re.findall(r'<section id="([\w-]+)"', after := copy.report())
    assert sections == [
        *("answer", "quality", "ladder", "effects", "budget", "configurations", "steadiness", "training"),
        *("conditions", "plan", "provenance"),
    ]
    begin, end = after.index('<section id="steadiness"'), after.index('<section id="training"')
    link = '<li><a href="#steadiness">Spread of repeats</a></li>\n'
    assert (after[:begin] + after[end:]).replace(link, "") == page, "nothing else changed"
    own = after[begin:end]
    assert 'id="steadiness-title">Spread of repeats</h2>' in own and own.count("<tr>") == 1 + 8
    assert re.search(r'<th scope="row" class="text">ddp2 fp32 bs32</th><td>[\d.]+ %</td><td>3</td>', own)


@pytest.mark.slow
def test_a_chart_may_open_the_section_of_a_study(copy):
    copy.add("joulesweep/report/sections/steadiness.py", example("study.md", 1))
    chart = example("chart.md").replace('SECTION = "training"', 'SECTION = "steadiness"')
    copy.add("joulesweep/report/charts/startup.py", chart)
    own = copy.report().partition('<section id="steadiness"')[2].partition("</section>")[0]
    assert own.index("<h2") < own.index('id="figure-startup"') < own.index("<table>")


@pytest.mark.slow
def test_a_column_is_one_row_and_the_line_that_works_it_out(copy):
    row, value = example("column.md"), example("column.md", 1)
    copy.edit("joulesweep/analyse/columns.py", '    Column("startup_s", ', f'{row.rstrip()},\n    Column("startup_s", ')
    body = (copy.folder / "joulesweep/analyse/run_rows.py").read_text(encoding="utf-8").partition("def _measured(")[2]
    body = body.partition("\n\n\n")[0]
    copy.edit("joulesweep/analyse/run_rows.py", body, f"{body}\n{textwrap.indent(value, '    ').rstrip()}")
    copy.aggregate()
    column = tables.described(copy.sweep / "tables" / "runs.parquet")["startup_share"]
    assert (column.unit, column.about) == (None, "startup_s / (startup_s + total_window_s)")
    made = tables.read(copy.sweep / "tables")
    shares = made.runs["startup_s"] / (made.runs["startup_s"] + made.runs["total_window_s"])
    assert made.runs["startup_share"].to_list() == shares.to_list()
    assert {f"startup_share_{end}" for end in ("mean", "low", "high")} <= set(made.cells.columns)
    page = copy.report()
    headings = re.findall(r'<button type="button">([^<]+)</button></th>', page)
    assert headings.index("Runs") < headings.index("Spent on start-up")
    assert f'data-value="{made.cells["startup_share_mean"][0]:.6g}"' in page
