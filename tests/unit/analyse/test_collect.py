import json
import math
import re
import subprocess
import sys

import polars as pl
import pytest
import synthetic
import tiers
import tiny_run
import yaml
from pages import rendered

from joulesweep.analyse import columns, tables
from joulesweep.analyse.collect import aggregate
from joulesweep.analyse.statistics import paired_ratio
from joulesweep.core import files
from joulesweep.runs import record

GAIN = tiny_run.REPOSITORY / "config" / "gain.yaml"


@pytest.fixture
def sweep(tmp_path):
    return synthetic.write_sweep(tmp_path, synthetic.raw_config())


@pytest.fixture
def small(tmp_path):
    """Six runs of two cells."""
    return synthetic.write_sweep(tmp_path, synthetic.raw_config({"strategy": ["single"], "batch_size": [32]}))


def by_name(cells, name):
    rows = cells.filter(pl.col("name") == name).to_dicts()
    assert len(rows) == 1
    return rows[0]


def make(tmp_path, change, **axes):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes), change)
    return aggregate(grid, runs)


def test_one_row_per_run_in_the_order_of_the_manifest(sweep):
    grid, runs = sweep
    found = aggregate(grid, runs)
    assert found.runs["run"].to_list() == list(grid["runs"])
    assert found.runs["label"].to_list() == found.runs["name"].to_list()  # nothing else varies
    assert found.cells.height == 8 and found.epochs.height == 24 * 4


def test_numbers_are_those_of_the_record(sweep):
    grid, runs = sweep
    row = aggregate(grid, runs).runs.row(5, named=True)
    found = files.read_json(runs / row["run"] / "record.json", "record")
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
    for name in tables.NAMES:
        frame = getattr(found, name)
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


def change_of(rows):
    return lambda row: synthetic.with_energy(row, *rows)


def test_one_unmeasured_device_makes_the_sum_null(tmp_path):
    rows = [
        synthetic.energy_row("cpu:0", 100.0),
        synthetic.energy_row("cpu:1", None, status="unavailable", reason="permission denied"),
    ]
    runs = make(tmp_path, change_of(rows)).runs
    assert runs["energy_j"].null_count() == runs.height
    assert runs["energy_reason"][0] == "cpu:1: permission denied"


@pytest.mark.parametrize("rows", [[], [synthetic.energy_row("cpu:0", 100.0)]])
def test_a_gpu_run_needs_its_gpu_measured(tmp_path, rows):
    raw = synthetic.raw_config(hardware={"accelerator": "cuda"})
    grid, runs = synthetic.write_sweep(tmp_path, raw, change_of(rows))
    found = aggregate(grid, runs).runs
    assert found["energy_j"].null_count() == found.height
    assert found["estimated_energy_j"].null_count() == found.height  # nothing is guessed of a GPU


@pytest.mark.parametrize("other", [{"device": "dram:0", "joules": 5.0}, {"status": "integrated"}])
def test_repeats_of_different_scope_or_status_are_not_averaged(tmp_path, other):
    def change(row):
        first = row["spec"]["repeat"] == 1
        main = synthetic.energy_row("cpu:0", 100.0, status=other.get("status", "measured") if first else "measured")
        dram = [synthetic.energy_row("dram:0", 5.0)] if first and "device" in other else []
        return synthetic.with_energy(row, main, *dram)

    found = make(tmp_path, change)
    assert found.runs["energy_j"].null_count() == 0
    for end in ("mean", "low", "high"):
        assert found.cells[f"energy_j_{end}"].null_count() == found.cells.height
    assert found.cells["energy_scope"][0] == ("cpu+dram, cpu" if "device" in other else "cpu")
    assert found.cells["energy_status"][0] == ("measured" if "device" in other else "integrated, measured")


