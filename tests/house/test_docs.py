"""The documentation shows commands that work, links that lead somewhere, files that exist, and all of the reference."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator

import polars as pl
import pytest
import synthetic
import tiny_run
import yaml
from pydantic import BaseModel

from joulesweep import readers
from joulesweep.analyse import tables
from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.columns import TABLES
from joulesweep.axes import strategy
from joulesweep.axes.engine import ENGINES
from joulesweep.axes.precision import PRECISIONS, Precision
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.plan import config
from joulesweep.report.evidence import FLAGS
from joulesweep.report.results import Results
from joulesweep.runs.record import STATUSES

ROOT = tiny_run.REPOSITORY
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "config" / "README.md"],
    key=lambda path: path.as_posix(),
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
#: A name in capitals, a text in quotes or an ellipsis stands for the reader's own.
PROGRAMS = ("joulesweep", "snakemake", "make", "python", "python3")
YOURS = {
    "config/mine.yaml",
    "joulesweep/methods/biases.py",
    "joulesweep/measure/meters/acpi.py",
    "joulesweep/readers/tsv.py",
    "joulesweep/report/charts/startup.py",
    "joulesweep/report/sections/steadiness.py",
    "joulesweep/studies/steady.py",
    "config/studies/steady.yaml",
    "config/studies/steady-small.yaml",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}| {8})\S.*\n)+", re.MULTILINE)


def hook():
    """The hook of mkdocs, as a module."""
    found = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


generate = hook()
house = generate.house


def fences(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def blocks(text: str) -> Iterator[str]:
    """Lines of code blocks that a reader may copy: indented ones and those of a shell."""
    yield from (line for body in fences(text, "sh") for line in body.splitlines())
    yield from (line.strip() for body in INDENTED.findall(FENCE.sub("", text)) for line in body.splitlines())


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def words(command: str) -> list[str]:
    """A command's words, without what the shell does with them."""
    parts = [part.split() if "'" not in part else shlex.split(part) for part in re.split(r" #| && ", command)]
    return next((part for part in parts if part and part[0] in PROGRAMS), [])


def commands(text: str, whole: bool) -> list[str]:
    """Commands in code blocks (`whole`), or those in running text, which may lack what they need."""
    found = blocks(text) if whole else spans(text)
    return [one.replace(' -- "', ' "') for one in found if one.split(" ")[0] in (*PROGRAMS, "cd") and words(one)]


def cases(whole: bool):
    return [
        pytest.param(command, whole, id=f"{name}: {command}"[:60])
        for path, name in zip(PAGES, NAMES, strict=True)
        for command in commands(path.read_text(encoding="utf-8"), whole)
    ]


def split(command: str) -> list[str]:
    """A command as a shell would hand it over."""
    part = next(part for part in command.split(" && ") if part.split()[0] in PROGRAMS)
    return shlex.split(part.replace('"…"', "reason"), comments=True)


@pytest.fixture(scope="module")
def snakemake_parser():
    from snakemake.cli import get_argument_parser

    return get_argument_parser()


def is_target(word: str) -> bool:
    return word in ("all", "partial") or word.startswith(("results/", "resources/"))


@pytest.mark.parametrize(("command", "whole"), [*cases(whole=True), *cases(whole=False)])
def test_every_command_exists_with_its_options(command, whole, snakemake_parser, capsys):
    program, *arguments = split(command)
    check = {"joulesweep": ours, "make": target, "python": module, "python3": module, "snakemake": workflow}[program]
    check(arguments, whole, snakemake_parser)


def ours(arguments, whole, _):
    if not arguments or arguments[0] in ("COMMAND", "--help", "--version"):
        return
    name, *rest = arguments
    parser = generate.subcommands()[name]
    options = {option for action in parser._actions for option in action.option_strings}
    rest = rest[: rest.index("--")] if "--" in rest else rest
    assert {word for word in rest if word.startswith("--")} <= options
    if whole:
        parser.parse_args(arguments[1:])  # ends the test where something is missing


def target(arguments, whole, _):
    known = dict.fromkeys(name for name, _ in generate.targets((ROOT / "Makefile").read_text(encoding="utf-8")))
    for word in arguments:
        assert f"make {word}" in known


