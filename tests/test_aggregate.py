import json
import subprocess
import sys
import time

import polars as pl
import pytest
import synthetic

from joulesweep import record, tables
from joulesweep.aggregate import aggregate, fingerprint
from joulesweep.errors import UserError
from joulesweep.stats import paired_ratio


@pytest.fixture
def sweep(tmp_path):
    return synthetic.write_sweep(tmp_path, synthetic.raw_config())


def by_name(cells, name):
    rows = cells.filter(pl.col("name") == name).to_dicts()
    assert len(rows) == 1
    return rows[0]


def make(tmp_path, change, **axes):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes), change)
    return aggregate(grid, runs, allow_missing=True)


def test_one_row_per_run_in_the_order_of_the_manifest(sweep):
    grid, runs = sweep
    found = aggregate(grid, runs)
    assert found.runs["run"].to_list() == list(grid["runs"])
    assert found.runs["label"].to_list() == found.runs["name"].to_list()  # nothing else varies
    assert found.cells.height == 8 and found.epochs.height == 24 * 4


def test_numbers_are_those_of_the_record(sweep):
    grid, runs = sweep
    row = aggregate(grid, runs).runs.row(5, named=True)
    found = record.read(runs / row["run"] / "record.json")
    assert row["window_s"] == found["measurement"]["window_s"]
    assert row["peak_host_rss_bytes"] == found["measurement"]["peak_memory"]["host_rss_bytes"]
    assert row["validation_loss"] == found["quality"]["validation_loss"]
    assert row["torch_version"] == "2.9.0" and row["git_dirty"] is False


def test_unmeasured_energy_is_null_with_its_reason(sweep):
    found = aggregate(*sweep)
    assert found.runs["energy_j"].null_count() == found.runs.height
    assert found.runs["energy_status"].unique().to_list() == ["unavailable"]
    assert "no RAPL" in found.runs["energy_reason"][0]
    assert found.cells["energy_j_mean"].null_count() == found.cells.height
    assert found.runs["estimated_energy_j"].min() > 0


def test_no_nan_anywhere(sweep):
    found = aggregate(*sweep)
    for frame in (found.runs, found.cells, found.epochs):
        floats = frame.select(pl.col(pl.Float64))
        assert floats.width and sum(floats.select(pl.all().is_nan().sum()).row(0)) == 0


def test_estimates_only_where_the_config_asks(tmp_path):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(energy={"estimate": False}))
    found = aggregate(grid, runs)
    assert found.runs["estimated_energy_j"].null_count() == found.runs.height
    assert found.epochs["estimated_energy_j"].null_count() == found.epochs.height


def test_measured_and_estimated_stay_apart(tmp_path):
    found = make(tmp_path, lambda row: synthetic.measured(row, watts=50))
    expected = found.runs["window_s"] * 50
    assert (found.runs["energy_j"] - expected).abs().max() < 1e-9
    assert (found.runs["estimated_energy_j"] - expected).abs().min() > 1
    assert found.runs["energy_status"].unique().to_list() == ["measured"]


def energy(rows):
    return lambda row: {**row, "measurement": {**row["measurement"], "energy": rows}}


def test_one_unmeasured_device_makes_the_sum_null(tmp_path):
    rows = [
        synthetic.energy_row("cpu:0", 100.0),
        synthetic.energy_row("cpu:1", None, status="unavailable", reason="permission denied"),
    ]
    runs = make(tmp_path, energy(rows)).runs
    assert runs["energy_j"].null_count() == runs.height
    assert runs["energy_reason"][0] == "cpu:1: permission denied"


def test_only_measured_rows_are_summed(tmp_path):
    rows = [
        synthetic.energy_row("cpu:0", 100.0),
        synthetic.energy_row("dram:0", 7.0),
        synthetic.energy_row("dram:1", 900.0, status="estimated"),
    ]
    runs = make(tmp_path, energy(rows)).runs
    assert runs["energy_j"].unique().to_list() == [107.0]
    assert runs["energy_scope"].unique().to_list() == ["cpu+dram"]


