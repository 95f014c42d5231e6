"""A certificate finds what is planted in a board whose every answer is known, and says nothing that it did not see."""

from __future__ import annotations

import functools
import gzip
import json
import math
import threading

import pytest
from virtual_board import Board

from joulesweep import appraise, bounded, certified_counter, readings
from joulesweep.certificate import FAILS, HOLDS, NOT_TRIED
from joulesweep.errors import UserError
from joulesweep.readings import Block, Channel
from joulesweep.replay import counted


@pytest.fixture(scope="module")
def certify(tmp_path_factory):
    """The certificate of a board, and its readings; of equal boards it is made once."""

    @functools.cache
    def certify(budget_s=150.0, **given):
        path = tmp_path_factory.mktemp("board") / "GPU-1.readings.jsonl.gz"
        found = Board(**given).measured(path, budget_s)
        return appraise.certificate(found), found, path

    return certify


def promises(made, device=None):
    return {row["promise"]: row for row in made["promises"] if device in (None, row["device"])}


def verdicts(made):
    return {name: row["verdict"] for name, row in promises(made).items()}


def test_a_board_that_is_right_holds_every_promise(certify):
    made, _, _ = certify()
    assert verdicts(made) == dict.fromkeys(appraise.PROMISES, HOLDS)
    assert made["took_s"] <= 150
    assert [block["reason"] for block in made["blocks"]] == [None] * 9
    ticks = made["counters"]["gpu:0"]["tick"]
    assert [ticks[name]["tick_s"] for name in ("idle", "context", "steady")] == pytest.approx([0.1] * 3, rel=0.01)
    assert ticks["steady"]["step_j"] == pytest.approx(50, rel=0.01)
    assert made["idle"]["rest_w"] == pytest.approx(80, rel=0.01) and made["idle"]["idle"]["power_w"] == pytest.approx(
        70
    )
    assert made["settling"]["tau_s"] == pytest.approx(6, rel=0.25)


def test_windows_are_off_by_what_their_tick_makes_of_them(certify):
    """Of two and a half ticks a window sees two or three, each as often."""
    made, _, _ = certify()
    rows = {row["window_s"]: row for row in made["counters"]["gpu:0"]["windows"]["rows"]}
    assert tuple(rows) == certified_counter.WINDOWS_S
    for length_s in (0.25, 2.0, 5.0, 30.0):
        bare, own = rows[length_s]["bare"], rows[length_s]["own"]
        assert abs(bare["worst"]) <= 1.05 * 0.1 / length_s
        assert rows[length_s]["bound"] == pytest.approx(0.2 / length_s + 0.002, rel=0.02)
        assert own["num"] == (0 if length_s < 1 else 60) and own["num_beyond"] == 0
    assert rows[0.25]["bare"]["sd"] == pytest.approx(0.05 / 0.25, rel=0.1)


@pytest.mark.parametrize(("scale", "verdict"), [(1.03, HOLDS), (0.97, HOLDS), (1.15, FAILS), (0.85, FAILS)])
def test_power_that_is_biased_against_the_counter_is_found(certify, scale, verdict):
    made, _, _ = certify(60.0, scale=scale)
    row = promises(made)["cross-check"]
    assert row["verdict"] == verdict
    for check in made["counters"]["gpu:0"]["cross_check"]["rows"]:
        if check["load"] in ("steady", "square 1 s") and check["power"] == "instant":
            assert check["ratio"] == pytest.approx(scale, abs=check["error"])
            assert abs(check["ratio"] - 1) > check["error"], "a bias of 3 % is more than chance"
    assert verdicts(made)["bound"] == HOLDS


def test_a_tick_of_400_ms_is_found_and_asks_for_longer_windows(certify):
    made, _, _ = certify(tick_s=0.4)
    assert made["counters"]["gpu:0"]["tick"]["tick_s"] == pytest.approx(0.4, rel=0.01)
    assert verdicts(made) == dict.fromkeys(appraise.PROMISES, HOLDS)
    assert made["advice"][0].startswith("measure.min_seconds of 40 or more")
    own = {row["window_s"]: row["own"]["num"] for row in made["counters"]["gpu:0"]["windows"]["rows"]}
    assert own[2.0] == 0 and own[5.0] == 60, "no joules of fewer than ten ticks"


