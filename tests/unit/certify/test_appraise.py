"""A certificate finds what is planted in a board whose every answer is known, and says nothing that it did not see."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import math
import random
import threading

import pytest
import tiers
from virtual_board import Board

from joulesweep.certify import appraise, blocks, counter_checks, readings
from joulesweep.certify.readings import Block, Channel
from joulesweep.certify.replay import counted
from joulesweep.core import bounded
from joulesweep.core.errors import UserError
from joulesweep.measure.certificate import FAILS, HOLDS, NOT_TRIED


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
    assert made["idle"]["rest_w"] == pytest.approx(80, rel=0.01)
    assert made["idle"]["idle"]["power_w"] == pytest.approx(70, rel=0.001)
    assert made["complete"] and made["disturbed"] == []
    assert made["settling"]["tau_s"] == pytest.approx(6, rel=0.25)


def test_windows_are_off_by_what_their_tick_makes_of_them(certify):
    """Both ends are at random places between two moves: a triangle's errors, and no length that is free of them."""
    made, _, _ = certify()
    rows = {row["window_s"]: row for row in made["counters"]["gpu:0"]["windows"]["rows"]}
    assert tuple(rows) == counter_checks.WINDOWS_S
    for length_s in (0.25, 1.0, 2.0, 5.0, 30.0):
        bare, own = rows[length_s]["bare"], rows[length_s]["own"]
        assert abs(bare["worst"]) <= 1.05 * 0.1 / length_s
        if length_s >= 1:
            assert bare["sd"] == pytest.approx(0.1 / length_s / 6**0.5, rel=0.3)
        assert rows[length_s]["num_apart"] == int(34.9 / length_s)
        assert rows[length_s]["bound"] == pytest.approx(0.2 / length_s + 0.002, rel=0.02)
        assert own["num"] == (0 if length_s < 1 else 60) and own["num_beyond"] == 0


@pytest.mark.parametrize(
    ("scale", "verdict"), tiers.first(2, [(1.03, HOLDS), (0.85, FAILS), (0.97, HOLDS), (1.15, FAILS)])
)
def test_power_that_is_biased_against_the_counter_is_found(certify, scale, verdict):
    made, _, _ = certify(60.0, scale=scale)
    row = promises(made)["cross-check"]
    assert row["verdict"] == verdict
    for check in made["counters"]["gpu:0"]["cross_check"]["rows"]:
        assert check["ratio"] == pytest.approx(scale, abs=check["error"])
        if check["load"] == "steady" and check["power"] == "instant":
            assert abs(check["ratio"] - 1) > check["error"], "a bias of 3 % is more than chance"
    assert verdicts(made)["bound"] == HOLDS


@pytest.mark.slow
def test_a_tick_of_400_ms_is_found_and_asks_for_longer_windows(certify):
    made, _, _ = certify(tick_s=0.4)
    assert made["counters"]["gpu:0"]["tick"]["tick_s"] == pytest.approx(0.4, rel=0.01)
    assert verdicts(made) == dict.fromkeys(appraise.PROMISES, HOLDS)
    assert made["advice"][0].startswith("measure.min_seconds of 40 or more")
    own = {row["window_s"]: row["own"]["num"] for row in made["counters"]["gpu:0"]["windows"]["rows"]}
    assert own[2.0] == 0 and own[5.0] == 60, "no joules of fewer than ten ticks"


