"""What each change does: planted effects and interactions are found, absent ones are not."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest
import synthetic

from joulesweep.analyse.collect import aggregate

AXES = {"strategy": ["single", "ddp"], "precision": ["fp32", "bf16-mixed"], "batch_size": [16, 32, 64]}


def effects(tmp_path, depends=0.0, change=lambda row: row, axes=AXES):
    """The effects on time of a sweep in which ddp halves the time, bf16-mixed takes 0.7 of it, and noise is 1 %."""

    def timed(row):
        spec = row["spec"]
        ddp, bf16 = spec["strategy"] == "ddp", spec["precision"] == "bf16-mixed"
        noise = random.Random(row["run"]).gauss(0, 0.01) + 0.05 * spec["repeat"]
        log = math.log(0.5) * ddp + math.log(0.7) * bf16 + depends * (ddp and bf16) + noise
        return change({**row, "measurement": {**row["measurement"], "window_s": 100 * math.exp(log)}})

    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes), timed)
    return aggregate(grid, runs).effects.filter(quantity="window_s")


def test_a_planted_effect_is_found_with_its_interval(tmp_path):
    table = effects(tmp_path).filter(kind="effect")
    (ddp,) = table.filter(axis="strategy").to_dicts()
    (bf16,) = table.filter(axis="precision").to_dicts()
    assert (ddp["from_value"], ddp["to_value"], ddp["num_pairs"]) == ("single", "ddp2", 6)
    assert ddp["low"] < 0.5 < ddp["high"] and ddp["high"] / ddp["low"] < 1.03
    assert bf16["low"] < 0.7 < bf16["high"]
    assert ddp["smallest"] <= ddp["ratio"] <= ddp["largest"]


def test_sizes_are_compared_with_the_size_before(tmp_path):
    batches = effects(tmp_path).filter(kind="effect", axis="batch_size")
    assert batches.select("from_value", "to_value").rows() == [("batch 16", "batch 32"), ("batch 32", "batch 64")]
    assert all(low < 1 < high for low, high in batches.select("low", "high").rows())


def test_an_effect_that_depends_on_another_axis_is_said(tmp_path):
    table = effects(tmp_path, depends=0.3).filter(kind="interaction")
    assert {frozenset(pair) for pair in table.select("axis", "other_axis").rows()} == {
        frozenset(("strategy", "precision"))
    }
    (text,) = table.filter(axis="strategy")["text"].unique()
    assert text.startswith("What single → ddp2 does to time depends on precision: −50 % with fp32, −3")


def test_no_interaction_is_said_where_there_is_none(tmp_path):
    assert effects(tmp_path).filter(kind="interaction").is_empty()


def test_shares_of_a_complete_grid_add_up_to_one(tmp_path):
    shares = effects(tmp_path, depends=0.3).filter(kind="share")
    assert shares["ratio"].sum() == pytest.approx(1)
    by_axes = {(axis, other): share for axis, other, share in shares.select("axis", "other_axis", "ratio").rows()}
    # By hand: half of each effect, and of what both do together.
    strategy, precision, both = math.log(0.5) + 0.15, math.log(0.7) + 0.15, 0.15
    whole = (strategy**2 + precision**2 + both**2) / 4
    assert by_axes["strategy", None] / by_axes["precision", None] == pytest.approx((strategy / precision) ** 2, rel=0.1)
    assert by_axes["strategy", "precision"] == pytest.approx(both**2 / 4 / (whole + 0.05**2 * 2 / 3), rel=0.15)
    assert by_axes["seed", None] > by_axes["noise", None] > 0


def test_a_grid_with_a_hole_has_effects_and_no_shares(tmp_path):
    def change(row):
        hole = row["spec"]["strategy"] == "ddp" and row["spec"]["batch_size"] == 64 and row["spec"]["repeat"] == 1
        return None if hole else row

    table = effects(tmp_path, change=change)
    assert table.filter(kind="share").is_empty()
    (ddp,) = table.filter(kind="effect", axis="strategy").to_dicts()
    assert ddp["num_pairs"] == 6 and ddp["low"] < 0.5 < ddp["high"]


def test_one_repeat_has_effects_without_intervals(tmp_path):
    (ddp,) = effects(tmp_path, axes={**AXES, "repeats": 1}).filter(kind="effect", axis="strategy").to_dicts()
    assert ddp["ratio"] == pytest.approx(0.5, rel=0.05) and ddp["low"] is None


def test_joules_of_different_kinds_have_no_effects(tmp_path):
    def change(row):
        dram = [synthetic.energy_row("dram:0", 5.0)] if row["spec"]["precision"] == "fp32" else []
        return synthetic.with_energy(row, synthetic.energy_row("cpu:0", 100.0), *dram)

    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(), change)
    assert aggregate(grid, runs).effects.filter(pl.col("quantity") == "energy_j").is_empty()
