"""The command measures boards, CPU packages and machines with neither; it leaves certificate, page and readings."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_meters import Boards, rapl_tree
from pages import words
from virtual_board import Board

from joulesweep.certify import campaign, readings
from joulesweep.cli import main
from joulesweep.core.errors import UserError
from joulesweep.measure import certificate, devices, machine
from joulesweep.measure.certificate import NOT_TRIED
from joulesweep.measure.meters import nvidia
from joulesweep.measure.meters import rapl as rapl_meter

pytestmark = pytest.mark.usefixtures("nothing_is_left")
IDLE_W, LOAD_W = 80, 400


class Planned:
    """A load that changes what a fake board draws, at moments known beforehand; without a board it does nothing."""

    def __init__(self, fake=None, index=0):
        self.fake, self.index = fake, index

    def described(self):
        return {"product": "none", "product_s": 1e-3, "uuid": None, "torch": None, "threads": 1}

    def begin(self, seconds, period_s):
        self.began_s, self.ended_s = time.monotonic(), time.monotonic() + seconds
        turns = [(0.0, seconds)]
        if period_s is not None:
            turns = list(campaign.blocks.turns(seconds, period_s, random.Random()))
        now_s = time.time()
        for on_s, off_s in turns if self.fake else ():
            self.fake.happen(self.index, now_s + on_s, LOAD_W)
            self.fake.happen(self.index, now_s + off_s, IDLE_W)

    def end(self, limit_s):
        time.sleep(max(0.0, self.ended_s - time.monotonic()))
        span_s = self.ended_s - self.began_s
        return {"began_s": self.began_s, "ended_s": self.ended_s, "num_products": round(1e6 * span_s)}

    def close(self):
        pass


@pytest.fixture(autouse=True)
def no_meters(monkeypatch, tmp_path):
    """A machine without boards and RAPL, unless the test says otherwise; and files of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JOULESWEEP_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(rapl_meter, "RAPL", (Path("/nowhere"), Path("/nowhere")))
    monkeypatch.setattr(campaign.socket, "gethostname", lambda: "node1")


@pytest.fixture
def boards(monkeypatch, tmp_path):
    """Put boards into this machine."""

    def put(*given):
        fake = Boards(tmp_path, [{"watts": IDLE_W, **board} for board in given])
        fake.install(monkeypatch)
        nvidia.nvml.cache_clear()
        return fake

    yield put
    nvidia.nvml.cache_clear()


def promises(path, device=None):
    rows = json.loads(path.read_text())["promises"]
    return {row["promise"]: row for row in rows if device in (None, row["device"])}


@pytest.mark.slow
def test_a_board_is_certified_in_20_seconds_by_the_real_library(boards, tmp_path, capsys):
    fake = boards({"tick_ms": 50, "lag_ms": 250, "power_error": 1.03, "name": "Fake <H200>"})
    made = campaign.certify(["gpu:0"], 20.0, tmp_path / "c", load=lambda board: Planned(fake, board.index))
    (path,) = made
    uuid = fake.boards[0]["uuid"]
    assert path == tmp_path / "c" / "node1" / f"{uuid}.json"
    kept = f"{certificate.digest(path.read_bytes())}.json"
    assert {one.name for one in path.parent.iterdir()} == {
        f"{uuid}.{end}" for end in ("json", "html", "readings.jsonl.gz", kept)
    }
    assert (path.parent / f"{uuid}.{kept}").read_bytes() == path.read_bytes()
    certified = json.loads(path.read_text())
    assert [block["block"] for block in certified["blocks"]] == list(campaign.blocks.BLOCKS)
    assert certified["identity"]["driver"] == "999.01" and certified["blocks"][2]["num_readings"]["gpu:0"] > 0
    assert certified["idle"]["idle"]["power_w"] == pytest.approx(1.03 * IDLE_W)  # constant, however busy the machine is
    assert set(promises(path)) == set(campaign.appraise.PROMISES)
    told = capsys.readouterr().out
    assert "gpu:0: steady" in told and "gpu:0 " in told and str(path) in told
    assert "cite certificates under results/certificates, not under" in told
    page = path.with_suffix(".html").read_text()
    assert "Fake &lt;H200&gt;" in page and "Fake <H200>" not in page and "http://" not in words(page)
    assert 'id="chart-cooling"' in page and "This chart failed" in page
    # once more, from the readings alone
    before = path.read_bytes(), path.with_suffix(".html").read_bytes()
    path.unlink()
    assert main.main(["certify", "--read", str(path.with_name(f"{uuid}.readings.jsonl.gz"))]) == 0
    assert (path.read_bytes(), path.with_suffix(".html").read_bytes()) == before


