from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from joulesweep.core.files import write_json
from joulesweep.plan import intact


@pytest.fixture
def files(tmp_path):
    """A whole file of every kind, with its test."""
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "grid.json", {"config": {"sweep": "tiny"}})
    write_json(tmp_path / "model.json", {"files": {}})
    save_file({"a": np.zeros(7), "b": np.zeros(3)}, tmp_path / "tokens.safetensors", metadata={"about": "x"})
    save_file({"a": np.zeros(7)}, tmp_path / "model" / "model.safetensors")
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "runs.parquet")
    tests = {
        "grid.json": intact.is_json,
        "model.json": intact.is_model,
        "tokens.safetensors": intact.is_safetensors,
        "runs.parquet": intact.is_parquet,
    }
    return {tmp_path / name: test for name, test in tests.items()}


def test_whole_and_missing_files_are_not_damaged(files, tmp_path):
    assert intact.damaged({**files, tmp_path / "missing.json": intact.is_json}) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_is_damaged(files, share):
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
    assert intact.damaged(files) == list(files)


def test_a_model_is_damaged_where_its_weights_were_cut(files, tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert intact.damaged(files) == [tmp_path / "model.json"]


def test_a_grid_of_another_config_is_not_the_expected_one(tmp_path):
    write_json(tmp_path / "grid.json", {"config": {"sweep": "tiny"}, "runs": {}})
    assert intact.is_json(tmp_path / "grid.json", {"config": {"sweep": "tiny"}})
    assert not intact.is_json(tmp_path / "grid.json", {"config": {"sweep": "other"}})
    (tmp_path / "grid.json").write_text("[1]")
    assert not intact.is_json(tmp_path / "grid.json")
