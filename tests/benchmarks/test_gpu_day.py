"""The GPU day: what one item does costs no other one; all of it in miniature, from the packed folder alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import fake_meters
import pytest
import tiny_run
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu_common, gpu_contest, gpu_day, gpu_items, gpu_pack, gpu_page, gpu_plan, gpu_results, gpu_runs
from benchmarks.gpu_common import Job, Pack
from joulesweep.core.spec import full
from joulesweep.measure import certificate, devices

LONG_S = 3600.0


@pytest.fixture
def day(tmp_path, nothing_is_left):
    """A day whose pieces are those of `gpu_faults`."""
    paths = os.pathsep.join([str(tiny_run.REPOSITORY), str(tiny_run.SUPPORT)])
    return gpu_day.Day(
        pack=Pack(tmp_path),
        out=tmp_path,
        scratch=tmp_path,
        accelerator="cpu",
        boards=[],
        environ={**os.environ, "PYTHONPATH": paths},
        num_lanes=1,
    )


def item(letter, *pieces, **changes):
    """An item of pieces (name, what it does, entries)."""
    made = [{"piece": name, "do": do, **(entries[0] if entries else {})} for name, do, *entries in pieces]
    given = {"about": "faults", "seconds": 1, "small_s": 1, "piece_s": LONG_S, "module": "gpu_faults", **changes}
    return gpu_plan.Item(letter=letter, pieces=lambda accelerator: [dict(piece) for piece in made], **given)


def answered(day, letter):
    """Status and reason of an item's pieces."""
    rows = [row for row in gpu_common.rows(day.out / gpu_common.RESULTS) if row["item"] == letter]
    assert [row["piece"] for row in rows].count(None) == 1, "how it went is said once"
    assert rows[-1]["piece"] is None
    return {row["piece"]: (row["status"], row.get("reason")) for row in rows[:-1]}


def test_a_piece_that_raises_or_ends_its_process_loses_itself_alone(day):
    pieces = [("first", "answers"), ("second", "raises"), ("third", "answers"), ("fourth", "ends"), ("last", "answers")]
    gpu_day.carry_out([item("a", *pieces)], day, LONG_S)
    assert answered(day, "a") == {
        "first": ("ok", None),
        "second": ("failed", "ValueError: two lines"),
        "third": ("ok", None),
        "fourth": ("failed", "its process ended with exit code 7"),
        "last": ("ok", None),
    }
    rows = {row["piece"]: row for row in gpu_common.rows(day.out / gpu_common.RESULTS)}
    assert rows["first"]["value"] is None, "JSON has no number that is none"
    assert len({rows[name]["pid"] for name in ("first", "third", "last")}) == 3


def test_what_cannot_be_tried_costs_no_new_process(day):
    gpu_day.carry_out([item("a", ("first", "answers"), ("second", "refuses"), ("third", "answers"))], day, LONG_S)
    assert answered(day, "a")["second"] == ("not tried", "there is none here")
    rows = {row["piece"]: row for row in gpu_common.rows(day.out / gpu_common.RESULTS)}
    assert rows["first"]["pid"] == rows["third"]["pid"]
    assert rows[None]["num"] == {"ok": 2, "not tried": 1, "failed": 0}


def test_an_item_that_hangs_is_killed_with_all_its_processes_when_its_time_is_over(day):
    hanging = item("a", ("first", "answers"), ("second", "hangs"), ("third", "answers"))
    gpu_day.carry_out([hanging, item("b", ("other", "answers"), small_s=99)], day, 400.0)
    found = answered(day, "a")
    assert found["second"][0] == "not tried" and found["second"][1].startswith("cut off after ")
    assert found["third"] == ("not tried", gpu_common.NO_TIME)
    assert found["first"] == ("ok", None)
    assert answered(day, "b") == {"other": ("ok", None)}
    assert not gpu_runs._alive(int((day.out / "grandchild").read_text()))


@pytest.mark.slow
def test_a_piece_that_hangs_within_its_item_leaves_the_others_their_time(day):
    gpu_day.carry_out([item("a", ("first", "hangs"), ("second", "answers"), piece_s=8.0, small_s=LONG_S)], day, LONG_S)
    assert answered(day, "a") == {"first": ("failed", "no answer within 8 s"), "second": ("ok", None)}


