"""Digests of code: what makes a finished run, a table or a report stale.

A digest covers the definitions that something uses, from where it begins and on through the package (see
`definitions`): not their names or files, so moving and renaming them makes nothing stale. What counts for no run
although runs use it says so beside it, with the reason. `python -m joulesweep.plan.staleness` lists what a run's digest
covers, and what it leaves out.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from joulesweep import methods
from joulesweep.core import places
from joulesweep.core.spec import RunSpec
from joulesweep.plan import definitions
from joulesweep.plan.definitions import Definition

#: Tables of which only the run's own row counts: the spec's field that names it.
TABLES = {"ENGINES": "engine", "PRECISIONS": "precision", "STRATEGIES": "strategy"}
#: Where a run begins: in its parent. The processes that this one starts are found from there.
RUN = ("joulesweep.launch.launcher", "launch")


def run_digest(spec: RunSpec) -> str:
    """Digest of the code that a run of this spec uses."""
    return _run_digest(spec.method, *((table, getattr(spec, field)) for table, field in TABLES.items()))


@functools.cache
def _run_digest(method: str, *rows: tuple[str, str]) -> str:
    return _hash(run_parts(method, dict(rows)))


def run_parts(method: str, rows: dict[str, str]) -> dict[Definition, str]:
    """The definitions that a run uses, in a fixed order, each with its text.

    Args:
        method: the run's.
        rows: of each of `TABLES` the run's own.
    """
    method_file, roots = methods.path(method), [definitions.named(*RUN)]
    files: list[Path] = []
    new = [method_file]
    while new:  # of a method that another one builds on, all counts: its parameters are found by its name
        files += new
        roots += [definition for path in new for definition in definitions.all_of(path)]
        parts = _closure(roots, rows, is_run=True)
        used = dict.fromkeys(
            definition.path
            for definition in parts
            if definition.path.parent == method_file.parent and definition.path.stem != "__init__"
        )
        new = [path for path in used if path not in files]
    return parts


@functools.cache
def code_digest(module: str, name: str = "main", *plugins: Path) -> str:
    """Digest of all the code that a function of a module uses, and of the numbers and templates that it reads.

    Args:
        module: dotted.
        name: of the function.
        plugins: files that it finds by name; of those all counts.
    """
    plugin_definitions = [definition for path in plugins for definition in definitions.all_of(path)]
    return _hash(_closure([definitions.named(module, name), *plugin_definitions], {}, is_run=False))


def _closure(roots: Sequence[Definition], rows: dict[str, str], is_run: bool) -> dict[Definition, str]:
    """Everything that some definitions use, in the order in which it is met, with the numbers of what each one uses."""
    numbers = {definition: i for i, definition in enumerate(dict.fromkeys(roots))}
    parts: dict[Definition, str] = {}
    files: set[Path] = set()
    for definition in (waiting := list(numbers)):  # grows meanwhile
        if is_run and definitions.exemption(definition) is not None:
            parts[definition] = "exempt"
            continue
        encoding = definitions.encoded(definition, rows.get(definition.name), wording=not is_run)
        for used in encoding.used:
            if used not in numbers:
                numbers[used] = len(numbers)
                waiting.append(used)
        files |= set() if is_run else _read(encoding.strings)
        parts[definition] = encoding.text + " ".join(str(numbers[used]) for used in encoding.used)
    return parts | {Definition(path, ""): path.read_text(encoding="utf-8") for path in sorted(files)}


def _read(strings: Sequence[str]) -> set[Path]:
    """Our files that are named among some strings: tables of numbers, and all templates where one is."""
    named = {name for name in strings if name.endswith(".csv")}
    tables = {
        path
        for name in named
        for path in (places.RESOURCES / name, places.RESOURCES / "published" / name)
        if path.is_file()
    }
    return tables | (
        set(places.PACKAGE.rglob("templates/*.*")) if any(name.endswith(".j2") for name in strings) else set()
    )


def _hash(parts: dict[Definition, str]) -> str:
    return hashlib.sha256("\0".join(parts.values()).encode()).hexdigest()[:16]


def main() -> None:
    """Print what counts for a plain run, and what does not, with the reason."""
    parts = run_parts("full", {"ENGINES": "eager", "PRECISIONS": "fp32", "STRATEGIES": "single"})
    for definition in sorted(parts, key=lambda definition: (definition.path, definition.name)):
        reason = definitions.exemption(definition)
        print(
            f"{definition.path.relative_to(places.ROOT)}:{definition.name}"
            + (f" does not count: {reason}" if reason else "")
        )


if __name__ == "__main__":
    main()
