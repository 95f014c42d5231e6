"""Peak rates by the name of a board, and what a run reaches of them."""

from __future__ import annotations

import re
import subprocess
import sys

import outcomes
import pytest
import synthetic
import tiny_run
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from joulesweep.analyse import roofline
from joulesweep.analyse.collect import aggregate
from joulesweep.axes.precision import PRECISIONS, Precision
from joulesweep.core.outcome import as_json
from joulesweep.core.work import COUNTED
from joulesweep.nets import flops
from joulesweep.nets.language_model import LanguageModel
from joulesweep.runs.record import RunRecord

GIB = 2**30
#: NVML's names, and what NVML gives as the size of the memory.
BOARDS = {
    "Tesla T4": (15360 * 2**20, 65, 320),
    "Tesla V100-SXM2-32GB": (32 * GIB, 125, 900),
    "NVIDIA A10": (23028 * 2**20, 125, 600),
    "NVIDIA A30": (24 * GIB, 165, 933),
    "NVIDIA A40": (46068 * 2**20, 149.7, 696),
    "NVIDIA A100-SXM4-40GB": (40 * GIB, 312, 1555),
    "A100-SXM4-40GB": (40 * GIB, 312, 1555),
    "NVIDIA A100 80GB PCIe": (80 * GIB, 312, 1935),
    "NVIDIA A100-SXM4-80GB": (80 * GIB, 312, 2039),
    "NVIDIA L4": (23034 * 2**20, 121, 300),
    "NVIDIA L40S": (46068 * 2**20, 362.05, 864),
    "NVIDIA H100 PCIe": (81559 * 2**20, 756.5, 2048),
    "NVIDIA H100 80GB HBM3": (81559 * 2**20, 989.4, 3350),
    "NVIDIA H100 NVL": (95830 * 2**20, 835.5, 3900),
    "NVIDIA H200": (143771 * 2**20, 989.4, 4800),
    "NVIDIA B200": (183359 * 2**20, 2250, 8000),
    "NVIDIA GB200": (192 * GIB, 2500, 8000),
    "NVIDIA RTX 6000 Ada Generation": (49140 * 2**20, 364.2, 960),
    "NVIDIA GeForce RTX 3080": (10 * GIB, 59.5, 760),
    "NVIDIA GeForce RTX 4090": (24564 * 2**20, 165.2, 1008),
    "NVIDIA GeForce RTX 5090": (32 * GIB, 210, 1792),
}


@pytest.mark.parametrize("name", BOARDS)
def test_each_board_finds_its_own_row(name):
    memory_bytes, fp16_tflops, gb_per_s = BOARDS[name]
    found = roofline.find(name, memory_bytes)
    assert found.flops_per_s["fp16"] == pytest.approx(fp16_tflops * 1e12)
    assert found.bytes_per_s == pytest.approx(gb_per_s * 1e9)


@pytest.mark.parametrize(
    ("name", "memory_bytes"),
    [
        ("NVIDIA A1", 24 * GIB),
        ("NVIDIA A10G", 24 * GIB),
        ("NVIDIA A100", 80 * GIB),
        ("NVIDIA H100", 80 * GIB),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 80 * GIB),
        ("NVIDIA A100-SXM4-80GB", 10 * GIB),  # a slice of it
        ("NVIDIA GeForce RTX 3080", 12 * GIB),  # sold under one name with another memory
        ("NVIDIA GeForce RTX 3080 Ti", 12 * GIB),
        ("NVIDIA A30", None),
        ("MIG slice", None),
    ],
)
def test_what_is_not_the_same_board_is_unknown(name, memory_bytes):
    assert roofline.find(name, memory_bytes) is None


