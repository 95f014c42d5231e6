"""A run's record cites the certificates of its boards and its host, or says why there are none; so does the report."""

from __future__ import annotations

import json

import polars as pl
import pytest
import synthetic
from pages import rendered, words

from joulesweep.analyse import collect
from joulesweep.measure import certificate, machine
from joulesweep.measure.devices import Board

BOARD = {"gpu:0": "GPU-0"}
PROMISES = [("tick", "holds"), ("lag", "fails"), ("idle", "not tried"), ("tick", "holds")]


def write(folder, name="GPU-0", driver="999.01", **changes):
    rows = [{"promise": promise, "device": "gpu:0", "verdict": verdict} for promise, verdict in PROMISES]
    made = {"format": certificate.FORMAT, "version": certificate.VERSION, "name": name, "device": "gpu:0"}
    made |= {"made": "2026-11-29T12:00:00+00:00", "budget_s": certificate.BUDGET_S, "promises": rows}
    path = certificate.place(name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**made, "identity": {"driver": driver}, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("value", "error", "bound", "verdict"),
    [
        (-0.5, 0.4, 1.0, certificate.HOLDS),
        (0.9, 0.2, 1.0, certificate.NOT_TRIED),
        (-1.1, 0.2, 1.0, certificate.NOT_TRIED),
        (-1.3, 0.2, 1.0, certificate.FAILS),
        (0.1, 9.0, 1.0, certificate.NOT_TRIED),
        (0.0, 0.0, 0.0, certificate.HOLDS),
    ],
)
def test_an_error_makes_no_verdict_easier(value, error, bound, verdict):
    assert certificate.judge(value, error, bound) == verdict
    surer = [certificate.judge(value, error * share, bound) for share in (0.5, 0.0)]
    assert verdict == certificate.NOT_TRIED or surer == [verdict] * 2


def test_the_worst_of_some_is_one_that_fails_then_one_that_is_undecided():
    rows = [{"value": value, "error": error, "bound": 1.0} for value, error in ((0.2, 0.1), (0.8, 3.0), (1.5, 0.2))]
    assert certificate.worst(rows) is rows[2]
    assert certificate.worst(rows[:2]) is rows[1]


def test_certificates_are_cited_by_digest_with_their_verdicts(tmp_path):
    path = write(tmp_path)
    board, host = certificate.cited(BOARD, "999.01", tmp_path)
    assert board.digest == certificate.digest(path.read_bytes()) and len(board.digest) == 16
    assert (board.holds, board.fails, board.not_tried) == (["tick"], ["lag"], ["idle"])
    assert (board.made, board.reason) == ("2026-11-29T12:00:00+00:00", None)
    assert host.digest is None and host.fails is None
    assert "there is no" in host.reason and "joulesweep certify makes one" in host.reason


def test_another_driver_is_said(tmp_path):
    write(tmp_path)
    board, _ = certificate.cited(BOARD, "1000", tmp_path)
    assert board.digest and board.reason == "the certificate is of driver 999.01, the run had 1000"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget_s": 10.0}, "the certificate was made in 10 of 150 s"),
        (
            {"identity": {"driver": "1"}, "budget_s": 10.0},
            "driver 1, the run had 999.01; the certificate was made in 10",
        ),
    ],
)
def test_a_certificate_that_tried_less_is_cited_as_such(tmp_path, changes, told):
    write(tmp_path, **changes)
    board, _ = certificate.cited(BOARD, "999.01", tmp_path)
    assert board.digest and told in board.reason


def test_another_cpu_of_the_same_name_is_said(tmp_path):
    write(tmp_path, name=certificate.HOST, identity={"driver": None, "cpu_model": "old"})
    for model, reason in ((None, None), ("old", None), ("new", "the certificate is of cpu model old, the run had new")):
        (host,) = certificate.cited({}, None, tmp_path, model)
        assert host.digest and host.reason == reason