def test_a_gpu_sweep(tmp_path):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(**synthetic.GPU_CONFIG), synthetic.on_gpus)
    found = aggregate(grid, runs)
    for row in found.runs.iter_rows(named=True):
        measurement = files.read_json(runs / row["run"] / "record.json", "record")["measurement"]
        boards = [one for one in measurement["energy"] if one["kind"] == "gpu"]
        assert len(boards) == row["devices"]
        assert row["energy_j"] == pytest.approx(sum(one["energy_j"] for one in boards))
        assert row["net_energy_j"] == pytest.approx(row["energy_j"] - row["idle_w"] * row["window_s"])
        assert row["total_energy_j"] == pytest.approx(row["energy_j"] * row["num_passes"])
        assert (row["energy_scope"], row["energy_status"], row["energy_tick_s"]) == ("gpu", "measured", 0.1)
        assert row["total_window_s"] >= 30 and row["idle_w"] == 90.0 * row["devices"]
        overhead = measurement["overhead"]
        share = (overhead["meter_s"] + overhead["trace_cpu_s"]) / measurement["total_window_s"]
        assert row["meter_overhead_fraction"] == pytest.approx(share)
    row = found.runs.filter(pl.col("devices") == 2).row(0, named=True)
    assert (row["temperature_start_c"], row["temperature_end_c"], row["sm_clock_mean_mhz"]) == (36.0, 62.0, 1940.0)
    assert (row["gpus"], row["gpu_uuids"], row["throttle_reasons"]) == ("NVIDIA H200", "GPU-0, GPU-1", None)
    assert (row["cooldown_s"], row["settled"], row["idle_s"], row["exclusive"]) == (12.0, True, 5.0, "gpu")
    assert found.cells["energy_j_mean"].null_count() == 0 == found.cells["net_energy_j_mean"].null_count()
    assert found.cells["panel"].unique().to_list() == [""]  # one board and two are one environment


def test_epochs_have_cumulative_joules_where_the_run_has(tmp_path):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(**synthetic.GPU_CONFIG), synthetic.on_gpus)
    epochs = aggregate(grid, runs).epochs
    untrained, trained = epochs.filter(epoch=0), epochs.filter(pl.col("epoch") > 0)
    assert untrained["energy_j"].null_count() == untrained.height
    assert untrained["energy_reason"].unique().to_list() == ["nothing trained yet"]
    assert trained["energy_j"].null_count() == 0 and trained["energy_reason"].count() == 0
    assert trained["energy_status"].unique().to_list() == ["integrated"]
    assert trained["energy_scope"].unique().to_list() == ["gpu"]


def test_nothing_is_estimated_of_the_untrained_model(sweep):
    epochs = aggregate(*sweep).epochs
    untrained, trained = epochs.filter(epoch=0), epochs.filter(pl.col("epoch") > 0)
    for column in columns.ESTIMATED:
        assert untrained[column].count() == 0 and trained[column].min() > 0


@pytest.mark.parametrize("exclusive", ["gpu", "none"])
def test_a_cpu_run_with_neighbours_has_no_joules_and_says_why(tmp_path, exclusive):
    def change(row):
        row = synthetic.measured(row)
        read = {"device": "cpu:0", "energy_j": 5.0, "status": "integrated", "reason": None}
        epochs = [{**epoch, "energy": [read]} for epoch in row["epochs"]]
        conditions = synthetic.conditions(exclusive=exclusive)
        return {**row, "epochs": epochs, "measurement": {**row["measurement"], "conditions": conditions}}

    found = make(tmp_path, change)
    assert found.runs["energy_j"].count() == found.runs["energy_scope"].count() == found.cells["energy_j_mean"].count()
    assert found.runs["energy_j"].count() == 0 == found.epochs["energy_j"].count()
    assert found.runs["energy_reason"].str.starts_with(f"measure.exclusive is {exclusive}: ").all()
    assert found.epochs["energy_reason"].unique().to_list() == ["the run has no joules"]


def test_emissions_and_cost_are_of_joules_that_were_read(tmp_path):
    carbon = {"g_per_kwh": 360.0, "source": "my contract, 2025"}
    energy = {"estimate": True, "carbon": carbon, "price_per_kwh": 0.36, "currency": "EUR", "pue": 2.0}

    def change(row):
        return row if row["spec"]["precision"] == "fp32" else synthetic.measured(row)

    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(energy=energy), change)
    found = aggregate(grid, runs)
    read, guessed = (found.runs.filter(pl.col("energy_j").is_null() == missing) for missing in (False, True))
    assert len(read) and len(guessed)
    assert read["co2e_g"].to_list() == pytest.approx((read["energy_j"] / 3.6e6 * 2 * 360).to_list())
    assert read["cost"].to_list() == pytest.approx((read["energy_j"] / 3.6e6 * 2 * 0.36).to_list())
    assert guessed["co2e_g"].count() == 0 == guessed["cost"].count()
    expected = (found.runs["estimated_energy_j"] / 3.6e6 * 2 * 360).to_list()
    assert found.runs["estimated_co2e_g"].to_list() == pytest.approx(expected)
    assert found.cells["co2e_g_mean"].count() == 4 and found.cells["estimated_co2e_g"].null_count() == 0


