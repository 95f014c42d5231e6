"""A board is settled where it is as cool as at rest, or stands still; a slow one is not settled at its hottest."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from joulesweep.core import bounded
from joulesweep.measure import settling
from joulesweep.measure.devices import Board

IDLE_C = 32.0


class Clock:
    """Seconds that pass only in sleep."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "joulesweep" / "temperatures.json"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Readings that answer at once need no threads."""
    monkeypatch.setattr(bounded, "within", lambda limit_s, call, *args: (call(*args), None))


def reader(clock, degrees=lambda s: IDLE_C, watts=lambda s: 70.0, index=0):
    """A board whose readings depend on the seconds since now; whole degrees, as boards tell them."""
    began_s = clock.now_s

    def whole(value):
        return None if value is None else float(math.floor(value + 0.5))

    return SimpleNamespace(
        board=Board(index=index, uuid=f"GPU-{index}", name="Fake", memory_bytes=1, has_counter=True, mig=False),
        temperature_c=lambda: whole(degrees(clock.now_s - began_s)),
        power_w=lambda: watts(clock.now_s - began_s),
    )


def settle(clock, *readers, limit_s=60.0, wanted=lambda: None):
    return settling.settle(readers, limit_s, wanted, clock=clock, sleep=clock.sleep)


def cooling(tau_s, hot_c=75.0):
    return lambda s: IDLE_C + (hot_c - IDLE_C) * math.exp(-s / tau_s)


def slope(tau_s, s, hot_c=75.0):
    """True degrees per minute that are lost."""
    return 60 * (hot_c - IDLE_C) / tau_s * math.exp(-s / tau_s)


def known(idle_c=IDLE_C, index=0):
    settling.keep_anchors({f"GPU-{index}": idle_c})


TAUS = [60.0, 90.0, 120.0, 180.0, 240.0]


@pytest.mark.parametrize("tau_s", TAUS)
def test_a_slow_heat_sink_is_not_settled_at_its_hottest(clock, tau_s):
    found = settle(clock, reader(clock, cooling(tau_s)))
    assert (found.settled, found.waited_s) == (False, pytest.approx(60.0))
    assert found.boards["gpu:0"].settled_by is None
    assert found.boards["gpu:0"].slope_c_per_min == pytest.approx(-slope(tau_s, 30.0), rel=0.25)


@pytest.mark.parametrize("tau_s", TAUS)
def test_a_cooling_board_is_settled_when_it_stands_still(clock, tau_s):
    found = settle(clock, reader(clock, cooling(tau_s)), limit_s=3600.0)
    board = found.boards["gpu:0"]
    assert (found.settled, board.settled_by, board.anchor_c) == (True, "slope", None)
    assert slope(tau_s, found.waited_s) < 1.5  # whole degrees cannot tell it better
    assert cooling(tau_s)(found.waited_s) < IDLE_C + 6
    assert abs(board.slope_c_per_min) < 1


@pytest.mark.parametrize("tau_s", TAUS)
def test_a_board_whose_temperature_at_rest_is_known_is_settled_near_it(clock, tau_s):
    known()
    found = settle(clock, reader(clock, cooling(tau_s)), limit_s=3600.0)
    assert (found.settled, found.boards["gpu:0"].anchor_c) == (True, IDLE_C)
    assert cooling(tau_s)(found.waited_s) < IDLE_C + (6 if found.boards["gpu:0"].settled_by == "slope" else 3.5)


def test_a_board_at_its_temperature_at_rest_is_settled_in_five_seconds(clock):
    known()
    found = settle(clock, reader(clock, lambda s: IDLE_C + 2))
    assert (found.settled, found.waited_s) == (True, pytest.approx(5.0, abs=0.5))
    assert found.boards["gpu:0"] == settling.Rest(settled_by="anchor", slope_c_per_min=None, anchor_c=IDLE_C)


@pytest.mark.parametrize("degrees", [IDLE_C + 4, IDLE_C - 4])
def test_a_board_that_is_not_near_must_stand_still_for_half_a_minute(clock, degrees):
    known()
    found = settle(clock, reader(clock, lambda s: degrees))
    assert (found.settled, found.boards["gpu:0"].settled_by) == (True, "slope")
    assert found.waited_s == pytest.approx(30.0, abs=0.6)


