"""Strategies and precisions are rows of tables; what a machine cannot do is said before it is tried."""

from __future__ import annotations

import contextlib

import pytest
import tiny_run
import torch

from joulesweep import precision, strategy


@pytest.fixture(autouse=True)
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", strategy.STRATEGIES)
def test_each_strategy_is_described_and_names_a_class_of_torch(name):
    row = strategy.STRATEGIES[name]
    assert row.about
    assert row.wrapper is None or issubclass(getattr(torch.nn.parallel, row.wrapper), torch.nn.Module)
    assert row.multi_device or not row.multi_process


@pytest.mark.parametrize(
    ("name", "devices", "accelerator", "num_gpus", "reason"),
    [
        ("single", 1, "cpu", 0, None),
        ("ddp", 2, "cpu", 0, None),
        ("dp", 2, "cpu", 0, "dp needs at least two GPUs; this run uses the CPU"),
        ("single", 1, "cuda", 1, None),
        ("dp", 2, "cuda", 2, None),
        ("dp", 1, "cuda", 2, "dp on 1 device trains the bare module; it needs at least two GPUs"),
        ("dp", 4, "cuda", 2, "dp asks for 4 GPUs; 2 visible"),
        ("ddp", 1, "cuda", 1, None),
        ("ddp", 2, "cuda", 2, None),
        ("ddp", 2, "cuda", 1, "ddp asks for 2 GPUs; 1 visible"),
    ],
)
def test_a_machine_that_cannot_run_a_strategy_says_why(name, devices, accelerator, num_gpus, reason):
    assert strategy.refusal(name, devices, accelerator, num_gpus) == reason


def test_one_device_is_not_wrapped():
    model = tiny_run.network()
    assert strategy.wrap(model, "single", 1, "cpu", 0) is model


def test_data_parallel_takes_the_first_gpus(monkeypatch):
    monkeypatch.setattr(torch.nn, "DataParallel", lambda model, device_ids: (model, device_ids))
    assert strategy.wrap("model", "dp", 2, "cuda", 0) == ("model", [0, 1])


@pytest.mark.parametrize(("accelerator", "device_ids"), [("cuda", [1]), ("cpu", None)])
def test_each_rank_of_ddp_has_its_own_device(monkeypatch, accelerator, device_ids):
    seen = {}
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda model, **given: seen.update(given))
    strategy.wrap(tiny_run.network(), "ddp", 2, accelerator, 1)
    assert seen["device_ids"] == device_ids


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_each_precision_is_described_and_names_dtypes_of_torch(name):
    row = precision.PRECISIONS[name]
    assert row.about
    assert isinstance(getattr(torch, row.weights), torch.dtype)
    assert row.autocast is None or isinstance(getattr(torch, row.autocast), torch.dtype)
    assert name == "fp32" or name.endswith(("-mixed", "-true")) or row.tf32  # never a bare "fp16"


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_names_say_what_the_rows_do(name):
    row = precision.PRECISIONS[name]
    assert (row.autocast is not None) == name.endswith("-mixed")
    assert (row.weights != "float32") == name.endswith("-true")
    assert row.scale_loss == (row.autocast == "float16")  # bfloat16 has the range of fp32


@pytest.mark.parametrize(
    ("name", "accelerator", "capability", "reason"),
    [
        ("fp32", "cpu", None, None),
        ("bf16-mixed", "cpu", None, None),
        ("tf32", "cpu", None, "tf32 exists on NVIDIA GPUs only; this run uses the CPU"),
        ("tf32", "cuda", (8, 0), None),
        ("tf32", "cuda", (9, 0), None),
        ("tf32", "cuda", (7, 5), "tf32 needs compute capability 8.0 or newer; this GPU has 7.5"),
        ("fp16-mixed", "cuda", (7, 5), None),
    ],
)
def test_a_device_that_cannot_compute_in_a_precision_says_why(name, accelerator, capability, reason):
    assert precision.refusal(name, accelerator, capability) == reason


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_weights_and_matrix_products_are_brought_to_the_row(name):
    model = precision.cast(tiny_run.network(), name)
    row = precision.PRECISIONS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, row.weights)}
    assert torch.get_float32_matmul_precision() == ("high" if row.tf32 else "highest")


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_the_forward_pass_runs_in_the_rows_dtype(name):
    model = precision.cast(torch.nn.Linear(4, 4), name)
    row = precision.PRECISIONS[name]
    with precision.autocast(name, "cpu"):
        out = model(torch.ones(1, 4, dtype=getattr(torch, row.weights)))
    assert out.dtype == getattr(torch, row.autocast or row.weights)


def test_no_autocast_is_no_context():
    assert isinstance(precision.autocast("fp32", "cpu"), contextlib.nullcontext)


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_only_float16_scales_its_loss(name):
    scaler = precision.scaler(name, "cpu")
    assert scaler.is_enabled() == (name == "fp16-mixed")
    scaled = scaler.scale(torch.ones(1))
    assert (scaled.item() == 1.0) == (name != "fp16-mixed")
