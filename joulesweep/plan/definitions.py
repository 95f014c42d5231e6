"""Encode each definition of the package as text that only a change of behaviour changes, and list those it uses.

A definition is a function, a class or an assignment at the top of a module. Its text contains neither its own name nor
its module: references to other definitions of the package become marks, so moving, splitting or renaming modules and
definitions changes nothing. Comments, docstrings, formatting, type annotations outside of classes, imports, error
sentences and printed text do not count. A string that ends with a dot, such as "joulesweep.report.charts.", is the
prefix of module names built at run time: all of that package counts. This module walks the syntax tree itself, because
the output of `ast.dump` changes between versions of Python.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from joulesweep.core import places

PACKAGES = (places.PACKAGE.name, "scripts")
#: Nodes that bind a name.
NAMING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
#: Nodes that bind names of their own inside.
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
BARE = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)  # nodes without any inside
REFERENCE = "\x01"  # marks a used definition in a definition's text
SENTENCE = re.compile(r"[A-Za-z]{2,}(\W+[A-Za-z]{2,}){2}")
SAYING = {"print", "warn", "debug", "info", "warning"}  # calls that only print or log
SAID = {"about", "peak_rate"}  # keywords for the documentation and the analysis, which do not affect a run
#: Comment that exempts a definition (before or beside it) or a module (before its first statement), with the reason.
EXEMPT = re.compile(r"# changes no number: (\S.*)")


@dataclass(frozen=True)
class Definition:
    """A definition's address: the file of its module, and its name there."""

    path: Path
    name: str


@dataclass(frozen=True)
class Encoded:
    """A definition's text, the definitions that its marks refer to, in order, and the strings that it holds."""

    text: str
    used: tuple[Definition, ...]
    strings: tuple[str, ...]


@dataclass
class _Module:
    """A module's top level.

    Attributes:
        path: its file.
        lines: the file's lines.
        begin: number of lines before the first statement.
        bound: meaning of each name: the statement that defines it, or an import: (module, name) or (module, None).
        effects: statements that define nothing.
    """

    path: Path
    lines: list[str]
    begin: int
    bound: dict[str, ast.stmt | tuple[str, str | None]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)


def file_of(module: str) -> Path | None:
    """The file of one of our modules, by its dotted name; None for other modules."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    base = places.ROOT.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def named(module: str, name: str) -> Definition:
    """The definition of a name in a module.

    Raises:
        LookupError: there is none.
    """
    meaning = _find(module, name)
    if isinstance(meaning, str):
        raise LookupError(f"{module} defines no {name}")
    return meaning


def all_of(path: Path) -> list[Definition]:
    """Every public definition of a file, sorted by name."""
    bound = _module(path).bound
    return [Definition(path, name) for name in sorted(bound) if isinstance(bound[name], ast.stmt) and name[0] != "_"]


def _all_in(package: str) -> list[Definition]:
    """Every public definition of a package's modules, which code may import by names built at run time."""
    folder = places.ROOT.joinpath(*package.split("."))
    return [definition for path in sorted(folder.glob("[a-z]*.py")) for definition in all_of(path)]


def exemption(definition: Definition) -> str | None:
    """Reason why a definition counts for no run, or None if it counts."""
    module = _module(definition.path)
    statement = module.bound[definition.name]
    assert isinstance(statement, ast.stmt)
    first = min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))])
    alone = module.lines[: module.begin] + module.lines[max(module.begin, first - 2) : first - 1]
    beside = module.lines[first - 1 : statement.lineno]
    matches = [EXEMPT.match(line) for line in alone] + [EXEMPT.search(line) for line in beside]
    return next((match[1] for match in matches if match), None)


@functools.cache
def _module(path: Path) -> _Module:
    text = path.read_text(encoding="utf-8")
    statements = _body(ast.parse(text))
    module = _Module(path, text.splitlines(), statements[0].lineno - 1 if statements else 0)
    for statement in statements:
        _bind(module, statement)
    return module


def _bind(module: _Module, statement: ast.stmt) -> None:
    """Note what a statement at the top of a module defines or imports, even under a condition."""
    for node in _walk(statement):
        module.bound |= _imported(node)
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
        return
    if isinstance(statement, ast.If) and _is_aside(statement.test):
        return
    names = [name for node in _walk(statement) for name in _named(node)]
    module.bound |= dict.fromkeys(names, statement)
    if not names:
        module.effects.append(statement)


def _is_aside(test: ast.expr) -> bool:
    """Whether a block at the top of a module is for type checkers or for the command line."""
    return "TYPE_CHECKING" in ast.unparse(test) or "__name__" in ast.unparse(test)


def _imported(node: ast.AST) -> dict[str, ast.stmt | tuple[str, str | None]]:
    """Names that an import binds: {name: (module, name there or None)}."""
    if isinstance(node, ast.Import):
        named = {alias.asname: (alias.name, None) for alias in node.names if alias.asname}
        firsts = [alias.name.split(".")[0] for alias in node.names if not alias.asname]
        return {**named, **{first: (first, None) for first in firsts}}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return {}


