"""ROUGE of tiny texts, by hand; and what becomes of it in the tables and the report."""

from __future__ import annotations

import json

import polars as pl
import pytest
import synthetic
from pages import build, rendered, words

from joulesweep.analyse import columns, rouge
from joulesweep.analyse.collect import aggregate
from joulesweep.core.errors import UserError


def written(folder, *rows):
    lines = [{"text": i, "summary": summary, "references": references} for i, (summary, references) in enumerate(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / rouge.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_shared_words_pairs_and_subsequence_by_hand(tmp_path):
    # Words after stemming: "the cat on mat" and "the cat sat on the mat". All 4 of the first are in the second, which
    # has 6: P = 4/4, R = 4/6, F = 2PR / (P + R) = 0.8.
    # Pairs: of "the cat", "cat on", "on mat" (3) only the first is among the other's 5: P = 1/3, R = 1/5, F = 0.25.
    # Longest common subsequence: the, cat, on, mat: P = 4/4, R = 4/6, F = 0.8.
    found = rouge.columns(written(tmp_path, ("The cat on mats", ["the cat sat on the mat"])))
    assert found == {"rouge1": pytest.approx(0.8), "rouge2": pytest.approx(0.25), "rougeL": pytest.approx(0.8),
                     "num_summaries": 1}  # fmt: skip


def test_order_counts_in_the_subsequence_alone(tmp_path):
    found = rouge.columns(written(tmp_path, ("dog bites man", ["man bites dog"])))
    # All 3 words; no pair; the longest common subsequence has 1 of 3.
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == pytest.approx((1, 0, 1 / 3))


def test_the_best_reference_counts_for_each_metric_by_itself(tmp_path):
    # "a b c d" against "a b x": 2 of 4 and 3 words, F = 4/7; 1 of 3 and 2 pairs, F = 2/5. Against "d c b a": all words,
    # no pair, a subsequence of 1.
    found = rouge.columns(written(tmp_path, ("a b c d", ["a b x", "d c b a"])))
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == pytest.approx((1, 2 / 5, 4 / 7))


def test_the_mean_is_over_texts(tmp_path):
    found = rouge.columns(written(tmp_path, ("same words", ["same words", "other"]), ("", ["gold"]), ("x", ["y"])))
    assert found["num_summaries"] == 3
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_a_run_without_summaries_has_no_scores(tmp_path):
    assert rouge.columns(tmp_path) == {}
    assert rouge.columns(written(tmp_path / "empty")) == {}


GOOD = '{"text": 1, "summary": "a", "references": ["b"]}'


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (GOOD[:-5], "Expecting"),
        ("", "Expecting value"),
        ("[]", "needs text"),
        (GOOD.replace('"a"', "null"), "needs text"),
        (GOOD.replace('["b"]', "[]"), "at least one text"),
        (GOOD.replace('["b"]', '["b", 3]'), "needs text"),
        (GOOD.replace('"text": 1', '"text": "1"'), "needs text"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path, bad, why):
    path = tmp_path / rouge.FILE
    path.write_text(f"{GOOD}\n{bad}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(UserError, match=why) as caught:
        rouge.columns(tmp_path)
    assert str(caught.value).startswith(f"{path}: line 2: corrupt summary: ") and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused_too(tmp_path):
    (tmp_path / rouge.FILE).write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r": line 1: corrupt summary"):
        rouge.columns(tmp_path)


ONE = {"strategy": ["single"], "precision": ["fp32"]}  # two cells: batch sizes 32 and 64


def scored(folder):
    """A sweep in which the runs of batch size 32 generated summaries, better with each seed."""
    grid, runs = synthetic.write_sweep(folder, synthetic.raw_config(ONE))
    for run, entry in grid["runs"].items():
        if entry["batch_size"] == 32:
            right = ["a b c d", "a b c x", "a b x x"][entry["repeat"] - 1]
            written(runs / run, (right, ["a b c d"]))
    return grid, aggregate(grid, runs)


def test_scores_are_columns_of_the_runs_and_means_of_the_cells(tmp_path):
    _, found = scored(tmp_path)
    first, others = (found.runs.filter(batch_size=size) for size in (32, 64))
    assert first.sort("repeat")["rouge1"].to_list() == pytest.approx([1, 0.75, 0.5])
    assert first["num_summaries"].to_list() == [1, 1, 1]
    for column in (*columns.ROUGE, "num_summaries"):
        assert others[column].count() == 0
    cells = found.cells.sort("batch_size")
    assert cells["rouge1_mean"].to_list() == [pytest.approx(0.75), None]
    assert cells["rouge1_low"][0] == pytest.approx(0.75 - 4.302653 * 0.25 / 3**0.5)


def test_the_report_has_rouge_where_there_is_some(tmp_path):
    text = words(rendered(*scored(tmp_path / "scored")))
    assert "Masked accuracy ROUGE-1 ROUGE-2 ROUGE-L single fp32 bs32" in text
    assert "ROUGE: F-measures × 100, by rouge-score" in text
    assert "75.0 [12.9, 100.0]" in text[text.index("All configurations") :] and "– – –" in text
    assert "ROUGE" not in words(rendered(*build(tmp_path / "plain", axes=ONE)))


def test_token_accuracy_is_called_masked_where_only_masks_are_predicted(tmp_path):
    grid, found = build(tmp_path, axes=ONE)
    assert "Masked accuracy" in words(rendered(grid, found))
    other = synthetic.replaced(found, runs=found.runs.with_columns(task=pl.lit("summarize")))
    text = words(rendered(grid, other))
    assert text.count("Token accuracy") == 1 and "Masked accuracy" not in text


def test_choice_accuracy_is_shown_where_a_record_has_it(tmp_path):
    def change(row):
        quality = {**row["quality"], "choice_accuracy": 0.6 if row["spec"]["batch_size"] == 32 else None}
        epochs = [{**epoch, "choice_accuracy": 0.25} for epoch in row["epochs"]]
        return {**row, "quality": quality, "epochs": epochs}

    grid, found = build(tmp_path / "choices", change, ONE)
    assert found.cells.sort("batch_size")["choice_accuracy_mean"].to_list() == [pytest.approx(0.6), None]
    assert found.epochs["choice_accuracy"].unique().to_list() == [0.25]
    assert "Masked accuracy Choice accuracy single fp32 bs32" in words(rendered(grid, found))
    grid, older = build(tmp_path / "older", axes=ONE)
    assert older.runs["choice_accuracy"].count() == 0 == older.epochs["choice_accuracy"].count()
    assert "Choice accuracy" not in words(rendered(grid, older))