@pytest.mark.parametrize("lag_s", [0.2, 0.4])
def test_a_counter_that_lags_is_found_by_as_much_as_it_does(certify, lag_s):
    made, _, _ = certify(lag_s=lag_s)
    row = promises(made)["lag"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(lag_s, abs=row["error"])
    assert row["error"] < 0.03
    assert verdicts(made)["cross-check"] == HOLDS, "under a steady load nobody sees it"


def test_a_counter_that_lags_by_many_ticks_falsifies_joules_of_load_steps(certify):
    made, _, _ = certify(lag_s=0.6)
    row = promises(made)["steps"]
    assert row["verdict"] == FAILS
    assert row["value"] == pytest.approx(-0.6 * (500 - 80) / 1000, abs=0.05)  # of a burst of 2 s


def test_a_counter_that_moves_less_often_under_load_is_found(certify):
    made, _, _ = certify(60.0, loaded_tick_s=0.35)
    row = promises(made)["tick"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(0.35, abs=0.01)


def test_a_board_without_a_counter_has_its_power_integrated(certify):
    made, _, _ = certify(counter=False)
    found = promises(made)
    for name in ("tick", "window", "bound", "lag", "steps", "cross-check"):
        assert found[name]["verdict"] == NOT_TRIED and "answers no energy counter" in found[name]["reason"]
    assert [found[name]["verdict"] for name in ("integrated", "idle", "cost")] == [HOLDS] * 3


def test_a_board_that_averages_its_power_is_checked_by_that(certify):
    made, _, _ = certify(60.0, instant=False, scale=1.03)
    checks = made["counters"]["gpu:0"]["cross_check"]["rows"]
    assert {row["power"] for row in checks} == {"average"}
    row = promises(made)["cross-check"]
    assert row["value"] == pytest.approx(0.03, abs=row["error"] + 0.01) and row["error"] < 0.1


def test_a_board_that_has_not_come_to_rest_does_not_tell_its_idle_power(certify):
    made, _, _ = certify(fade_w=60.0, fade_s=3.0)
    row = promises(made)["idle"]
    assert row["verdict"] == FAILS
    assert row["value"] == pytest.approx(60 * 3 / 5 * (1 - math.exp(-5 / 3)) / 80, rel=0.2)
    assert made["idle"]["fell_after_s"] == pytest.approx(3 * math.log(60 / 4), abs=1.0)


def test_a_board_that_counts_as_settled_while_it_is_hot_is_found(certify):
    row = promises(certify(cools_s=math.inf)[0])["settling"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(40, abs=1)
    assert "by its slope" in row["reason"]


def test_a_board_that_cools_too_slowly_to_tell_is_not_judged(certify):
    row = promises(certify(cools_s=100.0)[0])["settling"]
    assert row["verdict"] == NOT_TRIED and "had not settled" in row["reason"]


@pytest.mark.parametrize(
    ("given", "promise", "verdict", "value"),
    [
        ({"slower": 0.02}, "slowdown", FAILS, 0.02),
        ({"slower": -0.02}, "slowdown", HOLDS, 0.0),
        ({"trace_share": 0.02}, "cost", FAILS, 0.02 + 0.0011 / 30),
    ],
)
def test_what_metering_costs_is_found(certify, given, promise, verdict, value):
    row = promises(certify(60.0, **given)[0])[promise]
    assert row["verdict"] == verdict and row["value"] == pytest.approx(value, abs=1e-4)


def test_work_that_varies_more_than_metering_may_cost_tells_nothing():
    row = appraise.judged("slowdown", "gpu:0", 0.004, 0.003, appraise.COST)
    assert row["verdict"] == NOT_TRIED and "too large to tell" in row["reason"]


def test_a_counter_that_is_reset_is_not_judged_by_that_block(certify):
    made, _, _ = certify(reset_s=30.0)
    found = promises(made)
    assert found["window"]["verdict"] == NOT_TRIED and "reset" in found["window"]["reason"]
    assert found["lag"]["verdict"] == HOLDS


def test_a_counter_that_ends_leaves_what_was_read(certify):
    made, _, _ = certify(fails_after_s=40.0)
    found = promises(made)
    assert found["window"]["verdict"] == HOLDS and found["lag"]["verdict"] == NOT_TRIED
    assert "gave no reading" in found["lag"]["reason"]


@pytest.mark.parametrize("budget_s", [20.0, 8.0, 3.0])
def test_a_small_budget_is_kept_and_costs_the_last_blocks(certify, budget_s):
    made, _, _ = certify(budget_s, tick_s=0.05)
    assert made["took_s"] <= budget_s + 4.0, "the load starts in any case"
    reasons = {block["block"]: block["reason"] for block in made["blocks"]}
    lacking = [name for name, reason in reasons.items() if reason]
    assert lacking == list(reasons)[len(reasons) - len(lacking) :], "what is left out comes last"
    assert bool(lacking) == (budget_s < 20)
    if budget_s == 20:
        assert [verdicts(made)[name] for name in ("tick", "window", "bound", "lag", "cross-check")] == [HOLDS] * 5
    else:
        assert "no time was left" in promises(made)["cost"]["reason"]


def test_the_analysis_of_the_same_readings_is_the_same(certify):
    made, _, path = certify()
    again = appraise.certificate(readings.read(path))
    assert json.dumps(again) == json.dumps(made)


def test_readings_that_were_cut_off_are_read_as_far_as_they_go(certify, tmp_path):
    _, _, path = certify()
    content = path.read_bytes()
    cut = tmp_path / "cut.readings.jsonl.gz"
    starts = [i for i in range(len(content)) if content[i : i + 3] == b"\x1f\x8b\x08"]
    cut.write_bytes(content[: starts[4] + 1000])  # the header, idle, context, and then not all of the steady block
    made = appraise.certificate(readings.read(cut))
    assert [block["block"] for block in made["blocks"]][:2] == ["idle", "context"] and len(made["blocks"]) < 9
    found = promises(made)
    assert found["lag"]["verdict"] == NOT_TRIED and "ended before" in found["lag"]["reason"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"[]\n", mtime=0),
        gzip.compress(b'{"format": "x"}\n', mtime=0),
        gzip.compress(b"{\n", mtime=0),
    ],
)
def test_what_is_no_file_of_readings_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.readings.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"no readings of a certificate"):
        readings.read(path)


