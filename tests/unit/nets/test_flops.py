"""Analytic FLOPs against PyTorch's own counter, and by hand; memory traffic by hand."""

from __future__ import annotations

import dataclasses

import families
import pytest
import tiers
import tiny_run
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM

from joulesweep import methods
from joulesweep.axes import precision
from joulesweep.nets import flops, onednn
from joulesweep.nets.language_model import LanguageModel
from joulesweep.nets.products import traced

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
    found = flops.coefficients(traced(core).products)
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
@pytest.mark.parametrize("fraction", tiers.first(1, [0.25, 0.75]))
@pytest.mark.parametrize("kind", tiers.first(2, KINDS))
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
    enable = getattr(again.model, "activation_checkpointing_enable", again.model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    again.model.disable_input_require_grads()  # which enabling it sets: gradients for frozen layers, to no use
    assert expected(again, 3, 17) == expected(stored, 3, 17) == expected(stored, 3, 17, recomputed=True)
    assert expected(again, 3, 17, recomputed=True) == pytest.approx(counted(again, 3, 17), rel=1e-9)
    assert expected(again, 3, 17, recomputed=True) > 1.1 * expected(again, 3, 17)


def test_bert_base_by_hand():
    found = flops.coefficients(traced(core_of(network())).products)
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
    plain, fused = (flops.coefficients(traced(core_of(model)).products) for model in models)
    assert fused == plain and plain["token_pair"] > 0


def test_a_real_model_is_left_as_it_was():
    core = LanguageModel(tiny_run.network(dropout=0.1)).train()
    core.model.cls.eval()
    before = {name: (p.data_ptr(), p.device) for name, p in core.named_parameters()}
    modes, state = [module.training for module in core.modules()], torch.get_rng_state()
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in core.modules()]
    found = flops.model_work(core)
    assert found.flop_reason is None and found.flop_coefficients["token"] == 6 * 2 * (4 * 16 * 16 + 2 * 16 * 32)
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
    found = flops.model_work(LanguageModel(model))
    assert found.flop_coefficients is None and found.bytes_per_step is None
    assert found.flop_reason == "the model's products cannot be counted: ValueError: einsum is not counted"


