"""Analytic FLOPs against PyTorch's own counter, and by hand; memory traffic by hand."""

from __future__ import annotations

import pytest
import tiny_run
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM

from joulesweep import flops, kernels, methods, precision
from joulesweep.model import LanguageModel

BASE_ENCODER = 12 * (4 * 768 * 768 + 2 * 768 * 3072)  # multiply-adds per token of BERT-base
BASE_HEAD = 768 * 768 + 768 * 30522
KINDS = ("bert", "roberta", "distilbert", "electra")


def network(kind="bert", **shape):
    """A model on the meta device: full size unless said otherwise. Eager attention, which the oracle can count."""
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **shape)
        return AutoModelForMaskedLM.from_config(config, attn_implementation="eager").train()


def core_of(model, precision_name="fp32", **method):
    name = method.pop("method", "full")
    model = methods.load(name).apply(model, methods.parameters(name, method))
    return precision.cast(LanguageModel(model, precision_name), precision_name)


def counted(core, rows, length, num_chosen=None):
    """FLOPs that PyTorch counts in a forward and backward pass; the head at so many positions, or at all."""
    ids = torch.zeros((rows, length), dtype=torch.long, device="meta")
    head = core.model.get_submodule(core.head_name)
    head.chosen = None if num_chosen is None else torch.zeros(num_chosen, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        core.model(input_ids=ids).logits.sum().backward()
    head.chosen = None
    return counter.get_total_flops()


def expected(core, rows, length, num_chosen=None, recomputed=False):
    found = flops.coefficients(flops.traced(core).products)
    heads = rows * length if num_chosen is None else num_chosen
    total = found["token"] * rows * length + found["head_position"] * heads + found["token_pair"] * rows * length**2
    again = [found.get(f"recomputed_{unit}", 0.0) for unit in ("token", "token_pair")]
    extra = again[0] * rows * length + again[1] * rows * length**2
    return total + extra if recomputed else total


@pytest.mark.parametrize("num_chosen", [None, 5])
@pytest.mark.parametrize(("rows", "length"), [(1, 13), (4, 24), (3, 33)])
@pytest.mark.parametrize("kind", KINDS)
def test_full_training_counts_what_pytorch_counts(kind, rows, length, num_chosen):
    core = core_of(network(kind, num_hidden_layers=2) if kind != "distilbert" else network(kind, n_layers=2))
    assert expected(core, rows, length, num_chosen) == pytest.approx(counted(core, rows, length, num_chosen), rel=1e-9)


@pytest.mark.parametrize("num_chosen", [None, 5])
@pytest.mark.parametrize("fraction", [0.25, 0.75])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_count_what_pytorch_counts(kind, fraction, num_chosen):
    shape = {"n_layers": 4} if kind == "distilbert" else {"num_hidden_layers": 4}
    core = core_of(network(kind, **shape), method="freeze-bottom", fraction=fraction)
    assert expected(core, 3, 21, num_chosen) == pytest.approx(counted(core, 3, 21, num_chosen), rel=1e-9)
    whole = core_of(network(kind, **shape))
    assert expected(core, 3, 21) < 0.9 * expected(whole, 3, 21)


def test_a_single_trained_matrix_in_the_middle_counts_what_pytorch_counts():
    """Its own gradient, gradients of what lies above, none below: the two branches beside it included."""
    core = core_of(network(num_hidden_layers=3))
    core.requires_grad_(False)
    core.model.bert.encoder.layer[1].attention.self.key.weight.requires_grad_(True)
    assert expected(core, 2, 17, 4) == pytest.approx(counted(core, 2, 17, 4), rel=1e-9)


@pytest.mark.parametrize("method", [{}, {"method": "freeze-bottom", "fraction": 0.5}])
def test_checkpointed_layers_are_computed_once_more_and_are_not_more_useful(method):
    stored, again = (core_of(network(num_hidden_layers=4), **method) for _ in range(2))
    again.model.activation_checkpointing_enable({"use_reentrant": False})
    again.model.disable_input_require_grads()  # which enabling it sets: gradients for frozen layers, to no use
    assert expected(again, 3, 17) == expected(stored, 3, 17) == expected(stored, 3, 17, recomputed=True)
    assert expected(again, 3, 17, recomputed=True) == pytest.approx(counted(again, 3, 17), rel=1e-9)
    assert expected(again, 3, 17, recomputed=True) > 1.1 * expected(again, 3, 17)


def test_bert_base_by_hand():
    found = flops.coefficients(flops.traced(core_of(network())).products)
    # Forward, and twice as much backward, of which the first layer's inputs are embeddings, which train.
    assert found == {
        "token": 6 * BASE_ENCODER,
        "head_position": 6 * BASE_HEAD,
        "token_pair": 6 * 12 * 2 * 768,
    }
    assert found["token"] / 3 == pytest.approx(169.9e6, rel=1e-3)  # knowledge/training.md
    assert found["head_position"] / 3 == pytest.approx(48.1e6, rel=1e-3)


def test_fused_attention_counts_as_the_plain_one():
    models = [network(num_hidden_layers=2) for _ in range(2)]
    models[1].set_attn_implementation("sdpa")
    plain, fused = (flops.coefficients(flops.traced(core_of(model)).products) for model in models)
    assert fused == plain and plain["token_pair"] > 0


def test_a_real_model_is_left_as_it_was():
    core = LanguageModel(tiny_run.network(dropout=0.1)).train()
    core.model.cls.eval()
    before = {name: (p.data_ptr(), p.device) for name, p in core.named_parameters()}
    modes, state = [module.training for module in core.modules()], torch.get_rng_state()
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in core.modules()]
    found = flops.described(core)
    assert found["flop_reason"] is None and found["flop_coefficients"]["token"] == 6 * 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert {name: (p.data_ptr(), p.device) for name, p in core.named_parameters()} == before
    assert [module.training for module in core.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in core.modules()] == hooks


