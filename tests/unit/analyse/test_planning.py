"""A plan adds up what runs take within and around their windows, and says what it does not know."""

from __future__ import annotations

import math

import pytest

from joulesweep.analyse import planning
from joulesweep.analyse.estimator import Before, Job
from joulesweep.analyse.planning import Expected, Past

AXES = {"strategy": "single", "devices": 1, "precision": "fp32", "batch_size": 32}
NONE = Expected(status=None, reason="no meter")


def job(repeat=1, cell="a", **changes):
    axes = {**AXES, "precision": cell}
    return Job(run=f"{cell} r{repeat}", cell=cell, label=f"cell {cell}", axes=axes, **changes)


def ok(repeat=1, cell="a", window_s=10.0, min_s=0.0, **changes):
    return Past(
        job=job(repeat, cell, min_s=min_s),
        status="ok",
        window_s=window_s,
        around_s=changes.pop("around_s", 5.0),
        **changes,
    )


def joules(energy_j, **changes):
    return {"energy_j": energy_j, "energy_status": "measured", "energy_scope": "gpu", **changes}


def test_a_run_takes_its_window_and_what_is_around_it():
    plan = planning.predict([ok(1), ok(2), ok(3)], [job(4), job(5)], NONE)
    one = plan.predictions[0]
    assert one.window_s.mid == pytest.approx(10, rel=1e-3)
    assert one.seconds.mid == pytest.approx(15, rel=1e-3)
    assert plan.seconds.mid == pytest.approx(30, rel=1e-3)
    assert one.basis == "3 finished runs of the cell"
    assert one.num_own == 3


def test_a_short_training_is_repeated_until_its_window_is_long_enough():
    past = [ok(repeat, window_s=4.0, min_s=30.0, **joules(400.0, around_j=100.0)) for repeat in (1, 2, 3)]
    one = planning.predict(past, [job(4, min_s=30.0)], NONE).predictions[0]
    assert one.window_s.mid == pytest.approx(4, rel=1e-3)
    assert 30 + 5 <= one.seconds.mid <= 34 + 5
    assert 7.5 * 400 <= one.joules.mid - 100 <= 8.5 * 400


def test_a_long_training_is_not_repeated():
    one = planning.predict([ok(1, window_s=40.0, min_s=30.0)], [job(2, min_s=30.0)], NONE).predictions[0]
    assert one.seconds.mid == pytest.approx(45, rel=1e-2)


def test_joules_are_those_of_the_whole_run_and_of_most_runs_kind():
    past = [
        ok(1, **joules(100.0, around_j=20.0)),
        ok(2, **joules(100.0, around_j=20.0)),
        ok(3, **joules(900.0, energy_status="estimated", energy_scope="")),
    ]
    plan = planning.predict(past, [job(4), job(5)], NONE)
    assert plan.predictions[0].energy_status == "measured"
    assert plan.predictions[0].joules.mid == pytest.approx(120, rel=1e-2)
    assert list(plan.joules) == ["measured"]
    assert plan.joules["measured"].mid == pytest.approx(240, rel=1e-2)
    assert plan.predictions[0].energy_basis == "2 finished runs of the cell"


def test_estimates_keep_their_own_range():
    past = [ok(i, **joules(100.0, energy_status="estimated", energy_scope="", spread=(0.6, 1.4))) for i in (1, 2, 3)]
    plan = planning.predict(past, [job(4)], NONE)
    assert plan.predictions[0].energy_status == "estimated"
    assert plan.joules["estimated"].low < 61
    assert plan.joules["estimated"].high > 139


def test_without_anything_finished_nothing_is_known():
    plan = planning.predict([], [job(1), job(1, "b")], NONE)
    assert [one.seconds for one in plan.predictions] == [None, None]
    assert plan.seconds is None
    assert plan.joules == {}
    assert (plan.num_timeless, plan.num_powerless) == (2, 2)
    assert plan.predictions[0].basis == "nothing finished yet"
    assert plan.predictions[0].energy_basis == "no meter"


def test_what_is_believed_stands_in_until_a_run_finished():
    before = {
        "window_s": Before(log=math.log(60.0), sd=0.8, basis="an assumed rate"),
        "around_s": Before(log=math.log(30.0), sd=0.5, basis="assumed"),
    }
    one = planning.predict([], [job(before=before)], NONE).predictions[0]
    assert one.seconds.mid == pytest.approx(90)
    assert one.basis == "an assumed rate"
    assert one.joules is None