@pytest.mark.parametrize("rows", [[], [synthetic.energy_row("cpu:0", 100.0)]])
def test_a_gpu_run_needs_its_gpu_measured(tmp_path, rows):
    raw = synthetic.raw_config(hardware={"accelerator": "cuda"})
    grid, runs = synthetic.write_sweep(tmp_path, raw, energy(rows))
    found = aggregate(grid, runs).runs
    assert found["energy_j"].null_count() == found.height
    assert found["estimated_energy_j"].null_count() == found.height  # nothing is guessed of a GPU


def test_scopes_are_not_averaged(tmp_path):
    def change(row):
        more = [synthetic.energy_row("dram:0", 5.0)] if row["spec"]["repeat"] == 1 else []
        return energy([synthetic.energy_row("cpu:0", 100.0), *more])(row)

    found = make(tmp_path, change)
    assert found.runs["energy_j"].null_count() == 0
    assert found.cells["energy_j_mean"].null_count() == found.cells.height


def test_environments_are_never_averaged(tmp_path):
    def change(row):
        versions = {**row["environment"]["versions"], "torch": "9.9.9"}
        other = {**row["environment"], "versions": versions}
        return {**row, "environment": other} if row["spec"]["repeat"] == 3 else row

    found = make(tmp_path, change)
    assert found.cells.height == 16
    assert sorted(found.cells["num_ok"].unique()) == [1, 2]
    assert found.cells["panel"].n_unique() == 2
    alone = found.cells.filter(pl.col("num_ok") == 1)
    assert alone["window_s_low"].null_count() == 8
    assert alone["speedup_verdict"].is_in(["baseline", "n=1, no interval"]).all()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"hostname": "node2", "cpu_cores": 64}, True),
        ({"driver": "570.1"}, False),
        ({"cpu_model": "AMD EPYC 9654"}, False),
        ({"gpus": [{"index": 0, "name": "H100", "uuid": "GPU-1", "memory_bytes": 1}]}, False),
    ],
)
def test_fingerprint(change, same):
    assert (fingerprint(synthetic.environment()) == fingerprint(synthetic.environment(**change))) is same


def test_board_identity_does_not_split_cells():
    boards = ([{"index": 0, "name": "H100", "uuid": uuid, "memory_bytes": 1}] for uuid in ("GPU-1", "GPU-2"))
    first, second = (fingerprint(synthetic.environment(gpus=gpus)) for gpus in boards)
    assert first == second


def test_speedup_is_paired_by_seed(sweep):
    found = aggregate(*sweep)
    row = by_name(found.cells, "ddp2 bf16-mixed bs64")
    assert row["baseline"] == "single fp32 bs64" and not row["is_baseline"]
    speeds = {
        name: found.runs.filter(pl.col("name") == name).sort("repeat")["samples_per_s"].to_list()
        for name in ("ddp2 bf16-mixed bs64", "single fp32 bs64")
    }
    expected = paired_ratio(*speeds.values())
    assert (row["speedup"], row["speedup_low"]) == (pytest.approx(expected.ratio), pytest.approx(expected.low))
    assert by_name(found.cells, "single fp32 bs64")["speedup_verdict"] == "baseline"


def test_pairs_are_the_common_seeds(tmp_path):
    def change(row):
        lost = (row["spec"]["strategy"], row["spec"]["repeat"]) in {("single", 1), ("ddp", 2)}
        return None if lost else row

    found = make(tmp_path, change)
    assert by_name(found.cells, "ddp2 fp32 bs32")["speedup_n"] == 1


def test_per_device_cells_have_the_single_device_baseline(tmp_path):
    found = make(tmp_path, lambda row: row, batch_size_scope=["per_device"])
    assert by_name(found.cells, "ddp2 fp32 bs32/device")["baseline"] == "single fp32 bs32"


def test_missing_is_refused_by_name_or_a_row(tmp_path):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config())
    lost = next(iter(grid["runs"]))
    (runs / lost / "record.json").unlink()
    with pytest.raises(UserError, match=lost):
        aggregate(grid, runs)
    found = aggregate(grid, runs, allow_missing=True)
    assert found.runs["status"].to_list().count("missing") == 1
    assert found.runs.row(0, named=True)["window_s"] is None
    assert found.cells.row(0, named=True)["statuses"] == "1 missing, 2 ok"


