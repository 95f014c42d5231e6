"""A finished run is stale when the code that it used does something else, and only then."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_run
from moving import move

from joulesweep import methods
from joulesweep.core import places
from joulesweep.plan import definitions, staleness
from joulesweep.train import loop

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
SNIPPET_DIGEST = "576def4ca5503cdb"

SPECS = {
    "plain": tiny_run.spec(),
    "mixed": tiny_run.spec(precision="bf16-mixed"),
    "ddp": tiny_run.spec(strategy="ddp", devices=2),
    "frozen": tiny_run.spec(method="freeze-bottom"),
}


SCRIPTS = ("grid", "fetch_model", "fetch_dataset", "tokenise", "aggregate", "charts", "exports", "report")


def forget():
    caches = (
        definitions._module,
        definitions.encoded,
        staleness._sources,
        staleness._run_digest,
        staleness.code_digest,
    )
    for function in caches:
        function.cache_clear()


def digest_of(folder: Path, text: str, is_run: bool = False) -> str:
    """Of all definitions of a module."""
    path = folder / "snippet.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    forget()
    bound = definitions._module(path).bound
    roots = [definitions.Definition(path, name) for name, meaning in bound.items() if not isinstance(meaning, tuple)]
    return staleness._hash(staleness._closure(roots, {}, is_run))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that may be edited; its digests, by name of a spec."""

    class Package:
        folder = tmp_path / "joulesweep"

        def path(self, name: str) -> Path:
            return self.folder / name

        def edit(self, name: str, old: str, new: str) -> None:
            text = self.path(name).read_text(encoding="utf-8")
            assert old in text
            self.path(name).write_text(text.replace(old, new), encoding="utf-8")
            forget()

        def everywhere(self, old: str, new: str) -> None:
            """Replace a pattern in every file."""
            for path in [*self.folder.rglob("*.py"), *(tmp_path / "scripts").glob("*.py")]:
                path.write_text(re.sub(old, new, path.read_text(encoding="utf-8")), encoding="utf-8")
            forget()

        def digests(self) -> dict[str, str]:
            return {name: staleness.run_digest(spec) for name, spec in SPECS.items()}

        def analysis(self) -> dict[str, str]:
            return {script: staleness.code_digest(f"scripts.{script}") for script in SCRIPTS}

        def changed_by(self, name: str, old: str, new: str) -> set[str]:
            before = self.digests()
            self.edit(name, old, new)
            return {name for name, value in self.digests().items() if value != before[name]}

    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*definitions.PACKAGES, "resources/published"):
        shutil.copytree(places.ROOT / name, tmp_path / name, ignore=ignored)
    for path in (places.ROOT / "resources").glob("*.csv"):
        shutil.copy2(path, tmp_path / "resources" / path.name)
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "joulesweep")
    monkeypatch.setattr(places, "RESOURCES", tmp_path / "resources")
    real = methods.path
    monkeypatch.setattr(methods, "path", lambda name: tmp_path / "joulesweep" / "methods" / real(name).name)
    forget()
    yield Package()
    forget()


@pytest.mark.parametrize(
    "other",
    [
        "def f(a):\n    return a + 1  # one more\n",
        "# a comment\ndef f(a):\n\n    return (a +\n        1)\n",
        '"""A module docstring."""\ndef f(a):\n    """What it does."""\n    return a + 1\n',
        "def g(a): return a+1",
        "def f(a: int) -> int: return a+1",
        "import os\nfrom joulesweep import data\ndef f(a): return a+1",
    ],
)
def test_comments_docstrings_layout_imports_annotations_and_names_do_not_count(tmp_path, other):
    assert digest_of(tmp_path, other) == digest_of(tmp_path, "def f(a): return a+1")


