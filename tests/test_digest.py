"""A finished run is stale when the code that it used does something else, and only then."""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_run

from joulesweep import digest, methods

SNIPPET = '''
"""A docstring."""
from __future__ import annotations

import os as system
from . import sibling

LIMIT: int = 0xFF  # a comment
MIXED = [1.5, 1e-3, 2j, "ü", b"\\x00", None, True, ..., -1, not LIMIT, {1, 2}, {**{}, "a": 1}, (*[],)]


@system.decorate("x", key=1)
class Thing(Exception, metaclass=type):
    """Another docstring."""

    field: str

    async def walk(self, /, a, *rest: int, b=lambda x, *, y=1: x + y, **more) -> None:
        """And another."""
        async with self as s, more:
            async for i in rest:
                yield await i
        if (n := len(rest)) > 1 < 2 and n or a is not b:
            del self.field, rest[1:2, ::3, ...]


def check(value):
    try:
        assert value, "no"
        while value:
            value -= 1
            continue
        else:
            raise ValueError from None
    except* OSError as error:
        global LIMIT
        pass
    finally:
        print(f"{value!r:>{LIMIT}}|{value=}|{{}}" "joined" f"{'in' + 'ner'}")
    match value:
        case [1, *_] | {"k": None, **other} if other:
            return
        case Thing(field="x") as whole:
            return None
        case None | -1:
            return [x for x in value if x if not x]
    return {k: v for k, v in value}, (y for y in value), *value
'''
SNIPPET_DIGEST = "b26bb6e23cea52c8"

SPECS = {
    "plain": tiny_run.spec(),
    "mixed": tiny_run.spec(precision="bf16-mixed"),
    "ddp": tiny_run.spec(strategy="ddp", devices=2),
    "frozen": tiny_run.spec(method="freeze-bottom"),
}


def digest_of(folder: Path, text: str) -> str:
    path = folder / "snippet.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return digest._hash([digest._module(path)])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that may be edited; its digests, by name of a spec."""

    class Package:
        folder = shutil.copytree(digest.PACKAGE, tmp_path / "joulesweep", ignore=shutil.ignore_patterns("__pycache__"))
        resources = tmp_path / "resources"
        for name in (name for names in digest.RESOURCES.values() for name in names):
            (resources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(digest.PACKAGE.parent / "resources" / name, resources / name)

        def edit(self, name: str, old: str, new: str) -> None:
            path = self.folder / name
            text = path.read_text(encoding="utf-8")
            assert old in text
            path.write_text(text.replace(old, new), encoding="utf-8")
            self.forget()

        def forget(self) -> None:
            digest._run_digest.cache_clear()
            digest.code_digest.cache_clear()

        def digests(self) -> dict[str, str]:
            return {name: digest.run_digest(spec) for name, spec in SPECS.items()}

        def changed_by(self, name: str, old: str, new: str) -> set[str]:
            before = self.digests()
            self.edit(name, old, new)
            return {name for name, value in self.digests().items() if value != before[name]}

    package = Package()
    monkeypatch.setattr(digest, "PACKAGE", package.folder)
    real = methods.path
    monkeypatch.setattr(methods, "path", lambda name: package.folder / "methods" / real(name).name)
    package.forget()
    yield package
    package.forget()


@pytest.mark.parametrize(
    "other",
    [
        "def f(a):\n    return a + 1  # one more\n",
        "# a comment\ndef f(a):\n\n    return (a +\n        1)\n",
        '"""A module docstring."""\ndef f(a):\n    """What it does."""\n    return a + 1\n',
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path, other):
    assert digest_of(tmp_path, other) == digest_of(tmp_path, "def f(a): return a+1")


@pytest.mark.parametrize(
    "other",
    [
        "def f(a): return a+2",
        "def f(a): return a-1",
        "def f(a): return 1+a",
        "def f(b): return b+1",
        "def g(a): return a+1",
        "def f(a=None): return a+1",
        "def f(*a): return a+1",
        "def f(a): return a+True",
        "def f(a): return a+1.0",
        "def f(a): return a+'1'",
        "async def f(a): return a+1",
        "@g\ndef f(a): return a+1",
        "def f(a): yield a+1",
        "def f(a):\n    a+1\n    return",
        "f = lambda a: a+1",
        "def f(a): return a+1\nx = 1",
    ],
)
def test_code_counts(tmp_path, other):
    assert digest_of(tmp_path, other) != digest_of(tmp_path, "def f(a): return a+1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = None", "x = 0"),
        ("return_ = []", "return_ = ()"),
        ("x[:1]", "x[1:]"),
        ("f(a, *b)", "f(*b, a)"),
        ("f'{x}'", "f'{x!r}'"),
        ("f'{x:{y}}'", "f'{x:{y}z}'"),
        ("'a'", "b'a'"),
    ],
)
def test_pairs_that_look_alike_differ(tmp_path, one, other):
    assert digest_of(tmp_path, f"import x\n{one}") != digest_of(tmp_path, f"import x\n{other}")


