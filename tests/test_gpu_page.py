"""From made-up results of a GPU day to goals and joules."""

from __future__ import annotations

import json
import sys

import outcomes
import pytest

from benchmarks import gpu_common, gpu_day, gpu_page, gpu_results, gpu_trace
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import as_json
from joulesweep.core.work import COUNTED
from joulesweep.measure.certificate import FORMAT
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import Series, Trace

BOARD = Board(
    index=0, uuid="GPU-1", name="NVIDIA H200", memory_bytes=141 * 2**30, has_counter=True, mig=False
).described()
WATTS, TICK_S = 500.0, 0.1


def counter_j(at_s):
    """What the board's counter says: it moves every tick."""
    return WATTS * TICK_S * int(at_s / TICK_S + 1e-9)


def window(begin_s, seconds):
    """A window of the meter, and what is needed to judge it."""
    end_s = begin_s + seconds
    readings = {"begin_j": counter_j(begin_s), "begin_s": [begin_s, begin_s], "end_s": [end_s, end_s]}
    row = {"device": "gpu:0", "kind": "gpu", "uuid": "GPU-1", "status": "measured", "method": "counter", "reason": None}
    row |= {"total_energy_j": counter_j(end_s) - counter_j(begin_s), "reads": readings}
    span = {"begin_s": begin_s, "end_s": end_s, "idle_begin_s": 0.0, "idle_end_s": 0.0}
    return {"energy": [row], "span": span, "window_s": seconds}


class Folder:
    """A folder of results that grows."""

    def __init__(self, path, boards=(BOARD,)):
        self.path = path
        self.add("", None, date="2026-11-29", boards=list(boards), accelerator="cuda" if boards else "cpu")
        trace = Trace([], [])
        trace.series["gpu:0"] = Series()
        for i in range(400):
            trace.times_s.append(i * 0.05)
            trace.took_s.append(0.0)
            trace.spent.append(i * 1e-4)
            trace.series["gpu:0"].energy_j.append(counter_j(i * 0.05))
            trace.series["gpu:0"].power_w.append(WATTS)
        header = {"instant": {"gpu:0": True}, "ranges_j": {}, "ticks_s": {"gpu:0": TICK_S}}
        gpu_common.append(path / gpu_common.POWER, header)
        for first in (0, 200):
            part = gpu_trace.readings(trace, first, 0)
            part |= {key: part[key][:200] for key in ("times_s", "took_s", "spent_s")}
            part["series"] = {"gpu:0": {key: values[:200] for key, values in part["series"]["gpu:0"].items()}}
            gpu_common.append(path / gpu_common.POWER, part)

    def add(self, item, piece, status="ok", **found):
        gpu_common.append(self.path / gpu_common.RESULTS, {"item": item, "piece": piece, "status": status, **found})

    def turn(self, name, turn, texts, size=32, contest="trainers"):
        self.add(
            "e", f"{contest} batch {size} {name} {turn}", contest=contest, contestant=name, turn=turn, batch_size=size,
            precision="bf16-mixed", num_texts=texts, num_steps=1, **window(1.0 + turn, 3.0),
        )  # fmt: skip

    def turns(self, size=32, **texts):
        """Three turns of each contestant, by its name with _ for -."""
        for name, number in texts.items():
            for turn, share in enumerate((1.0, 1.01, 1.005), 1):
                self.turn(name.replace("_", "-"), turn, number * share, size)

    def left_out(self, **reasons):
        found = {name.replace("_", "-"): why for name, why in reasons.items()}
        self.add("e", "trainers", num_turns={}, left_out=found)

    def speed(self, size, floor_share, precision="bf16-mixed", item="d", **way):
        """A training whose distance to the floor is a share, by FLOPs alone."""
        found = window(2.0, 4.0)
        flops = floor_share * 989.4e12 * 4.0
        counts = {**dict.fromkeys(COUNTED, 0), "num_steps": 0, "num_tokens": 1000, "num_padded_tokens": 1000}
        phase = as_json(outcomes.phase(**counts, flop_coefficients={"token": flops / 1000}, bytes_per_step=0))
        memory = {"gpu_reserved_bytes": 2e9, "host_rss_bytes": 1}
        measured = {"energy": found["energy"], "total_window_s": 4.0, "window_s": 4.0, "num_passes": 1}
        measured |= {"samples_per_s": 100.0 * size, "num_texts": 400 * size, "phases": [phase], "peak_memory": memory}
        spec = {"engine": "graph", "batching": "packed", "head": "masked", **way}
        spec |= {"precision": precision, "batch_size": size}
        piece = " ".join([*map(str, spec.values()), f"batch {size}"])
        self.add(item, piece, measurement={**measured, "startup_s": 1.0}, span=found["span"], spec=spec)

    def goals(self):
        return {goal.name: goal for goal in gpu_results.goals(gpu_results.Results(self.path))}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