def test_without_time_nothing_is_started_and_everything_is_answered(day):
    gpu_day.carry_out([item("a", ("first", "answers")), item("b", ("first", "answers"))], day, 0.01)
    for letter in "ab":
        assert answered(day, letter) == {"first": ("not tried", gpu_common.NO_TIME)}
    assert not list(day.scratch.glob("*/job.json"))


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_lanes_are_carried_out_side_by_side_where_there_is_room(day, num_lanes):
    pieces = [("waits", "waits", {"file": "there"}), ("touches", "touches", {"file": "there"})]
    if num_lanes == 1:
        pieces.reverse()  # one after the other
    day = gpu_day.Day(**{**vars(day), "num_lanes": num_lanes})
    gpu_day.carry_out([item("a", *pieces, lane=lambda piece: piece["do"])], day, LONG_S)
    assert {status for status, _ in answered(day, "a").values()} == {"ok"}


def test_a_line_that_was_cut_off_costs_no_other_line(tmp_path):
    path = tmp_path / "rows"
    gpu_common.append(path, {"first": 1})
    with path.open("ab") as file:
        file.write(b'{"second": \n')
    gpu_common.append(path, {"third": float("inf")})
    with path.open("ab") as file:
        file.write(b'{"fourth')
    assert [{key: value for key, value in row.items() if key != "at_s"} for row in gpu_common.rows(path)] == [
        {"first": 1},
        {"third": None},
    ]


def test_the_plan_fits_into_its_budget_and_every_piece_has_a_name_of_its_own():
    assert sum(item.seconds for item in gpu_plan.PLAN) == gpu_plan.BUDGET_S
    assert sum(item.small_s for item in gpu_plan.PLAN) == 60
    assert sorted(item.letter for item in gpu_plan.PLAN) == list("abcdefghi")
    for plan in gpu_plan.PLAN:
        for accelerator in gpu_common.SCALES:
            pieces = plan.pieces(accelerator)
            assert pieces and len({piece["piece"] for piece in pieces}) == len(pieces)
            assert {piece["do"] for piece in pieces} <= set(gpu_items.PIECES)


def test_the_certificate_comes_before_anything_loads_the_board_and_what_decides_goals_before_the_rest():
    letters = "".join(item.letter for item in gpu_plan.PLAN)
    assert letters.startswith("ac")
    assert max(letters.index(one) for one in "deih") < min(letters.index(one) for one in "fg")


def ways(pieces):
    """Engine, precision and batch size of trainings, in order."""
    return [(one["spec"]["engine"], one["spec"]["precision"], one["spec"]["batch_size"]) for one in pieces]


def test_what_the_goals_need_of_item_d_comes_first_and_what_compiles_alone_last():
    found = ways(gpu_plan.speeds("cuda"))
    goals = [(engine, "bf16-mixed", size) for engine in ("graph", "compile-graph") for size in (256, 1024)]
    assert found[:4] == goals
    assert [engine for engine, *_ in found].index("compile") == len(found) - 1
    plain = {one["spec"]["batch_size"] for one in gpu_plan.speeds("cuda") if one["spec"]["head"] == "dense"}
    assert plain == {32, 256}, "item f compares with them"


def test_eager_trainings_are_cut_short_and_short_ones_go_over_the_texts_more_than_once():
    for piece in [*gpu_plan.speeds("cuda"), *gpu_plan.ratios("cuda")]:
        spec = gpu_common.measured_spec("bert-base", "cuda", **piece["spec"])
        eager = spec.engine == "eager"
        num_steps = spec.max_steps or spec.epochs * round(0.98 * 32_842 / spec.batch_size)
        assert 90 <= num_steps <= (150 if eager else 1006), spec
        assert (spec.max_steps is not None) == (eager and spec.batch_size == 32)


def test_the_profile_begins_with_what_the_goals_are_judged_by():
    assert ways(gpu_plan.profiles("cuda"))[:3] == [("graph", "bf16-mixed", size) for size in (256, 1024, 32)]