@pytest.mark.parametrize("lag_s", [pytest.param(0.2, marks=pytest.mark.slow), 0.4])
def test_a_counter_that_lags_is_found_by_as_much_as_it_does(certify, lag_s):
    made, _, _ = certify(lag_s=lag_s)
    row = promises(made)["lag"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(lag_s, abs=row["error"])
    assert row["error"] < 0.03
    assert verdicts(made)["cross-check"] == HOLDS, "under a steady load nobody sees it"


@pytest.mark.slow
def test_a_counter_that_lags_by_many_ticks_falsifies_joules_of_load_steps(certify):
    made, _, _ = certify(lag_s=0.6)
    row = promises(made)["steps"]
    assert row["verdict"] == FAILS
    assert row["value"] == pytest.approx(-0.6 * (500 - 80) / 1000, abs=0.05)  # of a burst of 2 s


def test_a_counter_that_moves_less_often_under_load_is_found(certify):
    made, _, _ = certify(60.0, loaded_tick_s=0.35)
    row = promises(made)["tick"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(0.35, abs=0.01)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_board_that_has_not_come_to_rest_does_not_tell_its_idle_power(certify):
    made, _, _ = certify(fade_w=60.0, fade_s=3.0)
    row = promises(made)["idle"]
    assert row["verdict"] == FAILS
    assert row["value"] == pytest.approx(60 * 3 / 5 * (1 - math.exp(-5 / 3)) / 80, rel=0.2)
    assert made["idle"]["fell_after_s"] == pytest.approx(3 * math.log(60 / 4), abs=1.0)


@pytest.mark.slow
def test_a_board_that_counts_as_settled_while_it_is_hot_is_found(certify):
    row = promises(certify(cools_s=math.inf)[0])["settling"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(40, abs=1)
    assert "by its slope" in row["reason"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_counter_that_is_reset_is_not_judged_by_that_block(certify):
    made, _, _ = certify(reset_s=30.0)
    found = promises(made)
    assert found["window"]["verdict"] == NOT_TRIED and "reset" in found["window"]["reason"]
    assert found["lag"]["verdict"] == HOLDS
    assert "reset" in found["tick"]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("reset_s", [15.0, 19.998, 30.0])  # with the context up, between two blocks, under load
def test_a_counter_that_is_reset_fails_wherever_that_is(certify, reset_s):
    row = promises(certify(reset_s=reset_s)[0])["falls"]
    assert (row["verdict"], row["value"], row["bound"]) == (FAILS, 1, 0)


@pytest.mark.slow
def test_a_counter_that_ends_leaves_what_was_read(certify):
    made, _, _ = certify(fails_after_s=40.0)
    found = promises(made)
    assert found["window"]["verdict"] == HOLDS and found["lag"]["verdict"] == NOT_TRIED
    assert "gave no reading" in found["lag"]["reason"]


PLANTS = (
    {"call_s": 0.05},
    {"failing": 0.9},
    {"instant": False, "lag_s": 0.6},
    {"instant": False, "lag_s": 0.2},
    {"update_s": 0.1, "noise": 0.05},
    {"swings": 80.0},
    {"tick_s": 0.001},
    {"lag_s": 0.14},
)


@pytest.mark.slow
@pytest.mark.parametrize("given", PLANTS, ids=str)
def test_no_verdict_goes_further_than_its_error_lets_it(certify, given):
    rows = promises(certify(**given)[0]).values()
    assert all(abs(row["value"]) + row["error"] <= row["bound"] for row in rows if row["verdict"] == HOLDS)
    assert all(abs(row["value"]) - row["error"] > row["bound"] for row in rows if row["verdict"] == FAILS)
    assert all(row["reason"] for row in rows if row["verdict"] == NOT_TRIED)


@pytest.mark.slow
@pytest.mark.parametrize("lag_s", [0.3, 0.6])
def test_a_lag_is_found_on_a_board_that_tells_no_power_of_the_moment(certify, lag_s):
    """A mean of a second does not say when the load began; the counter's own moves do."""
    found = promises(certify(instant=False, lag_s=lag_s)[0])
    assert found["steps"]["verdict"] == found["lag"]["verdict"] == FAILS
    assert found["steps"]["value"] == pytest.approx(-lag_s * (500 - 80) / 1000, abs=0.05)
    assert promises(certify(instant=False)[0])["steps"]["verdict"] == HOLDS


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"call_s": 0.05}, {"failing": 0.9}], ids=str)
def test_readings_too_coarse_for_a_bound_leave_it_undecided(certify, given):
    found = promises(certify(**given)[0])
    assert found["tick"]["verdict"] == found["steps"]["verdict"] == NOT_TRIED
    assert "too large to tell" in found["steps"]["reason"]


@pytest.mark.parametrize("seed", tiers.first(1, range(6)))
def test_power_that_is_held_for_a_while_has_no_more_readings_than_values(certify, seed):
    made, _, _ = certify(60.0, update_s=0.1, noise=0.03, seed=seed)
    assert made["sensors"]["instant"] == pytest.approx(0.1, rel=0.05)
    (steady,) = (
        row
        for row in made["counters"]["gpu:0"]["cross_check"]["rows"]
        if (row["load"], row["power"]) == ("steady", "instant")
    )
    assert abs(steady["ratio"] - 1) <= steady["error"]
    assert steady["error"] == pytest.approx(3 * 0.03 / (steady["seconds"] / 0.1) ** 0.5, rel=0.4)
    assert 0.8 < made["idle"]["first"]["power_error_w"] / (3 * 0.03 * 80 / 50**0.5) < 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_load_keeps_time_with_a_sensor_that_looks_for_a_quarter_of_the_time(certify, seed):
    made, _, _ = certify(update_s=0.1, sensor_s=0.025, seed=seed)
    assert verdicts(made)["cross-check"] != FAILS
    checks = [row for row in made["counters"]["gpu:0"]["cross_check"]["rows"] if row["power"] == "instant"]
    assert len(checks) == 4 and all(abs(check["ratio"] - 1) <= check["error"] for check in checks)


def test_a_load_that_comes_and_goes_does_so_for_half_of_turns_of_many_lengths():
    found = list(blocks.turns(100.0, 0.1, random.Random(0)))
    assert found[-1][1] <= 100 and sum(until - since for since, until in found) == pytest.approx(50, rel=0.02)
    lengths = [after - before for (before, _), (after, _) in itertools.pairwise(found)]
    assert min(lengths) < 0.055 and max(lengths) > 0.145


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget_s", "given", "lacks"),
    [
        (10.0, {"tick_s": 0.05}, "no square load"),
        (150.0, {"update_s": 0.1}, "no square load"),
    ],
)
def test_power_is_not_checked_by_a_steady_load_alone(certify, budget_s, given, lacks):
    """For want of time, or because a sensor of ten values a second has too few of a load that it cannot follow."""
    row = promises(certify(budget_s, **given)[0])["cross-check"]
    assert row["verdict"] == NOT_TRIED and lacks in row["reason"]
    assert promises(certify(150.0, update_s=0.1, scale=1.15)[0])["cross-check"]["verdict"] == FAILS