@pytest.mark.parametrize(
    "other",
    [
        "def f(a): return a+2",
        "def f(a): return a-1",
        "def f(a): return 1+a",
        "def f(b): return b+1",
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
        "def f(a): return a+1\nprint(f)",
        "a = 1\ndef f(b): return a+1",
    ],
)
def test_code_counts(tmp_path, other):
    assert digest_of(tmp_path, other) != digest_of(tmp_path, "def f(a): return a+1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("y = None", "y = 0"),
        ("y = []", "y = ()"),
        ("y = x[:1]", "y = x[1:]"),
        ("y = f(a, *b)", "y = f(*b, a)"),
        ("y = f'{x}'", "y = f'{x!r}'"),
        ("y = f'{x:{y}}'", "y = f'{x:{y}z}'"),
        ("y = 'a'", "y = b'a'"),
        ("from x import f\ny = f()", "from x import g as f\ny = f()"),
        ("import a.b as f\ny = f.c", "import a as f\ny = f.c"),
        ("class A:\n    x = 1", "class A:\n    x: int = 1"),
        ("class A:\n    x: int", "class A:\n    x: float"),
        ("@dataclass\nclass A:\n    x: int", "@dataclass\nclass A:\n    x: ClassVar[int]"),
        ("def f():\n    raise Stop('oom', 'it was full')", "def f():\n    raise Stop('timeout', 'it was full')"),
        ("a = 1\nb = 2\ndef f(): return a", "a = 1\nb = 2\ndef f(): return b"),
        ("a = 1\ndef f():\n    return a", "a = 1\ndef f():\n    a = 2\n    return a"),
        (
            "def f(): return g(1)\ndef g(x): return h(x)\ndef h(x): return 1",
            "def f(): return g(1)\ndef g(x): return f(x)\ndef h(x): return 1",
        ),
    ],
)
def test_pairs_that_look_alike_differ(tmp_path, one, other):
    assert digest_of(tmp_path, one, is_run=True) != digest_of(tmp_path, other, is_run=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f():\n    raise ValueError('one two three')", "def f():\n    raise ValueError('three two one')"),
        ("def f(x):\n    raise E(f'{x} is too large')", "def f(x):\n    raise E(f'{x} is too small')"),
        ("def f():\n    return 'it has no meter'", "def f():\n    return 'a meter is lacking'"),
        ("def f():\n    assert x, 'one'", "def f():\n    assert x, 'two'"),
        ("def f():\n    print('one')\n    return 1", "def f():\n    return 1"),
        ("y = Row(about='one', x=1)", "y = Row(about='two', x=1)"),
        ("y = Row(peak_rate='fp16', x=1)", "y = Row(peak_rate='fp8', x=1)"),
        ("@dataclass\nclass A:\n    x: int", "@dataclass\nclass A:\n    x: float"),
        ("from x import f\ny = f()", "from x import f as g\ny = g()"),
        ("from x import f\ny = f()", "import x\ny = x.f()"),
        ("def f():\n    import x\n    return x.g", "import x\ndef f():\n    return x.g"),
        ("# changes no number: words\n\nx = 1", "# changes no number: words\n\nx = 2"),
        ("import a\n# changes no number: words\nx = 1\ny = x", "import a\nx = 5  # changes no number: more\ny = x"),
    ],
)
def test_of_a_run_wording_and_what_is_exempt_do_not_count(tmp_path, one, other):
    assert digest_of(tmp_path, one, is_run=True) == digest_of(tmp_path, other, is_run=True)


def test_an_exemption_holds_for_the_definition_beside_it_alone(tmp_path):
    text = "import a\n# changes no number: words\nx = 1\ny = {}"
    assert digest_of(tmp_path, text.format(1), is_run=True) != digest_of(tmp_path, text.format(2), is_run=True)


def test_of_an_analysis_sentences_count_that_are_returned(tmp_path):
    texts = ("def f():\n    return 'it has no meter'", "def f():\n    return 'a meter is lacking'")
    assert digest_of(tmp_path, texts[0]) != digest_of(tmp_path, texts[1])


def test_a_text_that_only_looks_like_a_docstring_counts(tmp_path):
    assert digest_of(tmp_path, "def f():\n    return 'a'") != digest_of(tmp_path, "def f():\n    return 'b'")


PLAIN = {"ENGINES": "eager", "OPTIMIZERS": "adamw", "PRECISIONS": "fp32", "STRATEGIES": "single"}


def used_by_a_plain_run() -> list[definitions.Definition]:
    parts = staleness.run_parts("full", PLAIN)
    return sorted((one for one in parts if definitions.exemption(one) is None), key=lambda one: (one.path, one.name))