def test_failed_runs_are_rows(tmp_path):
    found = make(tmp_path, lambda row: synthetic.failed(row, "oom", "asked for 2 GiB"))
    assert found.runs["status"].unique().to_list() == ["oom"]
    assert found.runs["oom_bytes"].unique().to_list() == [2**31]
    assert found.cells.height == 8 and found.cells["num_ok"].sum() == 0
    assert found.epochs.is_empty()


def test_types_do_not_depend_on_the_data(tmp_path, sweep):
    full = aggregate(*sweep)
    none = make(tmp_path / "none", lambda row: None)
    for name in ("runs", "cells", "epochs"):
        assert getattr(full, name).schema == getattr(none, name).schema


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "corrupt"),
        (lambda text: text.replace("joulesweep-record", "something-else"), "not a run record"),
        (lambda text: json.dumps({**json.loads(text), "spec": {**json.loads(text)["spec"], "lr": 0.5}}), "foreign"),
        (lambda text: json.dumps({**json.loads(text), "measurement": {}}), "corrupt"),
        (lambda text: json.dumps({**json.loads(text), "measurement": None}), "corrupt"),
        (lambda text: json.dumps({**json.loads(text), "epochs": [{"epoch": "one"}]}), "corrupt"),
        (lambda text: text.replace('"window_s": ', '"window_s": NaN, "was": '), "corrupt"),
        (lambda text: text.replace('"window_s": ', '"window_s": "fast", "was": '), "corrupt"),
    ],
)
def test_a_bad_record_is_refused_by_name(sweep, damage, words):
    grid, runs = sweep
    path = runs / list(grid["runs"])[3] / "record.json"
    path.write_text(damage(path.read_text()))
    for allow_missing in (False, True):
        with pytest.raises(UserError, match=words) as caught:
            aggregate(grid, runs, allow_missing)
        assert str(path) in str(caught.value)


def test_folders_beside_the_grid_are_ignored(sweep):
    grid, runs = sweep
    (runs / "old-run").mkdir()
    (runs / "old-run" / "record.json").write_text("{}")
    assert aggregate(grid, runs).runs.height == 24


def test_method_parameters_make_distinct_names(tmp_path):
    methods = ["full", {"freeze-bottom": {"fraction": 0.5}}, {"freeze-bottom": {"fraction": 0.25}}]
    found = make(tmp_path, lambda row: row, method=methods, batch_size=[32], lr=[1e-3, 1e-4])
    assert found.cells["name"].n_unique() == found.cells.height
    row = by_name(found.cells, "freeze-bottom fraction=0.25 ddp2 fp32 lr0.001 bs32")
    assert row["baseline"] == "freeze-bottom fraction=0.25 single fp32 lr0.001 bs32"


def test_written_bytes_are_the_same_twice_and_read_back(tmp_path, sweep):
    found = aggregate(*sweep)
    for folder in ("a", "b"):
        tables.write(found, tmp_path / folder)
    for name in ("runs", "cells", "epochs"):
        first, second = (tmp_path / folder / f"{name}.parquet" for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        assert getattr(tables.read(tmp_path / "a"), name).equals(getattr(found, name))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "cells.parquet",
        "epochs.parquet",
        "runs.parquet",
    ]


def test_script_tells_a_user_error_in_one_line(tmp_path, sweep):
    grid, runs = sweep
    path = runs / next(iter(grid["runs"])) / "record.json"
    path.write_text("{")
    arguments = ["--grid", str(tmp_path / "grid.json"), "--runs", str(runs), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "scripts.aggregate", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_thousand_runs_take_seconds(tmp_path):
    axes = {"batch_size": list(range(2, 52, 2)), "repeats": 10}
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes))
    assert len(grid["runs"]) == 1000
    start = time.process_time()
    aggregate(grid, runs)
    assert time.process_time() - start < 5
