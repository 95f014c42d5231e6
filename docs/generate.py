"""Write the generated parts of the site: a hook of mkdocs, and plain functions that tests call.

A page names a generated part in a line of its own, `<!-- generated: NAME -->`; NAME is a key of `PARTS`. Everything is
read from the code when the site is built: the config's schema, the tables' columns, the command line, the axes, the
statuses and flags, the imports. The API has a page per room of the package.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import html
import importlib
import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

    from joulesweep.analyse.columns import Column

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads a hook by its path alone
import house

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
Schema = dict[str, Any]
MOST_KEYS = 4  # of a mapping that a cell of a table names

#: What a run ends with. A status without a meaning here is an error when the site is built.
RUN_STATUSES = {
    "ok": "The run finished, and its numbers count.",
    "oom": "Memory ran out. The record has the bytes asked for, where PyTorch or the kernel tells.",
    "diverged": "A loss was not a finite number.",
    "unsupported": "This machine or this model cannot do it. The reason is one line.",
    "timeout": "The run took longer than `train.timeout_s` and was stopped.",
}
#: What a number is. `measured` and `integrated` were read from the machine.
NUMBER_STATUSES = {
    "measured": "Difference of an energy counter over the window, as Zeus reads it.",
    "integrated": "Power readings, integrated over the window: the board has no counter, or it failed or was reset.",
    "estimated": "Worked out from CPU-seconds and published watts per core. In columns of its own, never ranked.",
    "below_resolution": "The window was shorter than ten ticks of the counter: no number.",
    "unavailable": "Nothing could be read. The reason says why.",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the pages of the API to the site's navigation."""
    api = [{room: f"reference/api/{room}.md"} for room in house.rooms()]
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"API": ["reference/api/index.md", *api]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API."""
    from mkdocs.structure.files import File

    for name, text in api_pages().items():
        files.append(File.generated(config, f"reference/api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the generated parts of a page."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """A page with its generated parts.

    Raises:
        KeyError: it names a part that does not exist.
    """
    return MARK.sub(lambda found: PARTS[found[1]](), markdown)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell does not end it."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def code(text: object) -> str:
    """Inline code."""
    return f"`{text}`"


# The config


def config_schema() -> Schema:
    """The schema as it is in the repository; a test holds it against the models."""
    return json.loads((ROOT / "config" / "schema.json").read_text(encoding="utf-8"))


def config_keys() -> str:
    """A section per part of the config: key, allowed values, default, meaning."""
    schema, parts = config_schema(), []
    for path, definition in _sections(schema):
        required = definition.get("required", [])
        rows = [
            [code(f"{path}.{key}".strip(".")), allowed(node, schema), _default(node, key in required), _about(node)]
            for key, node in definition["properties"].items()
        ]
        title = f"## {code(path)}" if path else "## The file"
        about = _prose(definition.get("description", "")) if path else "The sections of a config file."
        parts.append(f"{title}\n\n{about}\n\n{table(['key', 'allowed', 'default', 'meaning'], rows)}")
    return "\n".join(parts)


def _sections(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every mapping with keys of its own, with the path at which it is met first."""
    waiting: list[tuple[str, Schema]] = [("", schema)]
    seen: set[str] = set()
    for path, definition in waiting:  # grows meanwhile
        yield path, definition
        for key, node in definition["properties"].items():
            for name in _references(node):
                if name not in seen:
                    seen.add(name)
                    inside = f"{path}.{key}".strip(".") + (".NAME" if "patternProperties" in node else "")
                    kind = f" {_kind(schema['$defs'][name])}" if "oneOf" in json.dumps(node) else ""
                    waiting.append((inside + kind, schema["$defs"][name]))


def _kind(definition: Schema) -> str:
    """The key by which one of several kinds of a mapping is known."""
    return f"({next(iter(definition['properties']))})"


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
        return own + [name for value in node.values() for name in _references(value)]
    return [name for value in node for name in _references(value)] if isinstance(node, list) else []