def test_what_compiles_waits_for_nothing_else_to_begin(day):
    plan = next(item for item in gpu_plan.PLAN if item.letter == "b")
    day = gpu_day.Day(**{**vars(day), "num_lanes": 14})
    lanes = gpu_day._lanes(plan, day, plan.pieces("cuda"))
    firsts = [lane[0] for lane in lanes[: day.num_lanes]]
    compiling = [piece for piece in firsts if "compile" in piece["spec"].get("engine", "")]
    assert [piece["do"] for piece in firsts].count("dropout") == 2
    assert {piece["spec"].get("strategy") for piece in firsts} >= {"ddp", "fsdp"}
    assert [piece["piece"] for lane in lanes for piece in lane if piece["do"].startswith("warm")] == [
        "kernels of compile-graph",
        "kernels of trainer-compiled",
    ]
    assert compiling[0]["do"] == "warm_cache"
    assert {plan.compile_threads(piece) for piece in firsts if piece["do"].startswith("warm")} == {4}
    for lane in lanes:
        if "compile" in lane[0]["spec"].get("engine", "") and lane[0]["do"] == "losses":
            assert [piece["spec"]["precision"] for piece in lane][:2] == ["fp32", "bf16-mixed"]
            assert plan.compile_threads(lane[0]) == 1


def test_a_process_has_the_compilers_threads_of_its_first_piece(day):
    gpu_day.carry_out([item("a", ("first", "tells", {"wants": 3}), compile_threads=lambda p: p["wants"])], day, LONG_S)
    (row,) = [row for row in gpu_common.rows(day.out / gpu_common.RESULTS) if row["piece"] == "first"]
    assert row["threads"] == "3"


def test_a_piece_is_not_begun_with_less_time_than_it_needs(day):
    pieces = [("first", "answers", {"needs_s": 2 * LONG_S}), ("second", "answers")]
    gpu_day.carry_out([item("a", *pieces)], day, LONG_S)
    status, reason = answered(day, "a")["first"]
    assert status == "not tried" and reason.startswith(f"{gpu_common.NO_TIME}: it needs 7200 s, there were 3")
    assert answered(day, "a")["second"] == ("ok", None)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_runs, "MODULE", "gpu_faults")
    monkeypatch.setattr(gpu_runs, "WAYS", defaultdict(lambda: gpu_contest.THEIRS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tiny_run.REPOSITORY), str(tiny_run.SUPPORT)]))
    given = {"item": "e", "pieces": [], "pack": Pack(tmp_path), "out": tmp_path, "scratch": tmp_path}
    return Job(**given, accelerator="cpu", until_s=gpu_day.time.monotonic() + LONG_S)


def contest(job, *names, sizes=(8,)):
    return gpu_runs.contest(
        job, {"piece": "trainers", "contestants": names, "precision": "fp32", "sizes": sizes, "spec": {}}
    )


def test_a_round_has_all_sizes_and_another_contestant_begins_each_time(job):
    found = contest(job, "ours", "trainer", sizes=(8, 16))
    assert found == {"num_turns": {"ours": 4, "trainer": 4}, "left_out": {}}
    rows = sorted(gpu_common.rows(job.out / gpu_common.RESULTS), key=lambda row: row["order"])
    assert [(row["turn"], row["batch_size"]) for row in rows[::2]] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert [row["contestant"] for row in rows] == ["ours", "trainer"] * 2 + ["trainer", "ours"] * 2
    assert all(row["num_texts"] == row["batch_size"] for row in rows), "each was told the size"


def test_turns_that_time_does_not_suffice_for_are_not_begun(job, monkeypatch):
    monkeypatch.setattr(gpu_runs, "SURE", 1e9)
    assert contest(job, "ours", "trainer", sizes=(8, 16))["num_turns"] == {"ours": 1, "trainer": 1}
    assert {row["batch_size"] for row in gpu_common.rows(job.out / gpu_common.RESULTS)} == {8}