def module(arguments, whole, _):
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
        return
    if arguments[1] == "pytest":
        assert all((ROOT / word).exists() for word in arguments[2:] if word.startswith("tests/"))
        return
    path = ROOT.joinpath(*arguments[1].split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    used = [path.with_name(f"{name}.py") for name in re.findall(r"\b(\w+_\w+|peers)\b", source)]
    told = source + "".join(one.read_text(encoding="utf-8") for one in set(used) if one.is_file())
    for option in arguments[2:]:
        assert not option.startswith("--") or f'"{option}"' in told, option


def workflow(arguments, whole, parser):
    given = parser.parse_args([word for word in arguments if "…" not in word])
    assert all(is_target(word) for word in given.targets or ())
    files = [str(path) for path in given.configfile or ()]
    assert all(name in YOURS or (ROOT / name).is_file() for name in files)
    assert given.workflow_profile is None or (ROOT / given.workflow_profile).is_dir()


def test_a_wrong_command_is_noticed(snakemake_parser, capsys):
    for check, arguments in (
        (ours, ["chek"]),
        (ours, ["check", "--config"]),
        (target, ["tests"]),
        (module, ["-m", "benchmarks.peer"]),
        (module, ["-m", "benchmarks.peers", "--modell", "x"]),
        (workflow, ["--cores", "2", "--resources", "gpu=1", "partial"]),
        (workflow, ["--cors", "2"]),
        (workflow, ["--cores", "2", "partiel"]),
    ):
        with pytest.raises((SystemExit, AssertionError, LookupError, OSError, ValueError)):
            check(arguments, True, snakemake_parser)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    page = ROOT / name
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    generated = {ROOT / "docs" / "reference" / "api" / f"{name}.md" for name in ("index", *house.rooms())}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            path = (page.parent / link.partition("#")[0]).resolve()
            assert path.exists() or path in generated, link


@pytest.mark.parametrize("name", NAMES)
def test_anchors_are_headings(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            path = (page.parent / file).resolve() if file else page
            text = generate.filled(path.read_text(encoding="utf-8"))
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}, link


def slug(heading: str) -> str:
    """As mkdocs makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name):
    folders = "joulesweep|tests|config|rules|scripts|profiles|benchmarks|docs|envs"
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        if path not in YOURS:
            assert (ROOT / path).exists(), path


def test_each_page_is_in_the_navigation_once():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_the_readme_is_short_and_shows_the_picture_and_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert "(docs/report.png)" in text
    assert {"make sweep", "snakemake --cores 2 --configfile config/mine.yaml"} <= set(blocks(text))


def keys(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Dotted keys of a section's own mapping and of those below it, sources apart."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}"
        inner = [one for one in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(one, type)]
        for one in inner:
            if issubclass(one, BaseModel) and "Source" not in one.__name__:
                named = ".NAME" if name in ("models", "datasets") else ""
                yield from keys(one, f"{path}{name}{named}.")


def test_the_reference_has_every_key_of_the_config():
    page, wanted = generate.config_keys(), set(keys(config.SweepConfig))
    assert len(wanted) > 60
    assert {key for key in wanted if f"| `{key}` |" not in page} == set()
    for source in (config.WheelSource, config.HubDataSource, config.LocalSource, config.RandomSource):
        assert all(f".{key}` |" in page for key in source.model_fields)


def test_a_key_is_shown_with_what_it_may_hold_and_its_default():
    page = generate.config_keys()
    assert '| `train.keep_model` | `none`, `best`, `last` | `"none"` | save the adapted model |' in page
    assert "| `measure.min_seconds` | number, ≥ 0, ≤ 100,000,000 or `null` | `null` |" in page
    assert "| `grid.lr` | list of number, > 0, ≤ 1,000,000 | required | peak learning rate |" in page


def test_the_reference_has_every_column_with_its_unit():
    page = generate.tables_page()
    shown = {}
    for name in tables.NAMES:
        section = page.partition(f"## `{name}.parquet`")[2].partition("\n## ")[0]
        assert {column for column in TABLES[name] if f"| `{column}` |" not in section} == set(), name
        shown |= dict(re.findall(r"^\| `(\w+)` \| \S+ \| (.*?) ?\|", section, re.MULTILINE))
    assert all(len(columns) > 5 for columns in TABLES.values())
    assert shown["energy_j_mean"] == shown["total_energy_j"] == "J"
    assert shown["samples_per_s"] == "texts/s"
    assert shown["num_steps"] == shown["status"] == ""


def test_the_reference_has_every_flag_status_value_and_method():
    assert all(f"| `{flag}` |" in generate.flags() for flag in FLAGS)
    assert all(f"| `{status}` |" in generate.run_statuses() for status in STATUSES)
    for part, rows in (("strategies", STRATEGIES), ("precisions", PRECISIONS), ("engines", ENGINES)):
        assert all(f"| `{name}` |" in generate.PARTS[part]() for name in rows)
    assert all(f"| `{name}` |" in generate.methods() for name in generate_methods())
    assert all(f"| `{name}` |" in generate.readers() for name in readers.names())


def strings_of(module: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(house.modules()[f"joulesweep.{module}"].read_text(encoding="utf-8")))


def test_every_flag_that_is_raised_has_a_meaning_and_none_is_left_over():
    calls = [
        node
        for module in house.modules()
        for node in ast.walk(ast.parse(house.modules()[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Flag"
    ]
    raised = {word.value.value for call in calls for word in call.keywords if word.arg == "flag"}
    assert len(raised) > 10
    assert raised <= set(FLAGS)
    named = {
        node.value
        for module in house.modules()
        if module not in ("joulesweep", "joulesweep.report.evidence")
        for node in strings_of(module.removeprefix("joulesweep."))
        if isinstance(node, ast.Constant)
    }
    assert set(FLAGS) <= named


def generate_methods() -> list[str]:
    from joulesweep import methods

    return methods.names()


def test_the_reference_has_every_subcommand_with_its_options():
    page = generate.command_line()
    for name, parser in generate.subcommands().items():
        section = page.partition(f"## `joulesweep {name}`")[2].partition("\n## ")[0]
        assert all(option in section for action in parser._actions for option in action.option_strings)


def test_every_generated_part_is_on_one_page_and_can_be_made():
    marks = [mark for path in PAGES for mark in generate.MARK.findall(path.read_text(encoding="utf-8"))]
    assert sorted(marks) == sorted(generate.PARTS)
    assert all(part().strip() for part in generate.PARTS.values())


def test_every_make_target_is_documented():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    assert {f"make {name}" for name in phony} == {name for name, _ in generate.targets(text)}


def test_versions_are_those_of_the_changelog():
    told = dict(re.findall(r"\| (joulesweep-[a-z]+) \| (\d+) \|", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert {name: int(version) for name, version in told.items()} == {name: v for name, v, _ in generate.formats()}


def test_every_module_has_a_room_and_every_room_a_floor():
    assert [module for module in house.modules() if house.room(module) is None] == ["joulesweep"]
    assert set(house.rooms()) <= set(house.heights())
    assert not house.upward()
    assert not house.circles()


def test_the_measuring_side_says_what_it_takes_and_returns():
    public = house.untyped_public()
    assert {room: public[room] for room in ("measure", "launch", "train")} == {"measure": 0, "launch": 0, "train": 0}
    assert sum(house.untyped().values()) <= 90


def test_the_house_is_drawn_from_imports(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom joulesweep.core import errors, spec\nimport json\n"
        "if TYPE_CHECKING:\n    from joulesweep.measure.trace import Trace\n"
        "def later():\n    from joulesweep.nets.language_model import stacks\n",
        encoding="utf-8",
    )
    assert house.imports(file) == {"joulesweep.core.errors", "joulesweep.core.spec", "joulesweep.nets.language_model"}
    drawing = house.drawing()
    assert all(f">{name}</text>" in drawing for name in house.rooms())
    assert house._drawn({"cli": {"plan", "core"}, "plan": {"core"}, "core": {"plan"}}) == [
        ("cli", "plan"),
        ("core", "plan"),  # goes up: always drawn
        ("plan", "core"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_that_a_page_shows_whole_is_one(name, tmp_path):
    for text in fences((ROOT / name).read_text(encoding="utf-8"), "yaml"):
        given = yaml.safe_load(text)
        if "sweep" in given:
            path = tmp_path / "mine.yaml"
            path.write_text(text, encoding="utf-8")
            assert config.load(path).sweep == given["sweep"]
        else:
            assert set(given) <= set(config.SweepConfig.model_fields)
            for section, part in given.items():
                known = config.SweepConfig.model_fields[section].annotation
                assert not hasattr(known, "model_fields") or set(part) <= set(known.model_fields)


def test_the_method_of_the_guide_trains_biases_alone(tmp_path, monkeypatch):
    import torch

    (tmp_path / "biases.py").write_text(example("method.md"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("biases")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False))
    assert method.apply(model, method.Params()) is model
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["0.bias"]
    with pytest.raises(config.UserError, match="has none"):
        method.apply(torch.nn.Linear(2, 2, bias=False), method.Params())


def example(page: str) -> str:
    """The Python code of a guide."""
    text = (ROOT / "docs/how-to/extend" / page).read_text(encoding="utf-8")
    found = re.search(r"^( *)```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return textwrap.dedent(found[2])


def test_the_precision_of_the_guide_is_a_row():
    rows = eval(f"{{{example('precision.md')}}}", {"Precision": Precision})
    assert rows["fp16-unscaled"] == dataclasses.replace(
        PRECISIONS["fp16-mixed"], about=rows["fp16-unscaled"].about, scale_loss=False
    )
    table = (ROOT / "docs/how-to/extend/precision.md").read_text(encoding="utf-8")
    assert all(f"| `{field}` |" in table for field in Precision.__dataclass_fields__)


def test_the_strategy_of_the_guide_is_a_row_and_a_function(monkeypatch):
    import torch

    hooks, names = [], dict(vars(strategy))
    wrapper = types.SimpleNamespace(register_comm_hook=lambda state, hook: hooks.append(hook.__name__))
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda model, **_: wrapper)
    exec(example("other.md"), names)
    text = (ROOT / "docs/how-to/extend/other.md").read_text(encoding="utf-8")
    (row,) = re.findall(r'`("ddp-bf16": Strategy\(.*?\))`', text, re.DOTALL)
    monkeypatch.setitem(STRATEGIES, "ddp-bf16", eval(f"{{{row}}}", names)["ddp-bf16"])
    setting = strategy.Setting(devices=2, accelerator="cpu", local_rank=0)
    assert strategy.wrap(torch.nn.Linear(1, 1), "ddp-bf16", setting) is wrapper
    assert hooks == ["bf16_compress_hook"]
    strategy.synchronise(wrapper, "ddp-bf16", exchanges=False)
    assert wrapper.require_backward_grad_sync is False
    assert all(f"`{name}" in text for name in strategy.Strategy.__dataclass_fields__)


def test_the_reader_of_the_guide_is_one_file(tmp_path):
    for folder in ("joulesweep", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "resources", tmp_path / "resources", ignore=shutil.ignore_patterns("models", "datasets"))
    (tmp_path / "joulesweep/readers/tsv.py").write_text(example("reader.md"), encoding="utf-8")
    (tmp_path / "mine.tsv").write_text("question\treply\nWhat is it?\tThis, that.\n", encoding="utf-8")
    source = {"source": {"local": "mine.tsv"}, "format": "tsv", "field": "question", "target": "reply"}
    (tmp_path / "mine.yaml").write_text(json.dumps(tiny_run.config(datasets__texts=source)), encoding="utf-8")
    assert run(tmp_path, "-m", "joulesweep.cli.main", "check", "mine.yaml") == (0, "")
    fetch = ("-m", "scripts.fetch_dataset", "--output", "out.jsonl", "--manifest", "out.json", "--source")
    assert run(tmp_path, *fetch, json.dumps(source)) == (0, "fetching texts out\n")
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert json.loads(text) == {"text": "What is it?", "targets": ["This, that."]}
    told = "datasets.texts: choices: has no meaning with format tsv"
    wrong = tiny_run.config(datasets__texts={**source, "choices": "reply"})
    (tmp_path / "mine.yaml").write_text(json.dumps(wrong), encoding="utf-8")
    code, line = run(tmp_path, "-m", "joulesweep.cli.main", "check", "mine.yaml")
    assert (code, line.count("\n")) == (2, 1)
    assert told in line
    assert run(tmp_path, "-m", "joulesweep.cli.main", "schema", "schema.json") == (0, "")
    assert '"tsv"' in (tmp_path / "schema.json").read_text(encoding="utf-8")


def run(folder, *arguments):
    """Exit code and errors of a program, run in a copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_the_chart_of_the_guide_draws_and_says_why_not(tmp_path):
    names: dict[str, object] = {}
    exec(example("chart.md"), names)
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(None), lambda row: row)
    made = aggregate(grid, runs)
    (rows,) = names["draw"](Results(grid, made)).whole().to_dict()["datasets"].values()
    assert {row["startup_s"] for row in rows} == {2.5}
    nothing = dataclasses.replace(made, runs=made.runs.with_columns(status=pl.lit("oom")))
    assert "No run finished" in str(names["draw"](Results(grid, nothing)).notes)


def test_pre_commit_has_the_checks_of_make_lint():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\nlint: environment\n")[2].partition("\n\n")[0]
    given = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in given["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in recipe.splitlines()]
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_the_issue_form_asks_for_what_the_doctor_says():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    labels = [part["attributes"]["label"] for part in form["body"]]
    assert any("joulesweep doctor --json" in label for label in labels)
