"""Digests of code, which decide whether a finished run, a table or a report is stale.

A digest covers every definition that an entry point uses, directly or not (see `definitions`), but not their names or
files: moving and renaming them makes nothing stale. A definition that runs use but that changes no number has a comment
that says so, with the reason. `python -m joulesweep.plan.staleness` lists what a run's digest covers and leaves out.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from joulesweep import methods
from joulesweep.core import files, places
from joulesweep.core.spec import RunSpec
from joulesweep.measure import meters
from joulesweep.plan import definitions
from joulesweep.plan.definitions import Definition
from joulesweep.train import evaluations

#: Tables where only the run's own row counts, each with the field of the spec that names the row.
TABLES = {"ENGINES": "engine", "OPTIMIZERS": "optimizer", "PRECISIONS": "precision", "STRATEGIES": "strategy"}
#: Entry point of a run: its parent process, which leads to the processes that it starts.
RUN = ("joulesweep.launch.launcher", "launch")
#: In the checkout, beside what Snakemake keeps: digests of the sources, which take seconds to work out.
KEPT = Path(".snakemake", "joulesweep", "digests.json")


def run_digest(spec: RunSpec) -> str:
    """Digest of the code that a run of this spec uses."""
    evaluated = tuple(dict.fromkeys(str(entry["name"]) for entry in spec.evaluate))
    rows = ((table, getattr(spec, field)) for table, field in TABLES.items())
    return _run_digest(spec.method, *rows, evaluated=evaluated)


@functools.cache
def _run_digest(method: str, *rows: tuple[str, str], evaluated: tuple[str, ...] = ()) -> str:
    return _kept(["run", method, *evaluated, *rows], lambda: _hash(run_parts(method, dict(rows), evaluated)))


def run_parts(method: str, rows: dict[str, str], evaluated: Sequence[str] = ()) -> dict[Definition, str]:
    """The definitions that a run uses, in a fixed order, each with its text.

    Args:
        method: the run's.
        rows: the run's own row of each table of `TABLES`.
        evaluated: names of its evaluations.
    """
    method_file, roots = methods.path(method), [definitions.named(*RUN), *_of_meters()]
    roots += [definition for name in evaluated for definition in definitions.all_of(evaluations.path(name))]
    files: list[Path] = []
    new = [method_file]
    while new:  # if a method builds on another, all of that file counts: its parameters are looked up by name
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


def _of_meters() -> list[Definition]:
    """What counts of the meters, which are found by name; one that is exempt as a whole changes no digest."""
    every = [definitions.named("joulesweep.measure.meters", kind) for kind in ("GPU", "CPU", "DRAM")]
    every += [one for path in meters.paths() for one in definitions.all_of(path)]
    return [one for one in every if definitions.exemption(one) is None]


@functools.cache
def code_digest(module: str, name: str = "main", *plugins: Path) -> str:
    """Digest of the code that a function uses, and of the tables of numbers and templates that it reads.

    Args:
        module: its dotted name.
        name: name of the function.
        plugins: files that it looks up by name; all of their definitions count.
    """

    def digest() -> str:
        plugin_definitions = [definition for path in plugins for definition in definitions.all_of(path)]
        return _hash(_closure([definitions.named(module, name), *plugin_definitions], {}, is_run=False))

    return _kept(["code", module, name, *(str(path.relative_to(places.ROOT)) for path in plugins)], digest)


def _kept(of: Sequence[object], digest: Callable[[], str]) -> str:
    """A digest that an earlier process noted for the very same sources, or else a new one, which is noted."""
    file, key, sources, kept = places.ROOT / KEPT, json.dumps(of), _sources(), dict[str, str]()
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        noted = json.loads(file.read_text(encoding="utf-8"))
        kept = dict(noted["digests"]) if noted["sources"] == sources else {}
    if key not in kept:
        kept[key] = digest()
        if file.parent.parent.is_dir():
            with contextlib.suppress(OSError):  # it is only slower next time
                files.write_json(file, {"sources": sources, "digests": kept})
    return kept[key]


@functools.cache
def _sources() -> str:
    """Digest of every file that a digest may cover, and of the Python that reads them."""
    whole = hashlib.sha256(sys.version.encode())
    for folder in (*(places.ROOT / package for package in definitions.PACKAGES), places.RESOURCES):
        for path in sorted(path for kind in ("*.py", "*.csv", "templates/*.*") for path in folder.rglob(kind)):
            content = path.read_bytes()
            whole.update(f"{path.relative_to(places.ROOT)}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def _closure(roots: Sequence[Definition], rows: dict[str, str], is_run: bool) -> dict[Definition, str]:
    """All definitions that the roots use, in order of discovery, each with its text and the numbers of those used."""
    numbers = {definition: i for i, definition in enumerate(dict.fromkeys(roots))}
    parts: dict[Definition, str] = {}
    files: set[Path] = set()
    for definition in (waiting := list(numbers)):  # the list grows during the loop
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
    """Files of ours that some strings name: tables of numbers, and all templates if one is named."""
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
    """Print which definitions count for a plain run, and which do not, with the reason."""
    parts = run_parts("full", {"ENGINES": "eager", "OPTIMIZERS": "adamw", "PRECISIONS": "fp32", "STRATEGIES": "single"})
    for definition in sorted(parts, key=lambda definition: (definition.path, definition.name)):
        reason = definitions.exemption(definition)
        print(
            f"{definition.path.relative_to(places.ROOT)}:{definition.name}"
            + (f" does not count: {reason}" if reason else "")
        )


if __name__ == "__main__":
    main()