@pytest.mark.slow
def test_who_still_compiles_when_the_others_need_the_time_is_left_out(job, monkeypatch, nothing_is_left):
    scale = replace(gpu_common.SCALES["cpu"], contest_s=LONG_S)
    monkeypatch.setitem(gpu_common.SCALES, "cpu", scale)
    found = contest(job, "ours", "trainer-compiled", "trainer")
    assert found["num_turns"] == {"ours": 2, "trainer-compiled": 0, "trainer": 2}
    assert set(found["left_out"]) == {"trainer-compiled"}


@pytest.mark.slow
def test_a_contestant_that_cannot_take_part_or_ends_is_left_out_with_the_reason(job, nothing_is_left):
    found = contest(job, "lacks", "ends", "ours", "ends-later")
    assert found["num_turns"] == {"lacks": 0, "ends": 0, "ours": 2, "ends-later": 1}
    assert found["left_out"] == {
        "lacks": "not installed",
        "ends": "ends ended with exit code 5",
        "ends-later": "ends-later ended with exit code 6",
    }
    with pytest.raises(gpu_common.NotTried, match="lacks: not installed"):
        contest(job, "lacks")


def test_a_contestant_compiles_before_the_contest(job, nothing_is_left):
    piece = {"piece": "kernels", "contestant": "trainer", "precision": "fp32", "sizes": [8], "spec": {}}
    assert gpu_runs.warm_peer(job, piece)["compile_s"] > 0
    with pytest.raises(gpu_common.NotTried, match="not installed"):
        gpu_runs.warm_peer(job, {**piece, "contestant": "lacks"})


class Meter:
    """A meter whose windows are counted."""

    def __init__(self):
        self.begin_s, self.log = 0.0, []

    @contextmanager
    def window(self):
        self.begin_s = gpu_contest.time.monotonic()
        self.log.append("begin")
        yield
        self.log.append("end")


@pytest.mark.parametrize(("seconds", "num_steps"), [(0.0, 1), (LONG_S, None)])
def test_a_peers_window_opens_after_its_first_steps_and_closes_when_it_is_full(seconds, num_steps):
    meter = Meter()
    timed = gpu_contest.Timed(meter, seconds)
    told = [timed.step_done() for _ in range(gpu_contest.SKIPPED)]
    assert (told, meter.log) == ([False] * gpu_contest.SKIPPED, ["begin"])
    assert timed.step_done() is (num_steps is not None)
    assert (meter.log, timed.num_steps) == (["begin", "end"][: 1 + (num_steps is not None)], 1)


def test_what_warms_up_has_no_window():
    meter = Meter()
    timed = gpu_contest.Timed(meter, float("inf"))
    assert not any(timed.step_done() for _ in range(10)) and meter.log == []


def test_a_compiled_contestant_meets_every_length_before_its_first_turn():
    task = SimpleNamespace(examples=[{"input_ids": [0] * n} for n in (4, 9, 4, 7)])
    found = [len(example["input_ids"]) for example in gpu_contest._every_length(task, 2)]
    assert found == [9, 9, 7, 7, 4, 4]


def test_a_run_that_is_to_be_killed_rests_for_nothing_and_is_not_tried_when_time_runs_out(job, monkeypatch):
    job = replace(job, accelerator="cuda")
    rests = [gpu_runs._run_spec(job, 1.0, rests) for rests in (True, False)]
    assert [(one.idle_s > 0, one.cooldown_s > 0) for one in rests] == [(True, True), (False, False)]
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = []

    def start(*_):
        started.append(subprocess.Popen(command, start_new_session=True))
        return started[0]

    monkeypatch.setattr(gpu_runs.processes, "start", start)
    with pytest.raises(gpu_common.NotTried, match="did not begin to train within"):
        gpu_runs.killed(replace(job, until_s=0.0), {})
    spec = json.loads((job.scratch / "killed.json").read_text(encoding="utf-8"))["spec"]
    assert (spec["idle_s"], spec["cooldown_s"]) == (0.0, 0.0)
    assert started[0].poll() is not None


