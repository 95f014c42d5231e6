"""Studies are found by name, answer what the config names, and are told of in the report and at the terminal."""

from __future__ import annotations

import json
import re
import types

import pytest
import synthetic
import tiny_run

from joulesweep import studies
from joulesweep.analyse import collect, tables
from joulesweep.cli.main import main
from joulesweep.core.errors import UserError
from joulesweep.plan import config, grid
from joulesweep.report import ending, page
from joulesweep.report.sections import Results
from joulesweep.report.sections import studies as section
from joulesweep.studies import Answer, Table

CONFIGS = sorted((tiny_run.REPOSITORY / "config" / "studies").glob("*.yaml"))


def counted(read, config):
    number = read.runs.filter(status="ok").height
    rows = [["all", (str(number), "<counted>")]]
    table = Table(title="Finished runs", headings={"Which": "text", "Number": ""}, rows=rows)
    if not number:
        return Answer(sentence="Nothing finished, which it takes.", answered=False)
    return Answer(sentence=f"{number} runs <finished>.", answered=True, findings=["Some more."], tables=[table])


@pytest.fixture
def one(monkeypatch):
    study = types.SimpleNamespace(
        QUESTION="How many finished?", PROTOCOL="Count them.", SOURCE="a test", answer=counted
    )
    monkeypatch.setattr(studies, "names", lambda: ["count-them"])
    monkeypatch.setattr(studies, "load", {"count-them": study}.__getitem__)
    monkeypatch.setattr(config, "STUDIES", ["count-them"])


def swept(folder, change=lambda row: row, names=("count-them",)):
    manifest, runs = synthetic.write_sweep(folder, {**synthetic.raw_config(), "studies": list(names)}, change)
    made = collect.aggregate(manifest, runs)
    tables.write(made, folder / "tables")
    return Results(manifest=manifest, tables=made)


def test_a_study_has_all_that_is_told_of_it():
    for name in studies.names():
        study = studies.load(name)
        assert study.QUESTION.endswith("?") and "\n" not in study.QUESTION
        assert study.PROTOCOL.endswith(".") and not study.SOURCE.endswith(".")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_of_a_study_expands_and_names_it(path):
    name = path.stem.removesuffix("-small")
    read = config.load(path)
    assert read.sweep == f"study-{path.stem}" and name in read.studies
    assert grid.expand(read).runs


def test_every_study_has_its_config_its_twin_and_its_place_in_the_guide():
    names = studies.names()
    assert sorted(path.stem for path in CONFIGS) == sorted(f"{name}{end}" for name in names for end in ("", "-small"))
    guide = (tiny_run.REPOSITORY / "docs" / "how-to" / "studies.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## ([\w-]+)$", guide, re.MULTILINE)) == names


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.endswith("-small")], ids=lambda path: path.stem)
def test_a_twin_needs_no_hub_and_no_gpu(path):
    read = config.load(path)
    sources = [one.source for one in (*read.models.values(), *read.datasets.values())]
    assert not [one for one in sources if isinstance(one, config.HubSource)]
    assert read.hardware.accelerator != "cuda"


def test_a_study_that_does_not_exist_is_named_with_its_nearest(one):
    with pytest.raises(config.UserError, match=r"studies.*'count-thm'.*'count-them'"):
        config.validate({**synthetic.raw_config(), "studies": ["count-thm"]})


def test_a_config_has_studies_by_the_files_names():
    assert studies.names() == config.STUDIES


def test_the_report_answers_what_the_config_names(one, tmp_path):
    results = swept(tmp_path)
    made = section.section(results)
    assert made.title == "The study's question"
    html = str(made.html)
    assert '<p class="answer">24 runs &lt;finished&gt;.</p>' in html and "<li>Some more.</li>" in html
    assert (
        "<h3>How many finished?</h3>" in html and "&lt;counted&gt;" in html and "Count them. Question: a test." in html
    )
    assert section.section(swept(tmp_path / "none", names=())) is None


def test_what_cannot_be_answered_is_no_answer_on_the_page(one, tmp_path):
    html = str(section.section(swept(tmp_path, lambda row: None)).html)
    assert '<p class="unanswered">Nothing finished, which it takes.</p>' in html and 'class="answer"' not in html


def test_the_terminal_ends_with_the_answers(one, tmp_path):
    swept(tmp_path)
    assert ending.lines(tmp_path)[-1] == "How many finished? 24 runs <finished>."


def test_the_section_stands_on_the_page(one, tmp_path):
    results = swept(tmp_path)
    assert '<section id="studies"' in page.build(results.manifest, results.tables)


def test_any_sweep_is_asked(one, tmp_path, capsys):
    swept(tmp_path, names=())
    assert main(["study", "count-them", str(tmp_path)]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert (first, second) == ("24 runs <finished>.", "- Some more.")
    assert main(["study", "count-them", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == "How many finished?" and told["answer"]["tables"][0]["rows"] == [
        ["all", ["24", "<counted>"]]
    ]


def test_a_study_is_explained_with_its_command_and_cost(one, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = tmp_path / "config" / "studies" / "count-them-small.yaml"
    written.parent.mkdir(parents=True)
    written.write_text(json.dumps({**synthetic.raw_config(), "studies": ["count-them"]}))
    assert main(["study"]) == 0
    assert capsys.readouterr().out.startswith("count-them  How many finished?\n")
    assert main(["study", "count-them", "--small", "--cores", "2", "--gpus", "1"]) == 0
    told = capsys.readouterr().out
    assert (
        "Question  How many finished?\nSource    a test.\nProtocol  Count them.\nConfig    config/studies/count-them"
        in told
    )
    assert "snakemake --cores 2 --resources gpu=1 --quiet all --configfile" in told
    assert "count-them-small.yaml: 24 runs to do" in told


def test_a_study_is_run_and_answers(one, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = tmp_path / "config" / "studies" / "count-them.yaml"
    written.parent.mkdir(parents=True)
    written.write_text(json.dumps({**synthetic.raw_config(), "studies": ["count-them"]}))
    swept(tmp_path / "results" / "synthetic")
    (tmp_path / "snakemake").write_text('#!/bin/sh\necho "$@" > ran; exit "${CODE:-0}"\n')
    (tmp_path / "snakemake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["study", "count-them", "--run", "--cores", "3"]) == 0
    assert (tmp_path / "ran").read_text() == "--cores 3 --quiet all --configfile config/studies/count-them.yaml\n"
    assert capsys.readouterr().out.startswith("24 runs <finished>.\n")
    monkeypatch.setenv("CODE", "1")
    assert main(["study", "count-them", "--run"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--run"], "name a study: "),
        (["count-them", "results/x", "--run"], "--run and --small are for the study's own sweep, not for a folder"),
        (["count-them", "results/x"], "results/x/tables/runs.parquet: no table of a sweep: "),
        (["count-them"], "config/studies/count-them.yaml: "),
    ],
)
def test_a_mistake_is_one_line(one, tmp_path, capsys, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line}") and err.count("\n") == 1


def test_an_unknown_study_is_one_line():
    with pytest.raises(UserError, match="study"):
        studies.load("prxoy")
