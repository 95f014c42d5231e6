"""Pairs of a gain: which configurations are compared, and in which direction."""

from __future__ import annotations

import pytest
import synthetic
from planted import planted

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.studies.gains import gains, ways


def build(folder, axes, change, **sections):
    manifest, runs = synthetic.write_sweep(folder, synthetic.raw_config(axes, **sections), change)
    return aggregate(manifest, runs), manifest["config"]


def test_the_ways_are_the_first_and_the_last_of_the_grid():
    config = {"grid": {"strategy": ["dp", "ddp", "fsdp"], "precision": ["fp32", "bf16-mixed"]}}
    assert ways(config) == (("dp", "fp32"), ("fsdp", "bf16-mixed"))


def test_pairs_have_one_global_batch_and_their_mean_is_geometric(tmp_path):
    def change(row):
        spec = row["spec"]
        last = spec["strategy"] == "ddp" and spec["precision"] == "bf16-mixed"
        factor = {(64, "global"): 0.25, (32, "per_device"): 0.25, (32, "global"): 0.5}.get(
            (spec["batch_size"], spec["batch_size_scope"]), 9.0
        )
        return planted(row, 1e4 * (factor if last else 1.0), 600.0, 2.0, noise=1e-9)

    axes = {"batch_size": [32, 64], "batch_size_scope": ["global", "per_device"]}
    tables, config = build(tmp_path, axes, change, **synthetic.GPU_CONFIG)
    (gain,) = gains(tables, config, *ways(config))
    # 32 and 64 on one board against 32, 64 and 32 on each of two; 64 on each has no partner.
    assert gain.energy.ratio().ratio == pytest.approx((0.5 * 0.25 * 0.25) ** (1 / 3))
    assert gain.why is None and gain.task == "mlm"


def test_a_measure_of_which_more_is_better_is_turned(tmp_path):
    def change(row):
        last = row["spec"]["strategy"] == "ddp" and row["spec"]["precision"] == "bf16-mixed"
        return {**row, "quality": {**row["quality"], "masked_accuracy": 0.4 if last else 0.5}}

    axes = {"batch_size": [32]}
    tables, config = build(tmp_path, axes, change, answer={"quality": "masked_accuracy"})
    (gain,) = gains(tables, config, *ways(config))
    assert gain.worse.ratio().ratio == pytest.approx(1.25)
    assert gain.energy is None and gain.why == "cpu:0: no RAPL counters: the machine exposes none"