def test_the_table_is_sane():
    lines = [line for line in roofline.GPU_FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(lines) - 1 == len(roofline.gpus()) > 25, "a board is there twice"
    assert all(line.count(",") == lines[0].count(",") for line in lines)
    for gpu in roofline.gpus().values():
        if gpu.status == "unsupported: no meter yet":
            continue
        rates = gpu.flops_per_s
        assert not gpu.name.startswith("NVIDIA ") and gpu.source.startswith("NVIDIA ")
        assert gpu.status in ("verified", "recalled")
        assert 5e12 < rates["fp32"] < 2e14 and 2e11 < gpu.bytes_per_s < 1e13
        assert rates["bf16"] in (None, rates["fp16"]), "all who have bf16 compute it as fast as fp16"
        assert (rates["bf16"] is None) == (rates["tf32"] is None), "both came with Ampere"
        assert rates["tf32"] is None or rates["fp32"] <= rates["tf32"] <= rates["fp16"] / 1.95
        assert rates["fp32"] < rates["fp16"] < 2.6e15, "dense rates, not the sparse ones that datasheets print"


def test_a_row_that_is_not_from_memory_says_where_and_when_it_was_read():
    lines = [line for line in roofline.GPU_FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines[1:]:
        *_, status, _, read_in, read_on = line.split(",")
        assert (status != "recalled") == read_in.startswith("https://"), line
        assert bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", read_on)) == bool(read_in), line


@pytest.mark.parametrize("name", PRECISIONS)
def test_each_precision_names_a_rate_of_the_table(name):
    expected = {"fp32": "fp32", "tf32": "tf32", "fp16-mixed": "fp16"}
    assert PRECISIONS[name].peak_rate == expected.get(name, "bf16")
    assert all(PRECISIONS[name].peak_rate in gpu.flops_per_s for gpu in roofline.gpus().values())


COUNTS = {
    "num_tokens": 100,
    "num_padded_tokens": 200,
    "num_predicted": 10,
    "num_head_positions": 20,
    "num_token_pairs": 1000,
    "num_padded_token_pairs": 4000,
}
COEFFICIENTS = {"token": 50.0, "head_position": 100.0, "token_pair": 1.0}


def phase(**changes):
    """Of a record's measurement."""
    work = {"flop_coefficients": COEFFICIENTS, "bytes_per_step": 48 * 10**9, "flop_reason": None}
    return outcomes.phase(**{**dict.fromkeys(COUNTED, 0), "num_steps": 100, **COUNTS, **work, **changes})


def test_totals_by_hand():
    found = roofline.totals([phase()])
    useful, executed = 5000 + 1000 + 1000, 10000 + 2000 + 4000
    assert found == {
        "useful_flops": useful,
        "executed_flops": executed,
        "rating_flops": 0,
        "padded_macs": 8000.0,
        "padded_flop_share": 1 - useful / executed,
    }


def test_phases_add_up_and_rating_is_executed_and_not_useful():
    frozen = phase(flop_coefficients={**COEFFICIENTS, "token": 10.0})
    one, other = roofline.totals([phase()]), roofline.totals([frozen])
    found = roofline.totals([phase(kind="rating"), phase(), phase(kind="rating"), frozen])
    assert found["useful_flops"] == one["useful_flops"] + other["useful_flops"]
    assert found["rating_flops"] == 2 * one["executed_flops"]
    assert found["executed_flops"] == 3 * one["executed_flops"] + other["executed_flops"]
    computed = one["executed_flops"] + other["executed_flops"]
    assert found["padded_flop_share"] == 1 - found["useful_flops"] / computed


def test_recomputation_is_executed_and_neither_useful_nor_padding():
    plain = roofline.totals([phase()])
    again = {**COEFFICIENTS, "recomputed_token": 16.0, "recomputed_token_pair": 0.5}
    again = roofline.totals([phase(flop_coefficients=again)])
    assert again == {**plain, "executed_flops": plain["executed_flops"] + 16 * 200 + 0.5 * 4000}


def test_nothing_padded_is_a_share_of_nothing():
    counts = dict.fromkeys(COUNTS, 7)
    assert roofline.totals([phase(**counts)])["padded_flop_share"] == 0


@pytest.mark.parametrize(("batch_size", "expected_ms"), [(32, 1.15), (256, 2.8)])
def test_floor_of_bert_base_on_an_h200(batch_size, expected_ms):
    """The figures of knowledge/training.md: 11 tokens, 1.35 of them masked; 788 TFLOP/s bf16, 4.3 TB/s."""
    with torch.device("meta"):
        core = LanguageModel(AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert")), "bf16-mixed")
    work = flops.model_work(core)
    counts = {"num_tokens": 11, "num_predicted": 1.35, "num_token_pairs": 121}
    padded = {"num_padded_tokens": 11, "num_head_positions": 1.35, "num_padded_token_pairs": 121}
    per_text = roofline.totals([phase(**vars(work), **counts, **padded)])["useful_flops"]
    assert per_text == pytest.approx(5.8e9, rel=0.01)
    found_s = roofline.floor_s(batch_size * per_text, work.bytes_per_step, 788e12, 4.3e12)
    assert 1e3 * found_s == pytest.approx(expected_ms, rel=0.1)


def ok_on_gpus(**spec):
    """A synthetic record of a finished run on H200 boards."""
    return synthetic.on_gpus(synthetic.ok_record("run", tiny_run.spec(accelerator="cuda", **spec)))


def columns(row):
    record = synthetic.typed(RunRecord, row)
    return roofline.columns(record, record.measurement)


def test_mfu_and_distance_by_hand():
    record = ok_on_gpus(devices=2, strategy="ddp", precision="bf16-mixed")
    phases = as_json([phase(num_steps=40), phase(kind="rating"), phase(num_steps=60)])
    record["measurement"] |= {"window_s": 10.0, "phases": phases}
    found = columns(record)
    assert found.mfu == pytest.approx(14000 / (10 * 2 * 989.4e12))
    assert found.floor_distance == pytest.approx((14000 / (2 * 989.4e12) + 100 * 0.01) / 10)
    assert found.floor_reason is None and found.flop_reason is None
    assert found.peak_status == "verified"


def test_a_cpu_has_flops_but_no_floor():
    found = columns(synthetic.ok_record("run", tiny_run.spec()))
    assert found.useful_flops > 0 and found.flop_reason is None
    assert found.mfu is found.floor_distance is None
    assert found.floor_reason == "peak rates are known of GPUs only; this run used the CPU"


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ([{"name": "NVIDIA X1", "memory_bytes": 80 * GIB}], "resources/gpus.csv does not know NVIDIA X1 with 80 GiB"),
        ([{"name": "MIG slice", "memory_bytes": None}], "resources/gpus.csv does not know MIG slice"),
        (
            [{"name": "NVIDIA A30", "memory_bytes": 24 * GIB}, {"name": "NVIDIA H200", "memory_bytes": 141 * GIB}],
            "the boards of the run are not of one kind",
        ),
        ([], "the record names no GPU"),
        ([{"name": "Tesla T4", "memory_bytes": 16 * GIB}], "resources/gpus.csv has no bf16 rate of Tesla T4"),
        (
            [{"name": "AMD Instinct MI300X", "memory_bytes": 192 * GIB}],
            "AMD Instinct MI300X is unsupported: no meter yet",
        ),
    ],
)
def test_an_unknown_gpu_is_null_with_a_reason(gpus, reason):
    record = ok_on_gpus(precision="bf16-mixed")
    record["environment"]["gpus"] = [{"uuid": "GPU-0", **gpu} for gpu in gpus]
    found = columns(record)
    assert found.floor_reason == reason and found.useful_flops > 0
    assert found.mfu is found.floor_distance is None


def test_a_new_precision_has_a_rate_when_the_table_has_its_column(monkeypatch, tmp_path):
    monkeypatch.setitem(PRECISIONS, "new", Precision(about="eight bits", peak_rate="fp8", autocast="bfloat16"))
    record = ok_on_gpus(precision="new")
    name, memory_bytes = record["environment"]["gpus"][0]["name"], record["environment"]["gpus"][0]["memory_bytes"]
    gpu = roofline.find(name, memory_bytes)
    assert columns(record).floor_reason == f"resources/gpus.csv has no fp8 rate of {gpu.name}"
    lines = roofline.GPU_FILE.read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("name,"))
    new = [line + ((",fp8_tflops" if i == head else ",1979") if i >= head else "") for i, line in enumerate(lines)]
    (tmp_path / "gpus.csv").write_text("\n".join(new), encoding="utf-8")
    monkeypatch.setattr(roofline, "GPU_FILE", tmp_path / "gpus.csv")
    roofline.gpus.cache_clear()
    try:
        found = columns(record)
    finally:
        roofline.gpus.cache_clear()
    assert found.floor_reason is None
    window_s = record["measurement"]["window_s"]
    assert found.mfu == pytest.approx(found.useful_flops / (window_s * 1979e12 * record["spec"]["devices"]))


