"""Correct what Snakemake notes of a sweep where the files themselves say something else.

It keeps its notes in `.snakemake`, which results that were brought here lack, and which a killed Snakemake leaves
behind unfinished. All of this reaches into Snakemake, and is tested with the version that is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from joulesweep.core.files import MALFORMED

INCOMPLETE = Path(".snakemake/incomplete")


def correct(workflow: Any, not_believed: Iterable[Path], written: Iterable[Path]) -> None:  # noqa: ANN401 - Snakemake's
    """Tell Snakemake what to make again and what is done, after its jobs were made and before it chooses among them.

    Args:
        workflow: Snakemake's Workflow.
        not_believed: files that are there and not to be believed.
        written: outputs of runs with a record. It is written last, and Snakemake deletes the outputs of a job that
            begins: the job was done, and Snakemake killed before it knew.
    """
    workflow.dag.forcefiles.update(map(str, not_believed))
    memory = workflow.persistence
    if any(INCOMPLETE.glob("*")):
        for name in memory._filter_incomplete_keys(map(str, written)):
            memory._unmark_incomplete(name)
    memory._read_record = _legible(memory._read_record)
    # What a run was measured with stands in its record, and is compared with that: see `Sweep.inputs`.
    changed = memory._input_changed
    memory._input_changed = lambda job, file=None: not hasattr(job.output, "record") and changed(job, file)


def _legible(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Read a note; one that a disk spoilt is none. Snakemake itself forgives only one that was cut."""

    def legible(key: str) -> Any:  # noqa: ANN401 - Snakemake's MetadataRecord
        try:
            return read(key)
        except MALFORMED:
            return None

    return legible