def test_runs_find_the_certificate_of_the_day(job, monkeypatch):
    asked = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(gpu_runs.subprocess, "run", lambda command, **_: asked.append(command) or done)
    gpu_runs.certify(job, {})
    place = Path(asked[0][asked[0].index("--out") + 1])
    measured = defaultdict(lambda: None)
    record = {"status": "ok", "measurement": measured, "quality": None, "environment": {"certificates": ["cited"]}}
    seen = []
    monkeypatch.setattr(gpu_runs, "launch_one", lambda *_: seen.append(Path.cwd() / certificate.FOLDER) or record)
    assert gpu_runs.run(job, {})["certificates"] == ["cited"]
    assert seen == [place]


def test_batches_of_peers_are_padded_to_their_longest_text_on_a_gpu_too(tmp_path):
    from benchmarks.peer_common import _task
    from joulesweep.train.trainer import RankContext

    pack = Pack(tmp_path)
    gpu_pack.write_texts(pack.tokens("tiny"), gpu_common.TEXTS["tiny"])
    gpu_pack.write_model(pack.model("bert"), "bert")
    place = RankContext(device=torch.device("cpu"), rank=0, world=1, local_rank=0)
    task = _task(gpu_common.small_spec("bert", "cuda"), pack.model("bert"), pack.tokens("tiny"), place, tmp_path)
    shapes = task.collator([one for one in task.examples if len(one["input_ids"]) == 10][:1])["input_ids"].shape
    assert shapes == (1, 10)


def test_the_profile_tells_idle_time_kernels_copies_and_waits():
    def event(cat, name, ts, dur):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    found = gpu_items.summed_up(
        [
            event("kernel", "gemm", 100, 30),
            event("kernel", "gemm", 120, 30),  # overlaps the one before
            event("gpu_memcpy", "copy", 160, 10),
            event("kernel", "softmax", 180, 20),
            event("cuda_runtime", "cudaLaunchKernel", 90, 5),
            event("cuda_runtime", "cudaStreamSynchronize", 130, 70),
            event("cpu_op", "aten::mm", 80, 12),
            {"ph": "s", "cat": "ac2g", "name": "flow", "ts": 1},
        ],
        seconds=160e-6,
    )
    assert found["device"] == {
        "num_kernels": 3,
        "num_copies": 1,
        "busy_s": pytest.approx(80e-6),
        "span_s": pytest.approx(100e-6),
        "idle_share": pytest.approx(0.5),  # of the time without the profiler
        "kernels": [
            {"name": "gemm", "number": 2, "seconds": pytest.approx(60e-6)},
            {"name": "softmax", "number": 1, "seconds": pytest.approx(20e-6)},
        ],
    }
    assert found["waits"] == [{"name": "cudaStreamSynchronize", "number": 1, "seconds": pytest.approx(70e-6)}]
    assert (found["num_launches"], found["host"][0]["name"]) == (1, "aten::mm")
    assert gpu_items.summed_up([], 1.0)["device"] is None


def wheel(folder, name, version, *requires):
    folder.mkdir(exist_ok=True)
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
        file.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")


def test_what_nobody_brings_along_is_found(tmp_path):
    wheel(tmp_path, "zeus", "1", "numpy", "httpx", "tyro", 'odd; extra == "all"', 'old; python_version < "3.12"')
    assert gpu_pack.lacking(tmp_path) == ["httpx"]
    wheel(tmp_path, "httpx", "1", "Http_Core>=1")
    assert gpu_pack.lacking(tmp_path) == ["http-core"]


