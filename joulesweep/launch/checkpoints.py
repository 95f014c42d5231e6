"""Keep what a preempted run was at in its folder, and find it when the run starts again.

    .checkpoint/manifest.json        run, basis, step, files with their checksums, segments, epochs, power trace
    .checkpoint/step<n>-rank<r>.pt   the state of a rank, see `train.checkpoint`

The manifest is written last, atomically, and names its files; files of the checkpoint before are removed after that. So
a process that is killed at any moment leaves the former checkpoint or the new one, and what no manifest names is
removed at the next start. The folder is no output of the workflow, so Snakemake does not delete it; it goes when the
run has its record. A run goes on only with the same spec, code, inputs, libraries and kinds of devices.
"""

# changes no number: a run that goes on ends as one that was never stopped; tests compare the bits
from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from joulesweep.core import files
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import CheckpointFile, Environment, EpochEnd, Segment, as_json
from joulesweep.core.places import CHECKPOINT
from joulesweep.core.quantities import one
from joulesweep.core.spec import short_hash

FOLDER, MANIFEST = CHECKPOINT.parts
FORMAT: Literal["joulesweep-checkpoint"] = "joulesweep-checkpoint"
VERSION: Literal[1] = 1
MOST_FAILURES = 2  # of attempts that went on from a checkpoint; after that it is at fault


class RunPreempted(Exception):  # noqa: N818 - says what happened
    """The run stopped because it was asked to, and its next start goes on from a checkpoint.

    Args:
        checkpoint: that was kept.

    Attributes:
        segment: what the attempt did.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.segment = checkpoint.segments[-1]
        size, seconds = one(checkpoint.num_bytes, "B"), one(self.segment.checkpoint_s or 0.0, "s")
        super().__init__(
            f"preempted after step {checkpoint.step} of {checkpoint.num_steps}: {size} kept in {seconds}; "
            "the next start goes on from there"
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The manifest of a checkpoint.

    Attributes:
        format: of the file.
        version: of the format.
        run: its id.
        basis: digests of what has to be the same, by name, see `basis`.
        written: UTC, ISO 8601.
        step: number of steps taken.
        num_steps: of the training.
        files: a state per rank.
        segments: what the attempts so far did.
        epochs: the finished epochs, with joules.
        power: rows of the power trace.
        num_failures: attempts that went on from here and failed.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {"strict": True, "allow_inf_nan": False}

    format: Literal["joulesweep-checkpoint"] = FORMAT
    version: Literal[1] = VERSION
    run: str
    basis: dict[str, str]
    written: str
    step: int
    num_steps: int
    files: list[CheckpointFile]
    segments: list[Segment]
    epochs: list[EpochEnd]
    power: Sequence[Mapping[str, Any]]
    num_failures: int = 0

    @property
    def window_s(self) -> float:
        """Seconds of the window so far."""
        return sum(segment.window_s for segment in self.segments)

    @property
    def took_s(self) -> float:
        """Seconds from start to end of the processes so far."""
        return sum(segment.took_s for segment in self.segments)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)


def basis(code_digest: str, inputs: Mapping[str, object], environment: Environment) -> dict[str, str]:
    """Return digests of what has to be the same for a run to go on, by name.

    Args:
        code_digest: of the code.
        inputs: manifests of the inputs, by name.
        environment: of the present attempt.
    """
    devices = [environment.cpu_model, environment.driver, [board.name for board in environment.gpus]]
    parts = {"code": code_digest, **inputs, "versions of libraries": environment.versions, "kinds of devices": devices}
    return {name: short_hash(as_json(part)) for name, part in parts.items()}


def find(folder: Path, run: str, present: Mapping[str, str]) -> Checkpoint | None:
    """Return the checkpoint from which a run goes on; None if it begins. One that cannot serve is removed, with a line.

    Args:
        folder: of the run.
        run: its id.
        present: the basis of the present attempt.
    """
    if not (folder / FOLDER / MANIFEST).exists():
        remove(folder)
        return None
    kept = _read(folder / FOLDER / MANIFEST)
    reason = "its manifest cannot be read" if kept is None else _fault(kept, folder, run, present)
    if reason is not None:
        print(f"{run}: the checkpoint is discarded, and the training begins again: {reason}", file=sys.stderr)
        remove(folder)
        return None
    assert kept is not None
    clean(folder, kept)
    when = f"{kept.step} of {kept.num_steps}"
    print(f"{run}: goes on after step {when}, as it was kept at {kept.written}", file=sys.stderr, flush=True)
    return kept


def _fault(kept: Checkpoint, folder: Path, run: str, present: Mapping[str, str]) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it can."""
    if kept.run != run:
        return f"it is of {kept.run}"
    changed = [name for name in present if kept.basis.get(name) != present[name]]
    if changed:
        return f"not the same any more: {', '.join(changed)}"
    if kept.num_failures > MOST_FAILURES:
        return f"{kept.num_failures} attempts that went on from it failed"
    broken = [file.name for file in kept.files if not _is_whole(folder / FOLDER / file.name, file)]
    return f"{', '.join(broken)}: missing or damaged" if broken else None


def _read(path: Path) -> Checkpoint | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Checkpoint).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _is_whole(path: Path, file: CheckpointFile) -> bool:
    try:
        return path.stat().st_size == file.num_bytes and files.sha256_of(path) == file.sha256
    except OSError:
        return False


def keep(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a manifest for files that the ranks wrote, and remove other files."""
    files.write_json(folder / FOLDER / MANIFEST, as_json(checkpoint))
    clean(folder, checkpoint)


def clean(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Remove what is not of a run's checkpoint; all of it if there is none."""
    if checkpoint is None:
        remove(folder)
        return
    names = {MANIFEST, *(file.name for file in checkpoint.files)}
    for path in (folder / FOLDER).iterdir():
        if path.name not in names:
            path.unlink(missing_ok=True)


def note_failure(folder: Path, checkpoint: Checkpoint) -> None:
    """Note that an attempt which went on from a checkpoint failed."""
    files.write_json(folder / FOLDER / MANIFEST, as_json(replace(checkpoint, num_failures=checkpoint.num_failures + 1)))


def remove(folder: Path) -> None:
    """Remove a run's checkpoint, its manifest first."""
    (folder / FOLDER / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def brief(folder: Path) -> tuple[int, int] | None:
    """Return the step after which a run goes on and their number, without reading more; None if it begins."""
    try:
        row = files.read_json(folder / FOLDER / MANIFEST, "checkpoint")
        return int(row["step"]), int(row["num_steps"])
    except (UserError, *files.MALFORMED):
        return None
