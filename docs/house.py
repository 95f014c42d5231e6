"""The rooms of the package and the imports between them, read from the code, and a drawing of both."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "joulesweep"

#: Floors of the house from the top down: a room may import from its own floor and from those below.
FLOORS = (
    "cli",
    "certify",
    "report",
    "studies",
    "analyse prepare launch",
    "plan",
    "train runs",
    "methods",
    "nets",
    "measure axes reference readers",
    "core",
)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


def room(module: str) -> str | None:
    """A module's room, the sub-package that it lies in; None for the package itself."""
    parts = module.split(".")[1:]
    return parts[0] if parts and (PACKAGE / parts[0]).is_dir() else None


@functools.cache
def rooms() -> dict[str, list[str]]:
    """The modules of each room, from the highest floor down.

    Raises:
        KeyError: a room without a floor.
    """
    found: dict[str, list[str]] = {}
    for module in modules():
        if (name := room(module)) is not None:
            found.setdefault(name, []).append(module)
    return {name: found[name] for name in sorted(found, key=lambda name: (heights()[name], name))}


def heights() -> dict[str, int]:
    """The number of each room's floor, from the top."""
    return {name: i for i, names in enumerate(FLOORS) for name in names.split()}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, but for type checkers alone."""
    return {name for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))) for name in _imported(node)}


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _nodes(child)


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & set(modules())
    if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE.name:
        return set()
    named = {f"{node.module}.{alias.name}" for alias in node.names}
    return (named & set(modules())) or {str(node.module)}


def arrows_of(found: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    arrows: dict[str, set[str]] = {name: set() for name in found}
    for name, members in found.items():
        for module in members:
            arrows[name] |= {target for one in imports(modules()[module]) if (target := room(one)) not in (None, name)}
    return arrows


def reach(arrows: Mapping[str, set[str]], begin: str) -> set[str]:
    """Every room that can be reached from one; itself only where there is a circle."""
    seen: set[str] = set()
    waiting = [*arrows[begin]]
    for name in waiting:  # grows meanwhile
        if name not in seen:
            seen.add(name)
            waiting += arrows[name]
    return seen


WIDTH, BOX, STEP = 760, (112, 44), 84
HEAD = '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
HEAD += '<path class="head" d="M0 0 L8 4 L0 8 Z"/></marker></defs>'


def drawing() -> str:
    """The rooms as SVG, an arrow to each import that no other arrow implies."""
    found = rooms()
    arrows = arrows_of(found)
    rows = [[name for name in floor.split() if name in found] for floor in FLOORS]
    places = {
        name: (WIDTH * (j + 1) / (len(row) + 1), 34 + STEP * i)
        for i, row in enumerate(rows)
        for j, name in enumerate(row)
    }
    lines = [_arrow(places[a], places[b]) for a, b in _drawn(arrows)]
    boxes = [_box(name, places[name], len(found[name])) for name in places]
    height = 34 + STEP * (len(rows) - 1) + BOX[1]
    title = f"{len(found)} rooms on {len(rows)} floors; arrows are imports"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">{HEAD}'
        f"{''.join(lines)}{''.join(boxes)}</svg>"
    )


def _drawn(arrows: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that are not implied by others, and all that go up."""
    down = {name: {one for one in arrows[name] if not goes_up(name, one)} for name in arrows}
    implied = {(a, b) for a in down for b in down[a] for c in down[a] - {b} if b in reach(down, c)}
    return [(a, b) for a in sorted(arrows) for b in sorted(arrows[a]) if (a, b) not in implied]


def goes_up(a: str, b: str) -> bool:
    """Whether an import leads to a higher floor."""
    return heights()[b] < heights()[a]


def _arrow(begin: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = begin, end
    half = BOX[1] / 2
    if y1 == y2:
        bend = f"Q{(x1 + x2) / 2:.0f} {y1 - 56:.0f}"
        return f'<path d="M{x1:.0f} {y1 - half:.0f} {bend} {x2:.0f} {y2 - half:.0f}" marker-end="url(#head)"/>'
    if y1 > y2:
        bend = (x1 + x2) / 2 + 70
        return f'<path class="up" d="M{x1:.0f} {y1:.0f} Q{bend:.0f} {(y1 + y2) / 2:.0f} {x2:.0f} {y2:.0f}"/>'
    return f'<path d="M{x1:.0f} {y1 + half:.0f} L{x2:.0f} {y2 - half:.0f}" marker-end="url(#head)"/>'


def _box(name: str, place: tuple[float, float], num_modules: int) -> str:
    x, y = place[0] - BOX[0] / 2, place[1] - BOX[1] / 2
    count = f"{num_modules} module{'s' if num_modules > 1 else ''}"
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
        f'<text x="{place[0]:.0f}" y="{place[1] - 2:.0f}">{name}</text>'
        f'<text class="count" x="{place[0]:.0f}" y="{place[1] + 14:.0f}">{count}</text>'
    )


def circles() -> list[str]:
    """Modules that import themselves by way of others."""
    arrows = {name: imports(path) & set(modules()) for name, path in modules().items()}
    return [name for name in arrows if name in reach(arrows, name)]


def upward() -> list[tuple[str, str, str, str]]:
    """Imports that lead to a higher floor: module, what it imports, and the rooms of both."""
    found = rooms()
    return [
        (module.removeprefix(f"{PACKAGE.name}."), one.removeprefix(f"{PACKAGE.name}."), a, b)
        for a, b in _drawn(arrows_of(found))
        if goes_up(a, b)
        for module in found[a]
        for one in sorted(imports(modules()[module]))
        if room(one) == b
    ]


def untyped() -> dict[str, int]:
    """How often each room says `dict[str, Any]`."""
    return {
        name: sum(len(re.findall(r"dict\[str, Any\]", modules()[one].read_text(encoding="utf-8"))) for one in members)
        for name, members in rooms().items()
    }


def untyped_public() -> dict[str, int]:
    """How many public functions and methods of each room take or return a `dict[str, Any]`."""
    return {name: sum(_num_untyped(modules()[one]) for one in members) for name, members in rooms().items()}


def _num_untyped(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    hidden = {inner for node in (*functions, *classes) if node.name[0] == "_" for inner in ast.walk(node)}
    signatures = [
        f"{ast.unparse(node.args)} {ast.unparse(node.returns) if node.returns else ''}"
        for node in functions
        if node not in hidden
    ]
    return sum("dict[str, Any]" in signature for signature in signatures)


def main() -> int:
    """Print modules and untyped mappings by room, circles and imports that lead up. Returns 1 if there are any."""
    counts, public = untyped(), untyped_public()
    print(f"{'room':10} modules  dict[str, Any]  in public signatures")
    for name, members in rooms().items():
        print(f"{name:10} {len(members):7} {counts[name]:15} {public[name]:21}")
    print(f"{'in all':10} {len(modules()):7} {sum(counts.values()):15} {sum(public.values()):21}")
    up, round_about = upward(), circles()
    print(f"circles: {len(round_about)}; imports that lead up: {len(up)}")
    for line in (*round_about, *(f"{module} imports {one}" for module, one, _, _ in up)):
        print(f"  {line}")
    return 1 if up or round_about else 0


if __name__ == "__main__":
    sys.exit(main())
