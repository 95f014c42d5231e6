"""Losses of methods at equal cost, of curves whose answers are known."""

from __future__ import annotations

import math

import polars as pl
import pytest
import synthetic

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.statistics import NO_DIFFERENCE, NO_INTERVAL
from joulesweep.analyse.studies import equal_cost

#: Method: cumulative cost and loss, from the untrained model on. Seeds shift losses by 0, 1 and 2.
CURVES = {
    "full": [(0, 8.0), (4, 6.0), (8, 4.0), (12, 2.0)],
    "greentrainer": [(0, 8.0), (2, 6.0), (4, 5.0), (6, 4.5)],
    "random": [(0, 8.0), (2, 7.0), (4, 6.5), (6, 6.4)],
}


def build(tmp_path, curves=CURVES, change=lambda row: row, methods=None, **sections):
    """The tables of a sweep whose runs have these curves, in seconds and CPU-seconds (twice as many)."""

    def with_curve(row):
        spec, points = row["spec"], curves[row["spec"]["method"]]
        points = points[spec["repeat"]] if isinstance(points, dict) else points
        epochs = [
            {**epoch, "elapsed_s": cost / 2, "cpu_s": float(cost), "validation_loss": loss + spec["repeat"] - 1}
            for epoch, (cost, loss) in zip(row["epochs"], points, strict=True)
        ]
        return change(synthetic.choosing({**row, "epochs": epochs}))

    axes = synthetic.METHODS | ({"method": methods} if methods else {})
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **sections), with_curve)
    return aggregate(grid, runs)


def only(tables):
    (found,) = equal_cost.comparisons(tables)
    return found, {(pair.a.partition("(")[0], pair.b.partition("(")[0]): pair for pair in found.pairs}


@pytest.mark.parametrize(("cost", "loss"), [(0, 8.0), (1, 7.0), (2, 6.0), (3, 5.5), (6, 4.5), (5.5, 4.625)])
def test_a_curve_is_read_linearly_between_its_points(cost, loss):
    assert equal_cost.loss_at(CURVES["greentrainer"], cost) == pytest.approx(loss)


@pytest.mark.parametrize("cost", [-0.1, 6.1])
def test_nothing_is_extrapolated(cost):
    with pytest.raises(ValueError, match="does not reach"):
        equal_cost.loss_at(CURVES["greentrainer"], cost)


def test_losses_are_compared_where_the_cheaper_run_ended(tmp_path):
    found, pairs = only(build(tmp_path))
    assert (found.by, found.unranked, found.scope) == ("cpu_s", "energy was not measured", None)
    assert found.name == "single fp32 bs32"
    # Those that choose against all others, each two once.
    assert list(pairs) == [("greentrainer", "full"), ("greentrainer", "random"), ("random", "full")]
    pair = pairs["greentrainer", "full"]
    assert (pair.a, pair.b, pair.cost) == ("greentrainer(rho=0.5)", "full", 6)
    # Full training at 6 lies between 6.0 and 4.0; the seeds shift both by 0, 1 and 2.
    assert (pair.loss_a, pair.loss_b) == pytest.approx((5.5, 6.0))
    assert (pair.difference.mean, pair.difference.n, pair.difference.verdict) == (pytest.approx(-0.5), 3, "lower")
    assert pairs["random", "full"].difference.verdict == "higher"


def test_the_sentences_say_good_and_bad_as_they_are(tmp_path):
    found, _ = only(build(tmp_path))
    assert found.sentences == [
        "greentrainer(rho=0.5) is shown better than full and random(rho=0.5).",
        "random(rho=0.5) is shown worse than full and greentrainer(rho=0.5).",
    ]
    assert equal_cost._sentence("a", [("lower", "b"), ("higher", "c"), ("higher", "d"), (NO_DIFFERENCE, "e")]) == (
        "a is shown worse than c and d, better than b; no difference is shown against e."
    )
    assert equal_cost._sentence("a", [(NO_INTERVAL, "b")]) == "a: one common seed cannot tell it from b."


def test_the_interval_by_hand(tmp_path):
    end = {repeat: [*CURVES["greentrainer"][:3], (6, 4.5 + 0.5 * repeat)] for repeat in (1, 2, 3)}
    _, pairs = only(build(tmp_path, {**CURVES, "greentrainer": end}))
    found = pairs["greentrainer", "full"].difference  # 5.0, 5.5, 6.0 - 5.0, each with its shift
    half = 4.302653 * 0.5 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert found.verdict == NO_DIFFERENCE


def test_curves_that_cross_are_told_apart_by_where_they_are_compared(tmp_path):
    early = [(0, 8.0), (1, 5.0), (2, 4.9), (3, 4.8)]
    late = [(0, 8.0), (2, 7.0), (4, 4.0), (8, 1.0)]
    longer = [*early[:3], (8, 4.5)]
    _, pairs = only(build(tmp_path / "early", {**CURVES, "greentrainer": early, "full": late}))
    assert pairs["greentrainer", "full"].cost == 3
    assert pairs["greentrainer", "full"].difference.mean == pytest.approx(4.8 - 5.5)
    _, pairs = only(build(tmp_path / "late", {**CURVES, "greentrainer": longer, "full": late}))
    assert pairs["greentrainer", "full"].cost == 8
    assert pairs["greentrainer", "full"].difference.mean == pytest.approx(4.5 - 1.0)
    assert pairs["greentrainer", "full"].difference.verdict == "higher"