def test_a_hanging_device_costs_what_comes_after_it(tmp_path, monkeypatch):
    stuck, freed, board = threading.Event(), threading.Event(), Board()
    monkeypatch.setattr(bounded, "within", functools.partial(until_stuck, stuck))
    honest = board.power_w

    def power_w():
        if board.now_s > 5060:
            stuck.set()
            freed.wait()
        return honest()

    monkeypatch.setattr(board, "power_w", power_w)
    try:
        made = appraise.certificate(board.measured(tmp_path / "x.readings.jsonl.gz"))
    finally:
        freed.set()
    found = {block["block"]: block for block in made["blocks"]}
    assert "no answer within" in found["rest"]["silent"]
    assert all("no answer within" in found[name]["reason"] for name in ("bursts", "square 1 s", "cost"))
    assert verdicts(made)["window"] == HOLDS
    assert promises(made)["lag"]["verdict"] == NOT_TRIED and "no answer" in promises(made)["lag"]["reason"]


def until_stuck(stuck, limit_s, call, *args):
    """As `bounded.within`, without a wait for what is known to hang."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call(*args)), daemon=True)
    thread.start()
    while thread.is_alive() and not stuck.is_set():
        thread.join(0.01)
    return (found[0], None) if found else (None, "no answer within 10 s")


def zone(values, range_j=100.0):
    channel = Channel([i / 10 for i in range(len(values))], [0.0] * len(values), list(values))
    device = {"device": "cpu:0", "kind": "cpu", "range_j": range_j, "no_counter": None}
    return counted(Block("steady", channels={"cpu:0": channel}), device)


def test_a_counter_of_a_cpu_that_begins_again_is_no_reset():
    found = zone([95.0, 99.0, 3.0, 7.0, None, 11.0])
    assert found.joules == [95.0, 99.0, 103.0, 107.0, 111.0] and not found.reset
    assert zone([5000.0, 10.0], range_j=262143.0).reset
