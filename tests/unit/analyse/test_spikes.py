"""Spikes of a series of losses, planted and not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from joulesweep.analyse import spikes
from joulesweep.core.errors import Corrupt


def falling(number=400):
    rng = np.random.default_rng(0)
    return 3 + np.exp(-np.arange(number) / 100) + rng.normal(0, 0.05, number)


def test_a_falling_noisy_loss_has_no_spike():
    assert spikes.count(falling()) == 0


@pytest.mark.parametrize("steps", [[25], [50], [51], [399], [120, 121, 300]])
def test_each_planted_spike_is_counted(steps):
    losses = falling()
    losses[steps] += 2.0
    assert spikes.count(losses) == len(steps)


def test_a_drop_is_no_spike_and_a_flat_loss_has_none():
    assert spikes.count(np.r_[falling(), 0.1]) == 0
    assert spikes.count(np.full(100, 2.0)) == 0


def test_the_first_steps_have_too_few_before_them():
    losses = falling(30)
    losses[5] += 9.0
    assert spikes.count(losses) == 0


def test_the_file_of_a_run_is_read_and_its_lack_is_no_zero(tmp_path):
    assert spikes.columns(tmp_path) == {}
    path = tmp_path / spikes.FILE
    for number, expected in ((spikes.LEAST, {}), (spikes.LEAST + 1, {"num_loss_spikes": 0})):
        lines = [json.dumps({"step": i, "train_loss": 2.0}) for i in range(number)]
        path.write_text("\n".join(lines), encoding="utf-8")
        assert spikes.columns(tmp_path) == expected
    path.write_text("", encoding="utf-8")
    assert spikes.columns(tmp_path) == {}


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / spikes.FILE).write_text('{"step": 1, "train', encoding="utf-8")
    with pytest.raises(Corrupt, match="corrupt losses"):
        spikes.columns(tmp_path)