def allowed(node: Schema, schema: Schema) -> str:
    """What a key may hold, in words."""
    if "$ref" in node:
        return _named(schema["$defs"][node["$ref"].rpartition("/")[2]])
    for union in ("anyOf", "oneOf"):
        if union in node:
            return " or ".join(dict.fromkeys(allowed(one, schema) for one in node[union]))
    if "enum" in node or "const" in node:
        return ", ".join(code(value) for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        return f"list of {allowed(node['items'], schema)}" if node.get("items") else "list"
    if "patternProperties" in node:
        return f"NAME: {allowed(next(iter(node['patternProperties'].values())), schema)}"
    return _plain(node)


def _named(definition: Schema) -> str:
    keys = list(definition["properties"])
    return f"`{{{', '.join(keys)}}}`" if len(keys) <= MOST_KEYS else "a section, see below"


def _plain(node: Schema) -> str:
    """A value of a plain type, with its limits."""
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "null": "`null`"}
    words |= {"string": "text", "object": "a mapping"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]:,.10g}" for key, sign in signs.items() if key in node]
    limits += [f"of the form `{node['pattern']}`"] if "pattern" in node else []
    return ", ".join([words.get(node.get("type", ""), "any value"), *limits])


def _default(node: Schema, is_required: bool) -> str:
    if is_required:
        return "required"
    value = node.get("default")
    return "see below" if isinstance(value, dict) else code(json.dumps(value, ensure_ascii=False))


def _about(node: Schema) -> str:
    return _prose(node.get("description", ""))


def _prose(text: str) -> str:
    """A sentence of the code as Markdown: what looks like a tag or a mapping is text."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False) for part in parts)


# The tables


def tables_page() -> str:
    """A section per table: each column with type, unit and meaning."""
    from joulesweep.analyse.columns import ABOUT, TABLES

    parts = []
    for name, columns in TABLES.items():
        rows = [[code(column.name), column.dtype, column.unit or "", _meaning(column)] for column in columns.values()]
        described = table(["column", "type", "unit", "meaning"], rows)
        parts.append(f"## {code(f'{name}.parquet')}\n\n{_prose(ABOUT[name])}\n\n{described}")
    return "\n".join(parts)


def _meaning(column: Column) -> str:
    return _prose(column.about + (f"; null {column.null}" if column.null else ""))


def attributes(of: object) -> dict[str, str]:
    """What a docstring says of each attribute."""
    _, _, section = (inspect.getdoc(of) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^\S|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


# The command line


def command_line() -> str:
    """A section per subcommand, with the help that the program prints."""
    os.environ["COLUMNS"] = "100"
    parts = []
    for name, command in subcommands().items():
        parts.append(f"## {code(f'joulesweep {name}')}\n\n```text\n{command.format_help().strip()}\n```\n")
    return "\n".join(parts)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand."""
    from joulesweep import cli
    from joulesweep.cli import main

    return {name: main.parser(name) for name in cli.names()}


