"""Records are whole or absent, and read back with suspicion."""

from __future__ import annotations

import json
import math
import os
import re
import stat

import pytest
import synthetic
import tiny_run

from joulesweep.core import files
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import as_json
from joulesweep.core.spec import full
from joulesweep.runs import record
from joulesweep.runs.identity import run_id

SPEC = tiny_run.spec()


def a_record(**changes):
    return {
        "format": record.FORMAT,
        "version": record.VERSION,
        "run": run_id(SPEC),
        "status": "oom",
        "reason": "too big",
        "oom_bytes": 1024,
        "spec": full(SPEC),
        "code_digest": "0123",
        "inputs": {"model": None, "tokens": None},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:01+00:00",
        "environment": synthetic.environment(),
        "measurement": None,
        "quality": None,
        "epochs": [],
        **changes,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / run_id(SPEC) / "record.json"


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        record.read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


def test_a_record_reads_back_as_it_was_written(path):
    files.write_json(path, a_record(reason="größer – 日本"))
    assert as_json(record.read(path)) == a_record(reason="größer – 日本")
    assert "日本" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("key", [key for key in a_record() if key not in ("format", "version")])
def test_a_record_without_a_key_is_refused(path, key):
    broken = a_record()
    del broken[key]
    files.write_json(path, broken)
    assert f"corrupt run record: {key}: " in refusal(path)


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("oom_bytes",), "1", "oom_bytes: Input should be a valid integer, not '1'"),
        (("environment", "cpu_cores"), 1.5, "environment.cpu_cores: Input should be a valid integer"),
        (("epochs",), [{"epoch": 0}], "epochs.0.elapsed_s: Field required"),
        (("measurement", "energy", 0, "status"), "guessed", "measurement.energy.0.status: Input should be 'measured'"),
        (("measurement", "phases", 0, "num_steps"), None, "measurement.phases.0.PlainPhase.num_steps: "),
        (("measurement",), None, "status is ok: measurement and quality belong to status ok, and to no other"),
    ],
)
def test_a_corrupt_field_is_named_with_its_path(path, keys, value, told):
    row = synthetic.ok_record(run_id(SPEC), SPEC)
    at = row
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    files.write_json(path, row)
    assert told in refusal(path)


def test_a_choice_of_which_something_lacks_is_refused(path):
    row = synthetic.ok_record(run_id(SPEC), SPEC)
    row["measurement"]["phases"][0]["chosen"] = ["a"]
    files.write_json(path, row)
    assert "measurement.phases.0." in refusal(path)


def test_a_record_of_a_run_that_went_well_reads_back_as_it_was_written(path):
    row = synthetic.typed(record.RunRecord, synthetic.on_gpus(synthetic.ok_record(run_id(SPEC), SPEC)))
    files.write_json(path, as_json(row))
    assert record.read(path) == row


def test_a_whole_number_in_place_of_a_real_one_is_read_as_it_was_hashed(path):
    spec = tiny_run.spec(timeout_s=3)
    path = path.parent.with_name(run_id(spec)) / "record.json"
    assert run_id(spec) != run_id(tiny_run.spec(timeout_s=3.0))
    files.write_json(path, a_record(run=run_id(spec), spec=full(spec)))
    assert record.read(path).spec == spec


