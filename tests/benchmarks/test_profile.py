"""What a step's time is made of, on the tiny model: every operator is counted once."""

from __future__ import annotations

import argparse

import pytest
import tiny_run

from benchmarks import peer_assets, profile_step

pytestmark = pytest.mark.usefixtures("torch_as_it_was")


def test_operators_are_counted_under_the_first_group_that_fits():
    rows = [("aten::addmm", 3.0, 2), ("aten::_fused_adamw_", 4.0, 1), ("aten::embedding_dense_backward", 2.0, 1)]
    shares, number = profile_step.grouped([*rows, ("mkldnn::_linear_pointwise", 1.0, 5), ("aten::add", 10.0, 7)])
    assert number == 16
    assert shares.pop(profile_step.REST) == 0.5
    assert {group: share for group, share in shares.items() if share} == {
        "products": 0.2,
        "optimizer": 0.2,
        "embedding tables and gathering": 0.1,
    }


def test_a_profile_of_the_tiny_model(tmp_path, monkeypatch):
    found = tiny_run.assets(tmp_path)
    named = {name: getattr(tiny_run.spec(), name) for name in ("model", "model_source", "dataset", "dataset_source")}
    assets = peer_assets.Assets(model_folder=found.model_folder, tokens=found.tokens, named=named)
    monkeypatch.setattr(profile_step, "prepare", lambda *given: assets)
    monkeypatch.setattr(profile_step, "_bandwidth", lambda torch: 1e10)
    monkeypatch.setattr(profile_step, "_rate", lambda torch: 1e11)
    report = profile_step.profiled(argparse.Namespace(model="tiny", batch_size=16, steps=2, data=None, assets=None))
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert all(report["shares"][group] > 0 for group in ("products", "optimizer", "embedding tables and gathering"))
    assert report["floor_s"] == pytest.approx(report["useful_flops"] / 1e11 + report["bytes_per_step"] / 1e10)
    assert 100 < report["num_operators"] < 5000
    text = profile_step.table(report)
    assert "| a step |" in text and "| floor |" in text and "by PyTorch" in text