def test_each_definition_that_a_run_uses_counts():
    used = used_by_a_plain_run()
    bodies = [(one, getattr(definitions._module(one.path).bound[one.name], "body", None)) for one in used]
    with_body = [(one, body) for one, body in bodies if isinstance(body, list)]
    assert len(with_body) > 300
    for one, body in with_body:
        before = definitions.encoded.__wrapped__(one, None, False)
        body.append(definitions.ast.Pass())
        after = definitions.encoded.__wrapped__(one, None, False)
        body.pop()
        assert before.text != after.text, one
    assert all(staleness.run_parts("full", PLAIN).values())


def test_a_comment_in_the_training_loop_makes_nothing_stale(package):
    assert (
        package.changed_by("train/loop.py", "    trainer.core.train()\n", "    # why\n    trainer.core.train()\n\n")
        == set()
    )


@pytest.mark.slow
def test_a_definition_that_nothing_uses_makes_nothing_stale(package):
    path = package.path("train/loop.py")
    before = package.digests()
    path.write_text(path.read_text(encoding="utf-8") + "\n\ndef unused():\n    return 1\n", encoding="utf-8")
    forget()
    assert package.digests() == before


def test_a_module_that_is_renamed_or_moved_makes_nothing_stale(package):
    before = package.digests(), package.analysis()
    move(places.ROOT, "joulesweep.train.data", "joulesweep.rooms.corpora")
    move(places.ROOT, "joulesweep.analyse.statistics", "joulesweep.analyse.intervals")
    move(places.ROOT, "joulesweep.train.worker", "joulesweep.train.rank")
    forget()
    assert (package.digests(), package.analysis()) == before
    assert package.changed_by("rooms/corpora.py", "def steps(", "def steps(extra=None, *") == set(SPECS)


@pytest.mark.slow
def test_a_function_that_is_moved_and_renamed_makes_nothing_stale(package):
    before = package.digests()
    text = package.path("train/loop.py").read_text(encoding="utf-8")
    clip = re.search(r"def _clip\(.*?\n\n\n", text, re.DOTALL)[0]
    own = "from __future__ import annotations\nimport torch\n\n\n" + clip.replace("_clip", "cut")
    package.path("norms.py").write_text(own, encoding="utf-8")
    moved = text.replace(clip, "").replace("_clip(", "norms.cut(")
    moved = moved.replace("import torch\n", "import torch\nfrom joulesweep import norms\n", 1)
    package.path("train/loop.py").write_text(moved, encoding="utf-8")
    forget()
    assert package.digests() == before
    assert package.changed_by("norms.py", "foreach=True", "foreach=False") == set(SPECS)


@pytest.mark.slow
def test_of_a_table_only_the_runs_own_row_counts(package):
    changed = package.changed_by("axes/precision.py", 'autocast="bfloat16"', 'autocast="float16"')
    assert changed == {"mixed"}
    assert package.changed_by("axes/precision.py", 'peak_rate="bf16"', 'peak_rate="fp16"') == set(), (
        "of the analysis alone"
    )
    assert package.changed_by("axes/strategy.py", "gradient_as_bucket_view=True", "gradient_as_bucket_view=False") == {
        "ddp"
    }


@pytest.mark.slow
def test_a_new_row_makes_nothing_stale(package):
    row = '    "fp8-mixed": Precision(about="eight bits", peak_rate="fp8", convert=eight),\n'
    assert package.changed_by("axes/precision.py", '    "tf32": Precision', f'{row}    "tf32": Precision') == set()


@pytest.mark.slow
def test_the_code_beside_a_table_counts_for_every_run(package):
    assert package.changed_by("axes/precision.py", '"high" if allowed', '"medium" if allowed') == set(SPECS)


def test_only_the_runs_own_method_counts(package):
    assert package.changed_by("methods/freeze_bottom.py", "fraction: float = 0.5", "fraction: float = 0.4") == {
        "frozen"
    }


def test_a_new_method_makes_nothing_stale(package):
    before = package.digests()
    package.path("methods/another.py").write_text("def apply(model, params): return model\n")
    forget()
    assert package.digests() == before