def test_a_product_with_rows_of_its_own_is_refused():
    class Wider(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(torch.cat((inputs, inputs), dim=-2))[:, : inputs.shape[-2]]

    model = tiny_run.network()
    model.bert.encoder.layer[0].attention.self.key = Wider(16, 16)
    assert "is not per position or pair" in flops.model_work(LanguageModel(model)).flop_reason


@pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN products")
def test_linear_layers_with_products_of_their_own_count_as_the_plain_ones():
    core = LanguageModel(tiny_run.network())
    plain = flops.model_work(core)
    onednn.adopt(core.modules())
    assert flops.model_work(core) == plain and plain.flop_coefficients["token"] > 0
    assert not any("forward" in vars(module) for module in core.modules())


@pytest.mark.parametrize(
    ("name", "bytes_per_weight"),
    [("fp32", 40), ("tf32", 40), ("bf16-mixed", 38), ("fp16-mixed", 38), ("bf16-true", 20), ("bf16-kahan", 28)],
)
def test_traffic_per_weight(name, bytes_per_weight):
    core = core_of(network(num_hidden_layers=2), name)
    found = flops.bytes_per_step(core, traced(core).products)
    of_products = 2 * BASE_ENCODER // 12 + BASE_HEAD
    others = sum(p.numel() for p in core.parameters()) - of_products
    trained_only = {"bf16-true": 16, "bf16-kahan": 24}.get(name, 32)
    assert found == bytes_per_weight * of_products + trained_only * others


def test_tied_weights_move_once():
    tied, untied = (core_of(network(num_hidden_layers=1, tie_word_embeddings=tie)) for tie in (True, False))
    sizes = [flops.bytes_per_step(core, traced(core).products) for core in (tied, untied)]
    # Untied, the table of embeddings is trained on its own, and so is a second bias; reading its rows counts nothing.
    assert sizes[1] - sizes[0] == 32 * (768 + 1) * 30522


def test_frozen_weights_are_read_only_where_they_are_needed():
    core = core_of(network(num_hidden_layers=2), method="freeze-bottom", fraction=0.5)
    frozen = sum(p.numel() for p in core.parameters() if not p.requires_grad)
    layer = BASE_ENCODER // 12
    trained = sum(p.numel() for p in core.parameters()) - frozen
    # Layer 1 once, the tied table twice; layer 2 twice but for its query, key and value, below which nothing trains.
    reads = 4 * (layer + 2 * 768 * 30522 + 2 * layer - 3 * 768 * 768 + 2 * 768 * 768)
    assert flops.bytes_per_step(core, traced(core).products) == reads + 32 * trained


def test_shards_divide_gradients_and_states_but_not_the_reads():
    core = core_of(network(num_hidden_layers=1))
    products = traced(core).products
    whole, half = (flops.bytes_per_step(core, products, shards) for shards in (1, 2))
    assert whole - half == 16 * sum(p.numel() for p in core.parameters())


NOT_COUNTED = {
    *(f"mlm-{kind}" for kind in ("big_bird", "convbert", "deberta", "deberta-v2", "fnet", "funnel", "layoutlm")),
    *(f"mlm-{kind}" for kind in ("longformer", "luke", "mobilebert", "nystromformer", "perceiver", "reformer")),
    *(f"mlm-{kind}" for kind in ("squeezebert", "xmod", "yoso")),
    *(f"clm-{kind}" for kind in ("jamba", "mamba", "mamba2", "minimax", "recurrent_gemma", "xlnet")),
    *(f"seq2seq-{kind}" for kind in ("led", "longt5", "nllb-moe", "pegasus_x", "prophetnet", "switch_transformers")),
}


#: MRA's attention needs kernels of its own, without which what leads to it goes nowhere; in older versions
#: others ask for numbers that the meta device does not have.
ELSEWHERE = {"mlm-mra", *(() if transformers.__version__ >= "5.20" else ("mlm-esm", "mlm-tapas"))}
COUNTED = [family for family in families.FAMILIES if family not in NOT_COUNTED | ELSEWHERE]


@pytest.mark.parametrize("family", tiers.among(families.CHOSEN, COUNTED))
def test_every_family_that_is_counted_is_counted_as_pytorch_counts_it(family):
    """Experts in a loop over those that are met, which PyTorch can count: k of them for each token."""
    task = family.partition("-")[0]
    found = flops.coefficients(traced(LanguageModel(families.network(family), task=task)).products)
    model = families.network(family).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    rows, length, target_length = 3, 24, 17
    ids = torch.randint(5, 95, (rows, length), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    num = {"token": rows * length, "token_pair": rows * length**2, "head_position": rows * length}
    if task == "seq2seq":
        given["decoder_input_ids"] = ids[:, :target_length].contiguous()
        num |= {"target_token": rows * target_length, "target_pair": rows * target_length**2}
        num |= {"cross_pair": rows * length * target_length, "head_position": rows * target_length}
    if task != "mlm":
        given["use_cache"] = False
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # of a fused one it counts nothing
        model(**given).logits.sum().backward()
    total = sum(value * num[unit] for unit, value in found.items())
    assert total == pytest.approx(counter.get_total_flops(), rel=tiny_run.ANGLES)


@pytest.mark.parametrize("family", tiers.among(families.CHOSEN, sorted(NOT_COUNTED)))
def test_a_family_with_products_that_are_not_known_has_no_count_and_says_why(family):
    found = flops.model_work(LanguageModel(families.network(family), task=family.partition("-")[0]))
    assert found.flop_coefficients is None and found.bytes_per_step is None
    assert found.flop_reason.startswith("the model's products cannot be counted: ")
    assert "\n" not in found.flop_reason


@pytest.mark.parametrize("name", ["fp32", "bf16-mixed", "bf16-true"])
def test_experts_are_counted_by_hand_in_every_precision(name):
    """Two of four for each token, each three products of 16 × 24; the router is one of 16 × 4."""
    core = precision.cast(LanguageModel(families.network("clm-qwen3_moe"), name, task="clm"), name)
    trace = traced(core)
    experts = [product for product in trace.products if product.weight and ".experts." in product.weight]
    assert sum(product.flops for product in experts) == 2 * 2 * (2 * 3 * 16 * 24)  # of two layers
    assert {product.share for product in experts} == {0.5}
    assert all(product.num_gradients == 2 and product.weight_read_again for product in experts)


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe"])
def test_of_experts_no_precision_changes_the_count(family):
    found = []
    for name in ("fp32", "bf16-mixed", "bf16-true"):
        core = precision.cast(LanguageModel(families.network(f"clm-{family}"), name, task="clm"), name)
        found.append(flops.coefficients(traced(core).products))
    assert found[0] == found[1] == found[2]


def test_of_experts_the_least_that_is_read_is_what_one_token_takes():
    core = LanguageModel(families.network("clm-mixtral"), task="clm")
    products = traced(core).products
    whole = flops.bytes_per_step(core, [dataclasses.replace(one, share=1.0) for one in products])
    size = sum(p.numel() for name, p in core.model.named_parameters() if ".experts." in name)
    assert whole - flops.bytes_per_step(core, products) == 2 * 4 * size / 2  # half of them, forwards and backwards


@pytest.mark.parametrize(
    ("strange", "name"),
    [
        (lambda weight, given: torch.einsum("...i,ji->...j", given, weight), "einsum"),
        (lambda weight, given: torch.tensordot(given, weight, ([2], [1])), "tensordot"),
        (lambda weight, given: torch.stack([torch.mv(weight, one) for one in given[0]])[None], "mv"),
        (lambda weight, given: torch.nn.functional.bilinear(given, given, weight[None]), "_trilinear"),
        (lambda weight, given: torch.nn.functional.conv1d(given.mT, weight[:, :, None]).mT, "conv1d"),
        (lambda weight, given: given @ torch.linalg.matrix_exp(weight), "linalg_matrix_exp"),
        (lambda weight, given: given @ torch.linalg.inv(weight * 2), "linalg_inv_ex"),
    ],
)
def test_a_weight_that_goes_into_an_unknown_function_leaves_no_count(strange, name):
    class Strange(torch.nn.Linear):
        def forward(self, inputs):
            out = strange(self.weight, inputs)
            return out.expand(*inputs.shape[:-1], 16) + self.bias

    model = tiny_run.network()
    model.bert.encoder.layer[0].attention.self.key = Strange(16, 16)
    reason = flops.model_work(LanguageModel(model)).flop_reason
    assert reason == f"the model's products cannot be counted: ValueError: {name} is not counted"


@pytest.mark.parametrize(
    "harmless",
    [
        lambda weight: weight * 0.5,
        lambda weight: torch.cat((weight[:8], weight[8:])),
        lambda weight: weight / weight.norm(dim=1, keepdim=True),
        lambda weight: weight.t().contiguous().t(),
    ],
)
def test_what_is_made_of_a_weight_element_by_element_is_no_reason(harmless):
    class Scaled(torch.nn.Linear):
        def forward(self, inputs):
            return torch.nn.functional.linear(inputs, self.weight + 0 * harmless(self.weight).sum(), self.bias)

    model = tiny_run.network()
    model.bert.encoder.layer[0].attention.self.key = Scaled(16, 16)
    reason = flops.model_work(LanguageModel(model)).flop_reason
    assert reason is None or "is not per position" in reason  # a weight made anew is no parameter


def test_a_product_in_which_the_model_has_no_part_is_skipped():
    """As older rotary models compute their angles: frequencies times positions, of inner size one."""
    model, plain = tiny_run.network(), flops.model_work(LanguageModel(tiny_run.network()))

    def angles(module, args, out):
        frequencies = module.position_ids[:, :8, None].float()
        return out + 0 * (frequencies @ torch.arange(13.0, device=out.device)[None, None]).sum()

    model.bert.embeddings.register_forward_hook(angles)
    assert flops.model_work(LanguageModel(model)) == plain
    assert plain.flop_reason is None


def test_products_without_gradients_of_their_own_leave_no_count():
    """Their backward pass is not what autograd would do."""
    model = tiny_run.network()
    dense = model.bert.encoder.layer[0].intermediate.dense
    dense.forward = torch.no_grad()(dense.forward)
    assert "without gradients" in flops.model_work(LanguageModel(model)).flop_reason