def test_no_emissions_unless_asked(tmp_path):
    found = make(tmp_path, synthetic.measured)
    for column in ("co2e_g", "cost", "estimated_co2e_g"):
        assert found.runs[column].count() == 0


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


def test_speedup_is_paired_by_seed(sweep):
    found = aggregate(*sweep)
    row = by_name(found.cells, "ddp2 bf16-mixed bs64")
    assert row["baseline"] == "single fp32 bs64" and not row["is_baseline"]
    speeds = {
        name: found.runs.filter(pl.col("name") == name).sort("repeat")["samples_per_s"].to_list()
        for name in ("ddp2 bf16-mixed bs64", "single fp32 bs64")
    }
    alone = paired_ratio(*speeds.values())
    assert row["speedup"] == pytest.approx(alone.ratio)
    assert alone.low < row["speedup_low"] < row["speedup"] < row["speedup_high"] < alone.high, "8 cells tell the noise"
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


def test_missing_is_a_row(tmp_path):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config())
    lost = next(iter(grid["runs"]))
    (runs / lost / "record.json").unlink()
    found = aggregate(grid, runs)
    assert found.runs["status"].to_list().count("missing") == 1
    assert found.runs.row(0, named=True)["window_s"] is None
    assert found.cells.row(0, named=True)["statuses"] == "1 missing, 2 ok"


def test_choices_are_rows_with_the_names_of_their_runs(tmp_path):
    found = make(tmp_path, synthetic.choosing, **synthetic.METHODS)
    choosing = found.runs.filter(pl.col("method") != "full")
    assert found.selections["run"].unique(maintain_order=True).to_list() == choosing["run"].to_list()
    assert found.selections["epoch"].to_list() == [1, 3] * choosing.height
    for column in ("cell", "name", "setup", "panel", "batch", "environment", "batch_size", "repeat"):
        assert found.selections.unique("run", maintain_order=True)[column].to_list() == choosing[column].to_list()


def test_failed_runs_are_rows(tmp_path):
    found = make(tmp_path, lambda row: synthetic.failed(row, "oom", "asked for 2 GiB"))
    assert found.runs["status"].unique().to_list() == ["oom"]
    assert found.runs["oom_bytes"].unique().to_list() == [2**31]
    assert found.cells.height == 8 and found.cells["num_ok"].sum() == 0
    assert found.epochs.is_empty() and found.selections.is_empty()


def test_types_do_not_depend_on_the_data(tmp_path, sweep):
    full = aggregate(*sweep)
    none = make(tmp_path / "none", lambda row: None)
    for name in tables.NAMES:
        assert getattr(full, name).schema == getattr(none, name).schema


