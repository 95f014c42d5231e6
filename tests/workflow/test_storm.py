"""Faults at random moments, and the same command again: the storm of `make storm`, in short."""

from __future__ import annotations

import shutil
from pathlib import Path

from checkout import Checkout

from benchmarks import storm

SHORT = (
    "SIGKILL to the workflow",
    "SIGINT to the parent",
    "the grid truncated",
    "a record truncated",
    "lock files deleted",
)


def test_a_short_storm_breaks_no_promise(sweep: Checkout, complete: Path) -> None:
    shutil.rmtree(sweep.folder / "results")
    hit = storm.Storm(sweep, seed=1)
    try:
        hit.blow([fault for fault in storm.FAULTS if fault.name in SHORT], num_runs=2)
        storm.verify(hit, complete / "results" / "tiny" / "tables")
        said = hit.said.read_text(encoding="utf-8")
    finally:
        hit.close()
    assert hit.log.broken == [], storm.summary(hit, 2, 0.0) + said[-20_000:]
    assert hit.log.faults.total() >= 4