def test_a_short_limit_is_kept_and_met_near_the_temperature_at_rest_alone(clock):
    first = settle(clock, reader(clock), limit_s=1.7)
    assert (first.settled, first.waited_s) == (False, pytest.approx(1.7))
    known()
    found = settle(clock, reader(clock), limit_s=1.7)
    assert (found.settled, found.boards["gpu:0"].settled_by) == (True, "anchor")
    assert found.waited_s == pytest.approx(1.7)
    assert not settle(clock, reader(clock, lambda s: 50.0), limit_s=29.0).settled


def test_what_a_wait_has_found_serves_the_next_one(clock, cache):
    settle(clock, reader(clock), limit_s=60.0)
    (row,) = json.loads(cache.read_text()).values()
    assert row["idle_c"] == IDLE_C
    assert settle(clock, reader(clock)).waited_s < 6


def test_a_hot_board_leaves_no_temperature_at_rest(clock, cache):
    settle(clock, reader(clock, cooling(240.0)))
    assert not cache.exists()


def test_a_cooler_rest_replaces_a_warmer_one(clock):
    known(40.0)
    settle(clock, reader(clock, lambda s: 38.0))
    assert settling.known_anchors(["GPU-0"]) == {"GPU-0": 38.0}
    settle(clock, reader(clock, lambda s: 40.0))
    assert settling.known_anchors(["GPU-0"]) == {"GPU-0": 38.0}


@pytest.mark.parametrize("text", ["", "[]", "{}", "garbage", '{"KEY": {"idle_c": "x"}}', '{"KEY": 3}', "[" * 9999])
def test_a_broken_cache_is_none(cache, text):
    cache.parent.mkdir()
    cache.write_text(text.replace("KEY", settling._key("GPU-0")))
    assert settling.known_anchors(["GPU-0"]) == {}
    known()
    assert settling.known_anchors(["GPU-0"]) == {"GPU-0": IDLE_C}


def test_power_that_falls_is_waited_for(clock):
    known()
    found = settle(clock, reader(clock, watts=lambda s: max(70.0, 300.0 - 20 * s)))
    assert found.settled
    assert 11.5 + 4 < found.waited_s < 11.5 + 6


def test_a_board_whose_power_keeps_moving_is_given_up_at_the_limit(clock):
    known()
    found = settle(clock, reader(clock, watts=lambda s: 100 + 50 * math.sin(s)))
    assert (found.settled, found.waited_s) == (False, pytest.approx(60.0))


@pytest.mark.parametrize(("amplitude_w", "middle_w", "steady"), [(6, 300, True), (0.9, 15, True), (9, 300, False)])
def test_power_may_move_a_little(clock, amplitude_w, middle_w, steady):
    known()
    assert settle(clock, reader(clock, watts=lambda s: middle_w + amplitude_w * math.sin(7 * s))).settled is steady


def test_all_boards_must_be_settled(clock):
    known()
    found = settle(clock, reader(clock), reader(clock, cooling(60.0), index=1), limit_s=600.0)
    assert {device: rest.settled_by for device, rest in found.boards.items()} == {"gpu:0": "anchor", "gpu:1": "slope"}
    assert found.waited_s > 100


def test_a_board_that_tells_no_temperature_is_judged_by_its_power(clock):
    found = settle(clock, reader(clock, lambda s: None, lambda s: 300.0))
    assert (found.settled, found.boards["gpu:0"].settled_by) == (True, "power")
    assert not settle(clock, reader(clock, lambda s: None, lambda s: 300.0 + 10 * s)).settled


def test_of_a_board_that_tells_nothing_nothing_is_known(clock):
    found = settle(clock, reader(clock, lambda s: None, lambda s: None))
    assert (found.settled, found.waited_s) == (None, pytest.approx(60.0))


def test_a_board_that_does_not_answer_is_not_asked_again(clock, monkeypatch):
    asked = []
    monkeypatch.setattr(bounded, "within", lambda limit_s, call, *args: (asked.append(1), (None, "no answer"))[1])
    found = settle(clock, reader(clock), reader(clock, index=1))
    assert (len(asked), found.silent) == (2, {"gpu:0": "no answer", "gpu:1": "no answer"})
    assert (found.settled, found.waited_s) == (None, 0.0)


def test_a_run_that_nobody_wants_does_not_cool_down(clock):
    def wanted():
        if clock.now_s > 1003:
            raise SystemExit

    with pytest.raises(SystemExit):
        settle(clock, reader(clock), wanted=wanted)
    assert clock.now_s < 1004