def test_a_machine_without_meters_gets_a_certificate_that_says_so_and_works_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "boards", list)
    monkeypatch.setattr(campaign, "Child", None)  # nothing is started
    assert main.main(["certify", "--out", str(tmp_path / "c")]) == 0
    path = tmp_path / "c" / "node1" / "cpu:0.json"
    found = promises(path)
    assert {row["verdict"] for row in found.values()} == {NOT_TRIED}
    assert all("no CPU energy counter (RAPL)" in row["reason"] for row in found.values())
    page = words(path.with_suffix(".html").read_text())
    assert "not tried" in page and page.count("no CPU energy counter (RAPL)") == 1
    assert "NVIDIA driver" not in page and "measured in" not in page
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not tried" in line]
    assert (
        line.startswith("cpu:0 answers, falls, tick, window, bound,")
        and "slowdown: not tried, no CPU energy counter" in line
    )


@pytest.mark.slow
def test_cpu_packages_and_their_memory_are_certified_by_their_counters(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "boards", list)
    with rapl_tree(tmp_path / "powercap", [{"name": "package-0", "watts": 40.0, "dram_watts": 5.0}]) as rapl:
        monkeypatch.setattr(rapl_meter, "RAPL", (rapl.folder / "intel-rapl",))
        monkeypatch.setattr(rapl_meter, "problem", lambda: None)
        (path,) = campaign.certify(["cpu:0"], 12.0, tmp_path / "c", load=lambda board: Planned())
    made = json.loads(path.read_text())
    assert list(made["counters"]) == ["cpu:0", "dram:0"]
    for device in ("cpu:0", "dram:0"):
        found = promises(path, device)
        assert "RAPL reports no power" in found["cross-check"]["reason"]
        assert made["blocks"][2]["num_readings"][device] > 0
        assert found["tick"]["reason"] != found["cross-check"]["reason"]