def test_what_travels_is_pinned():
    pins = (tiny_run.REPOSITORY / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for name in gpu_pack.CARRIED:
        assert re.search(rf"^{re.escape(name)}==", pins, re.MULTILINE), name


def test_only_what_this_python_lacks_is_unpacked(tmp_path):
    wheel(tmp_path, "absent_entirely", "1")
    wheel(tmp_path, "packaging", "1")  # there, and newer
    wheel(tmp_path, "numpy", "999")
    site = tmp_path / "site"
    assert gpu_day.unpack(tmp_path, site) == ["absent-entirely", "numpy"]
    assert {path.name for path in site.iterdir()} == {"absent_entirely-1.dist-info", "numpy-999.dist-info"}


def test_another_package_of_the_same_name_is_not_taken_for_ours(tmp_path):
    """Some wheels install a top-level `benchmarks`; a folder without an `__init__` would lose against it."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    command = [sys.executable, "-c", "import benchmarks.gpu_plan"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tiny_run.REPOSITORY, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_work(monkeypatch):
    """A pack without models, which takes no time."""
    monkeypatch.setattr(gpu_pack, "write_assets", lambda pack: None)


def test_a_pack_too_large_is_not_made_and_an_earlier_one_stays(tmp_path, monkeypatch, no_work):
    folder = tmp_path / "pack"
    size = gpu_pack.build(folder, wheels=())
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    manifest = json.loads((folder / gpu_common.MANIFEST).read_text(encoding="utf-8"))
    assert {"joulesweep/train/loop.py", "benchmarks/__init__.py", "benchmarks/gpu_day.py", "resources/gpus.csv"} <= set(
        manifest["files"]
    )
    assert not list(folder.rglob("__pycache__"))
    monkeypatch.setattr(gpu_pack, "MOST_BYTES", size - 1)
    with pytest.raises(gpu_pack.UserError, match="more than"):
        gpu_pack.build(folder, wheels=())
    assert (folder / gpu_common.MANIFEST).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_folder_with_something_else_is_left_alone(tmp_path, no_work):
    (tmp_path / "mine").touch()
    with pytest.raises(gpu_pack.UserError, match="something else"):
        gpu_pack.build(tmp_path, wheels=())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--out", "{out}", "--items", "ax"], "--items: there is no item x; there are a, b, c"),
        ([], "--out: say where results go, or set OUT"),
        (["--out", "{out}", "--budget", "0"], "--budget: must be above 0, got 0"),
        (["--out", "{out}", "--pack", "{out}/none"], "none: no pack; make one by: make gpu-pack"),
        (["--read", "{out}"], "no results of a GPU day"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(sys, "argv", ["gpu_day", *(word.format(out=tmp_path) for word in words)])
    with pytest.raises(SystemExit, match="2"):
        gpu_day.main()
    assert line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_joules_of_a_traced_item_are_those_of_the_board(day, tmp_path):
    """A training on the CPU, a made-up board, the meter, the trace in its own process, and the page's verdict."""
    made = fake_meters.Boards(tmp_path, [{"watts": "saw:250:350:0.7", "tick_ms": 20}])
    uuid = made.boards[0]["uuid"]
    board = devices.Board(index=0, uuid=uuid, name="Fake GPU", memory_bytes=2**36, has_counter=True, mig=False)
    gpu_pack.write_texts(day.pack.tokens("tiny"), gpu_common.TEXTS["tiny"])
    gpu_pack.write_model(day.pack.model("bert"), "bert")
    environ = made.environment(PYTHONPATH=str(tiny_run.REPOSITORY), XDG_CACHE_HOME=str(tmp_path / "cache"))
    day = gpu_day.Day(**{**vars(day), "boards": [board], "environ": environ})
    piece = gpu_plan.speeds("cpu")[0]
    piece["spec"]["min_seconds"] = 2.0
    traced = gpu_plan.Item(letter="d", about="", seconds=1, small_s=1, pieces=lambda accelerator: [piece], traced=True)
    gpu_day.carry_out([traced], day, LONG_S)
    (row,) = gpu_results.speeds(gpu_results.Results(tmp_path))
    joules = row["joules"]
    assert (joules["status"], joules["doubt"]) == ("measured", None), joules
    assert row["j_per_text"] * row["texts_per_s"] == pytest.approx(300.0, rel=0.1)  # watts: the saw's mean
    assert joules["error_j"] < 0.1 * joules["energy_j"]


@pytest.mark.long
def test_a_compiled_trainer_compiles_nothing_in_its_windows(tmp_path):
    """Both batch sizes and every length, mixed precision, two turns each: all is compiled before the first."""
    pytest.importorskip("accelerate")
    pack = Pack(tmp_path)
    gpu_pack.write_texts(pack.tokens("tiny"), gpu_common.TEXTS["tiny"])
    gpu_pack.write_model(pack.model("bert"), "bert")
    (tmp_path / "job.json").write_text(
        json.dumps(
            {
                "name": "trainer-compiled",
                "specs": {
                    size: full(
                        gpu_common.measured_spec(
                            "bert", "cpu", batch_size=size, precision="bf16-mixed", schedule="constant",
                            **gpu_contest.WAYS["trainer-compiled"],
                        )
                    )
                    for size in (8, 16)
                },
                "model_folder": str(pack.model("bert")), "tokens": str(pack.tokens("tiny")),
                "boards": [], "seconds": 0.5, "folder": str(tmp_path),
            }
        )
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path / "job.json")],
        cwd=tiny_run.REPOSITORY, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    before, *after = json.loads(done.stdout.splitlines()[-1])
    assert before > 0 and set(after) == {before}


