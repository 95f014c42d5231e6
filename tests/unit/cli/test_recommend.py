"""`joulesweep recommend`: limits, their units, and what it prints."""

from __future__ import annotations

import json

import pytest
import synthetic

from joulesweep.analyse import collect, tables
from joulesweep.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sweep")
    manifest, runs = synthetic.write_sweep(made, synthetic.raw_config(), synthetic.measured)
    tables.write(collect.aggregate(manifest, runs), made / "tables")
    return made


def told(capsys, folder, *options, code=0):
    assert main(["recommend", str(folder), *options]) == code
    return capsys.readouterr().out


def test_the_answer_comes_first(capsys, folder):
    assert told(capsys, folder).startswith("Train with 2 processes on the CPU with DDP, bf16-mixed, batch ")


def test_a_limit_changes_the_answer(capsys, folder):
    assert told(capsys, folder, "--gpus", "1").startswith("Train with one process on the CPU, bf16-mixed, ")
    assert "4 finished configurations are beyond the limits" in told(capsys, folder, "--gpus", "1")


def test_a_margin_changes_who_is_within(capsys, folder):
    (strict,) = json.loads(told(capsys, folder, "--json", "--within", "0.1%"))
    (loose,) = json.loads(told(capsys, folder, "--json", "--within", "0.5"))
    assert strict["verdicts"]["within"] < loose["verdicts"]["within"] == 8
    assert loose["picks"][0]["roles"] == ["recommended", "least energy", "fastest"]
    assert set(loose["picks"][0]["ratios"]["energy"]) == {"ratio", "low", "high", "n", "verdict"}


def test_limits_that_nothing_meets_end_with_1(capsys, folder):
    assert "No finished configuration meets the limits." in told(capsys, folder, "--max-time", "1s", code=1)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--max-memory", "24"], "--max-memory: a number with its unit, such as 24GB or 16GiB, got '24'"),
        (["--max-time", "1 year"], "--max-time: a number with its unit, such as 90s, 45min, 1h or 2d, got '1 year'"),
        (["--within", "200%"], "--within: must be above 0 and below 1 (100%), got '200%'"),
        (["--max-kwh", "nan"], "--max-kwh: must be above 0, got nan"),
        (["--gpus", "0"], "--gpus: must be above 0, got 0"),
    ],
)
def test_a_mistaken_limit_is_one_line(capsys, folder, options, line):
    assert main(["recommend", str(folder), *options]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_folder_without_a_sweep_is_one_line(capsys, tmp_path):
    assert main(["recommend", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