def _named(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node itself binds."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Store):
            yield node.id
    elif isinstance(node, NAMING):
        if node.name:
            yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and its descendants in the order of the source, without entering functions and classes."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, SCOPES):
            waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, BARE)][::-1]


def _find(module: str, name: str | None) -> Definition | str:
    """Resolve a name of a module: a definition of the package, or the dotted name of anything else."""
    dotted = module if name is None else f"{module}.{name}"
    path = file_of(module)
    if path is None or name is None or file_of(dotted):
        return dotted
    meaning = _module(path).bound.get(name)
    if isinstance(meaning, tuple):
        return _find(*meaning)
    return dotted if meaning is None else Definition(path, name)


@functools.cache
def encoded(definition: Definition, row: str | None = None, wording: bool = True) -> Encoded:
    """Encode a definition.

    Args:
        definition: the definition.
        row: encode only this row of a table, which must be a dict literal.
        wording: whether returned and printed sentences count.

    Raises:
        TypeError: the table is not a dict literal.
        LookupError: the table has no such row.
    """
    module = _module(definition.path)
    statement = module.bound[definition.name]
    assert isinstance(statement, ast.stmt)
    encoder = _Encoder(module, wording)
    text = encoder.node(statement if row is None else _row(statement, definition.name, row), frozenset())
    effects = "".join(encoder.node(effect, frozenset()) for effect in module.effects)
    return Encoded(f"{text}{effects}", tuple(encoder.used), tuple(encoder.strings))