COMPILED = """
import json, sys
from benchmarks import gpu_contest
turn = gpu_contest.built(json.load(open(sys.argv[1])))
counts = [gpu_contest.num_compiled()]
for size in (8, 16, 8, 16):
    found = turn(size)
    assert found["num_texts"] == size * found["num_steps"] > 0
    counts.append(gpu_contest.num_compiled())
print(json.dumps(counts))
"""


# All of it in miniature


def closure(*names):
    """The distributions that these need, themselves included."""
    found, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            wanted = [Requirement(line) for line in found[name].requires or ()]
            waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found.values()


def bare_python(folder):
    """A Python that has torch, transformers, peft and what these need and the pack does not carry, and nothing else."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    for one in closure("torch", "transformers", "peft"):
        if canonicalize_name(one.name) in gpu_pack.CARRIED:
            continue
        tops = {file.parts[0] for file in one.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(one.locate_file(top))
    return folder / "bin" / "python"


def carried(folder):
    """What the pack carries, as wheels for this Python, made of what is installed: no network."""
    folder.mkdir()
    for name in gpu_pack.CARRIED:
        one = importlib.metadata.distribution(name)
        with ZipFile(folder / f"{one.name.replace('-', '_')}-{one.version}-py3-none-any.whl", "w") as file:
            for path in one.files:
                if path.parts[0] != ".." and "__pycache__" not in path.parts:
                    file.write(one.locate_file(path), str(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The packed folder run by a bare Python, in miniature. Returns the folder of its results."""
    folder = tmp_path_factory.mktemp("day")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV", "JOULESWEEP"))}
    environ |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "HF_HUB_OFFLINE": "1"}

    def run(python, *words, where):
        done = subprocess.run(
            [str(python), "-m", *words], cwd=where, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "benchmarks.gpu_pack", str(folder / "pack"), "--no-wheels", where=tiny_run.REPOSITORY)
    carried(folder / "pack" / "wheels")
    python = bare_python(folder / "bare")
    hidden = "import importlib.util as u; print([n for n in {!r} if u.find_spec(n)])"
    names = (
        "snakemake",
        "polars",
        "altair",
        "datasets",
        "pydantic",
        "zeus",
        "scipy",
        "pandas",
        "sklearn",
        "httpx",
        "yaml",
        "torch",
    )
    done = subprocess.run([str(python), "-c", hidden.format(names)], env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == "['torch']", done.stdout + done.stderr
    options = ("--accelerator", "cpu", "--budget", "1800", "--out", str(folder / "out"))  # however slow the machine is
    run(python, "benchmarks.gpu_day", *options, where=folder / "pack")
    return folder / "out"


def pieces(whole, letter):
    rows = [row for row in gpu_common.rows(whole / gpu_common.RESULTS) if row["item"] == letter and row["piece"]]
    return {row["piece"]: row for row in rows}


@pytest.mark.slow
def test_every_piece_of_every_item_is_answered_and_nothing_fails(whole):
    rows = list(gpu_common.rows(whole / gpu_common.RESULTS))
    log = (whole / gpu_common.LOG).read_text(encoding="utf-8", errors="replace")
    assert [row for row in rows if row["status"] == "failed"] == [], log[-3000:]
    for item in gpu_plan.PLAN:
        found = pieces(whole, item.letter)
        assert {piece["piece"] for piece in item.pieces("cpu")} <= set(found)
        ended = next(row for row in rows if row["item"] == item.letter and row["piece"] is None)
        assert ended["seconds"] <= ended["guard_s"]
        assert all(row.get("reason") for row in found.values() if row["status"] == "not tried")


METERED = """
import sys
from pathlib import Path
from benchmarks import gpu_day
gpu_day.unpack(Path("wheels"), Path(sys.argv[1]))
sys.path.insert(0, sys.argv[1])
from joulesweep.cli import main
from joulesweep.core import late_imports
with late_imports.defer_import("sklearn.metrics", "auc"):
    from zeus.monitor import ZeusMonitor
import pynvml
print(*sorted({name for name in ("pandas", "sklearn", "torch") if name in sys.modules}), "imported")
"""


@pytest.mark.slow
def test_the_wheels_are_enough_for_the_meter_and_for_the_command_line(whole, tmp_path):
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(whole.parent / "bare" / "bin" / "python"), "-c", METERED, str(tmp_path / "site")],
        cwd=whole.parent / "pack", env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "imported", done.stdout + done.stderr