@pytest.mark.slow
def test_charts_and_report_make_no_run_stale_and_training_makes_no_table_stale(package):
    before = package.analysis()
    assert package.changed_by("report/charts/quality.py", "def draw(", "def draw(_=0, *") == set()
    assert {name for name, value in package.analysis().items() if value != before[name]} == {
        "charts",
        "exports",
        "report",
    }
    assert package.changed_by("train/loop.py", "def _step(", "def _step(_=0, *") == set(SPECS)
    package.edit("analyse/cells.py", "def tabulate(", "def tabulate(_=0, *")
    changed = {name for name, value in package.analysis().items() if value != before[name]}
    assert "aggregate" in changed
    assert not changed & {"grid", "fetch_model", "fetch_dataset", "tokenise"}


@pytest.mark.slow
def test_the_templates_belong_to_report_and_charts(package):
    before = package.analysis()
    package.path("report/templates/added.html").write_text("<p>")
    forget()
    assert {name for name, value in package.analysis().items() if value != before[name]} == {"charts", "report"}


@pytest.mark.slow
def test_numbers_that_a_script_reads_belong_to_it(package):
    runs = package.digests()
    for file, script in {
        "cpu_watts.csv": "aggregate",
        "gpus.csv": "aggregate",
        "carbon_intensity.csv": "aggregate",
        "published/greentrainer.csv": "report",
        "published/maina.csv": "report",
    }.items():
        before = package.analysis()
        with (places.ROOT / "resources" / file).open("a", encoding="utf-8") as csv:
            csv.write("# another row\n")
        forget()
        changed = {name for name, value in package.analysis().items() if value != before[name]}
        assert script in changed, file
        assert ("charts" in changed) == (file == "carbon_intensity.csv"), "charts may draw emissions"
    assert package.digests() == runs


def test_a_table_that_is_no_dict_literal_is_refused(package):
    package.edit(
        "axes/precision.py", "PRECISIONS: dict[str, Precision] = {", "PRECISIONS: dict[str, Precision] = dict() | {"
    )
    with pytest.raises(TypeError, match="PRECISIONS must be a dict literal"):
        staleness.run_digest(SPECS["plain"])


def test_what_is_found_by_name_alone_is_known():
    """The walk sees names; what is imported by a name that is made up meanwhile, it cannot."""
    found = {
        path.relative_to(places.ROOT).as_posix()
        for path in (places.ROOT / "joulesweep").rglob("*.py")
        if re.search(r"import_module|__import__", path.read_text(encoding="utf-8"))
    }
    of_others = {f"joulesweep/{name}.py" for name in ("train/assembly", "nets/build", "core/late_imports")}
    on_pages = ("report/charts", "report/sections", "studies")
    rooms = ("cli", *on_pages, "measure/meters", "methods", "readers", "train/evaluations")  # by their own files
    plugins = {f"joulesweep/{name}/__init__.py" for name in rooms}
    assert found == plugins | of_others


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batching": "packed", "head": "masked", "max_grad_norm": 1.0, "schedule": "cosine"},
        {"method": "greentrainer", "epochs": 2},
        {"method": "lora", "micro_batch_size": 4, "keep_model": "last"},
        {"precision": "bf16-kahan"},
        {"precision": "fp16-mixed", "min_seconds": 0.2},
    ],
)
def test_whatever_a_training_calls_is_in_its_digest(tmp_path, changes):
    assets = tiny_run.assets(tmp_path / "assets")
    spec = tiny_run.spec(**changes)
    called: set[tuple[str, str]] = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(places.ROOT / "joulesweep")):
            called.add((frame.f_code.co_filename, frame.f_code.co_qualname.split(".")[0]))

    sys.setprofile(note)
    try:
        loop.train(spec, assets.model_folder, assets.tokens, tmp_path)
    finally:
        sys.setprofile(None)
    parts = staleness.run_parts(spec.method, {table: getattr(spec, field) for table, field in staleness.TABLES.items()})
    named = [definitions.Definition(Path(file), name) for file, name in called if not name.startswith("<")]
    missed = {one for one in named if one not in parts and definitions.exemption(one) is None}
    assert len(named) > 100, "the training was watched"
    assert missed == set()