TRAINER, FLOOR, METERING, CERTIFICATE = (gpu_results.GOALS[i][0] for i in (0, 2, 4, 5))


def test_without_measurements_no_goal_fails(folder):
    assert {goal.verdict for goal in folder.goals().values()} == {"not tried"}
    folder.add("d", "graph packed masked bf16-mixed batch 256", status="failed", reason="CUDA error")
    folder.add("e", "trainers", status="not tried", reason=gpu_common.NO_TIME)
    goals = folder.goals()
    assert (goals[FLOOR].verdict, goals[FLOOR].found) == ("not tried", "CUDA error")
    assert goals[TRAINER].verdict == "not tried"
    told = f"without ours: {gpu_common.NO_TIME}; without trainer: {gpu_common.NO_TIME}; not compiled: "
    assert goals[TRAINER].found.startswith(told)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((6000, 6060, 6030), "holds"), ((3000, 3030, 3015), "fails"), ((4000, 6500, 5000), "cannot be told yet")],
)
def test_the_fastest_of_the_trainers_is_the_one_to_beat(folder, ours, verdict):
    for turn, texts in enumerate(ours, 1):
        folder.turn("ours", turn, texts)
        folder.turn("trainer-compiled", turn, 1000)
        folder.turn("trainer", turn, 500)
        folder.turn("trainer-plain", turn, 100)
    goal = folder.goals()[TRAINER]
    assert goal.verdict == verdict
    assert goal.found.startswith(f"{(ours[0] * ours[1] * ours[2]) ** (1 / 3) / 1000:.2f} [")
    assert goal.found.endswith("], against trainer-compiled")


def test_a_goal_names_who_was_not_measured(folder):
    folder.turns(ours=6000, trainer=1000, trainer_plain=500)
    folder.left_out(trainer_compiled="said nothing within 30 s")
    goal = folder.goals()[TRAINER]
    assert goal.verdict == "holds"
    assert goal.found.endswith("], against trainer; not compiled: said nothing within 30 s")


def test_without_the_better_trainer_nothing_is_told_of_the_goal(folder):
    folder.turns(ours=9820, trainer_plain=1000)
    folder.left_out(trainer="exit code 1", trainer_compiled="exit code 2")
    goal = folder.goals()[TRAINER]
    assert (goal.verdict, goal.found) == ("not tried", "without trainer: exit code 1; not compiled: exit code 2")


def test_a_size_that_no_time_was_left_for_says_so(folder):
    folder.turns(ours=6000, trainer=1000, size=32)
    folder.left_out(trainer_compiled="exit code 2")
    goal = folder.goals()[gpu_results.GOALS[1][0]]
    assert goal.verdict == "not tried"
    told = f"without ours: {gpu_common.NO_TIME}; without trainer: {gpu_common.NO_TIME}; not compiled: exit code 2"
    assert goal.found.startswith(told)


def test_a_trainer_of_one_turn_leaves_the_goal_open(folder):
    folder.turns(ours=6000, trainer=1000)
    folder.turn("trainer-compiled", 1, 1100)
    assert folder.goals()[TRAINER].verdict == "cannot be told yet"


def test_turns_of_another_contest_are_not_taken_for_those_of_this_one(folder):
    folder.turns(ours=6000, trainer=1000)
    for turn in (1, 2, 3):
        folder.turn("ours", turn, 60, contest="lightning")
    assert folder.goals()[TRAINER].verdict == "holds"


def test_one_turn_tells_nothing(folder):
    folder.turn("ours", 1, 9000)
    folder.turn("trainer", 1, 1000)
    assert folder.goals()[TRAINER].verdict == "cannot be told yet"


def test_the_best_way_counts_for_the_floor_and_a_missed_one_has_its_cause(folder):
    folder.speed(256, 0.2)
    device = {"num_kernels": 1000, "num_copies": 5, "busy_s": 0.6, "span_s": 1.0, "idle_share": 0.4, "kernels": []}
    for size in (32, 256):
        folder.add(
            "h", f"graph packed batch {size}", spec={"engine": "graph", "batching": "packed", "batch_size": size},
            device={**device, "idle_share": 0.4 if size == 256 else 0.9}, waits=[], num_steps=10, seconds=1.0, host=[],
        )  # fmt: skip
    goal = folder.goals()[FLOOR]
    assert (goal.verdict, goal.found) == ("fails", "0.200 (graph, packed)")
    assert "batch 256" in goal.cause and "40%" in goal.cause and "100 kernels a step" in goal.cause
    folder.speed(256, 0.4, engine="compile")
    assert (folder.goals()[FLOOR].verdict, folder.goals()[FLOOR].cause) == ("holds", "")


