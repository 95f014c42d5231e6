"""RunRecord: all outputs of one run, written once, atomically, and read back with suspicion.

A record is one JSON object, `record.json`:

    format, version   "joulesweep-record", 3
    run, status       its id; ok, oom, diverged, unsupported or timeout
    reason            null when ok, else one line
    oom_bytes         bytes asked for when memory ran out, else null
    spec              the full RunSpec; its hash is checked against the id
    code_digest       digest of the code that the run used
    accepted          only where its user kept the run over a change of code: a row per change {code_digest, reason,
                      accepted: when}, the newest last
    inputs            manifests of the model (a checksum per file, the hub's commit) and of the tokens, null if absent
    started, finished UTC, ISO 8601
    environment       see `joulesweep.environment.describe`
    measurement       null unless ok, and per pass unless it says otherwise; see `joulesweep.measurement.combine`:
                      times, counts and memory; products: which library computed the matrix products of the CPU,
                      with the times of both; attention: whose implementation, and PyTorch's kernels that it may take;
                      num_compilations_in_window; energy: a row per device with joules, error_j (what they may be off by
                      at most), status, method and reason, and doubt (what contradicts them, else null); flags: what to
                      know before comparing; conditions: boards, cool-down, idle baseline, what the run got of the CPU,
                      begin and end of the window; overhead: what measuring cost, weights_s, in which weights were
                      copied within the window to be scored later, and the joules of the whole run
    quality           null unless ok: validation_loss, perplexity (null beyond 1e300), masked_accuracy, choice_accuracy
                      (null but for multiple choice), num_validation_texts, num_masked
    epochs            one row per finished epoch, epoch 0 being the untrained model; `energy` has a row
                      {device, energy_j, status, method, reason} per device, joules since the window began

Beside it lie `power.jsonl`: the power trace, one row per sample and device; t_s counts from the window's begin; and
`summaries.jsonl`: what the trained model wrote, a row {text, summary, references} per held-out text that the spec's
`generate` asked for, the text by its place in the data set; empty where it asked for none.
"""

# changes no number: how files are written and read
from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from joulesweep.errors import Corrupt, UserError, brief_repr
from joulesweep.spec import from_mapping, run_id

FORMAT = "joulesweep-record"
MOST_DEPTH = 64  # of a JSON file
VERSION = 3
CORRUPT = ".corrupt"  # ending of a file that was moved aside
STATUSES = ("ok", "oom", "diverged", "unsupported", "timeout")
KEYS = (
    "format",
    "version",
    "run",
    "status",
    "reason",
    "oom_bytes",
    "spec",
    "code_digest",
    "inputs",
    "started",
    "finished",
    "environment",
    "measurement",
    "quality",
    "epochs",
)


#: What reading something of another shape than expected raises.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def brief(reason: str) -> str:
    """A reason without what follows in PyTorch's message when memory ran out: process ids, and advice on its allocator.

    The run's log has the whole message.
    """
    before, end, _ = reason.partition(" is free.")
    return before + end


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's 0600 would lock colleagues out
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON atomically. NaN and infinity are refused: missing is null.

    Raises:
        ValueError: a number that JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: what it should be, for the error.

    Raises:
        UserError: it cannot be read.
        Corrupt: it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected {what}") from None
    except RecursionError:
        raise Corrupt(path, f"corrupt {what}: too many levels of nesting") from None
    except ValueError as error:
        raise Corrupt(path, f"corrupt {what}: {error}") from None
    if not isinstance(value, dict):
        raise Corrupt(path, f"corrupt {what}: not a JSON object")
    if is_deep(value):
        raise Corrupt(path, f"corrupt {what}: too many levels of nesting")
    if not is_text(value):
        raise Corrupt(path, f"corrupt {what}: half of a surrogate pair is no text")
    return value


def is_text(value: object) -> bool:
    """Whether all texts in a JSON value can be written; JSON can name halves of surrogate pairs, UTF-8 has none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_deep(value: object) -> bool:
    """Whether lists and objects are nested deeper than what works with them would bear."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def mark_corrupt(path: Path) -> None:
    """Give a corrupt file a second name, `NAME.corrupt`, and say so; `set_aside` takes its first one away.

    Not at once: Snakemake, which named it as an input, would end with an error though all else is well.
    """
    second = path.with_name(f"{path.name}{CORRUPT}")
    print(f"corrupt: {path}", file=sys.stderr)
    try:
        second.unlink(missing_ok=True)
        os.link(path, second)
    except OSError as error:
        print(f"{second}: {error.strerror}; delete {path} to repeat its run", file=sys.stderr)


def set_aside(folder: Path) -> None:
    """Take the first name from the corrupt files in a folder's folders, so that Snakemake makes them again."""
    for second in sorted(folder.glob(f"*/*{CORRUPT}")):
        first = second.with_name(second.name.removesuffix(CORRUPT))
        with contextlib.suppress(OSError):
            if first.samefile(second):
                first.unlink()
                print(f"moved aside: {second}; the next snakemake repeats its run", file=sys.stderr)


def codes(record: dict[str, Any]) -> set[str]:
    """Digests of the code that a record counts as measured by: that of its run, and those it was accepted for."""
    return {record["code_digest"], *(row["code_digest"] for row in record.get("accepted", []))}


def accept(path: Path, code_digest: str, reason: str) -> None:
    """Let a record count as measured by other code, too.

    Raises:
        UserError: the record cannot be read.
    """
    record = read(path)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    accepted = {"code_digest": code_digest, "reason": reason, "accepted": when}
    write_json(path, {**record, "accepted": [*record.get("accepted", []), accepted]})


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; missing is null")


def read(path: Path) -> dict[str, Any]:
    """Read a record and check that it is one, of this version, and of the run whose folder it lies in.

    Raises:
        UserError: missing, or of another version; the line names the file.
        Corrupt: no record, or a foreign one.
    """
    record = read_json(path, "run record")
    if record.get("format") != FORMAT:
        raise Corrupt(path, f"not a run record: format is {record.get('format')!r}, expected {FORMAT!r}")
    if record.get("version") != VERSION:
        version = brief_repr(record.get("version"))
        raise UserError(f"{path}: record version {version}; this Joulesweep reads version {VERSION}")
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise Corrupt(path, f"corrupt run record: no {', '.join(missing)}")
    if record["status"] not in STATUSES:
        raise Corrupt(path, f"corrupt run record: status {record['status']!r}; allowed: {', '.join(STATUSES)}")
    if record["run"] != path.parent.name:
        raise Corrupt(path, f"foreign run record: it belongs to run {record['run']!r}")
    try:
        expected = run_id(from_mapping(record["spec"]))
    except (UserError, *MALFORMED) as error:
        raise Corrupt(path, f"corrupt run record: {error}") from None
    if expected != record["run"]:
        raise Corrupt(path, f"foreign run record: its spec belongs to run {expected!r}")
    return record
