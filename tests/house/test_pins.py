"""Every version is pinned once, in constraints.txt, and said alike everywhere else."""

from __future__ import annotations

import re
import tomllib

import pytest
import tiny_run
import yaml

ROOT = tiny_run.REPOSITORY
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def normalized(name: str) -> str:
    """As PyPI compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_pin(line: str) -> tuple[str, str]:
    name, equal, version = line.partition("==")
    assert equal, f"not pinned: {line}"
    return normalized(name), version


def constraints() -> list[tuple[str, str]]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [split_pin(line) for line in lines if line and not line.startswith("#")]


def declared() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"dependencies": project["dependencies"], **project["optional-dependencies"]}


def pins_of(path) -> dict[str, str]:
    *_, last = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    return dict(split_pin(line) for line in last["pip"])


def test_each_package_is_pinned_once_to_a_version():
    names = [name for name, _ in constraints()]
    assert len(names) > 50
    assert len(names) == len(set(names))
    assert [pin for pin in constraints() if not re.fullmatch(r"[0-9][0-9a-z.]*", pin[1])] == []  # no +cpu, no ranges


@pytest.mark.parametrize(
    ("group", "least"),
    [("dependencies", 8), ("dev", 8), ("peers", 2), ("docs", 2), ("slurm", 1), ("cluster", 1), ("bitsandbytes", 1)],
)
def test_every_dependency_is_pinned_and_pinned_there_only(group, least):
    names = declared()[group]
    assert len(names) >= least
    assert {normalized(name.partition(">=")[0]) for name in names} <= dict(constraints()).keys()


def test_there_are_no_other_groups_of_dependencies():
    assert set(declared()) == {"dependencies", "dev", "peers", "docs", "slurm", "cluster", "bitsandbytes"}


def test_torch_and_zeus_are_the_ones_meant():
    pins = dict(constraints())
    assert pins["torch"] == "2.13.0"
    assert "zeus" in pins
    assert "zeus-ml" not in pins  # its old name: the last release under it is of 2025


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_environments_have_the_same_pins(path):
    pins, known = pins_of(path), dict(constraints())
    assert pins
    assert {name: known.get(name) for name in pins} == pins


def test_the_two_environments_are_training_and_reporting_and_each_has_its_own():
    assert [path.stem for path in ENVIRONMENTS] == ["reporting", "training"]
    reporting, training = (pins_of(path) for path in ENVIRONMENTS)
    assert "torch" in training
    assert "torch" not in reporting
    assert "polars" in reporting


def test_the_rules_name_environments_that_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    assert set(re.findall(r'"\.\./envs/(\w+)\.yaml"', text)) == {path.stem for path in ENVIRONMENTS}