def test_accepting_adds_one_key_and_no_other(path):
    files.write_json(path, a_record())
    record.accept(path, "4567", "only words")
    record.accept(path, "89ab", "again")
    found = files.read_json(path, "record")
    assert [one["code_digest"] for one in found.pop("accepted")] == ["4567", "89ab"]
    assert found == a_record()
    assert record.read(path).codes == {"0123", "4567", "89ab"}


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
)
ADVICE = (
    " Process 12345 has 77.90 GiB memory in use. Of the allocated memory 76.20 GiB is allocated by PyTorch, and"
    " 1.10 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting"
    " PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


@pytest.mark.parametrize(("reason", "short"), [(FULL + ADVICE, FULL), (FULL, FULL), ("stopped", "stopped")])
def test_a_reason_in_short_has_the_bytes_and_no_advice(reason, short):
    assert record.brief(reason) == short


def test_a_missing_record_is_refused(path):
    assert "No such file or directory; expected run record" in refusal(path)


@pytest.mark.parametrize("text", ["", "{", '{"format": "joulesweep-rec', "\x00", "not json"])
def test_half_a_file_is_refused(path, text):
    path.parent.mkdir()
    path.write_text(text)
    assert "corrupt run record: " in refusal(path)


def test_bytes_that_are_no_text_are_refused(path):
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe{}")
    assert "corrupt run record: " in refusal(path)


@pytest.mark.parametrize("value", [[], 3, "text", None])
def test_json_that_is_no_object_is_refused(path, value):
    files.write_json(path, value)
    assert refusal(path).endswith("corrupt run record: not a JSON object")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_refused_in_a_file(path, number):
    path.parent.mkdir()
    path.write_text(json.dumps(a_record(oom_bytes="X")).replace('"X"', number))
    assert f"corrupt run record: {number} is no JSON; missing is null" in refusal(path)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_never_written(path, number):
    files.write_json(path, a_record())
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, a_record(quality={"validation_loss": number}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_lines(path, [{"train_loss": number}])
    assert as_json(record.read(path)) == a_record()


def test_another_format_is_refused(path):
    files.write_json(path, a_record(format="joulesweep-grid"))
    assert refusal(path).endswith("not a run record: format is 'joulesweep-grid', expected 'joulesweep-record'")


@pytest.mark.parametrize("version", [1, 2, 4])
def test_another_version_is_refused(path, version):
    files.write_json(path, a_record(version=version))
    assert refusal(path).endswith(f"record version {version}; this Joulesweep reads version 3")


def test_an_unknown_status_is_refused_and_failed_is_none(path):
    files.write_json(path, a_record(status="failed"))
    allowed = "Input should be 'ok', 'oom', 'diverged', 'unsupported' or 'timeout', not 'failed'"
    assert refusal(path).endswith(f"corrupt run record: status: {allowed}")


def test_the_record_of_another_folder_is_refused(tmp_path):
    path = tmp_path / "elsewhere" / "record.json"
    files.write_json(path, a_record())
    assert refusal(path).endswith(f"foreign run record: it belongs to run {run_id(SPEC)!r}")


def test_a_record_whose_spec_is_of_another_run_is_refused(path):
    other = tiny_run.spec(repeat=2)
    files.write_json(path, a_record(spec=full(other)))
    assert refusal(path).endswith(f"foreign run record: its spec belongs to run {run_id(other)!r}")


@pytest.mark.parametrize("spec", [None, [], 3, {}, {"gadget": 1}, {**full(SPEC), "method_params": [1]}])
def test_a_spec_that_is_none_is_refused(path, spec):
    files.write_json(path, a_record(spec=spec))
    assert "corrupt run record: " in refusal(path)


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_litter(path, monkeypatch):
    files.write_json(path, a_record())

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, a_record(status="timeout"))
    assert as_json(record.read(path)) == a_record()
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_the_bytes_are_on_disk_before_the_name_is(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    files.write_json(path, a_record())
    assert calls == ["fsync", "replace"]


def test_colleagues_may_read_what_the_umask_lets_them(path):
    mask = os.umask(0o027)
    try:
        files.write_text(path, "x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027  # and the umask is as it was
    finally:
        os.umask(mask)


def test_lines_are_one_object_each(path):
    files.write_lines(path, [{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": None}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "train_loss": 2.5},
        {"step": 2, "train_loss": None},
    ]


def test_no_lines_are_an_empty_file(path):
    files.write_lines(path, [])
    assert path.read_text() == ""


def test_read_json_says_what_it_expected(tmp_path):
    with pytest.raises(UserError, match=re.escape("grid.json: No such file or directory; expected grid")):
        files.read_json(tmp_path / "grid.json", "grid")
