"""Each module of the package has its tests in the folder of its room; no test stands on another."""

from __future__ import annotations

import ast
import importlib.util

import pytest
import tiny_run

TESTS = tiny_run.REPOSITORY / "tests"
#: Modules without a test of their name or of their folder's, and which tests prove them.
ELSEWHERE = {
    "joulesweep.analyse.cells": "test_collect",
    "joulesweep.analyse.epochs": "test_curves",
    "joulesweep.analyse.tables": "test_columns",
    "joulesweep.axes.layout": "test_layout_task",
    "joulesweep.axes.precision": "test_strategy_precision",
    "joulesweep.axes.strategy": "test_strategy_precision",
    "joulesweep.axes.task": "test_layout_task",
    "joulesweep.certify.blocks": "test_appraise",
    "joulesweep.certify.counter_checks": "test_appraise",
    "joulesweep.certify.load": "test_campaign",
    "joulesweep.certify.page": "test_campaign",
    "joulesweep.certify.power_checks": "test_appraise",
    "joulesweep.certify.readings": "test_appraise",
    "joulesweep.certify.replay": "test_appraise",
    "joulesweep.core.bounded": "test_watch",
    "joulesweep.core.errors": "test_config",
    "joulesweep.core.files": "test_record",
    "joulesweep.core.outcome": "test_record",
    "joulesweep.core.places": "test_staleness",
    "joulesweep.core.quantities": "test_numbers",
    "joulesweep.core.work": "test_data",
    "joulesweep.launch.agent": "test_nodes",
    "joulesweep.launch.merge": "test_nodes",
    "joulesweep.launch.node": "test_launcher",
    "joulesweep.measure.contention": "test_watch",
    "joulesweep.measure.counter": "test_verdict",
    "joulesweep.nets.anatomy": "test_language_model",
    "joulesweep.nets.build": "test_language_model",
    "joulesweep.nets.freezing": "test_methods",
    "joulesweep.nets.products": "test_flops",
    "joulesweep.plan.definitions": "test_staleness",
    "joulesweep.plan.snakemake_lock": "test_sweep",
    "joulesweep.prepare.fetched": "test_tokens",
    "joulesweep.report.badges": "test_page",
    "joulesweep.report.chart_parts": "test_charts",
    "joulesweep.report.figure": "test_theme",
    "joulesweep.report.looks": "test_charts",
    "joulesweep.report.results": "test_charts",
    "joulesweep.runs.identity": "test_spec",
    "joulesweep.train.assembly": "test_trainer",
    "joulesweep.train.corpus": "test_data",
    "joulesweep.train.evaluating": "test_evaluations",
    "joulesweep.train.generation": "test_tasks",
    "joulesweep.train.labels": "test_data",
    "joulesweep.train.packing": "test_data",
    "joulesweep.train.seeds": "test_data",
    "joulesweep.train.worker": "test_launcher",
}
FILES = {path.stem: path for path in TESTS.rglob("test_*.py")}


def house():
    about = importlib.util.spec_from_file_location("house", tiny_run.REPOSITORY / "docs" / "house.py")
    module = importlib.util.module_from_spec(about)
    about.loader.exec_module(module)
    return module


def defines(path):
    """Whether a file has anything to test."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Assign)
    return any(isinstance(node, kinds) for node in ast.parse(path.read_text(encoding="utf-8")).body)


HOUSE = house()
ROOMS = {
    module: room for room, modules in HOUSE.rooms().items() for module in modules if defines(HOUSE.modules()[module])
}


@pytest.mark.parametrize("module", ROOMS)
def test_a_module_has_its_mirror_or_is_listed(module):
    """A folder of files that are found by name may have one test for all of them."""
    *_, folder, name = module.split(".")
    mirrors = [path for one in (name, folder) for path in (TESTS / "unit" / ROOMS[module]).rglob(f"test_{one}.py")]
    assert bool(mirrors) != (module in ELSEWHERE), f"tests/unit/{ROOMS[module]}/**/test_{name}.py xor ELSEWHERE"


def test_what_is_listed_exists():
    assert ELSEWHERE.keys() <= ROOMS.keys()
    assert set(ELSEWHERE.values()) <= FILES.keys()


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_imports_a_test(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in modules if name.split(".")[-1].startswith("test_")]