def test_no_run_to_do_is_an_empty_plan():
    plan = planning.predict([ok(1)], [], NONE)
    assert (plan.predictions, plan.seconds, plan.joules) == ([], None, {})


def test_a_cell_whose_runs_all_failed_takes_as_long_again():
    past = [
        ok(1),
        Past(job=job(1, "b"), status="oom", around_s=7.0),
        Past(job=job(2, "b"), status="timeout", around_s=9.0),
    ]
    plan = planning.predict(past, [job(3, "b")], NONE)
    one = plan.predictions[0]
    assert one.seconds.mid == pytest.approx(8)
    assert one.joules is None
    assert one.basis == "2 runs of the cell ended oom and timeout"
    assert one.energy_basis.endswith("such runs have no joules")


def test_all_failed_says_nothing_of_other_cells():
    plan = planning.predict([Past(job=job(1, "b"), status="oom", around_s=7.0)], [job(1)], NONE)
    assert plan.predictions[0].seconds is None


def test_one_ok_run_outweighs_failed_ones():
    past = [Past(job=job(1), status="oom", around_s=7.0), ok(2)]
    assert planning.predict(past, [job(3)], NONE).predictions[0].basis == "1 finished run of the cell"


def test_an_unseen_cell_names_its_nearest():
    one = planning.predict([ok(1)], [job(1, "b")], NONE).predictions[0]
    assert one.basis == "1 finished cell, the nearest cell a"
    assert one.num_own == 0


def test_runs_that_waited_for_cores_tell_what_they_take_alone():
    alone = [ok(i, window_s=10.0) for i in (5, 6, 7, 8)]
    waited = [ok(i, window_s=20.0, around_s=10.0, waited=0.5) for i in (1, 2, 3, 4)]
    calm, busy = (planning.predict(past, [job(9)], NONE).predictions[0] for past in (waited + alone, alone + waited))
    assert calm.window_s.mid == pytest.approx(10, rel=1e-3)
    assert busy.window_s.mid == pytest.approx(20, rel=1e-3)
    assert busy.window_s.sd > 5 * calm.window_s.sd


def test_a_day_on_which_all_runs_take_longer_is_noticed():
    first = [ok(1, cell, window_s=10.0) for cell in "abcdefgh"]
    second = [ok(2, cell, window_s=10.6) for cell in "abcd"]
    calm, shifted = (
        planning.predict(past, [job(3, "h")], NONE).predictions[0].window_s for past in (first, first + second)
    )
    assert calm.mid == pytest.approx(10, rel=1e-3)
    assert 10.2 < shifted.mid < 10.6
    assert shifted.low < 10.6 < shifted.high


def test_one_run_that_is_off_moves_others_little():
    first = [ok(1, cell, window_s=10.0) for cell in "abcdefgh"]
    off = [*first, ok(2, "a", window_s=20.0)]
    assert planning.predict(off, [job(2, "h")], NONE).predictions[0].window_s.mid == pytest.approx(10, rel=0.05)


def test_joules_of_waiting_are_apart_from_those_of_work():
    estimate = {"energy_status": "estimated", "energy_scope": ""}
    alone = [ok(i, **joules(100.0, **estimate)) for i in (5, 6, 7, 8)]
    waited = [ok(i, window_s=20.0, waited=0.5, waited_j=0.2, **joules(125.0, **estimate)) for i in (1, 2, 3, 4)]
    calm, busy = (planning.predict(past, [job(9)], NONE).predictions[0] for past in (waited + alone, alone + waited))
    assert calm.energy_j.mid == pytest.approx(100, rel=1e-3)
    assert busy.energy_j.mid == pytest.approx(125, rel=1e-3)


@pytest.mark.parametrize(
    ("runs", "slots", "expected_s"),
    [
        ([(10.0, 1)] * 4, 1, 40.0),
        ([(10.0, 1)] * 4, 2, 20.0),
        ([(10.0, 2)] * 4, 2, 40.0),
        ([(10.0, 1), (10.0, 2), (10.0, 1)], 2, 30.0),
        ([(10.0, 8)], 2, 10.0),
        ([], 2, 0.0),
    ],
)
def test_runs_share_what_the_machine_has(runs, slots, expected_s):
    assert planning.wall_s(runs, slots) == expected_s
