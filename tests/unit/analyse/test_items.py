"""Scores of items become rows, one per score and item; a corrupt file costs its run a flag and nothing else."""

from __future__ import annotations

import json

import polars as pl
import pytest
import synthetic

from joulesweep.analyse import collect, items
from joulesweep.core.errors import Corrupt

SCORES = [
    {"score": "more", "before": [-1.5, -2], "after": [-1.0, -3.0]},
    {"score": "less", "before": [0.0, 0.0], "after": [0.0, 1.0]},
]
LINE = {"evaluation": "crows-pairs", "categories": ["age", "gender"], "scores": SCORES}
METRIC = {"evaluation": "crows-pairs", "category": "all", "metric": "neutral", "before": None, "after": 2.0, "n": 2}
AXES = {"strategy": ["single"], "precision": ["fp32"], "batch_size": [32]}


def written(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluations.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_score_of_an_item_is_a_row(tmp_path):
    table = items.read(written(tmp_path / "run1", json.dumps(LINE) + "\n"))
    assert table.select("run", "item", "category", "score", "before", "after").rows() == [
        ("run1", 0, "age", "more", -1.5, -1.0),
        ("run1", 1, "gender", "more", -2.0, -3.0),
        ("run1", 0, "age", "less", 0.0, 0.0),
        ("run1", 1, "gender", "less", 0.0, 1.0),
    ]


def test_a_run_without_evaluations_has_no_rows(tmp_path):
    assert items.read(tmp_path).is_empty() and items.tabulate([]).is_empty()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        json.dumps({**LINE, "categories": ["age"]}),
        json.dumps({**LINE, "scores": [{**SCORES[0], "after": [1.0, None]}]}),
        json.dumps({**LINE, "scores": [{**SCORES[0], "after": [1.0, 1e400]}]}),
        json.dumps({**LINE, "scores": 3}),
        json.dumps([LINE]),
    ],
)
def test_a_corrupt_line_is_named(tmp_path, text):
    with pytest.raises(Corrupt, match=r"evaluations\.jsonl: line 1: corrupt scores of items"):
        items.read(written(tmp_path, text))


def test_a_sweep_has_both_tables_and_a_corrupt_file_is_a_flag(tmp_path):
    def change(row):
        bad = row["spec"]["repeat"] == 2
        written(tmp_path / "runs" / row["run"], "{" if bad else json.dumps(LINE) + "\n")
        return {**row, "evaluations": [METRIC]}

    tables = collect.aggregate(*synthetic.write_sweep(tmp_path, synthetic.raw_config(AXES), change))
    assert tables.evaluations.select("evaluation", "metric", "before", "after", "n", "repeat").rows() == [
        ("crows-pairs", "neutral", None, 2.0, 2, repeat) for repeat in (1, 2, 3)
    ]
    assert tables.evaluation_items.height == 2 * 4
    flagged = tables.runs.filter(pl.col("flags").str.contains("unreadable_file"))
    assert flagged["repeat"].to_list() == [2] and "corrupt scores of items" in flagged["flag_texts"][0]