def test_a_text_that_only_looks_like_a_docstring_counts(tmp_path):
    assert digest_of(tmp_path, "def f():\n    return 'a'") != digest_of(tmp_path, "def f():\n    return 'b'")


@pytest.mark.parametrize("module", digest.CORE)
def test_every_core_module_counts_for_every_run(package, module):
    path = package.folder / f"{module}.py"
    before, text = package.digests(), path.read_text(encoding="utf-8")
    path.write_text(f"{text}\nADDED = 1\n", encoding="utf-8")
    package.forget()
    assert {name for name, value in package.digests().items() if value != before[name]} == set(SPECS)


def test_a_comment_in_the_training_loop_makes_nothing_stale(package):
    assert (
        package.changed_by("train.py", "    trainer.core.train()\n", "    # why\n    trainer.core.train()\n\n") == set()
    )


def test_of_a_table_only_the_runs_own_row_counts(package):
    changed = package.changed_by("precision.py", 'bfloat16 autocast", autocast="bfloat16"', 'x", autocast="float16"')
    assert changed == {"mixed"}
    assert package.changed_by("strategy.py", 'wrapper="DistributedDataParallel"', 'wrapper="Other"') == {"ddp"}


def test_a_new_row_makes_nothing_stale(package):
    row = '    "fp8-mixed": Precision(about="eight bits", autocast="float8_e4m3fn"),\n'
    assert package.changed_by("precision.py", '    "tf32": Precision', f'{row}    "tf32": Precision') == set()


def test_the_code_beside_a_table_counts_for_every_run(package):
    assert package.changed_by("precision.py", '"high" if row.tf32', '"medium" if row.tf32') == set(SPECS)


def test_only_the_runs_own_method_counts(package):
    assert package.changed_by("methods/freeze_bottom.py", "fraction: float = 0.5", "fraction: float = 0.4") == {
        "frozen"
    }


def test_a_new_method_makes_nothing_stale(package):
    before = package.digests()
    (package.folder / "methods" / "another.py").write_text("def apply(model, params): return model\n")
    package.forget()
    assert package.digests() == before


def test_charts_and_report_make_no_run_stale_and_training_makes_no_table_stale(package):
    tables, charts = digest.code_digest(*digest.TABLE_CODE), digest.code_digest(*digest.CHART_CODE)
    imports = "from __future__ import annotations\n"
    assert package.changed_by("charts.py", imports, f"{imports}ADDED = 1\n") == set()
    assert digest.code_digest(*digest.CHART_CODE) != charts
    assert package.changed_by("train.py", imports, f"{imports}ADDED = 1\n") == set(SPECS)
    assert digest.code_digest(*digest.TABLE_CODE) == tables
    package.edit("stats.py", imports, f"{imports}ADDED = 1\n")
    assert digest.code_digest(*digest.TABLE_CODE) != tables


def test_the_templates_belong_to_the_report(package):
    before = digest.code_digest("report")
    (package.folder / "templates").mkdir(exist_ok=True)
    (package.folder / "templates" / "added.html").write_text("<p>")
    package.forget()
    assert digest.code_digest("report") != before


