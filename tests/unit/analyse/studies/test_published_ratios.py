"""Published ratios, and those of sweeps whose numbers are known."""

from __future__ import annotations

import pytest
import synthetic

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.studies import published

METHODS = [
    "full",
    {"last-k": {"layers": 2}},
    {"last-k": {"layers": 1}},
    "lora",
    {"lora": {"r": 4}},
    "prefix",
    {"prefix": {"tokens": 10}},
    {"random": {"rho": 0.5}},
    {"greentrainer": {"rho": 0.5}},
    {"greentrainer": {"rho": 0.5, "objective": "time"}},
    {"greentrainer": {"rho": 0.6}},
    {"freeze-bottom": {"fraction": 0.5}},
]
#: Of full training, by method.
SECONDS = {"full": 1.0, "last-k": 0.5, "lora": 0.6, "greentrainer": 0.75}


def build(tmp_path, axes, change=lambda row: row, **sections):
    def timed(row):
        window_s = 20.0 * SECONDS.get(row["spec"]["method"], 0.9) * (1 + 0.1 * row["spec"]["repeat"])
        measurement = row["measurement"]
        (phase,) = measurement["phases"]
        work = {unit: flops * window_s for unit, flops in phase["flop_coefficients"].items()}
        phases = [{**phase, "flop_coefficients": work}]
        return change({**row, "measurement": {**measurement, "window_s": window_s, "phases": phases}})

    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **sections), timed)
    return aggregate(grid, runs)


ONE = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32]}


def test_published_ratios_by_hand():
    found = published.greentrainer()
    # Models and data sets: OPT, BLOOMZ and FLAN-T5, on SciTLDR and DialogSum.
    lora = found["lora", None]
    assert lora.num_settings == 6
    assert lora.compute == pytest.approx((14.4 / 21.7, 27.9 / 41.8))
    assert lora.hours == pytest.approx((2.5 / 4.0, 0.69 / 1.0))
    assert found["greentrainer", 0.34].num_settings == 2  # FLAN-T5 alone
    assert ("greentrainer", 0.36) not in found  # its cost is not published
    assert found["full", None].compute == (1, 1)


def test_only_methods_with_the_papers_parameters_stand_beside_it(tmp_path):
    found = published.greentrainer_ratios(build(tmp_path, {**ONE, "method": METHODS}))
    assert [one.method for one in found] == [
        "last-k(layers=2)",
        "lora(r=8)",
        "prefix(tokens=20)",
        "greentrainer(rho=0.5)",
    ]
    assert {one.name for one in found} == {"single fp32 bs32"}


def test_measured_ratios_are_paired_by_seed(tmp_path):
    found = {one.method: one for one in published.greentrainer_ratios(build(tmp_path, {**ONE, "method": METHODS}))}
    for method, seconds in (("last-k(layers=2)", 0.5), ("lora(r=8)", 0.6), ("greentrainer(rho=0.5)", 0.75)):
        one = found[method]
        for ratio in (one.measured_compute, one.measured_time):  # each seed's own speed cancels
            assert (ratio.ratio, ratio.low, ratio.high, ratio.n) == pytest.approx((seconds, seconds, seconds, 3))
        assert one.measured_joules is None


def test_joules_are_compared_where_both_were_measured(tmp_path):
    def change(row):
        return row if row["spec"]["method"] == "lora" else synthetic.measured(row)

    found = {
        one.method: one for one in published.greentrainer_ratios(build(tmp_path, {**ONE, "method": METHODS}, change))
    }
    assert found["last-k(layers=2)"].measured_joules.ratio == pytest.approx(0.5)
    assert found["lora(r=8)"].measured_joules is None


def test_without_full_training_there_is_nothing_to_compare(tmp_path):
    assert published.greentrainer_ratios(build(tmp_path / "none", {**ONE, "method": METHODS[1:]})) == []
    failed = build(
        tmp_path / "failed",
        {**ONE, "method": METHODS},
        lambda row: synthetic.failed(row, "oom", "full") if row["spec"]["method"] == "full" else row,
    )
    assert published.greentrainer_ratios(failed) == []


