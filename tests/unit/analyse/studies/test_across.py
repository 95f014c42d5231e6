"""Two sweeps are compared cell by cell: what is the same is found, and nothing is averaged over hosts."""

from __future__ import annotations

import math
import random
import re

import polars as pl
import pytest
import synthetic
from scipy import stats

from joulesweep.analyse import collect, tables
from joulesweep.analyse.studies import across
from joulesweep.core.errors import UserError

CUDA = {"hardware": {"accelerator": "cuda"}, "energy": {}}
SMALL = {"strategy": ["single"], "batch_size": [32]}


def sweep(folder, change=synthetic.on_gpus, axes=None, **sections):
    """The folder of a sweep whose tables are written."""
    raw = synthetic.raw_config({**SMALL, **(axes or {})}, **{**CUDA, **sections})
    tables.write(collect.aggregate(*synthetic.write_sweep(folder, raw, change)), folder / "tables")
    return folder


def compared(a, b):
    return across.compare(across.read(a), across.read(b))


def slower(row, factor=1.2, uuid="GPU-7"):
    """The same run on another host, whose board is slower and draws as much."""
    row = synthetic.on_gpus(row, uuid=uuid)
    measurement = dict(row["measurement"])
    for key in ("window_s", "total_window_s"):
        measurement[key] *= factor
    measurement["energy"] = [
        {**one, **{key: one[key] and factor * one[key] for key in ("energy_j", "total_energy_j")}}
        for one in measurement["energy"]
    ]
    boards = [{**board, "uuid": uuid} for board in row["environment"]["gpus"]]
    return {**row, "measurement": measurement, "environment": {**row["environment"], "hostname": "n2", "gpus": boards}}


def test_the_same_sweep_on_two_hosts_has_every_cell_matched(tmp_path):
    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b", slower))
    assert [match.name for match in found.matches] == ["single fp32 bs32", "single bf16-mixed bs32"]
    assert {match.by for match in found.matches} == {"cell"} and found.unmatched == []
    for match in found.matches:
        assert match.time.ratio.ratio == pytest.approx(1.2)
        assert match.energy.ratio.ratio == pytest.approx(1.2)
        assert match.memory.ratio.ratio == 1
        assert match.n == (3, 3)


def test_loss_is_paired_by_seed_and_time_is_not(tmp_path):
    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b", slower))
    for match in found.matches:
        assert (match.loss.ratio.low, match.loss.ratio.high) == (1, 1), "the same losses, seed by seed"
        assert match.time.ratio.low < 1.2 < match.time.ratio.high, "the same factor, but seeds spread on both hosts"


def test_only_common_seeds_are_paired(tmp_path):
    found = compared(sweep(tmp_path / "a", axes={"repeats": 2}), sweep(tmp_path / "b", slower))
    assert {match.loss.ratio.n for match in found.matches} == {2}
    assert {match.n for match in found.matches} == {(2, 3)}


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5)])
def test_the_unpaired_interval_is_scipys_welch_on_logs(sizes):
    a, b = [1.0, 1.3, 0.9, 1.1, 1.2][: sizes[0]], [2.0, 2.2, 1.7, 2.6, 2.1][: sizes[1]]
    ratio = across.unpaired_ratio(a, b)
    logs = [[math.log(value) for value in values] for values in (a, b)]
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert (math.log(ratio.low), math.log(ratio.high)) == pytest.approx((interval.low, interval.high))
    assert math.log(ratio.ratio) == pytest.approx(sum(logs[0]) / sizes[0] - sum(logs[1]) / sizes[1])
    assert ratio.verdict == ("lower" if interval.high < 0 else "no difference shown")


def test_equal_values_have_an_interval_of_no_width():
    ratio = across.unpaired_ratio([2.0, 2.0], [1.0, 1.0])
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2, 2, 2))


def test_a_single_run_has_no_interval(tmp_path):
    found = compared(sweep(tmp_path / "a", axes={"repeats": 1}), sweep(tmp_path / "b", slower))
    assert {(match.time.ratio.low, match.time.ratio.verdict) for match in found.matches} == {(None, "n=1, no interval")}


def test_what_two_sensors_may_have_made_is_not_beyond_them(tmp_path):
    def little(row):
        return slower(row, 1.08)

    def double(row):
        return slower(row, 2.0)

    steady = sweep(tmp_path / "a", steadied())
    small, large = (
        compared(steady, sweep(tmp_path / f"b{i}", steadied(one))) for i, one in enumerate((little, double))
    )
    assert {match.energy.ratio.verdict for match in (*small.matches, *large.matches)} == {"higher"}
    assert {match.energy.beyond_sensors for match in small.matches} == {False}
    assert {match.energy.beyond_sensors for match in large.matches} == {True}
    assert any("0.90 and 1.11" in note for note in across.notes(small))


def steadied(change=synthetic.on_gpus):
    """A change after which seeds do not spread."""

    def change_(row):
        window_s = 20.0 if row["spec"]["precision"] == "fp32" else 10.0
        row = {**row, "measurement": {**row["measurement"], "window_s": window_s, "total_window_s": window_s}}
        row = change(row)
        energy = [
            {**one, "energy_j": one["energy_j"] and 350.0 * row["measurement"]["window_s"]}
            for one in row["measurement"]["energy"]
        ]
        return {**row, "measurement": {**row["measurement"], "energy": energy}}

    return change_


def test_on_one_board_the_sensor_cancels(tmp_path):
    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b"))
    assert {match.energy.beyond_sensors for match in found.matches} == {None}
    assert not any("sensor" in note for note in across.notes(found))