def test_a_certificate_of_another_version_is_not_cited(tmp_path):
    write(tmp_path, version=1)
    board, _ = certificate.cited(BOARD, None, tmp_path)
    assert board.digest is None and "of another version" in board.reason


def test_promises_of_several_counters_are_told_apart(tmp_path):
    rows = [("tick", "cpu:0", "holds"), ("tick", "dram:0", "fails"), ("lag", "dram:0", "fails")]
    promises = [dict(zip(("promise", "device", "verdict"), row, strict=True)) for row in rows]
    write(tmp_path, name=certificate.HOST, device="cpu:0", promises=promises)
    (host,) = certificate.cited({}, None, tmp_path)
    assert (host.holds, host.fails) == (["tick"], ["tick of dram:0", "lag of dram:0"])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "x"}', "\udcff", '{"format": "joulesweep-certificate", "name": "GPU-1"}']
)
def test_what_is_no_certificate_is_not_cited(tmp_path, text):
    write(tmp_path).write_text(text, encoding="utf-8", errors="surrogateescape")
    board, _ = certificate.cited(BOARD, None, tmp_path)
    assert board.digest is None and "is no certificate" in board.reason


def test_a_record_says_what_is_known_of_its_devices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(certificate.FOLDER, driver=None)
    write(certificate.FOLDER, name=certificate.HOST, driver=None)
    board = Board(index=0, uuid="GPU-0", name="x", memory_bytes=None, has_counter=True, mig=False)
    rows = machine.describe(1, [board]).certificates
    assert [(row.device, row.name) for row in rows] == [("gpu:0", "GPU-0"), ("cpu:0", "cpu:0")]
    assert all(row.digest for row in rows)


def cited(row, **changes):
    row = synthetic.on_gpus(row)
    found = {"digest": "c0ffee", "made": "2026-11-29T12:00:00+00:00", "holds": ["tick"], "fails": ["lag"]}
    found |= {"not_tried": [], "reason": None}
    boards = [{"device": gpu["uuid"], "name": gpu["uuid"], **found, **changes} for gpu in row["environment"]["gpus"]]
    host = {"device": "cpu:0", "name": "cpu:0", **dict.fromkeys(found), "reason": "no certificate: there is no file"}
    return {**row, "environment": {**row["environment"], "certificates": [*boards, host]}}


def made(tmp_path, change):
    sweep = synthetic.write_sweep(tmp_path, synthetic.raw_config(**synthetic.GPU_CONFIG), change)
    return sweep[0], collect.aggregate(*sweep)


def test_the_tables_and_the_report_have_the_certificates(tmp_path):
    grid, tables = made(tmp_path, cited)
    assert tables.runs["certificate"].unique().to_list() == ["c0ffee"]
    assert tables.runs["certificate_reason"].null_count() == tables.runs.height
    of_boards = tables.devices.filter(pl.col("kind") == "gpu")
    assert of_boards["certificate_fails"].unique().to_list() == ["lag"]
    of_host = tables.devices.filter(pl.col("kind") != "gpu")
    assert of_host["certificate"].null_count() == of_host.height and not of_host["certificate_reason"].null_count()
    text = words(rendered(grid, tables))
    assert "GPU-0, 24 runs: certificate c0ffee of 2026-11-29; fails: lag ; holds: tick." in text
    assert "No certificate of cpu:0 (no certificate: there is no file)" in text


def test_a_report_without_certificates_says_so(tmp_path):
    grid, tables = made(tmp_path, synthetic.on_gpus)
    assert tables.runs["certificate"].null_count() == tables.runs.height
    assert set(tables.runs["certificate_reason"]) == {"the run is older than certificates"}
    assert "No certificate of GPU-0, cpu:0, GPU-1 (the run is older than certificates)" in words(rendered(grid, tables))


def test_a_certificate_of_another_driver_is_named_as_such(tmp_path):
    grid, tables = made(tmp_path, lambda row: cited(row, reason="the certificate is of driver 1, the run had 2"))
    assert "holds: tick; the certificate is of driver 1, the run had 2." in words(rendered(grid, tables))