def test_an_older_record_has_no_flops_and_says_why():
    record = ok_on_gpus()
    del record["measurement"]["phases"]
    reason = "the record was written before FLOPs were counted"
    assert columns(record) == roofline.Roofline(flop_reason=reason, floor_reason=reason)


def test_a_model_that_could_not_be_counted_says_why():
    record = ok_on_gpus()
    nothing = {"flop_coefficients": None, "bytes_per_step": None, "flop_reason": "einsum is not counted"}
    record["measurement"]["phases"].append(as_json(phase(**nothing)))
    reason = "einsum is not counted"
    assert columns(record) == roofline.Roofline(flop_reason=reason, floor_reason=reason)


def tabulated(tmp_path, change, **sections):
    grid, runs = synthetic.write_sweep(tmp_path, synthetic.raw_config(**sections), change)
    return aggregate(grid, runs)


def test_runs_and_cells_have_the_columns(tmp_path):
    found = tabulated(tmp_path, synthetic.on_gpus, **synthetic.GPU_CONFIG)
    for quantity in ("useful_flops", "executed_flops", "padded_flop_share", "mfu", "floor_distance"):
        assert found.runs[quantity].null_count() == found.cells[f"{quantity}_mean"].null_count() == 0, quantity
        assert (found.runs[quantity] > 0).all()
    assert (found.runs["mfu"] < found.runs["floor_distance"]).all() and (found.runs["floor_distance"] < 1).all()
    assert found.runs["flop_reason"].null_count() == found.runs["floor_reason"].null_count() == found.runs.height
    row = found.runs.row(0, named=True)
    assert row["useful_flops_per_j"] == pytest.approx(row["useful_flops"] / row["energy_j"])


def test_nothing_counted_is_null_and_never_zero(tmp_path):
    def older(row):
        kept = {key: value for key, value in row["measurement"].items() if key != "phases"}
        return {**row, "measurement": kept}

    found = tabulated(tmp_path, older)
    for quantity in ("useful_flops", "executed_flops", "padded_flop_share", "useful_flops_per_j", "mfu"):
        assert found.runs[quantity].count() == found.cells[f"{quantity}_mean"].count() == 0
    assert found.runs["flop_reason"].unique().to_list() == ["the record was written before FLOPs were counted"]


def test_the_readme_describes_the_table():
    text = (roofline.GPU_FILE.parent / "README.md").read_text(encoding="utf-8")
    assert "gpus.csv" in text and re.search(r"verified|recalled", text)


def test_needs_no_torch():
    code = "import sys; from joulesweep.analyse import roofline as floors; floors.gpus(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
