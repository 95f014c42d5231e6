"""The libraries of the training are of the versions in pyproject.toml, or one line says so before anything starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
import tiny_run

from joulesweep.core.errors import UserError
from joulesweep.measure import machine

PROJECT = tomllib.loads((tiny_run.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
TESTED = PROJECT["tool"]["joulesweep"]["tested"]


def installed(monkeypatch, **versions):
    there = {"torch": "2.12.1+cu130", "transformers": "5.20.0", **versions}
    monkeypatch.setattr(machine, "version", there.get)


@pytest.mark.parametrize("torch", ["2.11.0", "2.11.0a0+nv26.1", "2.13.2", "2.13.0+cpu"])
@pytest.mark.parametrize("transformers", ["5.17.0", "5.23.4", "5.20.0.dev0"])
def test_versions_of_the_range_are_taken_in_silence(monkeypatch, torch, transformers):
    installed(monkeypatch, torch=torch, transformers=transformers)
    assert machine.too_new() == []


@pytest.mark.parametrize(
    ("package", "found", "line"),
    [
        ("torch", "2.10.1+cu128", "this Python has torch 2.10.1+cu128; Joulesweep works with 2.11 to 2.13: "),
        ("torch", "1.13", "this Python has torch 1.13; "),
        ("transformers", "5.16.9", "this Python has transformers 5.16.9; Joulesweep works with 5.17 to 5.23: "),
        ("transformers", "4.57.0", "this Python has transformers 4.57.0; "),
        ("transformers", None, "this Python has no transformers; Joulesweep works with 5.17 to 5.23: "),
    ],
)
def test_older_ones_are_refused_in_one_line_with_the_remedy(monkeypatch, package, found, line):
    installed(monkeypatch, **{package: found})
    with pytest.raises(UserError, match="^" + re.escape(line)) as caught:
        machine.too_new()
    assert str(caught.value).endswith(f': pip install "{package}>={TESTED[package][0]}"')


def test_newer_ones_are_noted(monkeypatch):
    installed(monkeypatch, torch="3.0.0", transformers="5.24.0")
    assert machine.too_new() == [
        "torch 3.0.0 is newer than what Joulesweep was tested with, 2.11 to 2.13",
        "transformers 5.24.0 is newer than what Joulesweep was tested with, 5.17 to 5.23",
    ]


SCRIPT = """
import sys
from joulesweep.measure import machine as environment
environment.version = {versions}.get
from scripts import {name}, run_script
sys.argv = ["script", *{arguments}]
run_script({name}.main)
"""
ARGUMENTS = {
    "fetch_model": ["--source", '{"source": {"local": "nowhere"}}', "--folder", "x", "--manifest", "x.json"],
    "train": [
        *("--job", json.dumps({"spec": {}}), "--model-folder", "x", "--tokens", "x", "--texts", "x"),
        *("--grid", "nowhere.json", "--folder", "x", "--log", "x", "--gpus", "0"),
    ],
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(("torch", "first"), [("2.10.0", "error: this Python has torch"), ("2.99.0", "note: torch")])
def test_scripts_look_before_they_do_anything(name, torch, first):
    versions = {"torch": torch, "transformers": "5.20.0"}
    code = SCRIPT.format(name=name, versions=versions, arguments=ARGUMENTS[name])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert lines[0].startswith(first)
    assert len(lines) == (1 if first.startswith("error") else 2)


def test_the_range_is_the_one_that_is_installed_and_tested():
    wanted = {re.match(r"\w+", line)[0]: line for line in PROJECT["project"]["dependencies"] if ">=" in line}
    assert wanted == {package: f"{package}>={oldest}" for package, (oldest, _) in TESTED.items()}
    pins = dict(re.findall(r"^(\w+)==(\d+\.\d+)", (tiny_run.REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    assert {package: pins[package] for package in TESTED} == {
        package: newest for package, (_, newest) in TESTED.items()
    }
    makefile = (tiny_run.REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert f"transformers=={TESTED['transformers'][0]}.0 " in makefile