@pytest.mark.slow
@pytest.mark.parametrize("since_s", [-100.0, 15.0, 40.0])  # always, since before the load, since its middle
def test_a_counter_that_stands_still_under_load_fails(certify, since_s):
    found = promises(certify(stuck=(since_s, math.inf))[0])
    assert found["tick"]["verdict"] == FAILS
    assert found["window"]["verdict"] == (NOT_TRIED if since_s < 0 else FAILS)
    assert found["cross-check"]["verdict"] == (FAILS if since_s == 40 else NOT_TRIED)
    assert found["falls"]["verdict"] == HOLDS


def test_one_standstill_among_many_moves_is_counted(certify):
    row = promises(certify(60.0, tick_s=0.02, stuck=(25.0, 25.06))[0])["tick"]
    assert row["verdict"] == FAILS and row["value"] == pytest.approx(0.07, abs=0.012)
    assert ", 1 beyond the bound, " in row["reason"] and " moves" in row["reason"]


@pytest.mark.parametrize("loaded_tick_s", [None, 0.003])
def test_a_tick_that_is_no_longer_than_some_readings_is_known_at_most(certify, loaded_tick_s):
    made, _, _ = certify(60.0, tick_s=0.001, loaded_tick_s=loaded_tick_s)
    row = promises(made)["tick"]
    assert row["verdict"] == NOT_TRIED and row["reason"].startswith("the tick is at most 2.")


