"""Each module of the package has its tests in the folder of its room; no test stands on another."""

from __future__ import annotations

import ast
import importlib.util

import pytest
import tiny_run

TESTS = tiny_run.REPOSITORY / "tests"
#: Modules without a test of their name, and which tests prove them.
ELSEWHERE = {
    "joulesweep.blocks": "test_appraise",
    "joulesweep.bounded": "test_watch",
    "joulesweep.cells": "test_aggregate",
    "joulesweep.certificate_page": "test_certify",
    "joulesweep.certified_counter": "test_appraise",
    "joulesweep.certified_power": "test_appraise",
    "joulesweep.contention": "test_watch",
    "joulesweep.counter": "test_verdict",
    "joulesweep.definitions": "test_digest",
    "joulesweep.errors": "test_config",
    "joulesweep.generation": "test_tasks",
    "joulesweep.load": "test_certify",
    "joulesweep.methods.freeze_bottom": "test_methods",
    "joulesweep.methods.full": "test_methods",
    "joulesweep.methods.greentrainer": "test_adaptive",
    "joulesweep.methods.last_k": "test_methods",
    "joulesweep.methods.lora": "test_methods",
    "joulesweep.methods.random": "test_adaptive",
    "joulesweep.precision": "test_strategy_precision",
    "joulesweep.readings": "test_appraise",
    "joulesweep.replay": "test_appraise",
    "joulesweep.strategy": "test_strategy_precision",
    "joulesweep.tables": "test_columns",
    "joulesweep.theme": "test_charts",
    "joulesweep.units": "test_data",
    "joulesweep.worker": "test_launch",
    "joulesweep.workflow": "test_sweep",
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
    folder, name = TESTS / "unit" / ROOMS[module], f"test_{module.split('.')[-1]}.py"
    mirrors = list(folder.rglob(name))
    assert bool(mirrors) != (module in ELSEWHERE), f"{folder / name} xor a line of ELSEWHERE"


def test_what_is_listed_exists():
    assert ELSEWHERE.keys() <= ROOMS.keys()
    assert set(ELSEWHERE.values()) <= FILES.keys()


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_imports_a_test(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in modules if name.split(".")[-1].startswith("test_")]
