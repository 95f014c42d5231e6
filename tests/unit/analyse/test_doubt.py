"""Joules that are contradicted, and boards that are not alike: in the tables, marked, and in no ranking."""

from __future__ import annotations

import polars as pl
import pytest
import synthetic
from pages import rendered

from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.comparisons import Comparisons
from joulesweep.analyse.studies import equal_cost
from joulesweep.analyse.studies.decision import decisions
from joulesweep.report import charts
from joulesweep.report.results import Results

WHY = "mean power × time is 3.3 × what the counter says"


def build(tmp_path, change, axes=None, **sections):
    grid, runs = synthetic.write_sweep(
        tmp_path, synthetic.raw_config(axes, **{**synthetic.GPU_CONFIG, **sections}), change
    )
    return grid, aggregate(grid, runs)


def doubtful(row, repeats=(1, 2, 3), precision="bf16-mixed"):
    """On boards; runs of one precision take a tenth of the joules, and are contradicted."""
    row = synthetic.on_gpus(row)
    if row["spec"]["precision"] == precision and row["spec"]["repeat"] in repeats:
        for one in row["measurement"]["energy"]:
            if one["energy_j"] is not None:
                one.update({key: one[key] / 10 for key in ("energy_j", "total_energy_j")}, doubt=WHY)
    return row


def test_a_doubtful_number_stays_in_the_tables_with_its_reason(tmp_path):
    _, found = build(tmp_path, doubtful)
    cells = {row["name"]: row for row in found.cells.iter_rows(named=True)}
    assert cells["single bf16-mixed bs32"]["energy_doubt"] == f"gpu:0: {WHY}"
    assert cells["single bf16-mixed bs32"]["energy_j_mean"] > 0
    assert cells["single fp32 bs32"]["energy_doubt"] is None


@pytest.mark.parametrize("repeats", [(1, 2, 3), (2,)])
def test_a_doubtful_number_is_not_recommended(tmp_path, repeats):
    grid, found = build(tmp_path, lambda row: doubtful(row, repeats))
    (answer,) = decisions(found, grid["config"])
    assert answer.by == "energy_j" and answer.recommended.row["precision"] == "fp32"
    assert not any("bf16" in name for name in [*answer.ties, *(pick.row["name"] for pick in answer.picks)])
    assert len(answer.doubtful) == 4 and all(WHY in line and "bf16" in line for line in answer.doubtful)
    html = rendered(grid, found)
    assert f"single bf16-mixed bs32: gpu:0: {WHY}" in html and "doubtful" in html


def test_where_all_are_doubtful_time_decides_and_the_reason_is_said(tmp_path):
    def change(row):
        return doubtful(row, precision=row["spec"]["precision"])

    grid, found = build(tmp_path, change)
    (answer,) = decisions(found, grid["config"])
    assert answer.by == "window_s" and "doubtful" in answer.unranked and WHY in answer.unranked


def test_doubtful_joules_are_in_no_ratio_no_front_and_no_comparison_at_equal_cost(tmp_path):
    grid, found = build(tmp_path, doubtful)
    cells = {row["name"]: row for row in found.cells.iter_rows(named=True)}
    row = cells["single bf16-mixed bs32"]
    assert row["compared_with"] == "single fp32 bs32" and row["time_ratio"] > 0 and row["energy_ratio"] is None
    assert Comparisons(found.runs).ratio(row, cells["single fp32 bs32"], "energy_j") is None
    figure = charts.draw("quality", Results({"config": grid["config"]}, found))
    ((*marks,),) = [data for data in figure.whole().to_dict()["datasets"].values() if len(data) == 4]
    assert {mark["g"].rpartition(" ")[2] for mark in marks} == {"fp32"}
    assert any(
        note.startswith("Without a mark, since their joules are doubtful: single bf16-mixed") for note in figure.notes
    )


def test_methods_with_doubtful_joules_are_compared_at_equal_time(tmp_path):
    def change(row):
        row = synthetic.on_gpus(synthetic.choosing(row))
        for one in row["measurement"]["energy"]:
            if one["energy_j"] is not None and row["spec"]["method"] != "full":
                one["doubt"] = WHY
        return row

    _, found = build(tmp_path, change, axes=synthetic.METHODS)
    comparisons = equal_cost.comparisons(found)
    assert comparisons and all(one.by == "elapsed_s" and WHY in one.unranked for one in comparisons)