@pytest.mark.parametrize(
    ("damage", "words"),
    tiers.first(
        15,
        [
            (lambda text: text[: len(text) // 2], "corrupt"),
            (lambda text: text.replace("joulesweep-record", "something-else"), "not a run record"),
            (lambda text: json.dumps({**json.loads(text), "spec": {**json.loads(text)["spec"], "lr": 0.5}}), "foreign"),
            (lambda text: json.dumps({**json.loads(text), "measurement": {}}), "corrupt"),
            (lambda text: json.dumps({**json.loads(text), "measurement": None}), "corrupt"),
            (lambda text: json.dumps({**json.loads(text), "epochs": [{"epoch": "one"}]}), "corrupt"),
            (
                lambda text: text.replace('"version": 3', '"version": 2'),
                "record version 2; this Joulesweep reads version 3",
            ),
            (lambda text: text.replace('"window_s": ', '"window_s": NaN, "was": '), "corrupt"),
            (lambda text: text.replace('"flags": []', '"flags": [{"flag": "throttled"}]'), "corrupt"),
            (lambda text: text.replace('"flags": []', '"flags": null'), "corrupt"),
            (lambda text: text.replace('"kind": "cpu"', '"sort": "cpu"'), "corrupt"),
            (lambda text: text.replace('"energy": []', '"was": []'), "corrupt"),
            (lambda text: text.replace('"energy": []', '"energy": [{"device": "cpu:0"}, 3]'), "corrupt"),
            (lambda text: text.replace('"window_s": ', '"window_s": "fast", "was": '), "corrupt"),
            (lambda text: text.replace('"kind": "training"', '"kind": "training", "chosen": 3'), "corrupt"),
            (lambda text: text.replace('"window_s": ', '"window_s": 1e999, "was": '), "corrupt"),
            (lambda text: text.replace('"window_s": ', '"window_s": 1e301, "was": '), "corrupt"),
            (lambda text: text.replace('"window_s": ', '"window_s": -1.0, "was": '), "corrupt"),
            (lambda text: text.replace('"num_steps": ', f'"num_steps": {10**400}, "was": '), "corrupt"),
            (lambda text: text.replace('"num_steps": ', f'"num_steps": {2**63}, "was": '), "corrupt"),
            (lambda text: text.replace('"window_s": ', f'"window_s": {10**400}, "was": '), "corrupt"),
            (lambda text: text.replace('"window_s": ', f'"window_s": {"9" * 5000}, "was": '), "corrupt"),
            (lambda text: text.replace('"cpu_model": ', '"cpu_model": ["x"], "was": '), "corrupt"),
            (lambda text: text.replace('"flags": []', '"flags": [{"flag": "a, b", "text": "c"}]'), "corrupt"),
            (lambda text: text.replace('"measurement": ', '"measurement": [], "was": '), "corrupt"),
            (lambda text: text.replace('"spec": ', '"spec": 3, "was": '), "corrupt"),
            (lambda text: "[" * 100_000, "too many levels"),
            (lambda text: text.encode("utf-16").decode("utf-8", "replace"), "corrupt"),
            (lambda text: "", "corrupt"),
            (lambda text: '{"format": "joulesweep-record", "version": "a\\nb"}', "record version"),
        ],
    ),
)
def test_a_bad_record_is_a_row_that_names_it_and_costs_its_own_numbers_alone(small, damage, words):
    grid, runs = small
    run = list(grid["runs"])[3]
    path = runs / run / "record.json"
    before = aggregate(grid, runs)
    path.write_text(damage(path.read_text()))
    lost = []
    found = aggregate(grid, runs, lost=lost.append)
    row = found.runs.filter(run=run).row(0, named=True)
    assert row["status"] == "unreadable" and row["window_s"] is None
    assert str(path) in row["reason"] and re.search(words, row["reason"])
    assert "\n" not in row["reason"] and len(row["reason"]) < 1000
    assert lost == ([] if "version" in words else [path])
    others = pl.col("run") != run
    assert found.runs.filter(others).equals(before.runs.filter(others))
    assert found.cells.height == before.cells.height
    page = rendered(grid, found)
    assert "1 unreadable" in page and run.split("-")[0] in page


@pytest.mark.parametrize("name", ["power.jsonl", "summaries.jsonl"])
@pytest.mark.parametrize("text", ["{", '{"t_s": 1e999, "device": "a"}', "[" * 100_000, "\x00", '{"text": 1}', "7"])
def test_a_bad_file_beside_a_record_is_a_flag_and_the_numbers_stay(small, name, text):
    grid, runs = small
    run = list(grid["runs"])[3]
    before = aggregate(grid, runs).runs.filter(run=run).row(0, named=True)
    path = runs / run / name
    path.write_text(text)
    lost = []
    row = aggregate(grid, runs, lost=lost.append).runs.filter(run=run).row(0, named=True)
    assert lost == [path]
    assert row["flags"] == "unreadable_file" and str(path) in row["flag_texts"]
    assert {**row, "flags": None, "flag_texts": None} == before


@pytest.mark.parametrize("loss", [402.0, 455.0, 521.0, 1e299])
def test_huge_losses_have_means_and_intervals(tmp_path, loss):
    def change(row):
        if row["spec"]["precision"] == "fp32":
            own = loss * (1 + row["spec"]["repeat"] / 10)
            row["quality"] |= {"validation_loss": own, "perplexity": math.exp(own) if own < 690 else None}
        return row

    found = make(tmp_path, change)
    huge = by_name(found.cells, "single fp32 bs32")
    assert huge["validation_loss_mean"] == pytest.approx(loss * 1.2)
    assert huge["validation_loss_low"] < huge["validation_loss_mean"] < huge["validation_loss_high"] < math.inf
    if loss < 600:
        assert huge["perplexity_mean"] == pytest.approx(math.exp(loss * 1.3) / 3)
        assert 0 < huge["perplexity_low"] < huge["perplexity_mean"] < huge["perplexity_high"] < math.inf
    assert by_name(found.cells, "single bf16-mixed bs32")["validation_loss_mean"] < 10


def test_folders_beside_the_grid_are_ignored(sweep):
    grid, runs = sweep
    (runs / "old-run").mkdir()
    (runs / "old-run" / "record.json").write_text("{}")
    assert aggregate(grid, runs).runs.height == 24


def gain(tmp_path, **axes):
    """The grid of config/gain.yaml with synthetic names, and its cells by name."""
    shipped = yaml.safe_load(GAIN.read_text(encoding="utf-8"))["grid"]
    names = {"model": ["tiny"], "dataset": ["questions"], "strategy": ["single"]}
    found = make(tmp_path, lambda row: row, **{**shipped, **names, **axes})
    return {row["name"]: row for row in found.cells.iter_rows(named=True)}


def test_a_sweep_of_how_a_step_is_laid_out_is_compared_with_its_first_way(tmp_path):
    cells = gain(tmp_path)
    assert len(cells) == 6
    assert {row["baseline"] for row in cells.values()} == {"single fp32 fixed dense-head bs32"}
    packed = cells["single fp32 packed masked-head bs32"]
    assert (packed["is_baseline"], packed["speedup_n"]) == (False, 3) and packed["speedup"] > 0


def test_what_is_trained_is_the_same_in_a_cell_and_its_baseline(tmp_path):
    axes = {"engine": ["eager", "compile"], "checkpoint_activations": [True, False], "lr": [1e-3, 1e-4]}
    cells = gain(tmp_path, **axes, precision=["fp32", "bf16-mixed"], batch_size=[16, 32])
    assert len(cells) == 6 * 2 * 2 * 2 * 2 * 2
    for name, row in cells.items():
        rate, batch = name.split()[-2:]
        assert row["baseline"] == f"single fp32 fixed dense-head eager checkpointed {rate} {batch}"


@pytest.mark.parametrize("strategies", [["single", "ddp"], ["ddp", "single"]])
@pytest.mark.parametrize("sizes", [[16], [16, None], [16, 4]])
def test_a_batch_too_small_for_the_first_micro_batch_has_or_is_the_baseline(tmp_path, strategies, sizes):
    cells = gain(tmp_path, strategy=strategies, micro_batch_size=sizes, batch_size=[16, 32])
    first = "ddp2" if strategies[0] == "ddp" else "single"
    wholes = {"bs16": " whole", "bs32": " whole" if first == "ddp2" else " micro16"}
    for name, row in cells.items():
        batch = name.split()[-1]
        assert row["baseline"] == f"{first} fp32 fixed dense-head{wholes[batch]} {batch}"


def test_a_baseline_that_did_not_finish_is_replaced_by_one_with_its_name(tmp_path):
    def change(row):
        first = (row["spec"]["batching"], row["spec"]["batch_size"]) == ("fixed", 64)
        return synthetic.failed(row, "oom", "full") if first else row

    axes = {"strategy": ["single"], "precision": ["fp32"], "batching": ["fixed", "dynamic", "packed"]}
    cells = {row["name"]: row for row in make(tmp_path, change, **axes).cells.iter_rows(named=True)}
    packed = cells["single fp32 packed bs64"]
    assert packed["baseline"] == "single fp32 dynamic bs64" and packed["speedup"] is not None
    assert packed["baseline_why"] == "single fp32 fixed bs64 ran out of memory"
    assert cells["single fp32 packed bs32"]["baseline_why"] is None
    assert cells["single fp32 fixed bs64"]["speedup"] is None


def test_how_a_step_is_laid_out_makes_distinct_names(tmp_path):
    cells = gain(tmp_path, precision=["fp32", "bf16-mixed"], micro_batch_size=[None, 8])
    assert len(cells) == 24 and cells["single bf16-mixed fixed dense-head micro8 bs32"]["micro_batch_size"] == 8
    assert cells["single fp32 packed masked-head whole bs32"]["micro_batch_size"] is None


def test_method_parameters_make_distinct_names(tmp_path):
    methods = ["full", {"freeze-bottom": {"fraction": 0.5}}, {"freeze-bottom": {"fraction": 0.25}}]
    found = make(tmp_path, lambda row: row, method=methods, batch_size=[32], lr=[1e-3, 1e-4])
    assert found.cells["name"].n_unique() == found.cells.height
    row = by_name(found.cells, "freeze-bottom fraction=0.25 ddp2 fp32 lr0.001 bs32")
    assert row["baseline"] == "single fp32 lr0.001 bs32"  # what a method gains is over the first method
    assert set(found.cells["baseline"]) == {"single fp32 lr0.001 bs32", "single fp32 lr0.0001 bs32"}


def test_written_bytes_are_the_same_twice_and_read_back(tmp_path, sweep):
    found = aggregate(*sweep)
    for folder in ("a", "b"):
        tables.write(found, tmp_path / folder)
    for name in tables.NAMES:
        first, second = (tmp_path / folder / f"{name}.parquet" for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        assert getattr(tables.read(tmp_path / "a"), name).equals(getattr(found, name))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {f"{name}.parquet" for name in tables.NAMES}


def test_the_script_marks_a_corrupt_record_and_makes_the_tables(tmp_path, sweep):
    grid, runs = sweep
    path = runs / next(iter(grid["runs"])) / "record.json"
    path.write_text("{")
    arguments = ["--grid", str(tmp_path / "grid.json"), "--runs", str(runs), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "scripts.aggregate", *arguments], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == f"making the tables\ncorrupt: {path}\n"
    record.set_aside(runs)
    assert not path.exists() and path.with_name("record.json.corrupt").read_text() == "{"
    assert tables.read(tmp_path / "out").runs["status"][0] == "unreadable"


def test_the_script_tells_a_user_error_in_one_line(tmp_path, sweep):
    _, runs = sweep
    (tmp_path / "grid.json").write_text("{")
    arguments = ["--grid", str(tmp_path / "grid.json"), "--runs", str(runs), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "scripts.aggregate", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    _, line, *rest = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'grid.json'}: corrupt") and not rest
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_thousand_runs_are_tabulated(tmp_path):
    axes = {"batch_size": list(range(2, 52, 2)), "repeats": 10}
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes))
    assert len(grid["runs"]) == 1000
    assert aggregate(grid, runs).runs.height == 1000


@pytest.mark.parametrize(
    ("other", "panels"),
    [
        (
            {"gpus": [{**synthetic.board(0), "name": "NVIDIA A30"}]},
            {"H200", "A30"},
        ),
        ({"driver": "580.1"}, {"H200, driver 570.86", "H200, driver 580.1"}),
        (
            {"versions": {"torch": "2.13.0", "transformers": "4.57.0", "zeus": "0.16.0"}},
            {"H200, torch 2.9.0", "H200, torch 2.13.0"},
        ),
    ],
)
def test_machines_are_named_by_what_tells_them_apart(tmp_path, other, panels):
    def change(row):
        row = synthetic.on_gpus(row)
        changes = other if row["spec"]["precision"] == "fp32" else {}
        return {**row, "environment": {**row["environment"], **changes}}

    axes = {"strategy": ["single"]}
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(axes, **synthetic.GPU_CONFIG), change)
    assert set(aggregate(grid, runs).cells["panel"]) == panels


def test_machines_that_words_do_not_tell_apart_have_a_number(tmp_path):
    def change(row):  # the same board, and less memory in the host
        less = {"host_memory_bytes": 2**30} if row["spec"]["precision"] == "fp32" else {}
        return {**row, "environment": {**row["environment"], **less}}

    panels = set(make(tmp_path, change).cells["panel"])
    assert len(panels) == 2 and all(panel.startswith("AMD EPYC 7763 64-Core Processor, ") for panel in panels)
