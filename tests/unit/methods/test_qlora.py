"""QLoRA is LoRA on matrices of 4 bits: counted like LoRA, trained like it, saved in the model's own form."""

from __future__ import annotations

import json

import bits
import pytest
import stopping
import tiny_run
import torch
from safetensors.torch import load_file

from joulesweep import methods
from joulesweep.cli.main import main
from joulesweep.core.errors import UserError
from joulesweep.nets import flops
from joulesweep.nets.language_model import LanguageModel
from joulesweep.train.loop import train
from joulesweep.train.trainer import RunEnded

pytestmark = pytest.mark.usefixtures("torch_as_it_was")


def applied(name, network=None, **params):
    network = tiny_run.network() if network is None else network
    return methods.load(name).apply(network, methods.parameters(name, {"dropout": 0.0, **params}))


@pytest.fixture
def library(monkeypatch):
    bits.install(monkeypatch, peft=True)


def quantised(model):
    return {name for name, parameter in model.named_parameters() if hasattr(parameter, "quant_state")}


def test_the_layers_matrices_have_4_bits_and_all_else_is_loras(library):
    four, dense = applied("qlora"), applied("lora")
    kept = dict(dense.named_parameters())
    names = quantised(four)
    assert len(names) == 12 and all(".layer." in name for name in names)
    for name, parameter in four.named_parameters():
        assert parameter.requires_grad == kept[name].requires_grad == (".lora_" in name), name
        numbers = kept[name].numel()
        assert parameter.nbytes == (numbers // 2 if name in names else 4 * numbers)
    assert methods.describe("qlora", four) == {"lora_targets": ["query", "value"], "num_quantised": 12}


def test_it_computes_nearly_what_lora_does(library):
    ids = torch.arange(5, 25).reshape(2, 10)
    four, dense = (applied(name).eval()(ids).logits for name in ("qlora", "lora"))
    assert 0 < (four - dense).norm() / dense.norm() < 0.2


def test_its_products_are_loras_and_codes_are_what_it_reads(library):
    four, dense = (flops.model_work(LanguageModel(applied(name))) for name in ("qlora", "lora"))
    assert four.flop_coefficients == dense.flop_coefficients
    assert four.bytes_per_step < dense.bytes_per_step


def test_a_tied_or_missing_matrix_is_not_quantised(library):
    with pytest.raises(UserError, match="no linear layer"):
        applied("qlora", tiny_run.network("gpt2"))  # its matrices are transposed


def test_a_kept_model_has_its_original_form(library, assets, tmp_path):
    spec = tiny_run.spec(method="qlora", keep_model="last", epochs=2)
    result = train(spec, assets.model_folder, assets.tokens, tmp_path)
    assert result.losses[-1] < result.losses[0]
    plain, saved = load_file(assets.model_folder / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
    assert saved.keys() == plain.keys()
    changed = [name for name in plain if not torch.equal(plain[name], saved[name])]
    assert changed and all(saved[name].shape == plain[name].shape for name in changed)
    assert all((saved[name] - plain[name]).norm() / plain[name].norm() < 0.2 for name in changed if ".key" in name)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16-mixed", "optimizer": "adamw-8bit"}])
def test_a_stopped_training_ends_with_the_same_bits(library, assets, tmp_path, changes):
    whole = stopping.attempts(assets, tmp_path, method="qlora", **changes)
    again = stopping.attempts(assets, tmp_path, [[2], [3]], method="qlora", **changes)
    assert again[0] == whole[0]
    assert all(torch.equal(value, again[1][name]) for name, value in whole[1].items())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "float32"), ("fp16-mixed", "float16"), ("bf16-true", "bfloat16")]
)
def test_codes_are_decoded_to_what_the_precision_multiplies(library, precision, dtype):
    from joulesweep.axes import precision as precisions

    model = precisions.cast(applied("qlora"), precision)
    kinds = {module.compute_dtype for module in model.modules() if isinstance(module, bits.Linear4bit)}
    assert kinds == {getattr(torch, dtype)}
    assert {parameter.dtype for name, parameter in model.named_parameters() if name in quantised(model)} == {
        torch.uint8
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"strategy": "ddp", "devices": 2}, None),
        ({"strategy": "dp", "devices": 2}, "method qlora: dp divides or copies"),
        ({"strategy": "fsdp", "devices": 2}, "method qlora: fsdp divides or copies"),
        ({"engine": "compile"}, "use engine: [eager]"),
    ],
)
def test_what_does_not_fit_is_said(changes, reason):
    told = methods.incompatible_reason(tiny_run.spec(method="qlora", **changes))
    assert told is None if reason is None else reason in told


def test_on_the_cpu_it_is_unsupported(assets, tmp_path):
    with pytest.raises(RunEnded, match="method qlora needs an NVIDIA GPU; this run uses the CPU"):
        train(tiny_run.spec(method="qlora"), assets.model_folder, assets.tokens, tmp_path)


def test_check_and_plan_warn_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(json.dumps(tiny_run.config(grid__method=["full", {"qlora": {"r": 4}}])))
    for command in ("check", "plan"):
        assert main([command, "--configfile", "c.yaml"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "10.5281/zenodo.18900289" in line]
        assert len(lines) == 1 and lines[0].startswith("method qlora: NF4 saves memory, not always energy")