def test_a_split_board_and_one_that_the_load_cannot_use_are_told_why(boards, tmp_path):
    def load(board):
        raise RuntimeError("no CUDA here")

    boards({"mig": 1}, {"tick_ms": 20})
    first, second, host = campaign.certify([], 8.0, tmp_path, load=load)
    assert all("MIG" in row["reason"] for row in promises(first).values())
    found = promises(second)
    assert found["lag"]["reason"] == "no load: no CUDA here" == found["cost"]["reason"]
    blocks = json.loads(second.read_text())["blocks"]
    assert blocks[0]["num_readings"]["gpu:1"] > 0 and blocks[1]["num_readings"] == {}
    assert host.name == "cpu:0.json"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "gpu:7"], "--device: unknown device 'gpu:7'; allowed: cpu:0"),
        (["--budget-s", "0"], "--budget-s 0: expected a number of seconds above 0"),
        (["--budget-s", "nan"], "--budget-s nan: expected"),
        (["--read", "nowhere.gz"], "nowhere.gz: No such file or directory"),
        (["--read", "x", "--device", "cpu:0"], "--read repeats an analysis"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(devices, "boards", list)
    assert main.main(["certify", *arguments]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_readings_of_another_shape_are_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "x.readings.jsonl.gz"
    readings.append(path, {"format": readings.FORMAT, "version": readings.VERSION, "devices": [{}]})
    assert main.main(["certify", "--read", str(path)]) == 2
    assert "no readings of a certificate: KeyError" in capsys.readouterr().err


def test_a_python_that_draws_nothing_still_leaves_the_certificate(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "boards", list)
    monkeypatch.delitem(sys.modules, "joulesweep.certify.page", raising=False)
    monkeypatch.delattr("joulesweep.certify.page", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)
    (path,) = campaign.certify([], None, tmp_path / "c")
    assert path.exists() and not path.with_suffix(".html").exists()
    assert "no page: this Python has no altair" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "boards", list)
    (tmp_path / "file").write_text("")
    assert main.main(["certify", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_load_works_as_long_as_it_is_asked_to():
    load = campaign.Child(None)
    try:
        assert load.described()["product"] == "512 × 512 float32"
        load.begin(0.4, None)
        steady = load.end(60)
        load.begin(0.4, 0.2)
        half = load.end(60)
    finally:
        load.close()
    for done in (steady, half):
        assert done["ended_s"] - done["began_s"] >= 0.4 and done["num_products"] > 0
    with pytest.raises(RuntimeError, match="has ended"):
        load.begin(1.0, None)


def test_a_load_that_cannot_start_says_why(monkeypatch):
    board = devices.Board(index=0, uuid="GPU-1", name="x", memory_bytes=None, has_counter=True, mig=False)
    load = campaign.Child(board)
    try:
        with pytest.raises(RuntimeError, match=r"CUDA|cuda|NVIDIA"):
            load.described()
        monkeypatch.setattr(load, "_answer", lambda limit_s: {"uuid": "2"})
        with pytest.raises(RuntimeError, match="PyTorch computes on GPU 2, not on GPU-1"):
            load.described()
    finally:
        load.close()


def test_nobody_measures_at_the_same_time(monkeypatch, tmp_path, boards):
    boards({})
    held = []

    def measure(subject, budget_s, write, clock, say):
        lock = campaign.lease.acquire(devices.boards()[0].uuid, campaign.lease.EXCLUSIVE)
        held.append(lock)

    monkeypatch.setattr(campaign.blocks, "measure", measure)
    campaign.certify(["gpu:0"], 1.0, tmp_path)
    assert held == [None], "the board's lock is taken"


def test_a_device_may_be_named_by_its_uuid_and_is_certified_once(boards, tmp_path):
    fake = boards({}, {})
    found = campaign.chosen([fake.boards[1]["uuid"], "gpu:1"], lambda board: Planned())
    assert [target.device for target in found] == ["gpu:1"]
    with pytest.raises(UserError, match="did you mean"):
        campaign.chosen(["gpu:2"], lambda board: Planned())


def test_a_run_cites_what_was_certified_in_the_same_place(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "boards", list)
    assert main.main(["certify"]) == 0
    (row,) = machine.describe(1).certificates
    path = certificate.place(certificate.HOST)
    assert path.exists() and row.digest == certificate.digest(path.read_bytes())
    assert len(row.not_tried) == len(campaign.appraise.PROMISES) and row.fails == []


def stopped_after(number):
    """A measuring that is interrupted after some blocks."""

    def measure(subject, budget_s, write, clock, say):
        for name in list(campaign.blocks.BLOCKS)[:number]:
            write(campaign.blocks.Block(name, reason="no time was left of the budget").line())
        if number < len(campaign.blocks.BLOCKS):
            raise KeyboardInterrupt

    return measure


def test_what_was_stopped_replaces_no_whole_certificate_and_no_other_measuring(monkeypatch, tmp_path, boards, capsys):
    fake = boards({})
    uuid, folder = fake.boards[0]["uuid"], tmp_path / "c" / "node1"
    folder.mkdir(parents=True)
    others = folder / f"{uuid}.1.partial.readings.jsonl.gz"
    others.write_bytes(b"of another process")
    monkeypatch.setattr(campaign.blocks, "measure", stopped_after(9))
    (path,) = campaign.certify(["gpu:0"], 1.0, tmp_path / "c")
    whole = path.read_bytes()
    monkeypatch.setattr(campaign.blocks, "measure", stopped_after(3))
    assert main.main(["certify", "--device", "gpu:0", "--out", str(tmp_path / "c")]) == 2
    said = capsys.readouterr().err
    (partial,) = (one for one in folder.glob("*.partial.readings.jsonl.gz") if one != others)
    assert str(partial) in said and others.read_bytes() == b"of another process"
    assert main.main(["certify", "--read", str(partial)]) == 0
    assert path.read_bytes() == whole
    made = json.loads((folder / f"{uuid}.partial.json").read_text())
    assert not made["complete"] and "partial" in words((folder / f"{uuid}.partial.html").read_text())


def test_a_certificate_that_was_cited_stays_when_another_is_made(monkeypatch, tmp_path, boards):
    boards({})
    made = []
    for budget_s in (1.0, 2.0):
        monkeypatch.setattr(campaign.blocks, "measure", stopped_after(9))
        (path,) = campaign.certify(["gpu:0"], budget_s, tmp_path)
        made.append(path.read_bytes())
    assert made[0] != made[1]
    for content in made:
        assert path.with_name(f"{path.stem}.{certificate.digest(content)}.json").read_bytes() == content


def test_who_stops_while_waiting_for_the_board_is_sent_to_no_file(monkeypatch, tmp_path, boards, capsys):
    boards({})

    def stopped(target):
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "_alone", stopped)
    assert main.main(["certify", "--device", "gpu:0", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip().endswith("stopped")


def test_a_meter_that_does_not_start_in_time_costs_its_calls_alone():
    freed = threading.Event()
    found, reason = campaign._calls(0.01, lambda: freed.wait())
    freed.set()
    assert found is None and "no answer within 0.01 s" in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "../../escaped"},
        {"host": "/escaped"},
        {"name": "a/b"},
        {"identity": {}},
        {"identity": {"driver": None, "instant": True}},
    ],
    ids=str,
)
def test_odd_readings_are_refused_in_one_line_and_write_nothing(tmp_path, capsys, changes):
    path = tmp_path / "in" / "x.readings.jsonl.gz"
    path.parent.mkdir()
    readings.append(path, {**Board().header(), "budget_s": 1.0, **changes})
    for out in ([], ["--out", str(tmp_path / "out")]):
        assert main.main(["certify", "--read", str(path), *out]) == 2
        said = capsys.readouterr().err
        assert "no readings of a certificate: " in said and said.count("\n") == 1
    assert [one.name for one in tmp_path.rglob("*.*")] == [path.name]


def test_a_certificate_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    path = tmp_path / "x.readings.jsonl.gz"
    readings.append(path, {**Board().header(), "budget_s": 1.0})
    (tmp_path / "file").write_text("")
    assert main.main(["certify", "--read", str(path), "--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert "file/node1/GPU-1.partial.json: Not a directory" in said and said.count("\n") == 1
