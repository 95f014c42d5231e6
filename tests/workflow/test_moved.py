"""What was measured stays, wherever the results go and whatever the times of their files are."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import polars as pl
from checkout import Checkout


def shuffle_times(folder: Path) -> None:
    """As a copy without times leaves them, whatever the order in which it was made."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_symlink())
    for i, path in enumerate(random.Random(1).sample(paths, len(paths))):
        os.utime(path, (1_750_000_000 + i, 1_750_000_000 + i))


def test_results_that_were_brought_home_need_neither_notes_nor_texts_nor_model(sweep: Checkout) -> None:
    before = sweep.records()
    for name in (".snakemake", "resources/models", "resources/tokens", "resources/datasets", "data"):
        shutil.rmtree(sweep.folder / name)
    assert sweep.planned() == {}
    shuffle_times(sweep.folder / "results")
    assert "train" not in sweep.planned()
    shutil.rmtree(sweep.runs.parent / "tables")
    (sweep.runs.parent / "report.html").unlink()
    times = sweep.records()
    sweep.run()
    assert sweep.records() == times and times.keys() == before.keys()
    assert (sweep.runs.parent / "report.html").stat().st_size > 10_000
    runs = pl.read_parquet(sweep.runs.parent / "tables" / "runs.parquet")
    assert runs["status"].to_list() == ["ok", "ok"]


def test_a_value_added_where_nothing_is_fetched_any_more_measures_the_new_runs_alone(sweep: Checkout) -> None:
    for name in ("models", "tokens", "datasets"):
        shutil.rmtree(sweep.folder / "resources" / name)
    sweep.config["grid"]["precision"].append("bf16-true")
    sweep.write_config()
    planned = sweep.planned()
    assert {name: planned[name] for name in ("train", "fetch_model", "fetch_dataset", "tokenise")} == {
        "train": 2,
        "fetch_model": 1,
        "fetch_dataset": 1,
        "tokenise": 1,
    }
    (sweep.runs.parent / "grid.json").unlink()
    assert sweep.planned()["train"] == 2


def test_a_copy_with_other_times_measures_nothing_again(sweep: Checkout) -> None:
    shuffle_times(sweep.folder)
    assert "train" not in sweep.planned()
    shutil.rmtree(sweep.folder / ".snakemake")
    assert "train" not in sweep.planned()


def test_without_notes_what_the_files_say_decides_what_is_outdated(sweep: Checkout) -> None:
    shutil.rmtree(sweep.folder / ".snakemake")
    (outdated, _) = sorted(sweep.records())
    path = sweep.runs / outdated / "record.json"
    text = path.read_text(encoding="utf-8")
    code = text.partition('"code_digest": "')[2].partition('"')[0]
    path.write_text(text.replace(code, "0123456789abcdef"), encoding="utf-8")
    assert sweep.planned()["train"] == 1
    path.write_text(text, encoding="utf-8")
    sweep.config["answer"] = {"margin": 0.5}
    sweep.write_config()
    planned = sweep.planned()
    assert planned["grid"] == 1 and "train" not in planned
