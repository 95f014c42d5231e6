"""Records are whole or absent, and read back with suspicion."""

from __future__ import annotations

import json
import math
import os
import re
import stat

import pytest
import tiny_run

from joulesweep import files, record
from joulesweep.errors import UserError
from joulesweep.identity import run_id
from joulesweep.spec import full

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
        "environment": {},
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
    assert record.read(path) == a_record(reason="größer – 日本")
    assert "日本" in path.read_text(encoding="utf-8")


def test_the_keys_checked_are_the_keys_of_a_record():
    assert set(record.KEYS) == set(a_record())


@pytest.mark.parametrize("key", [key for key in record.KEYS if key not in ("format", "version")])
def test_a_record_without_a_key_is_refused(path, key):
    broken = a_record()
    del broken[key]
    files.write_json(path, broken)
    assert f"corrupt run record: no {key}" in refusal(path)


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
    assert refusal(path).endswith(f"corrupt run record: {number} is no JSON; missing is null")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_never_written(path, number):
    files.write_json(path, a_record())
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, a_record(quality={"validation_loss": number}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_lines(path, [{"train_loss": number}])
    assert record.read(path) == a_record()


def test_another_format_is_refused(path):
    files.write_json(path, a_record(format="joulesweep-grid"))
    assert refusal(path).endswith("not a run record: format is 'joulesweep-grid', expected 'joulesweep-record'")


@pytest.mark.parametrize("version", [1, 2, 4])
def test_another_version_is_refused(path, version):
    files.write_json(path, a_record(version=version))
    assert refusal(path).endswith(f"record version {version}; this Joulesweep reads version 3")


def test_an_unknown_status_is_refused_and_failed_is_none(path):
    files.write_json(path, a_record(status="failed"))
    assert refusal(path).endswith("status 'failed'; allowed: ok, oom, diverged, unsupported, timeout")


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
    assert record.read(path) == a_record()
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
