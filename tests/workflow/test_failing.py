"""Runs without numbers are results: the sweep goes on, the report lists them, `joulesweep rerun` takes them up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import polars as pl
import pytest
import tiny_run
from checkout import prepared
from pages import words
from patience import PATIENCE_S

#: What becomes of the runs of each batch size; those of 8 go well.
FAULTS = [
    [{"batch_size": 16}, "oom"],
    [{"batch_size": 32}, "nan"],
    [{"batch_size": 64}, "hang"],
]
TIMEOUT_S = 3000  # no run takes so long: the clock jumps when one hangs


@pytest.fixture(scope="module")
def failing(tmp_path_factory, complete):
    """A sweep of five runs, of which one goes well and each other one ends in its own way."""
    environ = {"PYTHONPATH": str(tiny_run.SUPPORT / "faults"), "FAULTS": json.dumps(FAULTS)}
    checkout = prepared(tmp_path_factory.mktemp("failing") / "checkout", complete, environ)
    sizes = [8, *(when["batch_size"] for when, _ in FAULTS)]
    checkout.config["grid"] |= {"batch_size": sizes, "strategy": ["single", "dp"], "repeats": 1}
    checkout.config["train"] = {"epochs": 1, "timeout_s": TIMEOUT_S}
    checkout.config["exclude"] = [
        {"when": {"strategy": "dp", "batch_size": size}, "reason": "one is enough"} for size in sizes[1:]
    ]
    checkout.write_config()
    assert "unsupported: dp needs at least two GPUs" in checkout.run()  # exit code 0
    return checkout


def statuses(checkout):
    table = pl.read_parquet(checkout.runs.parent / "tables" / "runs.parquet")
    return {(row["strategy"], row["batch_size"]): row["status"] for row in table.iter_rows(named=True)}


@pytest.mark.slow
def test_failures_are_results_and_rerun_takes_them_up_again(failing):
    """One story, since each sweep takes a minute."""
    expected = {
        ("single", 8): "ok",
        ("single", 16): "oom",
        ("single", 32): "diverged",
        ("single", 64): "timeout",
        ("dp", 8): "unsupported",
    }
    assert statuses(failing) == expected
    page = words((failing.runs.parent / "report.html").read_text(encoding="utf-8"))
    assert "dp2 fp32 bs8 1 unsupported – dp needs at least two GPUs" in page
    assert f"single fp32 bs64 1 timeout – stopped after timeout_s = {TIMEOUT_S} s" in page
    assert re.search(r"single fp32 bs16 1 oom 1,?024 TiB .*tried to allocate 1125899906842624 bytes", page)
    assert re.search(r"single fp32 bs32 1 diverged – the .*loss was not finite", page)

    # one that needs nothing but another try goes well, and so does what stands on it
    before, failing.environ["FAULTS"] = failing.records(), json.dumps(FAULTS[:2])
    done = take_up(failing, "--status", "timeout")
    assert done.returncode == 0, done.stdout + done.stderr
    after = failing.records()
    (again,) = [run for run in after if after[run] != before[run]]
    assert "bs64" in again
    assert statuses(failing) == expected | {("single", 64): "ok"}
    assert "2 of 5 runs ok" in words((failing.runs.parent / "report.html").read_text(encoding="utf-8"))
    assert failing.planned() == {}

    # what is stale or missing elsewhere in the grid is not rerun's: the report is the partial one
    failing.config["grid"]["repeats"] = 2
    failing.write_config()
    failing.edit("joulesweep/train/worker.py", "    gc.freeze()\n", "    gc.freeze()\n    gc.isenabled()\n")
    failing.environ["FAULTS"] = "[]"
    before = failing.records()
    done = take_up(failing, "--status", "oom")
    assert done.returncode == 0, done.stdout + done.stderr
    after = failing.records()
    assert after.keys() == before.keys()
    (again,) = [run for run in after if after[run] != before[run]]
    assert "bs16" in again
    page = (failing.runs.parent / "partial" / "report.html").read_text(encoding="utf-8")
    assert "3 of 10 runs ok" in words(page)


def take_up(checkout, *arguments):
    code = "import sys; from joulesweep.cli import main as cli; sys.exit(cli.main())"
    line = [sys.executable, "-c", code, "rerun", *arguments, "--", "--cores", "2"]
    environ = {**checkout.environ, "PYTHONPATH": os.pathsep.join([".", checkout.environ["PYTHONPATH"]])}
    return subprocess.run(line, cwd=checkout.folder, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
