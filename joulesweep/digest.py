"""Digests of code: what makes a finished run stale.

A digest covers what the code does, not how it is laid out: comments, docstrings and formatting do not count, and
the digest is the same under every supported Python (the syntax tree is walked here rather than by `ast.dump`, whose
output changes between versions).
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

from joulesweep import methods
from joulesweep.spec import RunSpec

PACKAGE = Path(__file__).parent
#: What a module reads.
RESOURCES = {
    "estimate": ("cpu_watts.csv",),
    "floors": ("gpus.csv",),
    "footprint": ("carbon_intensity.csv",),
    "published": ("published/greentrainer.csv", "published/maina.csv"),
}
#: The modules that every measured run executes and whose code can change its numbers.
CORE = (
    "adaptive",
    "ahead",
    "conditions",
    "contention",
    "counter",
    "data",
    "fit",
    "flops",
    "generation",
    "kahan",
    "kernels",
    "launch",
    "lazy",
    "measurement",
    "memory",
    "meter",
    "model",
    "scoring",
    "selection",
    "sensors",
    "settling",
    "trace",
    "train",
    "trainer",
    "units",
    "verdict",
    "watch",
    "weights",
    "worker",
)
#: Modules with a table: of the table only the run's own row counts, by the spec's field.
TABLES = {
    "engine": ("ENGINES", "engine"),
    "precision": ("PRECISIONS", "precision"),
    "strategy": ("STRATEGIES", "strategy"),
}
#: The modules behind what is fetched and made before the runs.
GRID_CODE = ("config", "engine", "grid", "spec")
MODEL_CODE = ("pretrained", "sources", "weights")
TEXT_CODE = ("sources", "texts")
TOKEN_CODE = ("tokens",)
#: The modules behind tables, charts and report.
TABLE_CODE = (
    "aggregate",
    "anchors",
    "cells",
    "certificate",
    "energy",
    "estimate",
    "floors",
    "footprint",
    "power",
    "precision",
    "record",
    "rouge",
    "rows",
    "spec",
    "stats",
    "tables",
    "units",
)
CHART_CODE = ("cells", "charts", "curves", "energy", "estimate", "spec", "stats", "tables", "theme", "units")
REPORT_CODE = (
    "answer",
    "certificate",
    "equalcost",
    "footprint",
    "provenance",
    "published",
    "record",
    "report",
    "words",
    *CHART_CODE,
)


def run_digest(spec: RunSpec) -> str:
    """Digest of the code that a run of this spec uses."""
    return _run_digest(spec.method, *((name, getattr(spec, field)) for name, (_, field) in TABLES.items()))


@functools.cache
def _run_digest(method: str, *rows: tuple[str, str]) -> str:
    trees = [_module(PACKAGE / f"{name}.py") for name in CORE]
    trees += [_module(PACKAGE / f"{name}.py", TABLES[name][0], row) for name, row in rows]
    return _hash([*trees, *(_module(methods.path(name)) for name in _methods_behind(method))])


def _methods_behind(method: str) -> list[str]:
    """A method and those that its file imports, sorted."""
    found, waiting = set(), [method]
    while waiting:
        found.add(name := waiting.pop())
        for node in ast.walk(ast.parse(methods.path(name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == methods.__name__:
                waiting += {alias.name.replace("_", "-") for alias in node.names} - found
    return sorted(found)


@functools.cache
def code_digest(*modules: str) -> str:
    """Digest of modules of the package, by name: with "report" its templates, with others what they read."""
    texts = [_module(PACKAGE / f"{name}.py") for name in modules]
    if "report" in modules:
        texts += [path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "templates").glob("*.*"))]
    files = [PACKAGE.parent / "resources" / file for name in RESOURCES if name in modules for file in RESOURCES[name]]
    texts += [path.read_text(encoding="utf-8") for path in files]
    return _hash(texts)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _module(path: Path, table: str | None = None, row: str | None = None) -> str:
    """A module as text that only a change of behaviour changes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return f"{path.stem}:" + "".join(_node(_only_row(node, table, row)) for node in _body(tree))


def _only_row(node: ast.AST, table: str | None, row: str | None) -> ast.AST:
    """For the assignment of the table, the value of the one row; any other node as it is."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
        if not isinstance(node.value, ast.Dict):
            raise TypeError(f"{table} must be a dict literal")
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == row:
                return value
    return node


def _body(node: ast.AST) -> list[ast.stmt]:
    """Statements of a block without its docstring."""
    body: list[ast.stmt] = list(getattr(node, "body", []))
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _node(value: object) -> str:
    """A node with the fields that say something; those that newer Pythons added are left out while empty."""
    if isinstance(value, list):
        return "[" + ",".join(_node(item) for item in value) + "]"
    if not isinstance(value, ast.AST):
        return repr(value)
    documented = isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    inner = {name: child for name, child in ast.iter_fields(value) if name not in ("ctx", "kind", "type_comment")}
    if documented:
        inner["body"] = _body(value)
    if isinstance(value, ast.JoinedStr):  # Python 3.12.0 and 3.12.1 end a nested format with an empty constant
        inner["values"] = [part for part in value.values if not (isinstance(part, ast.Constant) and part.value == "")]
    said = [f"{name}={_node(child)}" for name, child in inner.items() if child is not None and child != []]
    return f"{type(value).__name__}({','.join(said)})"