def test_a_profile_of_another_size_says_so(folder):
    folder.speed(256, 0.2)
    device = {"num_kernels": 10, "num_copies": 5, "busy_s": 0.6, "span_s": 1.0, "idle_share": 0.4, "kernels": []}
    spec = {"engine": "graph", "batching": "packed", "batch_size": 32}
    folder.add("h", "graph packed batch 32", spec=spec, device=device, waits=[], num_steps=10, seconds=1.0, host=[])
    assert folder.goals()[FLOOR].cause.startswith("no profile at batch 256; nearest: graph, batch 32: ")


@pytest.mark.parametrize(("spent_s", "verdict"), [(0.02, "holds"), (0.2, "fails"), (None, "not tried")])
def test_metering_is_judged_by_the_whole_run(folder, spent_s, verdict):
    overhead = {"meter_s": 0.01, "trace_cpu_s": spent_s}
    folder.add("i", "a whole run", measurement={"overhead": overhead, "total_window_s": 10.0})
    assert folder.goals()[METERING].verdict == verdict


def certificate(path, *verdicts, name="certificate.json", **values):
    promises = [{"promise": f"promise {i}", "verdict": told} for i, told in enumerate(verdicts)]
    promises += [{"promise": key, "verdict": told, "value": value} for key, (told, value) in values.items()]
    (path / name).write_text(json.dumps({"format": FORMAT, "promises": promises}), encoding="utf-8")


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [(["holds", "not tried"], "holds"), (["holds", "fails"], "fails"), (["not tried"], "not tried")],
)
def test_a_certificate_holds_where_nothing_that_was_tried_fails(folder, verdicts, verdict):
    assert folder.goals()[CERTIFICATE].verdict == "not tried"
    certificate(folder.path, *verdicts)
    folder.add("c", "certificate", status="not tried", reason="cut off")  # what it left counts all the same
    goal = folder.goals()[CERTIFICATE]
    assert goal.verdict == verdict
    assert ("promise 1" in goal.found) == (verdict == "fails")


def test_a_certificate_made_again_of_its_readings_stands_in_place_of_the_one_that_came_along(folder):
    certificate(folder.path, "fails")
    certificate(folder.path, "holds", name="GPU-1.json")
    (folder.path / "other.json").write_text("[]", encoding="utf-8")
    assert folder.goals()[CERTIFICATE].verdict == "holds"


def test_without_a_whole_run_the_certificate_says_what_metering_costs(folder):
    folder.add("i", "a whole run", status="not tried", reason="cut off after 20 s")
    certificate(folder.path, cost=("holds", 0.0021))
    goal = folder.goals()[METERING]
    assert goal.verdict == "holds"
    assert goal.found == "0.21% of 30 s, as the certificate promises; of a whole run: cut off after 20 s"
    certificate(folder.path, cost=("not tried", None))
    assert (folder.goals()[METERING].verdict, folder.goals()[METERING].found) == ("not tried", "cut off after 20 s")