def test_the_error_of_the_joules_is_in_tables_and_report(tmp_path):
    grid, found = build(tmp_path, synthetic.on_gpus)
    assert (found.runs["energy_error_j"] / found.runs["energy_j"]).round(6).unique().to_list() == [0.01]
    assert (found.cells["energy_error_j"] / found.cells["energy_j_mean"]).round(6).unique().to_list() == [0.01]
    html = rendered(grid, found)
    assert "at most 1.00 %" in html
    assert "largest error of joules" in html
    assert html.count("±5&nbsp;%") == 1 and "cancels in ratios on\none board" in html


def test_a_device_without_an_error_leaves_the_sum_without_one(tmp_path):
    def change(row):
        row = synthetic.on_gpus(row)
        row["measurement"]["energy"][0]["error_j"] = None
        return row

    _, found = build(tmp_path, change)
    assert found.runs["energy_error_j"].null_count() == found.runs.height
    assert found.runs["energy_j"].null_count() == 0


def on_board(row, index, **state):
    """The same run on one other board, with what its conditions say of it."""
    row = synthetic.on_gpus(row)
    row["environment"]["gpus"] = [synthetic.board(index + i) for i in range(row["spec"]["devices"])]
    for one in row["measurement"]["conditions"]["boards"]:
        one.update(state)
    return row


def flags(found):
    return set(found.runs["flags"].drop_nulls().str.split(", ").explode())


def test_alike_boards_have_no_flag_though_some_runs_take_several(tmp_path):
    _, found = build(tmp_path, lambda row: on_board(row, 0))
    assert found.runs["gpu_uuids"].n_unique() == 2  # one board, and two with it
    assert flags(found) == set()


@pytest.mark.parametrize(
    ("change", "flag", "words"),
    [
        (lambda row: on_board(row, 2 * (row["spec"]["precision"] == "fp32")), "boards_differ", "GPU-0; GPU-2"),
        (lambda row: on_board(row, row["spec"]["repeat"]), "boards_differ", "GPU-1; GPU-2; GPU-3"),
        (
            lambda row: on_board(row, 0, power_limit_w=350.0 * row["spec"]["repeat"]),
            "limits_differ",
            "350 to 1050 W",
        ),
        (
            lambda row: on_board(row, 0, temperature_start_c=35.0 if row["spec"]["precision"] == "fp32" else 72.0),
            "temperatures_differ",
            "35 to 72 °C",
        ),
    ],
)
def test_boards_that_differ_between_compared_runs_are_flagged(tmp_path, change, flag, words):
    _, found = build(tmp_path, change, axes={"strategy": ["single"]})
    assert flags(found) == {flag}
    assert found.runs["flags"].null_count() == 0
    assert all(words in text for text in found.runs["flag_texts"])


def test_boards_of_other_panels_are_no_matter(tmp_path):
    def change(row):
        return on_board(row, 0 if row["spec"]["model"] == "tiny" else 1)

    _, found = build(tmp_path, change, axes={"strategy": ["single"], "model": ["tiny", "other"]})
    assert flags(found) == set()
    assert found.runs.filter(pl.col("panel") != "")["panel"].n_unique() == 2


def test_every_device_has_a_row_with_its_own_error_and_doubt(tmp_path):
    _, found = build(tmp_path, doubtful)
    devices = found.devices
    assert devices.height == sum(n + 1 for n in found.runs["devices"])  # the boards, and the CPU that has no meter
    cpu, boards = (devices.filter(kind=kind) for kind in ("cpu", "gpu"))
    assert not cpu["in_scope"].any() and boards["in_scope"].all()
    assert set(cpu["status"]) == {"unavailable"} and all("no RAPL" in reason for reason in cpu["reason"])
    assert boards["error_j"].null_count() == 0
    assert boards.drop_nulls("doubt").height == 4 * 3 + 2 * 3
    sums = boards.group_by("run", maintain_order=True).agg(pl.col("energy_j", "error_j").sum())
    assert sums["energy_j"].to_list() == pytest.approx(found.runs["energy_j"].to_list())
    assert sums["error_j"].to_list() == pytest.approx(found.runs["energy_error_j"].to_list())


def test_joules_of_boards_that_a_run_on_the_cpu_metered_are_told_apart(tmp_path):
    def change(row):
        boards = [synthetic.energy_row("gpu:0", 100.0), synthetic.energy_row("gpu:1", None, status="unavailable")]
        return synthetic.with_energy(row, *synthetic.no_meter(), *boards)

    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(), change)
    found = aggregate(grid, runs)
    html = rendered(grid, found)
    assert "2.40 kJ (measured, of boards that are in no run&#39;s sum: gpu:0 of 24 runs)" in html
    assert "no run's joules were read" not in html
    assert "GPUs metered" in html
