"""RunRecord: all outputs of one run, written once and atomically, and validated when read.

A record is one JSON object, `record.json`:

    format, version   "joulesweep-record", 3
    run, status, …    the fields of `RunRecord` and of the types of `joulesweep.core.outcome` within it

Its folder also has `power.jsonl`: the power trace, one row per sample and device, where t_s counts from the window's
begin; and `summaries.jsonl`: one row {text, summary, references} per held-out text that the spec's `generate` asks for,
where text is its index in the data set; empty if it asks for none. Where the spec's `evaluate` asks for evaluations,
`evaluations.jsonl` has the scores of their items: a row {evaluation, categories, scores: [{score, before, after}]} per
evaluation, with a value per item in each list.
"""

# changes no number: how files are written and read
from __future__ import annotations

import contextlib
import datetime
import functools
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from joulesweep.core.errors import Corrupt, UserError, brief_repr
from joulesweep.core.files import CORRUPT, MALFORMED, read_json, write_json
from joulesweep.core.outcome import MISSING, Ending, Environment, Epoch, EvaluationScore, Measurement, NodePart, Quality
from joulesweep.core.spec import RunSpec, from_mapping
from joulesweep.runs.identity import run_id

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

FORMAT: Literal["joulesweep-record"] = "joulesweep-record"
VERSION: Literal[3] = 3
ITEMS = "evaluations.jsonl"
Status = Literal["ok", Ending]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Manifests of the model (a checksum per file, the hub's commit) and of the tokens; None where there is none.

    Those of what evaluations read are missing if there are none.
    """

    model: dict[str, object] | None
    tokens: dict[str, object] | None
    evaluations: list[dict[str, object] | None] | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A change of code across which the user kept the run: digest of the new code, why, and when."""

    code_digest: str
    reason: str
    accepted: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All outputs of one run.

    Attributes:
        format: of the file.
        version: of the format.
        run: its id.
        status: one of `STATUSES`.
        reason: in one line; None when ok.
        oom_bytes: bytes asked for when memory ran out, or None.
        spec: the inputs; their hash is checked against the id.
        code_digest: digest of the code that the run used.
        accepted: changes of code across which the user kept it, the newest last; missing if there are none.
        inputs: manifests of its inputs.
        started: UTC, ISO 8601.
        finished: the same.
        environment: what it was measured on; of several nodes the first one, with the boards of all.
        nodes: the part of each node; missing where there is one, and in older records.
        measurement: None unless ok.
        quality: after the last epoch; None unless ok.
        epochs: the completed epochs; epoch 0 is the untrained model.
        evaluations: scores before and after the training; missing unless the spec asks for evaluations.
    """

    #: Decoding, nested types included: a number must not be a string, and NaN is not a number.
    __pydantic_config__: ClassVar[dict[str, object]] = {"strict": True, "allow_inf_nan": False}

    format: Literal["joulesweep-record"]
    version: Literal[3]
    run: str
    status: Status
    reason: str | None
    oom_bytes: int | None
    spec: RunSpec
    code_digest: str
    accepted: list[Accepted] | None = field(default=None, metadata=MISSING)
    inputs: Inputs
    started: str
    finished: str
    environment: Environment
    nodes: list[NodePart] | None = field(default=None, metadata=MISSING)
    measurement: Measurement | None
    quality: Quality | None
    epochs: list[Epoch]
    evaluations: list[EvaluationScore] | None = field(default=None, metadata=MISSING)

    def __post_init__(self) -> None:
        """Refuse an ok run without a measurement, and a failed run with one."""
        if {self.status == "ok"} != {self.measurement is not None, self.quality is not None}:
            raise ValueError(f"status is {self.status}: measurement and quality belong to status ok, and to no other")

    @property
    def codes(self) -> set[str]:
        """Digests of the code that the record is valid for: that of its run, and those it was accepted for."""
        return {self.code_digest, *(entry.code_digest for entry in self.accepted or ())}


def brief(reason: str) -> str:
    """A reason without the tail of PyTorch's out-of-memory message: process ids, and advice on its allocator.

    The run's log has the whole message.
    """
    before, end, _ = reason.partition(" is free.")
    return before + end


def set_aside(folder: Path) -> None:
    """Remove the original name of corrupt files in a folder's subfolders, so that Snakemake makes them again."""
    for second in sorted(folder.glob(f"*/*{CORRUPT}")):
        first = second.with_name(second.name.removesuffix(CORRUPT))
        with contextlib.suppress(OSError):
            if first.samefile(second):
                first.unlink()
                print(f"moved aside: {second}; the next snakemake repeats its run", file=sys.stderr)


def accept(path: Path, code_digest: str, reason: str) -> None:
    """Accept a record for other code: append that code's digest to it.

    Raises:
        UserError: the record cannot be read.
    """
    read(path)
    record = read_json(path, "run record")  # the raw JSON: add no key to a record of another version
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    accepted = {"code_digest": code_digest, "reason": reason, "accepted": when}
    write_json(path, {**record, "accepted": [*record.get("accepted", []), accepted]})


def read(path: Path) -> RunRecord:
    """Read a record and check its format, its version, and that it belongs to the run of its folder.

    Raises:
        UserError: missing, or of another version; the line names the file.
        Corrupt: not a record, or one of another run; the line names what is wrong and where.
    """
    from pydantic import ValidationError

    try:
        record = _adapter().validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected run record") from None
    except ValidationError as error:
        raise _mistake(path, error) from None
    if record.run != path.parent.name:
        raise Corrupt(path, f"foreign run record: it belongs to run {record.run!r}")
    try:
        if run_id(record.spec) == record.run:
            return record
        spec = from_mapping(read_json(path, "run record")["spec"])  # as it was hashed: 3 where decoding gives 3.0
        expected = run_id(spec)
    except (UserError, *MALFORMED) as error:
        raise Corrupt(path, f"corrupt run record: {error}") from None
    if expected != record.run:
        raise Corrupt(path, f"foreign run record: its spec belongs to run {expected!r}")
    return replace(record, spec=spec)


@functools.cache
def _adapter() -> TypeAdapter[RunRecord]:
    """The decoder and validator of records; imports pydantic only where records are read."""
    from pydantic import TypeAdapter

    return TypeAdapter(RunRecord)


def _mistake(path: Path, error: ValidationError) -> UserError:
    """Why a file is not a record of this version: the most important mistake, in one line."""
    try:
        record = read_json(path, "run record")
    except UserError as unreadable:
        return unreadable
    if record.get("format") != FORMAT:
        return Corrupt(path, f"not a run record: format is {record.get('format')!r}, expected {FORMAT!r}")
    if record.get("version") != VERSION:
        version = brief_repr(record.get("version"))
        return UserError(f"{path}: record version {version}; this Joulesweep reads version {VERSION}")
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    value = "" if first["type"] == "missing" else f", not {brief_repr(first['input'])}"
    return Corrupt(path, f"corrupt run record: {where}: {first['msg']}{value}")