def test_a_certificate_that_was_cut_off_is_made_of_its_readings_when_results_are_read(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("joulesweep.certify.campaign.repeat", asked.append)
    monkeypatch.setattr(sys, "argv", ["gpu_day", "--read", str(folder.path), "--to", str(tmp_path / "to")])
    gpu_day.main()
    assert asked == []
    raw = folder.path / gpu_common.CERTIFICATE[".gz"]
    raw.touch()
    gpu_day.main()
    certificate(folder.path, "holds")
    gpu_day.main()
    assert asked == [raw]


def test_two_calls_are_read_as_one_day(folder, tmp_path):
    """What the second carried out counts; its turns stand beside those of the first, its joules by its own clock."""
    folder.speed(256, 0.2)
    folder.speed(1024, 0.6)
    folder.turns(ours=6000, trainer=1000)
    (tmp_path / "second").mkdir()
    second = Folder(tmp_path / "second")
    second.speed(256, 0.4)
    second.add("d", "graph packed masked bf16-mixed 1024 batch 1024", status="failed", reason="CUDA error")
    second.turns(ours=6000, trainer=1000)
    results = gpu_results.Results(folder.path, second.path)
    goals = {goal.name: goal for goal in gpu_results.goals(results)}
    assert [goals[gpu_results.GOALS[i][0]].verdict for i in (2, 3)] == ["holds", "holds"]
    assert {len(of_name) for of_name in gpu_results.turns(results)[32, "bf16-mixed"].values()} == {6}
    assert {row["joules"]["status"] for row in gpu_results.speeds(results)} == {"measured"}
    (second.path / gpu_common.POWER).unlink()
    doubts = {
        row["batch_size"]: row["joules"]["doubt"] or row["joules"]["error_j"] is None
        for row in gpu_results.speeds(gpu_results.Results(folder.path, second.path))
    }
    assert doubts[256] and not doubts[1024], "each call is judged by its own readings"
    page = gpu_page.write(results, tmp_path / "to").read_text(encoding="utf-8")
    assert "| trainer | bf16-mixed | 32 | 6 |" in page


def test_calls_on_other_boards_are_not_read_as_one_day(folder, tmp_path):
    (tmp_path / "second").mkdir()
    Folder(tmp_path / "second", boards=[{**BOARD, "name": "NVIDIA A30"}])
    with pytest.raises(UserError, match="of NVIDIA A30, not of NVIDIA H200 as"):
        gpu_results.Results(folder.path, tmp_path / "second")


def test_joules_are_judged_by_the_readings_that_were_written_down(folder):
    folder.speed(256, 0.4)
    (row,) = gpu_results.speeds(gpu_results.Results(folder.path))
    assert row["joules"]["status"] == "measured" and row["joules"]["doubt"] is None
    assert abs(row["joules"]["energy_j"] - WATTS * 4.0) <= row["joules"]["error_j"] < 0.1 * WATTS * 4.0
    assert row["j_per_text"] == pytest.approx(WATTS * 4.0 / (400 * 256), rel=0.05)
    assert row["floor_distance"] == pytest.approx(0.4)


def test_precisions_are_compared_with_fp32_at_the_same_batch_size_in_plain_training(folder):
    plain = {"engine": "eager", "batching": "dynamic", "head": "dense", "item": "f"}
    folder.speed(32, 0.1, precision="fp32", **plain)
    folder.speed(256, 0.1, precision="fp16-mixed", **plain)  # without an fp32 of its size
    folder.speed(32, 0.1, precision="fp16-mixed", **plain)
    folder.speed(32, 0.1, precision="tf32")  # not plain
    found = gpu_results.against_fp32(gpu_results.speeds(gpu_results.Results(folder.path)))
    assert [(row["batch_size"], row["precision"]) for row in found] == [(32, "fp16-mixed")]
    assert found[0]["speed"] == found[0]["memory"] == pytest.approx(1.0)


def test_the_page_says_what_was_not_tried_and_what_failed(folder, tmp_path):
    folder.speed(256, 0.2)
    folder.add("b", "bert graph packed fp32", status="failed", reason="CUDA error: x | y")
    folder.add("b", "bert eager packed fp32", apart=3e-5, allowed=1e-5, agrees=False)
    page = gpu_page.write(gpu_results.Results(folder.path), tmp_path / "to")
    assert page.name == "gpu_day_nvidia-h200-2026-11-29.md"
    text = page.read_text(encoding="utf-8")
    assert "| bert graph packed | failed [1] |" in text and "1. CUDA error: x | y" in text
    assert "| bert eager packed | **3.0e-05, more than 1e-05** |" in text
    assert gpu_page.MINIATURE not in text
    numbers = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert numbers["speeds"][0]["batch_size"] == 256


def test_without_a_board_nothing_is_claimed(tmp_path):
    folder = Folder(tmp_path, boards=())
    folder.turn("ours-eager", 1, 9000)
    assert {goal.verdict for goal in folder.goals().values()} == {"not tried"}


def test_what_was_read_is_a_trace_again(folder):
    trace, ticks = gpu_trace.restored(gpu_common.rows(folder.path / gpu_common.POWER))
    assert ticks == {"gpu:0": TICK_S}
    assert trace.is_instant("gpu:0")
    assert len(trace.times_s) == len(trace.series["gpu:0"].energy_j) == 400
    assert trace.energy_between("gpu:0", 2.0, 12.0) == pytest.approx(WATTS * 10.0, rel=0.03)
    assert trace.mean_power_w("gpu:0", 2.0, 12.0) == pytest.approx(WATTS)


def test_results_of_another_version_are_told_in_one_line(folder, tmp_path):
    folder.add("b", "bert eager packed fp32", unknown=1)
    with pytest.raises(UserError, match="results of another version of this program: KeyError"):
        gpu_page.write(gpu_results.Results(folder.path), tmp_path / "to")
    assert not (tmp_path / "to").exists()
