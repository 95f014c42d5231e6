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
import sys
from pathlib import Path
from typing import Any

from joulesweep.errors import Corrupt, UserError, brief_repr
from joulesweep.files import CORRUPT, MALFORMED, read_json, write_json
from joulesweep.identity import run_id
from joulesweep.spec import from_mapping

FORMAT = "joulesweep-record"
VERSION = 3
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


def brief(reason: str) -> str:
    """A reason without what follows in PyTorch's message when memory ran out: process ids, and advice on its allocator.

    The run's log has the whole message.
    """
    before, end, _ = reason.partition(" is free.")
    return before + end


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