def _row(statement: ast.stmt, table: str, row: str) -> ast.expr:
    value = getattr(statement, "value", None)
    if not isinstance(value, ast.Dict):
        raise TypeError(f"{table} must be a dict literal")
    for key, row_value in zip(value.keys, value.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == row:
            return row_value
    raise LookupError(f"{table} has no row {row}")


def _body(node: ast.AST) -> list[ast.stmt]:
    """Statements of a block, without its docstring."""
    body: list[ast.stmt] = list(getattr(node, "body", []))
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


class _Encoder:
    """Writes the nodes of one definition as text, and collects what they use."""

    def __init__(self, module: _Module, wording: bool) -> None:
        self.module = module
        self.wording = wording
        self.used: list[Definition] = []
        self.strings: list[str] = []
        self.imports: dict[str, ast.stmt | tuple[str, str | None]] = {}  # imports within functions

    def node(self, value: object, local: frozenset[str]) -> str:
        """A node as text; `local` are the function's local names."""
        if isinstance(value, list):
            return "[" + ",".join(filter(None, (self.node(item, local) for item in value))) + "]"
        if not isinstance(value, ast.AST):
            return repr(value)
        special = getattr(self, f"_{type(value).__name__}", None)
        text: str | None = special(value, local) if special else None
        return self._plain(value, local) if text is None else text

    def _plain(self, node: ast.AST, local: frozenset[str], **instead: object) -> str:
        """A node with its non-empty fields; empty ones would differ between versions of Python."""
        inner = dict(ast.iter_fields(node)) | instead
        for name in ("ctx", "kind", "type_comment", "type_params"):
            inner.pop(name, None)
        parts = [
            f"{name}={self.node(child, local)}" for name, child in inner.items() if child is not None and child != []
        ]
        return f"{type(node).__name__}({','.join(parts)})"

    def _reference(self, meaning: Definition | str) -> str:
        if isinstance(meaning, str):
            return meaning
        self.used.append(meaning)
        return REFERENCE

    def _meaning(self, node: ast.AST, local: frozenset[str]) -> Definition | str | None:
        """What a name, or a module's attribute, means outside the function."""
        if isinstance(node, ast.Name):
            bound = self.imports.get(node.id) or (None if node.id in local else self.module.bound.get(node.id))
            if isinstance(bound, tuple):
                return _find(*bound)
            return Definition(self.module.path, node.id) if bound else None
        if isinstance(node, ast.Attribute):
            base = self._meaning(node.value, local)
            return _find(base, node.attr) if isinstance(base, str) else None
        return None

    def _Name(self, node: ast.Name, local: frozenset[str]) -> str | None:  # noqa: N802 - as the node is called
        meaning = self._meaning(node, local) if isinstance(node.ctx, ast.Load) else None
        return None if meaning is None else self._reference(meaning)

    def _Attribute(self, node: ast.Attribute, local: frozenset[str]) -> str | None:  # noqa: N802
        meaning = self._meaning(node, local)
        return None if meaning is None else self._reference(meaning)

    def _Constant(self, node: ast.Constant, local: frozenset[str]) -> str | None:  # noqa: N802
        if not isinstance(node.value, str):
            return None
        self.strings.append(node.value)
        if re.fullmatch(r"(\w+\.){2,}", node.value) and file_of(node.value[:-1]):
            return "module" + "".join(map(self._reference, _all_in(node.value[:-1])))
        if file_of(node.value) is None:
            return None
        meaning = _find(node.value, "main")  # started as a program
        return "module" if isinstance(meaning, str) else self._reference(meaning)

    def _FunctionDef(self, node: ast.FunctionDef, local: frozenset[str]) -> str:  # noqa: N802
        inside = self._enter(node.args, node.body, local)
        name = None if self._is_top(node) else node.name
        head = self._plain(node, local, name=name, returns=None, body=[], args=[])
        return f"{head}({self.node(node.args, local)}{self.node(_body(node), inside)})"

    _AsyncFunctionDef = _FunctionDef

    def _Lambda(self, node: ast.Lambda, local: frozenset[str]) -> str:  # noqa: N802
        return self._plain(node, self._enter(node.args, [], local))

    def _enter(self, args: ast.arguments, body: list[ast.stmt], local: frozenset[str]) -> frozenset[str]:
        """A function's local names: its arguments, and all names that it assigns."""
        names = {arg.arg for arg in ast.walk(args) if isinstance(arg, ast.arg)}
        elsewhere: set[str] = set()
        for node in (node for statement in body for node in _walk(statement)):
            names.update(_named(node))
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= _imported(node)
            elif isinstance(node, ast.Global):
                elsewhere.update(node.names)
        return (local | names) - elsewhere - set(self.imports)

    def _arg(self, node: ast.arg, local: frozenset[str]) -> str:
        return node.arg

    def _ClassDef(self, node: ast.ClassDef, local: frozenset[str]) -> str:  # noqa: N802
        """A class; annotations of a dataclass's fields count as present, those of other classes in full."""
        name = None if self._is_top(node) else node.name
        is_data = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        head = self._plain(node, local, name=name, body=[])
        return head + "".join(self._field(statement, local, is_data) for statement in _body(node))

    def _field(self, node: ast.stmt, local: frozenset[str], is_data: bool) -> str:
        if not isinstance(node, ast.AnnAssign):
            return self.node(node, local)
        is_written = not is_data or any(
            word in ast.unparse(node.annotation) for word in ("ClassVar", "InitVar", "KW_ONLY")
        )
        return self._plain(node, local, annotation=node.annotation if is_written else True)

    def _is_top(self, node: ast.stmt) -> bool:
        return any(node is statement for statement in self.module.bound.values())

    def _AnnAssign(self, node: ast.AnnAssign, local: frozenset[str]) -> str:  # noqa: N802
        """An assignment without its annotation; at the top of a module also without the name."""
        target = None if self._is_top(node) else node.target
        return f"Assign({self.node(target, local)}={self.node(node.value, local)})"

    def _Assign(self, node: ast.Assign, local: frozenset[str]) -> str | None:  # noqa: N802
        match node.targets:
            case [ast.Name() as target]:
                return (
                    f"Assign({self.node(None if self._is_top(node) else target, local)}={self.node(node.value, local)})"
                )
        return None

    def _Import(self, node: ast.Import, local: frozenset[str]) -> str:  # noqa: N802
        return ""

    _ImportFrom = _Import

    def _JoinedStr(self, node: ast.JoinedStr, local: frozenset[str]) -> str:  # noqa: N802
        # Python 3.12.0 and 3.12.1 end a nested format with an empty constant.
        return self._plain(
            node, local, values=[v for v in node.values if not (isinstance(v, ast.Constant) and v.value == "")]
        )

    def _Raise(self, node: ast.Raise, local: frozenset[str]) -> str | None:  # noqa: N802
        if not isinstance(node.exc, ast.Call):
            return None
        kept = [arg for arg in node.exc.args if not _is_sentence(arg)]
        return self._plain(node, local, exc=self._plain(node.exc, local, args=kept))

    def _Return(self, node: ast.Return, local: frozenset[str]) -> str | None:  # noqa: N802
        return None if self.wording or not _is_sentence(node.value) else "Return(sentence)"

    def _Assert(self, node: ast.Assert, local: frozenset[str]) -> str:  # noqa: N802
        return self._plain(node, local, msg=None)

    def _Expr(self, node: ast.Expr, local: frozenset[str]) -> str | None:  # noqa: N802
        called = node.value.func if isinstance(node.value, ast.Call) else None
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        return "" if name in SAYING and not self.wording else None

    def _keyword(self, node: ast.keyword, local: frozenset[str]) -> str | None:
        return "" if node.arg in SAID and not self.wording else None


def _is_sentence(node: ast.AST | None) -> bool:
    """Whether an expression is a string of several words."""
    if isinstance(node, ast.BinOp):
        return _is_sentence(node.left) or _is_sentence(node.right)
    if isinstance(node, ast.IfExp):
        return _is_sentence(node.body) or _is_sentence(node.orelse)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "xx" for part in parts)
    return isinstance(node, ast.JoinedStr | ast.Constant) and SENTENCE.search(text) is not None
