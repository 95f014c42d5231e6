"""The estimator recovers planted effects, invents none, keeps units, and its ranges hold nine runs of ten."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from joulesweep.analyse.estimator import Before, Estimator, Job, Range

AXES = {
    "strategy": "single",
    "devices": 1,
    "precision": "fp32",
    "batching": "packed",
    "head": "masked",
    "batch_size": 32,
}
GRID = [
    {"strategy": strategy, "precision": precision, "batch_size": size}
    for strategy, precision, size in itertools.product(("single", "ddp"), ("fp32", "bf16-mixed"), (16, 32, 64, 128))
]


def job(repeat=1, **changes):
    axes = {**AXES, **changes}
    about = {key: axes.pop(key) for key in ("work_flop", "before") if key in axes}
    cell = " ".join(f"{value}" for value in axes.values())
    return Job(run=f"{cell} r{repeat}", cell=cell, label=cell, axes=axes, **about)


def seconds(axes):
    """The planted truth: ddp is 0.6 of single, bf16 0.7 of fp32, and each doubling of the batch takes 0.8."""
    factor = {"single": 1.0, "ddp": 0.6}[axes["strategy"]] * {"fp32": 1.0, "bf16-mixed": 0.7}[axes["precision"]]
    return 100 * factor * 0.8 ** math.log2(axes["batch_size"] / 16)


def noisy(axes, noise, draw):
    return seconds(axes) * math.exp(draw.gauss(0, noise))


def test_an_unseen_cell_is_what_its_axes_say():
    *seen, unseen = GRID
    known = [(job(**axes), noisy(axes, 0.01, random.Random(str(axes)))) for axes in seen]
    (one,), _ = Estimator("window_s", known, [job(**unseen)]).predict([job(**unseen)])
    assert one.mid == pytest.approx(seconds(unseen), rel=0.08)
    assert one.low < seconds(unseen) < one.high


def test_axes_without_effect_get_none():
    known = [(job(**axes), 10 * math.exp(random.Random(str(axes)).gauss(0, 0.01))) for axes in GRID[:-1]]
    (one,), _ = Estimator("window_s", known, [job(**GRID[-1])]).predict([job(**GRID[-1])])
    assert one.mid == pytest.approx(10, rel=0.05)


def test_nine_of_ten_runs_are_in_their_range():
    inside, sds = [], []
    for seed in range(20):
        draw = random.Random(seed)
        cells = draw.sample(GRID, len(GRID))
        strange = {str(axes): math.exp(draw.gauss(0, 0.08)) for axes in cells}
        known = [(job(**axes), noisy(axes, 0.03, draw) * strange[str(axes)]) for axes in cells[:9]]
        asked = cells[5:13]  # half of them with a finished run
        ranges, _ = Estimator("window_s", known, map_jobs(asked)).predict(map_jobs(asked))
        truths = [noisy(axes, 0.03, draw) * strange[str(axes)] for axes in asked]
        inside += [one.low <= truth <= one.high for one, truth in zip(ranges, truths, strict=True)]
        sds += [one.sd for one in ranges]
    assert sum(inside) >= 0.86 * len(inside)
    assert sorted(sds)[len(sds) // 2] < 0.2  # and the ranges are no wider than such runs are apart


def map_jobs(cells):
    return [job(2, **axes) for axes in cells]


def test_the_sum_is_in_its_range_nine_times_of_ten():
    inside = []
    for seed in range(20):
        draw = random.Random(1000 + seed)
        known = [(job(**axes), noisy(axes, 0.05, draw)) for axes in GRID]
        rest = [job(repeat, **axes) for repeat in (2, 3) for axes in GRID]
        ranges, sd = Estimator("window_s", known, rest).predict(rest)
        whole = Range.of_log(math.log(sum(one.mid for one in ranges)), sd)
        truth = sum(noisy(axes, 0.05, draw) for _ in (2, 3) for axes in GRID)
        inside.append(whole.low <= truth <= whole.high)
        assert whole.high / whole.low < 1.3  # single runs miss by 5 %, and their errors cancel in part
    assert sum(inside) >= 0.86 * len(inside)


def test_a_finished_run_of_the_cell_narrows_the_range():
    known = [(job(**axes), noisy(axes, 0.02, random.Random(str(axes)))) for axes in GRID[:8]]
    (own, other), _ = Estimator("window_s", known, map_jobs(GRID[7:9])).predict(map_jobs(GRID[7:9]))
    assert own.sd < 0.5 * other.sd


def test_repeats_that_differ_widen_the_range():
    alike, apart = (
        Estimator("window_s", [(job(1), 10.0), (job(2), 10.0 * by), (job(3), 10.0 / by)]).predict([job(4)])[0][0]
        for by in (1.01, 1.5)
    )
    assert apart.sd > 4 * alike.sd


def test_a_single_run_tells_of_others_with_a_wide_range():
    (same, other), _ = Estimator("window_s", [(job(), 10.0)], [job(2), job(precision="bf16-mixed")]).predict(
        [job(2), job(precision="bf16-mixed")]
    )
    assert same.low < 10 < same.high
    assert same.high / same.low < 2 < other.high / other.low


def test_another_unit_moves_the_range_and_nothing_else():
    values = [noisy(axes, 0.02, random.Random(str(axes))) for axes in GRID]
    in_s, in_ms = (
        Estimator("window_s", [(job(**axes), unit * value) for axes, value in zip(GRID, values, strict=True)]).predict(
            [job(2, **GRID[0])]
        )[0][0]
        for unit in (1, 1000)
    )
    assert in_ms.mid == pytest.approx(1000 * in_s.mid, rel=1e-3)
    assert in_ms.high == pytest.approx(1000 * in_s.high, rel=1e-3)


def test_counted_work_scales_models():
    small, large = job(model="small", work_flop=1e12), job(model="large", work_flop=20e12)
    known = [(small, 10.0)]
    (counted,), _ = Estimator("window_s", known, [large]).predict([large])
    uncounted = job(model="large")
    (unknown,), _ = Estimator("window_s", known, [uncounted]).predict([uncounted])
    assert counted.low < 200 < counted.high
    assert counted.mid == pytest.approx(200, rel=0.01)
    assert unknown.sd > 2 * counted.sd


def test_what_is_believed_gives_way_to_what_finished():
    believed = {"window_s": Before(log=math.log(300.0), sd=0.8, basis="assumed")}
    jobs = [job(before=believed, **axes) for axes in GRID]
    (before, *_), _ = Estimator("window_s", [], jobs).predict(jobs)
    known = [(one, seconds(axes)) for one, axes in zip(jobs, GRID, strict=True)]
    (after, *_), _ = Estimator("window_s", known[1:], jobs).predict(jobs)
    assert before.low < 100 < before.high
    assert after.mid == pytest.approx(100, rel=0.15)
    assert after.sd < 0.3 * before.sd


def test_the_order_of_the_runs_does_not_matter():
    known = [(job(**axes), noisy(axes, 0.02, random.Random(str(axes)))) for axes in GRID]
    forth, back = (Estimator("window_s", runs).predict([job(2, **GRID[3])])[0][0] for runs in (known, known[::-1]))
    assert forth.mid == pytest.approx(back.mid)
    assert forth.sd == pytest.approx(back.sd)
