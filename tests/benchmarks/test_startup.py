"""The time of a run's start is taken from the functions that the run goes through."""

from __future__ import annotations

import subprocess
import sys

import pytest

from joulesweep.core.places import ROOT


@pytest.mark.long
def test_every_stage_of_a_start_is_timed():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", "--repeats", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "up to the first optimizer step" in done.stdout