def test_uncounted_flops_leave_the_time(tmp_path):
    def change(row):
        phases = [{**phase, "flop_reason": "einsum is not counted"} for phase in row["measurement"]["phases"]]
        return {**row, "measurement": {**row["measurement"], "phases": phases}}

    (one, *_) = published.greentrainer_ratios(build(tmp_path, {**ONE, "method": METHODS}, change))
    assert one.measured_compute is None and one.measured_time.ratio == pytest.approx(0.5)


def speeds(row):
    """Texts per second: dp 10, ddp 15, and fp16-mixed twice as fast; ddp gains more on 64 texts."""
    spec = row["spec"]
    speed = {"single": 10.0, "dp": 10.0, "ddp": 15.0 if spec["batch_size"] == 32 else 18.0}[spec["strategy"]]
    speed *= (2 if spec["precision"] == "fp16-mixed" else 1) * (1 + 0.1 * spec["repeat"])
    return {**row, "measurement": {**row["measurement"], "samples_per_s": speed}}


def test_speeds_are_compared_where_the_rest_is_the_same(tmp_path):
    axes = {"strategy": ["single", "dp", "ddp"], "precision": ["fp32", "fp16-mixed"], "batch_size": [32, 64]}
    every = published.claimed_ratios(build(tmp_path, axes, speeds))
    found = {one.words: one for one in every if one.claim == "training speed"}
    spread, narrow, both = found.values()
    assert [one.num_pairs for one in (spread, narrow, both)] == [4, 6, 2]
    assert (spread.lowest.ratio, spread.highest.ratio) == pytest.approx((1.5, 1.8))
    assert spread.where in ("ddp2 fp32 bs64", "ddp2 fp16-mixed bs64")
    assert (narrow.lowest.ratio, narrow.highest.ratio) == pytest.approx((2, 2))
    assert (both.highest.ratio, both.highest.n, both.where) == (pytest.approx(3.6), 3, "ddp2 fp16-mixed bs64")


def test_a_sweep_without_such_pairs_has_no_comparison(tmp_path):
    axes = {"strategy": ["single", "ddp"], "precision": ["fp32", "bf16-mixed"]}
    assert published.claimed_ratios(build(tmp_path, axes)) == []


def test_headlines_have_a_status_and_a_source():
    rows = published.rows("maina.csv")
    assert "arXiv 2506.08433" in published.source("maina.csv")
    assert rows and all(row["status"] == "recalled" and row["source"] and row["figure"] for row in rows)


def test_power_memory_and_accuracy_stand_beside_their_claims(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        watts = 100.0 if row["spec"]["precision"] == "fp32" else 60.0
        (board, *rest) = row["measurement"]["energy"]
        board = {**board, "energy_j": watts * row["measurement"]["window_s"]}
        return synthetic.with_energy(row, board, *rest)

    axes = {"strategy": ["single"], "precision": ["fp32", "fp16-mixed"], "batch_size": [32]}
    made = build(tmp_path, axes, change, **synthetic.GPU_CONFIG)
    found = {one.claim: one for one in published.claimed_ratios(made)}
    assert set(found) == set(published.CLAIMS) and {row["quantity"] for row in published.rows("maina.csv")} == set(
        found
    )
    assert found["power"].lowest.ratio == pytest.approx(0.6)
    assert found["memory"].lowest.ratio == found["validation accuracy"].lowest.ratio == pytest.approx(1.0)


def test_unmeasured_joules_say_nothing_about_power(tmp_path):
    axes = {"strategy": ["single"], "precision": ["fp32", "fp16-mixed"], "batch_size": [32]}
    assert {one.claim for one in published.claimed_ratios(build(tmp_path, axes))} == {
        *("training speed", "validation accuracy")
    }