@pytest.mark.parametrize(
    ("module", "file"), [(module, file) for module, files in digest.RESOURCES.items() for file in files]
)
def test_numbers_that_a_module_reads_belong_to_it(package, module, file):
    before = digest.code_digest("stats"), digest.code_digest(module)
    with (package.resources / file).open("a", encoding="utf-8") as csv:
        csv.write("# another row\n")
    package.forget()
    assert digest.code_digest("stats") == before[0]
    assert digest.code_digest(module) != before[1]


def test_a_table_that_is_no_dict_literal_is_refused(package):
    package.edit(
        "precision.py", "PRECISIONS: dict[str, Precision] = {", "PRECISIONS: dict[str, Precision] = dict() | {"
    )
    with pytest.raises(TypeError, match="PRECISIONS must be a dict literal"):
        digest.run_digest(SPECS["plain"])


def test_every_module_named_exists():
    named = {*digest.CORE, *digest.TABLES, *digest.TABLE_CODE, *digest.CHART_CODE, *digest.REPORT_CODE}
    assert {name for name in named if not (digest.PACKAGE / f"{name}.py").is_file()} == set()


def imported_by(module: str) -> set[str]:
    """Modules of the package that one of them imports."""
    tree = ast.parse((digest.PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "joulesweep":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("joulesweep."):
            found.add(node.module.split(".")[1])
    return found


def test_each_module_of_a_measured_run_counts_or_is_known_not_to_change_numbers():
    plumbing = {"errors", "bounded", "process", "record", "spec", "methods", "environment"}
    devices = {"devices", "lease"}  # which boards, not what they read
    copied = {"tokens"}  # of it launch takes the references alone, which stand in the texts
    imported = set().union(*map(imported_by, digest.CORE))
    assert {"data", "model", "sensors", "trace"} <= imported  # the walk finds them
    assert imported - {*digest.CORE, *digest.TABLES} - plumbing - devices - copied == set()


@pytest.mark.parametrize("code", ["TABLE_CODE", "CHART_CODE", "REPORT_CODE"])
def test_each_module_behind_tables_charts_and_report_counts(code):
    modules = set(getattr(digest, code))
    assert set().union(*map(imported_by, modules)) - modules <= {"errors", "methods"}  # wording alone


@functools.cache
def interpreters() -> dict[str, str]:
    """Other supported Pythons, by version: on the PATH, or beside this one."""
    folders = [Path(part) for part in os.get_exec_path()] + list(Path(sys.base_prefix).parent.glob("*/bin"))
    found: dict[str, str] = {}
    for path in (candidate for folder in folders for candidate in folder.glob("python3.1[1-9]")):
        done = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
            capture_output=True,
            text=True,
            check=False,
        )
        version = done.stdout.strip()
        if done.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 11):
            found.setdefault(version, str(path))
    found.pop(".".join(map(str, sys.version_info[:2])), None)
    return found


#: Run by a bare interpreter: without site-packages, so that the import itself proves that digests need none.
UNDER_ANOTHER_PYTHON = """
import json, pathlib, sys
from joulesweep import digest
names = sorted(path.stem for path in digest.PACKAGE.glob("*.py"))
snippet = digest._hash([digest._module(pathlib.Path(sys.argv[1]))])
print(json.dumps([snippet, {name: digest.code_digest(name) for name in names}]))
"""


def digests_under(python: str, snippet: Path) -> list:
    command = [python, "-S", "-c", UNDER_ANOTHER_PYTHON, str(snippet)]
    done = subprocess.run(command, cwd=tiny_run.REPOSITORY, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_digest_of_a_snippet_is_what_it_always_was(tmp_path):
    assert digest_of(tmp_path, SNIPPET) == SNIPPET_DIGEST, "every finished run of every user would be repeated"


def test_digests_are_the_same_under_every_supported_python_and_need_no_package(tmp_path):
    digest_of(tmp_path, SNIPPET)
    snippet, modules = digests_under(sys.executable, tmp_path / "snippet.py")
    assert snippet == SNIPPET_DIGEST
    assert {name: digest.code_digest(name) for name in modules} == modules
    if not interpreters():
        pytest.skip("no other supported Python is installed")
    for version, python in interpreters().items():
        assert digests_under(python, tmp_path / "snippet.py") == [SNIPPET_DIGEST, modules], version