def test_each_seed_has_its_own_cost(tmp_path):
    ends = {repeat: [*CURVES["greentrainer"][:3], (4 + repeat, 4.5)] for repeat in (1, 2, 3)}
    _, pairs = only(build(tmp_path, {**CURVES, "greentrainer": ends}))
    pair = pairs["greentrainer", "full"]
    assert pair.cost == pytest.approx(6) and pair.loss_b == pytest.approx((5.5 + 6.0 + 6.5) / 3)


def test_only_common_seeds_are_paired(tmp_path):
    def change(row):
        lost = {("greentrainer", 1), ("full", 2), ("random", 3)}
        return None if (row["spec"]["method"], row["spec"]["repeat"]) in lost else row

    found, pairs = only(build(tmp_path, change=change))
    assert {pair.difference.n for pair in found.pairs} == {1}
    pair = pairs["greentrainer", "full"]  # seed 3
    assert (pair.loss_a, pair.loss_b) == pytest.approx((6.5, 7.0))
    assert (pair.difference.low, pair.difference.verdict) == (None, NO_INTERVAL)
    assert found.sentences[0] == "greentrainer(rho=0.5): one common seed cannot tell it from full and random(rho=0.5)."


def test_methods_without_a_common_seed_are_not_compared(tmp_path):
    def change(row):
        kept = {("greentrainer", 1), ("full", 2), ("random", 1)}
        return row if (row["spec"]["method"], row["spec"]["repeat"]) in kept else None

    _, pairs = only(build(tmp_path, change=change))
    assert list(pairs) == [("greentrainer", "random")]


def test_where_none_chooses_the_first_method_is_the_reference(tmp_path):
    methods = ["full", {"freeze-bottom": {"fraction": 0.5}}, "lora"]
    curves = {"full": CURVES["full"], "freeze-bottom": CURVES["greentrainer"], "lora": CURVES["random"]}
    found, pairs = only(build(tmp_path, curves, methods=methods))
    assert list(pairs) == [("full", "freeze-bottom"), ("full", "lora")]
    assert found.sentences == ["full is shown worse than freeze-bottom(fraction=0.5), better than lora(r=8)."]


def test_a_sweep_of_one_method_has_no_comparison(tmp_path):
    assert equal_cost.comparisons(build(tmp_path, methods=["full"])) == []


def test_only_cells_that_are_otherwise_the_same_are_compared(tmp_path):
    raw = synthetic.raw_config(synthetic.METHODS | {"precision": ["fp32", "bf16-mixed"], "model": ["tiny", "other"]})
    grid, runs = synthetic.write_sweep(tmp_path, raw, synthetic.choosing)
    found = equal_cost.comparisons(aggregate(grid, runs))
    assert [one.name for one in found] == [
        f"{model} · single {precision} bs32" for model in ("tiny", "other") for precision in ("fp32", "bf16-mixed")
    ]
    assert {len(one.pairs) for one in found} == {3}


def test_joules_are_the_cost_where_all_runs_have_them(tmp_path):
    tables = build(tmp_path, change=synthetic.on_gpus, **synthetic.GPU_CONFIG)
    found, pairs = only(tables)
    assert (found.by, found.scope, found.unranked) == ("energy_j", "gpu", None)
    epochs = tables.epochs.filter(pl.col("name").str.starts_with("greentrainer"), epoch=3)
    others = tables.epochs.filter(pl.col("name") == "single fp32 bs32", epoch=3)
    both = epochs.join(others, on="repeat").select(pl.min_horizontal("energy_j", "energy_j_right"))
    assert pairs["greentrainer", "full"].cost == pytest.approx(both.to_series().mean())


def test_a_gpu_without_joules_costs_seconds(tmp_path):
    def change(row):
        missing = {"energy_j": None, "total_energy_j": None, "status": "unavailable", "reason": "no counter"}
        return synthetic.on_gpus(row, **missing)

    found, pairs = only(build(tmp_path, change=change, **synthetic.GPU_CONFIG))
    assert (found.by, found.unranked) == ("elapsed_s", "energy was not measured")
    assert pairs["greentrainer", "full"].cost == pytest.approx(3)


def test_an_epoch_without_joules_leaves_the_cost_to_seconds(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        if row["spec"]["method"] != "random" or row["spec"]["repeat"] != 2:
            return row
        slow = {"device": "gpu:0", "energy_j": None, "status": "below_resolution", "reason": "too short"}
        return {**row, "epochs": [{**one, "energy": [slow]} if one["epoch"] == 1 else one for one in row["epochs"]]}

    found, _ = only(build(tmp_path, change=change, **synthetic.GPU_CONFIG))
    assert (found.by, found.unranked) == ("elapsed_s", "joules are not known after every epoch: too short")