@pytest.mark.parametrize(
    ("given", "channel"),
    tiers.first(1, [({"failing": 0.3}, "gpu:0"), ({"power_failing": 0.02}, "instant"), ({"failing": 0.005}, None)]),
)
def test_readings_that_fail_are_counted(certify, given, channel):
    made, _, _ = certify(60.0, **given)
    row = promises(made)["answers"]
    assert row["verdict"] == (HOLDS if channel is None else FAILS)
    assert row["value"] == pytest.approx(*given.values(), rel=0.3)
    assert row["reason"].endswith(f"of {channel or 'gpu:0'}")
    assert made["blocks"][2]["num_failed"].keys() == {channel or "gpu:0"}


def test_a_load_that_does_not_warm_the_board_says_nothing_of_settling(certify):
    row = promises(certify(60.0, cools_s=400.0)[0])["settling"]
    assert row["verdict"] == NOT_TRIED and "warmed it by" in row["reason"]


@pytest.mark.slow
def test_a_board_that_is_still_hot_from_before_makes_no_anchor_of_that(certify):
    row = promises(certify(start_c=75.0, cools_s=60.0)[0])["settling"]
    assert row["verdict"] == NOT_TRIED and "not at rest before the load: 6" in row["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "block", "said"),
    [
        ({"others": (77, 78), "others_s": 96.0}, "bursts", "another process on the board (77, 78)"),
        ({"held_s": 96.0}, "bursts", "clocks held down (software thermal) in"),
        ({"others": (77,)}, "idle", "another process on the board (77)"),
    ],
)
def test_verdicts_that_others_may_have_falsified_are_not_given(certify, given, block, said):
    made, _, _ = certify(**given)
    assert said in {row["block"]: row["says"] for row in made["disturbed"]}[block]
    found = promises(made)
    lost = {"lag", "steps", "slowdown"} | ({"idle", "settling"} if block == "idle" else set())
    assert {name for name, row in found.items() if row["verdict"] != HOLDS} == lost
    assert all(said in found[name]["reason"] for name in lost - {"lag", "steps"})
    assert any(said in line for line in appraise.lines(made))


@pytest.mark.slow
def test_a_load_that_is_not_steady_says_nothing_of_the_bare_counter(certify):
    found = promises(certify(swings=80.0)[0])
    assert found["window"]["verdict"] == NOT_TRIED and "went from" in found["window"]["reason"]
    assert found["bound"]["verdict"] == HOLDS


@pytest.mark.parametrize("seconds", [6.004, 6.7, 7.1])
def test_slow_counters_get_one_burst_at_least(seconds):
    board = Board(tick_s=0.35)
    session = blocks.Session(board.subject(), board, board.monotonic(), tick_s=0.35)
    session.start()
    block = blocks.Block("bursts", begin_s=session.now_s())
    blocks._bursts(session, block, seconds)
    assert len(block.spans) == 1 and session.now_s() - block.begin_s < 1.02 * seconds


@pytest.mark.parametrize("budget_s", [30.0, 60.0])
def test_the_idle_power_is_tried_in_less_than_the_whole_time(certify, budget_s):
    made, _, _ = certify(budget_s)
    assert verdicts(made)["idle"] == HOLDS and made["took_s"] <= budget_s


@pytest.mark.parametrize("budget_s", [20.0, 8.0, 3.0])
def test_a_small_budget_is_kept_and_costs_the_last_blocks(certify, budget_s):
    made, _, _ = certify(budget_s, tick_s=0.05)
    assert made["took_s"] <= (budget_s if budget_s == 20 else budget_s + 4.0), "the load starts in any case"
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
        if board.now_s > 5070:
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
    assert all("no answer within" in found[name]["reason"] for name in ("bursts", "square 0.83 s", "cost"))
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