def make_targets() -> str:
    """What `make` can do, as the head of the Makefile says it."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return table(["command", "what it does"], [[code(target), _prose(about)] for target, about in targets(text)])


def targets(makefile: str) -> list[tuple[str, str]]:
    """Each documented target with its line."""
    return re.findall(r"^# (make [\w-]+) +(.*)$", makefile, re.MULTILINE)


# Axes, tasks, methods


def strategies() -> str:
    """The rows of the table of strategies."""
    return _rows("axes.strategy", "STRATEGIES")


def precisions() -> str:
    """The rows of the table of precisions."""
    return _rows("axes.precision", "PRECISIONS")


def engines() -> str:
    """The rows of the table of engines."""
    return _rows("axes.engine", "ENGINES")


def optimizers() -> str:
    """The rows of the table of optimizers."""
    return _rows("axes.optimizer", "OPTIMIZERS")


def lr_rules() -> str:
    """Each rule of the learning rate, with who proposed it."""
    from joulesweep.axes.lr_rule import LR_RULES

    rows = [[code(name), _prose(row.about), _prose(row.source or "")] for name, row in LR_RULES.items()]
    return table(["rule", "what it does", "source"], rows)


def _rows(module: str, name: str) -> str:
    rows = getattr(importlib.import_module(f"joulesweep.{module}"), name)
    return table(
        [module.rpartition(".")[2], "what it does"], [[code(key), _prose(row.about)] for key, row in rows.items()]
    )


def methods() -> str:
    """Each method with its parameters and their defaults."""
    from joulesweep import methods as package

    rows = []
    for name in package.names():
        module = package.load(name)
        params = [
            code(f"{field.name}: {json.dumps(getattr(module.Params(), field.name))}")
            for field in dataclasses.fields(module.Params)
        ]
        rows.append([code(name), _prose((module.__doc__ or "").splitlines()[0]), ", ".join(params)])
    return table(["method", "what it does", "parameters and defaults"], rows)


def readers() -> str:
    """Each format with the keys that a config sets for it."""
    from joulesweep import readers as package

    rows = []
    for name in package.names():
        reader = package.load(name)
        keys = (*(["field"] if reader.needs_field else []), *reader.options, *(["header"] if reader.headerless else []))
        fields = [code(key) for key in keys]
        about = (package.module(name).__doc__ or "").splitlines()[0].rstrip(".")
        rows.append([code(name), _prose(about), ", ".join(fields), "always" if reader.has_targets else ""])
    return table(["format", "what it reads", "keys that you may set", "targets without one"], rows)


# Statuses and flags


def run_statuses() -> str:
    """What a run ends with."""
    from joulesweep.runs.record import STATUSES

    return table(["status", "meaning"], [[code(status), RUN_STATUSES[status]] for status in STATUSES])


def number_statuses() -> str:
    """What a number is."""
    return table(["status", "meaning"], [[code(status), about] for status, about in NUMBER_STATUSES.items()])


def flag_meanings() -> dict[str, str]:
    """What each flag means."""
    from joulesweep.report.evidence import FLAGS

    return dict(FLAGS)


def flags() -> str:
    """What weakens a comparison."""
    return table(["flag", "meaning"], [[code(flag), _prose(about)] for flag, about in flag_meanings().items()])


def promises() -> str:
    """What a certificate tries."""
    from joulesweep.certify.appraise import PROMISES

    return table(["promise", "what it says"], [[code(name), _prose(about)] for name, about in PROMISES.items()])


def limits() -> str:
    """The numbers that decide about flags, ranks and intervals, by the name that the code gives them."""
    named = {
        "measure.conditions": ("HEADLINE_S", "HEADLINE_TICKS", "SKIPPED"),
        "measure.verdict": ("CROSS_CHECK", "CLOCKS"),
        "analyse.comparisons": ("MARGIN",),
        "analyse.studies.decision": ("TIE",),
        "analyse.statistics": ("FALSE_ALARM",),
        "analyse.roofline": ("MEMORY_TOLERANCE",),
    }
    rows = []
    for module, names in named.items():
        found = importlib.import_module(f"joulesweep.{module}")
        rows += [[code(f"{module}.{name}"), f"{getattr(found, name):g}"] for name in names if hasattr(found, name)]
    return table(["name", "value"], rows)


# The record


def record_text() -> str:
    """What a record holds: its objects, each with its keys."""
    from joulesweep.runs.record import RunRecord

    parts = []
    for kind in dict.fromkeys(_objects(RunRecord)):
        about, rows = _attributes(kind), []
        for one in dataclasses.fields(kind):
            if one.name != "facts":  # what a method says of itself: keys of its own
                rows.append([f"`{one.name}`", f"`{one.type}`", about.get(one.name, "")])
        first = str(inspect.getdoc(kind)).partition("\n")[0]
        parts.append(f"### {kind.__name__}\n\n{first}\n\n{table(['key', 'type', 'what it is'], rows)}")
    return "\n".join(parts)


def _objects(kind: type) -> Iterator[type]:
    """A type of a record and those within it, but for the spec."""
    yield kind
    waiting = [hint for name, hint in typing.get_type_hints(kind).items() if name != "spec"]
    for hint in waiting:  # grows meanwhile
        waiting += typing.get_args(hint)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _objects(hint)


def _attributes(kind: type) -> dict[str, str]:
    """What the docstrings of a type and of its bases say of its attributes."""
    about: dict[str, str] = {}
    for base in kind.__mro__:
        _, _, listed = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", listed, re.MULTILINE):
            about.setdefault(name, " ".join(text.split()))
    return about


def spec_fields() -> str:
    """Every field of a spec, with the value it has when a stored spec leaves it out."""
    from joulesweep.core.spec import FIELDS, OMISSION, RunSpec

    about = attributes(RunSpec)
    rows = [
        [code(name), code(json.dumps(OMISSION[name])) if name in OMISSION else "always stated", _prose(about[name])]
        for name in FIELDS
    ]
    return table(["field", "when left out", "meaning"], rows)


def versions() -> str:
    """The formats of files and their versions, as the modules that write them say."""
    rows = [[code(name), str(version), code(module)] for name, version, module in formats()]
    return table(["format", "version", "written by"], rows)


def formats() -> list[tuple[str, int, str]]:
    """(format, version, module) of each kind of file: constants, or keys of a mapping that is written."""
    found = []
    for name, path in house.modules().items():
        text = path.read_text(encoding="utf-8")
        constants = dict(re.findall(r'^(FORMAT|VERSION)(?:, VERSION|: [^=]+)? = "?([\w-]+)', text, re.MULTILINE))
        both = re.search(r'^FORMAT, VERSION = "([\w-]+)", (\d+)', text, re.MULTILINE)
        keys = re.search(r'"format": "([\w-]+)",\s+"version": (\d+)', text)
        if (pair := both or keys) is not None:
            found.append((pair[1], int(pair[2]), name))
        elif {"FORMAT", "VERSION"} <= set(constants):
            found.append((constants["FORMAT"], int(constants["VERSION"]), name))
    return sorted(found)


# The house


def drawing() -> str:
    """The rooms as a drawing that scrolls on a narrow screen."""
    return f'<div class="house">{house.drawing()}</div>\n'


def room_table() -> str:
    """Each room with its modules and the rooms that it imports from."""
    found = house.rooms()
    arrows = house.arrows_of(found)
    rows = [
        [
            f"[{name}](../reference/api/{name}.md)",
            ", ".join(code(module.removeprefix(f"{house.PACKAGE.name}.")) for module in members),
            ", ".join(sorted(arrows[name])) or "nothing",
        ]
        for name, members in found.items()
    ]
    return table(["room", "modules", "imports from"], rows)


def upward() -> str:
    """Which imports lead to a higher floor."""
    rows = [[code(module), code(one), f"{a} to {b}"] for module, one, a, b in house.upward()]
    if not rows:
        return "No import goes up.\n"
    return f"{len(rows)} imports go up, dashed in the drawing:\n\n{table(['module', 'imports', 'rooms'], rows)}"


# The API


def api_pages() -> dict[str, str]:
    """A page per room, and one that lists them."""
    pages = {name: _room_page(name, members) for name, members in house.rooms().items()}
    rows = [
        [f"[{name}]({name}.md)", "; ".join(f"{code(one)} {_first_line(one)}" for one in members)]
        for name, members in house.rooms().items()
    ]
    intro = (
        "# API\n\nThe modules by room. They are not a public interface: see [Public interface](../interface.md).\n\n"
    )
    return {"index": intro + table(["room", "modules"], rows), **pages}


def _room_page(name: str, members: Sequence[str]) -> str:
    parts = [f"## {code(module)}\n\n::: {module}\n" for module in members]
    return f"# {name}\n\n" + "\n".join(parts)


def _first_line(module: str) -> str:
    text = ast.get_docstring(ast.parse(house.modules()[module].read_text(encoding="utf-8"))) or ""
    return _prose(text.splitlines()[0] if text else "")


PARTS: dict[str, Callable[[], str]] = {
    "config-keys": config_keys,
    "tables": tables_page,
    "command-line": command_line,
    "make-targets": make_targets,
    "strategies": strategies,
    "precisions": precisions,
    "engines": engines,
    "optimizers": optimizers,
    "methods": methods,
    "readers": readers,
    "lr-rules": lr_rules,
    "run-statuses": run_statuses,
    "number-statuses": number_statuses,
    "flags": flags,
    "promises": promises,
    "limits": limits,
    "record": record_text,
    "spec-fields": spec_fields,
    "versions": versions,
    "house": drawing,
    "rooms": room_table,
    "upward": upward,
}