def test_what_cannot_be_counted_is_null_with_a_reason_and_not_zero():
    class Strange(torch.nn.Module):
        def forward(self, inputs):
            return torch.einsum("...i,ij->...j", inputs, torch.eye(16, device=inputs.device))

    model = tiny_run.network()
    model.bert.encoder.layer[0].intermediate.dense = Strange()
    found = flops.described(LanguageModel(model))
    assert found["flop_coefficients"] is None and found["bytes_per_step"] is None
    assert found["flop_reason"] == "the model's products cannot be counted: ValueError: einsum is not counted"


def test_a_product_with_rows_of_its_own_is_refused():
    class Wider(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(torch.cat((inputs, inputs), dim=-2))[:, : inputs.shape[-2]]

    model = tiny_run.network()
    model.bert.encoder.layer[0].attention.self.key = Wider(16, 16)
    assert "is not per position or pair" in flops.described(LanguageModel(model))["flop_reason"]


@pytest.mark.skipif(not kernels.available(), reason="this PyTorch has no oneDNN products")
def test_linear_layers_with_products_of_their_own_count_as_the_plain_ones():
    core = LanguageModel(tiny_run.network())
    plain = flops.described(core)
    assert kernels.adopt(core)
    assert flops.described(core) == plain and plain["flop_coefficients"]["token"] > 0
    assert not any("forward" in vars(module) for module in core.modules())


@pytest.mark.parametrize(
    ("name", "bytes_per_weight"),
    [("fp32", 40), ("tf32", 40), ("bf16-mixed", 38), ("fp16-mixed", 38), ("bf16-true", 20)],
)
def test_traffic_per_weight(name, bytes_per_weight):
    core = core_of(network(num_hidden_layers=2), name)
    found = flops.bytes_per_step(core, flops.traced(core).products)
    of_products = 2 * BASE_ENCODER // 12 + BASE_HEAD
    others = sum(p.numel() for p in core.parameters()) - of_products
    trained_only = 8 * {"bf16-true": 2}.get(name, 4)
    assert found == bytes_per_weight * of_products + trained_only * others


def test_tied_weights_move_once():
    tied, untied = (core_of(network(num_hidden_layers=1, tie_word_embeddings=tie)) for tie in (True, False))
    sizes = [flops.bytes_per_step(core, flops.traced(core).products) for core in (tied, untied)]
    # Untied, the table of embeddings is trained on its own, and so is a second bias; reading its rows counts nothing.
    assert sizes[1] - sizes[0] == 32 * (768 + 1) * 30522


def test_frozen_weights_are_read_only_where_they_are_needed():
    core = core_of(network(num_hidden_layers=2), method="freeze-bottom", fraction=0.5)
    frozen = sum(p.numel() for p in core.parameters() if not p.requires_grad)
    layer = BASE_ENCODER // 12
    trained = sum(p.numel() for p in core.parameters()) - frozen
    # Layer 1 once, the tied table twice; layer 2 twice but for its query, key and value, below which nothing trains.
    reads = 4 * (layer + 2 * 768 * 30522 + 2 * layer - 3 * 768 * 768 + 2 * 768 * 768)
    assert flops.bytes_per_step(core, flops.traced(core).products) == reads + 32 * trained


def test_shards_divide_gradients_and_states_but_not_the_reads():
    core = core_of(network(num_hidden_layers=1))
    products = flops.traced(core).products
    whole, half = (flops.bytes_per_step(core, products, shards) for shards in (1, 2))
    assert whole - half == 16 * sum(p.numel() for p in core.parameters())