@pytest.mark.slow
def test_losses_are_those_of_the_pack_where_they_can_be(whole):
    found = {**pieces(whole, "a"), **pieces(whole, "b")}
    for row in found.values():
        if row["status"] == "ok" and "agrees" in row:
            assert row["agrees"], row
    for name in ("bert", "llama", "t5"):
        assert found[f"{name} eager fixed fp32"]["agrees"]
        assert found[f"{name} graph fixed fp32"]["reason"].endswith("needs an NVIDIA GPU; this run uses the CPU")
        assert found[f"{name} compile fixed fp32"]["reason"] == "the miniature compiles nothing"
        assert found[f"{name} eager fixed tf32"]["status"] == "not tried"
    assert "encoder-decoder" in found["t5 eager packed fp32"]["reason"]
    assert {found[f"bert {strategy} fp32"]["status"] for strategy in ("ddp", "fsdp")} == {"ok"}
    assert found["dropout eager"]["agrees"]


@pytest.mark.slow
def test_measured_items_have_their_numbers(whole):
    for letter in "df":
        tried = [row for row in pieces(whole, letter).values() if row["status"] == "ok"]
        assert tried and all(row["measurement"]["samples_per_s"] > 0 for row in tried)
    turns = [row for row in pieces(whole, "e").values() if "turn" in row]
    assert {(row["contestant"], row["batch_size"]) for row in turns} == {
        (name, size) for name in ("ours-eager", "trainer", "trainer-plain") for size in (8, 16)
    }
    for row in turns:
        assert row["num_texts"] >= row["num_steps"] > 0 and row["window_s"] > 0
    for row in pieces(whole, "g").values():
        assert row["chosen"]["num_steps"] and row["full"]["num_steps"] and row["predicted"] < 1
    assert any(row["status"] == "ok" and row["host"] for row in pieces(whole, "h").values())


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_no_record(whole):
    found = pieces(whole, "i")
    assert found["a whole run"]["measurement"]["num_texts"] > 0
    killed = found["a run that is killed"]
    assert killed["num_processes"] >= 2
    assert killed["processes_gone_s"] is not None
    assert not killed["record_left"]


@pytest.mark.slow
def test_what_comes_back_is_little_and_plainly_named(whole):
    paths = [path for path in whole.rglob("*") if path.is_file()]
    assert len(paths) <= 8
    assert all(path.parent == whole and re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in paths)
    assert all(path.stat().st_size <= 16 * 2**20 for path in paths)


@pytest.mark.slow
def test_the_miniature_makes_a_page_that_claims_nothing_of_a_gpu(whole, tmp_path):
    page = gpu_page.write(gpu_results.Results(whole), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert gpu_page.MINIATURE in text
    goals = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["goals"]
    assert {goal["verdict"] for goal in goals} == {"not tried"}
    assert len(goals) == len(gpu_results.GOALS)