@functools.cache
def interpreters() -> dict[str, str]:
    """Other supported Pythons, by version: on the PATH, beside this one, or of pyenv."""
    several = (Path(sys.base_prefix).parent, Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions"))
    folders = [*map(Path, os.get_exec_path()), *(path for folder in several for path in folder.glob("*/bin"))]
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
from joulesweep.plan import definitions, staleness
path = pathlib.Path(sys.argv[1])
bound = definitions._module(path).bound
roots = [definitions.Definition(path, name) for name, meaning in bound.items() if not isinstance(meaning, tuple)]
codes = [staleness.code_digest("scripts." + script) for script in sys.argv[2:]]
codes.append(staleness._run_digest("lora", ("ENGINES", "eager"), ("PRECISIONS", "fp32"), ("STRATEGIES", "single")))
print(json.dumps([staleness._hash(staleness._closure(roots, {}, False)), codes]))
"""


def digests_under(python: str, snippet: Path) -> list:
    command = [python, "-S", "-c", UNDER_ANOTHER_PYTHON, str(snippet), *SCRIPTS]
    done = subprocess.run(command, cwd=tiny_run.REPOSITORY, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_digest_of_a_snippet_is_what_it_always_was(tmp_path):
    assert digest_of(tmp_path, SNIPPET) == SNIPPET_DIGEST, "every finished run of every user would be repeated"


@pytest.mark.slow
def test_digests_are_the_same_under_every_supported_python_and_need_no_package(tmp_path):
    digest_of(tmp_path, SNIPPET)
    snippet, codes = digests_under(sys.executable, tmp_path / "snippet.py")
    assert snippet == SNIPPET_DIGEST
    assert [staleness.code_digest(f"scripts.{script}") for script in SCRIPTS] == codes[:-1]
    if not interpreters():
        pytest.skip("no other supported Python is installed")
    for version, python in interpreters().items():
        assert digests_under(python, tmp_path / "snippet.py") == [SNIPPET_DIGEST, codes], version


def test_a_digest_is_kept_for_the_same_sources_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".snakemake").mkdir()
    monkeypatch.setattr(places, "ROOT", tmp_path)
    worked_out: list[str] = []

    def digest(text: str) -> str:
        worked_out.append(text)
        return text

    def kept(*of: str) -> str:
        return staleness._kept(of, lambda: digest(",".join(of)))

    sources = ["first"]
    monkeypatch.setattr(staleness, "_sources", lambda: sources[0])
    assert [kept("a"), kept("a", "b"), kept("a")] == ["a", "a,b", "a"]
    assert worked_out == ["a", "a,b"]
    sources[0] = "second"
    assert (kept("a"), worked_out) == ("a", ["a", "a,b", "a"])
    (tmp_path / staleness.KEPT).write_text('{"sources": "second", "digests": 3}', encoding="utf-8")
    assert kept("a") == "a", "a garbled file is written again"
    assert json.loads((tmp_path / staleness.KEPT).read_text(encoding="utf-8"))["digests"] == {'["a"]': "a"}


def test_digests_are_kept_nowhere_but_beside_snakemakes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(staleness, "_sources", lambda: "first")
    assert staleness._kept(["a"], lambda: "digest") == "digest"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["joulesweep/x.py", "scripts/x.py", "resources/x.csv", "joulesweep/templates/x.j2"])
def test_every_file_that_may_count_is_among_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "RESOURCES", tmp_path / "resources")
    before = staleness._sources.__wrapped__()
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("a", encoding="utf-8")
    added = staleness._sources.__wrapped__()
    (tmp_path / name).write_text("b", encoding="utf-8")
    assert len({before, added, staleness._sources.__wrapped__()}) == 3


def test_an_evaluation_counts_for_the_runs_that_it_is_of_alone():
    rows = {"ENGINES": "eager", "PRECISIONS": "fp32", "STRATEGIES": "single"}
    plain, scored = (staleness.run_parts("full", rows, names) for names in ((), ("crows-pairs",)))
    files = {definition.path.name for definition in scored} - {definition.path.name for definition in plain}
    assert files == {"crows_pairs.py"}
    spec = tiny_run.spec(evaluate=[{"name": "crows-pairs", "source": {}}])
    assert staleness.run_digest(spec) != staleness.run_digest(tiny_run.spec())