def test_cells_of_one_side_alone_are_listed_with_why(tmp_path):
    a = sweep(tmp_path / "a", axes={"batch_size": [32, 64]})
    b = sweep(tmp_path / "b", slower, axes={"precision": ["fp32", "fp16-mixed"]})
    found = compared(a, b)
    assert [match.name for match in found.matches] == ["single fp32 bs32"]
    assert {(one.side, one.name, one.why) for one in found.unmatched} == {
        ("A", "single fp32 bs64", "not in B"),
        ("A", "single bf16-mixed bs32", "not in B"),
        ("A", "single bf16-mixed bs64", "not in B"),
        ("B", "single fp16-mixed bs32", "not in A"),
    }


def test_a_cell_that_did_not_finish_says_what_became_of_it(tmp_path):
    def change(row):
        is_fp32 = row["spec"]["precision"] == "fp32"
        return synthetic.failed(row, "oom", "asked for 2 GiB") if is_fp32 else slower(row)

    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b", change))
    assert [(one.name, one.why) for one in found.unmatched] == [("single fp32 bs32", "no finished run in B: 3 oom")]
    assert len(found.matches) == 1


def test_two_boards_of_one_sweep_are_compared_apart(tmp_path):
    def mixed(row):
        row = slower(row)
        if row["spec"]["repeat"] == 3:
            boards = [{**board, "name": "NVIDIA A30"} for board in row["environment"]["gpus"]]
            row = {**row, "environment": {**row["environment"], "gpus": boards}}
        return row

    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b", mixed, axes={"precision": ["fp32"]}))
    assert [(match.environments, match.n) for match in found.matches] == [
        (("NVIDIA H200", "NVIDIA H200"), (3, 2)),
        (("NVIDIA H200", "NVIDIA A30"), (3, 1)),
    ]


def test_other_settings_are_matched_by_axes_and_marked(tmp_path):
    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b", slower, train={"epochs": 4}))
    assert {match.by for match in found.matches} == {"axes"} and len(found.matches) == 2
    assert any("only the axes are the same" in note for note in across.notes(found))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: synthetic.on_gpus(row, status="integrated"), "B: integrated, not measured"),
        (lambda row: synthetic.on_gpus(row, doubt="idle is high"), "B: doubtful: gpu:0: idle is high"),
        (lambda row: row, "B: the record names no energy meter"),
    ],
)
def test_joules_are_compared_only_where_both_are_measured(tmp_path, change, words):
    found = compared(sweep(tmp_path / "a"), sweep(tmp_path / "b", change))
    for match in found.matches:
        assert match.energy.ratio is None and re.search(words, match.energy.reason)
        assert match.time.ratio is not None
    assert any("No ratio of energy of 2 of 2" in note for note in across.notes(found))


def test_memory_of_a_gpu_is_not_compared_with_that_of_a_host(tmp_path):
    b = sweep(tmp_path / "b", synthetic.measured, hardware={"accelerator": "cpu"})
    found = compared(sweep(tmp_path / "a"), b)
    assert {match.memory.reason for match in found.matches} == {"memory of a GPU is not that of a host"}
    assert {match.energy.reason for match in found.matches} == {"scopes differ: gpu in A, cpu in B"}


@pytest.mark.parametrize("kind", ["absent", "text", "older"])
def test_what_is_no_sweep_is_refused_in_a_line(tmp_path, kind):
    path = tmp_path / "runs.parquet"
    if kind == "text":
        path.write_text("run,cell")
    elif kind == "older":
        pl.DataFrame({"run": ["a"]}).write_parquet(path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as caught:
        across.read(tmp_path)
    assert "\n" not in str(caught.value)


def scaled(folder, factor, uuid, gpu):
    """A sweep on a host of its own, whose boards take so much more; its seeds hardly spread."""

    def change(row):
        own = random.Random(f"{row['run']} {gpu}").gauss(0, 0.003)
        row = steadied(lambda one: slower(one, 1.0, uuid))(row)
        energy = [
            {**one, "energy_j": one["energy_j"] and one["energy_j"] * factor * math.exp(own)}
            for one in row["measurement"]["energy"]
        ]
        boards = [{**board, "name": gpu} for board in row["environment"]["gpus"]]
        return {
            **row,
            "measurement": {**row["measurement"], "energy": energy},
            "environment": {**row["environment"], "gpus": boards},
        }

    return sweep(folder, change)


def words(*folders):
    return across.fewest_words([across.read(folder, name) for folder, name in zip(folders, "ABC", strict=False)])


def test_the_side_with_the_fewest_joules_is_named_against_each_other(tmp_path):
    a, b, c = (
        scaled(tmp_path / name, factor, f"GPU-{name}", f"NVIDIA {name}")
        for name, factor in (("A30", 2.0), ("H200", 1.0), ("L4", 1.06))
    )
    text = words(a, b, c)
    assert text.startswith("B takes") is False, "only sensors may tell it from C"
    assert text.startswith("B may take the fewest joules: fewer than A in 2 of 2 configurations (× 0.")
    assert "fewer than C in 0 of 2 configurations, in 2 (× 0.94" in text and "may have made" in text
    assert words(a, b).startswith("B takes the fewest measured joules: fewer than A in 2 of 2")
    assert words(b, a).startswith("A takes the fewest measured joules: fewer than B in 2 of 2")


def test_equal_sides_have_no_winner(tmp_path):
    a, b = (scaled(tmp_path / name, 1.0, f"GPU-{name}", name) for name in ("A30", "L4"))
    text = words(a, b)
    assert "may take the fewest joules" in text and "in 0 of 2" in text and "fewer is not shown" in text


def test_without_joules_on_each_side_none_takes_the_fewest(tmp_path):
    a, b = sweep(tmp_path / "a"), sweep(tmp_path / "b", lambda row: row)
    assert words(a, b).startswith("Which takes the fewest joules cannot be told")
