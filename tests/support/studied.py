"""Answers of a study to synthetic sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import synthetic

from joulesweep import studies
from joulesweep.analyse import collect


def answer(
    folder: Path, study: str, raw: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> studies.Answer:
    """What a study says of a sweep.

    Args:
        folder: where the sweep is written.
        study: its name.
        raw: the sweep's config, as YAML would give it.
        change: of each record, as `synthetic.write_sweep` takes it; None for estimated joules.
    """
    manifest, runs = synthetic.write_sweep(folder, raw, *([change] if change else []))
    return studies.load(study).answer(collect.aggregate(manifest, runs), manifest["config"])
