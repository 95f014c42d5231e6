"""Methods that choose tensors: what a choice costs, what it leaves alone, and that only what is chosen trains."""

from __future__ import annotations

import copy
import itertools
import math

import families
import pytest
import tiers
import tiny_run
import torch
import transformers
from outcomes import trained
from places import ALONE
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from joulesweep import methods
from joulesweep.axes import precision
from joulesweep.axes.task import TASKS
from joulesweep.nets import flops, products
from joulesweep.nets.language_model import LanguageModel
from joulesweep.train import assembly, loop, trainer
from joulesweep.train.adaptive import calibration, choosing, cost

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

CPU = torch.device("cpu")
UNITS = {"token": 300.0, "head_position": 40.0, "token_pair": 4000.0}
CHOOSING = [name for name in methods.names() if methods.chooses(name)]


TASK_OF = {"opt": "clm", "llama": "clm", "gpt2": "clm", "bloom": "clm", "t5": "seq2seq", "bart": "seq2seq"}


def core_of(kind="bert", **shape):
    """A model on the meta device, with eager attention, which the oracle can count."""
    task = TASK_OF.get(kind, "mlm")
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **shape)
        model = getattr(transformers, TASKS[task].auto_class).from_config(config, attn_implementation="eager")
    return LanguageModel(model.train(), task=task)


def train_only(core, chosen):
    for name, parameter in core.model.named_parameters():
        parameter.requires_grad_(name in chosen)


def counted(core, rows=4, length=24, target_length=16):
    """FLOPs of a forward and backward pass, as PyTorch counts them."""
    given = {"input_ids": torch.zeros((rows, length), dtype=torch.long, device="meta")}
    if core.task == "seq2seq":
        given["decoder_input_ids"] = torch.zeros((rows, target_length), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        core.model(**given).logits.sum().backward()
    return counter.get_total_flops()


def units(core, rows=4, length=24, target_length=16):
    seq2seq = core.task == "seq2seq"
    found = {"token": rows * length, "token_pair": rows * length**2}
    written = rows * target_length * seq2seq
    found |= {"target_token": written, "target_pair": written * target_length, "cross_pair": written * length}
    return {**found, "head_position": written if seq2seq else rows * length}


@pytest.mark.parametrize("kind", tiers.first(2, ["bert", "modernbert", "roberta", "electra"]))
def test_training_everything_costs_what_the_coefficients_say(kind):
    core = core_of(kind, num_hidden_layers=2)
    found = cost.cost(core, UNITS)
    coefficients = flops.coefficients(products.traced(core).products)
    assert found.full == pytest.approx(sum(coefficients[unit] * number for unit, number in UNITS.items()), rel=1e-12)
    assert list(found.reach) == sorted(found.reach)
    used = {name for name, _ in core.model.named_parameters()} & set(found.names)
    assert len(used) == len(found.names)


def test_the_order_is_that_of_execution_and_a_shared_matrix_lies_where_it_is_first_used():
    found = cost.cost(core_of(num_hidden_layers=2), UNITS)
    place = found.names.index
    assert found.names[0] == "cls.predictions.bias"
    assert place("bert.encoder.layer.1.output.dense.weight") < place("bert.encoder.layer.1.intermediate.dense.weight")
    assert place("bert.encoder.layer.1.attention.self.query.weight") < place("bert.encoder.layer.0.output.dense.weight")
    assert "word_embeddings" in found.names[-1] or "embeddings" in found.names[-1]
    word = place("bert.embeddings.word_embeddings.weight")
    assert found.reach[word] == found.reach[-1]
    assert found.weight_costs[word] > 0  # as the output layer
    assert found.weight_costs[place("bert.embeddings.LayerNorm.weight")] == 0


@pytest.mark.parametrize("name", ["fp32", "bf16-true"])
def test_experts_cost_what_a_token_takes_of_them(name):
    """Two of four: each of the two matrices in one is 16 × 24, and so is the third."""
    core = precision.cast(LanguageModel(families.network("clm-qwen3_moe"), name, task="clm"), name)
    found = cost.cost(core, UNITS)
    own = {name: work for name, work in zip(found.names, found.weight_costs, strict=True) if ".experts." in name}
    one = UNITS["token"] * 2 * (2 * 16 * 24)
    assert own == {
        f"model.layers.{i}.mlp.experts.{name}": times * one
        for i in range(2)
        for name, times in (("gate_up_proj", 2), ("down_proj", 1))
    }


def shape_of(kind, num_layers, width=768):
    """A small vocabulary, or the output layer alone would decide. LLaMA shares keys and values among heads."""
    if kind == "t5":
        return {"d_model": width, "num_layers": num_layers, "num_heads": 12, "d_ff": 4 * width, "vocab_size": 2000}
    if kind == "bart":
        layers = {"encoder_layers": num_layers, "decoder_layers": num_layers}
        sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in HALF.items()}
        return {"d_model": width, **layers, **sizes, "vocab_size": 2000}
    shape = {"num_hidden_layers": num_layers, "hidden_size": width, "num_attention_heads": 12, "vocab_size": 2000}
    return {**shape, **({"num_key_value_heads": 4} if kind == "llama" else {})}


HALF = {"ffn_dim": 3072, "attention_heads": 12}


@pytest.mark.parametrize(
    ("rho", "num_layers", "tolerance"),
    [
        (0.4, 2, 0.05),
        (0.7, 2, 0.05),
        pytest.param(0.4, 12, 0.01, marks=pytest.mark.long),
        pytest.param(0.7, 12, 0.01, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", tiers.first(4, ["bert", "llama", "gpt2", "t5", "roberta", "opt", "bloom", "bart"]))
def test_predicted_flops_are_those_that_pytorch_counts(kind, num_layers, tolerance, rho):
    core = core_of(kind, **shape_of(kind, num_layers))
    found = cost.cost(core, units(core))
    assert found.full == pytest.approx(counted(core), rel=tiny_run.ANGLES)
    draw = torch.Generator().manual_seed(1)
    choice = found.choose(torch.rand(len(found.names), generator=draw).tolist(), rho)
    train_only(core, {name for name, taken in zip(found.names, choice.chosen, strict=True) if taken})
    predicted, real = found.share(choice.chosen), counted(core) / found.full
    assert predicted <= rho
    assert real == pytest.approx(predicted, rel=tolerance)
    assert real <= predicted * (1 + tiny_run.ANGLES)  # tensors form a chain: never less than the truth


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_run.WRITERS)
@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("last-k", {"layers": 1}),
        ("freeze-bottom", {"fraction": 0.25}),
        ("freeze-bottom", {"fraction": 0.75}),
        ("lora", {"r": 2, "dropout": 0.0}),
    ],
)
def test_what_a_method_freezes_costs_what_pytorch_counts(kind, method, given):
    with torch.device("meta"):
        model = tiny_run.writer(kind)
        model.set_attn_implementation("eager")
        model.config.pad_token_id = None  # else GPT-2 looks for it among the ids
        methods.load(method).apply(model, methods.parameters(method, given))
    core = LanguageModel(model.train(), task=tiny_run.task_of(kind))
    found = flops.coefficients(products.traced(core).products)
    total = sum(found[unit] * number for unit, number in units(core).items() if unit in found)
    assert total == pytest.approx(counted(core), rel=tiny_run.ANGLES)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half_of_an_encoder_decoder_costs_what_pytorch_counts(half):
    """Training the decoder needs no gradient of what the encoder hands to it, however long the text is."""
    core = core_of("t5", **shape_of("t5", 4, width=192))
    found = cost.cost(core, units(core, length=90))
    chosen = [name.startswith(f"{half}.block.1") for name in found.names]
    train_only(core, {name for name, taken in zip(found.names, chosen, strict=True) if taken})
    assert found.share(chosen) == pytest.approx(counted(core, length=90) / found.full, rel=0.02)


@pytest.mark.slow
def test_any_choice_is_never_dearer_than_predicted():
    core = core_of(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=96, vocab_size=100)
    found = cost.cost(core, units(core))
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        chosen = (torch.rand(len(found.names), generator=draw) < 0.2).tolist()
        train_only(core, set(itertools.compress(found.names, chosen)))
        assert counted(core) / found.full <= found.share(chosen) * (1 + 1e-9)


def test_everything_fits_rho_1_and_nothing_a_rho_below_the_floor():
    found = cost.cost(core_of(num_hidden_layers=2), UNITS)
    assert all(found.choose([1.0] * len(found.names), 1.0).chosen)
    assert sum(found.choose([1.0] * len(found.names), found.floor * 1.0001).chosen) >= 1
    assert not any(found.choose([1.0] * len(found.names), found.floor * 0.999).chosen)


def test_seconds_are_the_parts_of_a_step_divided():
    core = core_of(num_hidden_layers=2)
    plain = cost.cost(core, UNITS)
    rates = cost.Rates(forward_s=3.0, chain_s=4.0, backward_s=9.0, optimizer_s=2.0)
    sizes = {name: parameter.nbytes for name, parameter in core.model.named_parameters()}
    found = plain.in_seconds(rates, sizes)
    assert found.names == plain.names
    assert (found.forward, found.reach[-1]) == (3.0, pytest.approx(4.0))
    assert found.full == pytest.approx(3.0 + 9.0 + 2.0)
    bias = found.names.index("cls.predictions.transform.dense.bias")
    share = sizes["cls.predictions.transform.dense.bias"] / sum(sizes[name] for name in found.names)
    assert found.weight_costs[bias] == pytest.approx(2.0 * share)  # its gradient is no product
    assert found.reach[bias] / 4.0 == pytest.approx(plain.reach[bias] / plain.reach[-1])


def test_calibration_leaves_the_trainer_as_it_was(assemble):
    built = assemble()
    weights, rng = copy.deepcopy(built.core.state_dict()), torch.get_rng_state()
    found = calibration.calibrate(built, built.selector.cost.names[-1])
    assert 0 < found.chain_s <= found.backward_s
    assert found.forward_s > 0 < found.optimizer_s
    assert all(torch.equal(value, weights[key]) for key, value in built.core.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not built.optimizer.state
    assert all(parameter.requires_grad and parameter.grad is None for parameter in built.core.parameters())


@pytest.fixture
def assemble(assets):
    def assemble(**changes):
        changes = {"method": "greentrainer", "method_params": {"rho": 0.6}, **changes}
        return assembly.assemble(tiny_run.spec(**changes), assets.model_folder, assets.tokens, ALONE)

    return assemble


@pytest.fixture
def run(assets, tmp_path):
    def run(**changes):
        changes = {"method": "greentrainer", "method_params": {"rho": 0.6}, **changes}
        return trained(tiny_run.spec(**changes), assets.model_folder, assets.tokens, tmp_path)

    return run


@pytest.mark.parametrize(("epoch", "share"), [(1, 1.0), (2, 0.5)])
def test_importance_is_the_fall_of_the_loss_by_a_fresh_step_of_adamw(assemble, epoch, share):
    """By PyTorch's own optimizer, on a copy; the learning rate falls to 0 in a straight line."""
    built = assemble(weight_decay=0.1, epochs=2, method_params={"importance_batches": 2})
    parameters = dict(built.core.model.named_parameters())
    names = list(built.selector.cost.names)
    built.open_phase("rating", epoch)
    found = built.selector.method.importances(
        choosing.Rating(built, epoch), built.selector.params, {name: parameters[name] for name in names}
    )

    other = copy.deepcopy(built.core).eval()
    named = dict(other.model.named_parameters())
    steps = list(itertools.islice(built.batches(epoch), 2))

    def gradients():
        other.zero_grad()
        for (batch,), num_predicted in steps:
            (other(*batch.tensors)[0, 0] / num_predicted / 2).backward()
        return {name: named[name].grad.clone() for name in names}

    before = {name: named[name].detach().clone() for name in names}
    gradients()
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=share * built.spec.lr).step()
    after = gradients()
    expected = [-float(((named[name].detach() - before[name]) * after[name]).sum()) for name in names]
    largest = max(map(abs, expected))
    assert max(map(abs, found)) == pytest.approx(1.0)
    assert found == pytest.approx([value / largest for value in expected], abs=1e-3)


@pytest.mark.parametrize("name", CHOOSING)
def test_rating_leaves_weights_gradients_optimizer_and_random_state_alone(assemble, name):
    built = assemble(method=name)
    built.core.train()
    optimizer, weights = copy.deepcopy(built.optimizer.state_dict()), copy.deepcopy(built.core.state_dict())
    rng = torch.get_rng_state()
    built.open_phase("rating", 1)
    parameters = dict(built.core.model.named_parameters())
    built.selector.method.importances(choosing.Rating(built, 1), built.selector.params, parameters)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, weights[key]) for key, value in built.core.state_dict().items())
    assert built.optimizer.state_dict() == optimizer
    assert all(parameter.grad is None for parameter in parameters.values())
    assert built.core.training


def test_only_what_is_chosen_trains_and_has_optimizer_state(assemble):
    built = assemble()
    before = copy.deepcopy(built.core.model.state_dict())
    for epoch, _ in loop._run_epochs(built):
        assert epoch == 1
    chosen = set(built.phases[-1].choice.chosen)
    named = dict(built.core.model.named_parameters())
    assert 0 < len(chosen) < len(named)
    assert {name for name, parameter in named.items() if parameter in built.optimizer.state} == chosen
    changed = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
    assert changed == chosen


def test_state_is_released_where_a_tensor_is_frozen_and_kept_where_it_goes_on(assemble, monkeypatch):
    built = assemble(epochs=2, method_params={"rho": 0.7, "reselect_epochs": 1})
    order = iter((lambda names: range(len(names)), lambda names: reversed(range(len(names)))))
    monkeypatch.setattr(
        built.selector.method,
        "importances",
        lambda rating, params, parameters: [float(k + 1) for k in next(order)(list(parameters))],
    )
    list(loop._run_epochs(built))
    first, second = (set(phase.choice.chosen) for phase in built.phases if phase.kind == "training")
    assert first != second
    named = dict(built.core.model.named_parameters())
    taken = {name: int(built.optimizer.state[named[name]]["step"]) for name in second}
    assert {name for name in named if named[name] in built.optimizer.state} == second
    steps = built.steps_per_epoch
    assert all(number == (2 * steps if name in first else steps) for name, number in taken.items())


@pytest.mark.parametrize(
    ("every", "epochs"), tiers.first(2, [(2, [1, 3, 5]), (0, [1]), (1, [1, 2, 3, 4, 5]), (4, [1, 5])])
)
def test_tensors_are_chosen_anew_every_so_many_epochs(run, every, epochs):
    phases = run(epochs=5, method_params={"reselect_epochs": every})["measurement"]["phases"]
    assert [(phase["kind"], phase["epoch"]) for phase in phases] == [
        (kind, epoch) for epoch in epochs for kind in ("rating", "training")
    ]


def test_rating_is_counted_apart_from_training(run):
    measurement = run(epochs=2, method_params={"importance_batches": 2, "reselect_epochs": 0})["measurement"]
    rating, training = measurement["phases"]
    assert (rating["num_steps"], training["num_steps"]) == (4, measurement["num_steps"])  # twice two, before and after
    assert measurement["num_texts"] == training["num_texts"]
    assert rating["num_texts"] == 4 * 16
    assert rating["flop_coefficients"]["token"] > training["flop_coefficients"]["token"]
    assert rating["bytes_per_step"] > training["bytes_per_step"]


def test_a_repeated_training_chooses_the_same_and_is_counted_once(run, monkeypatch):
    short = iter([True, True, False])
    monkeypatch.setattr(loop, "_is_short", lambda *_: next(short))
    once, again = run(epochs=2), run(epochs=2, min_seconds=1.0)
    assert again["measurement"]["num_passes"] == 3
    one, other = ([{**phase, "elapsed_s": None} for phase in found["measurement"]["phases"]] for found in (once, again))
    assert one == other
    assert all(phase["elapsed_s"] > 0 for phase in again["measurement"]["phases"])
    assert again["losses"] == once["losses"]


def test_the_choice_keeps_the_budget_and_says_how_good_it_is(run):
    for rho in (0.4, 0.6, 0.8):
        phase = run(method_params={"rho": rho})["measurement"]["phases"][-1]
        assert phase["floor"] < phase["predicted_cost"] <= rho
        assert 0 <= phase["gap"] < 0.05
        assert 0 < phase["trained_share"] < 1
        assert 0 < phase["importance_share"] <= 1


def test_what_is_chosen_depends_on_neither_batching_nor_head(run):
    ways = [{"batching": "fixed", "head": "dense"}, {"batching": "packed"}, {"batching": "dynamic"}]
    first, *others = ([phase.get("chosen") for phase in run(**way)["measurement"]["phases"]] for way in ways)
    assert all(other == first for other in others)


def test_random_choices_differ_by_seed_alone(run):
    one, same, other = (
        run(method="random", method_params={"rho": 0.6}, repeat=repeat)["measurement"]["phases"][-1]["chosen"]
        for repeat in (1, 1, 2)
    )
    assert one == same != other


def test_where_everything_harms_the_least_harmful_tensor_trains():
    found = cost.cost(core_of(num_hidden_layers=2), UNITS)
    importances = [-1.0 - k for k in range(len(found.names))]
    choice = found.choose(importances, 0.7)
    assert [k for k, taken in enumerate(choice.chosen) if taken] == [0]
    assert (choice.importance, choice.gap) == (-1.0, 0.0)


def test_importances_that_are_no_numbers_are_a_divergence(run, monkeypatch):
    module = methods.load("greentrainer")
    real = module.importances
    broken = lambda rating, *args: real(rating, *args) if rating.epoch < 3 else [math.nan] * len(args[1])  # noqa: E731
    monkeypatch.setattr(module, "importances", broken)
    with pytest.raises(loop.RunEnded, match="the importances of the tensors were not finite before epoch 3") as stopped:
        run(epochs=4)
    assert stopped.value.outcome.status == "diverged"


def test_a_rho_below_the_floor_is_refused_with_the_floor(run):
    with pytest.raises(loop.RunEnded, match=r"rho 0.2 is below the floor: .* take 0.\d+ of full training") as stopped:
        run(method_params={"rho": 0.2})
    assert stopped.value.outcome.status == "unsupported"


@pytest.mark.parametrize("changes", [{"strategy": "fsdp", "devices": 2}, {"engine": "compile"}, {"engine": "graph"}])
@pytest.mark.parametrize("name", CHOOSING)
def test_what_a_choice_cannot_be_combined_with_is_known_beforehand(name, changes):
    reason = methods.incompatible_reason(tiny_run.spec(method=name, **changes))
    assert reason.startswith(f"method {name}: ")
    assert methods.incompatible_reason(tiny_run.spec(**changes)) is None
    assert methods.incompatible_reason(tiny_run.spec(method=name, strategy="ddp", devices=2)) is None


def test_adapters_can_be_chosen_among(run):
    phase = run(method_params={"rho": 0.95, "lora": {"r": 2}})["measurement"]["phases"][-1]
    assert phase["chosen"]
    assert all("lora_" in name for name in phase["chosen"])
    assert phase["num_candidates"] == 8  # two matrices of query and of value, in two layers


def test_adapters_of_a_decoder_can_be_chosen_among(tmp_path):
    """GPT-2's, whose linear layers are of a kind of their own."""
    folder, tokens = (
        tiny_run.model(tmp_path / "gpt2", kind="gpt2"),
        tiny_run.token_file(tmp_path / "tokens.safetensors"),
    )
    given = {"method_params": {"rho": 0.95, "lora": {"r": 2}}, "task": "clm", "batching": "dynamic"}
    outcome = trained(tiny_run.spec(method="greentrainer", **given), folder, tokens, tmp_path)
    phase = outcome["measurement"]["phases"][-1]
    assert phase["chosen"]
    assert all(".c_attn.lora_" in name for name in phase["chosen"])
    assert outcome["epochs"][-1]["validation_loss"] < outcome["epochs"][0]["validation_loss"]


def test_skipped_steps_are_counted_across_choices(assemble):
    """A scale that overflows: the first steps of the first epoch are left out, none of the second."""
    built = assemble(precision="fp16-mixed", epochs=2, method_params={"rho": 0.7, "reselect_epochs": 1})
    built.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    list(loop._run_epochs(built))
    trainer.read_counters(built.phases)
    skipped = [phase.num_skipped_steps for phase in built.phases if phase.kind == "training"]
    assert skipped[0] > skipped[1]
    assert sum(skipped) == math.log2(2.0**22 / built.scaler.get_scale())  # each one halves the scale


def test_a_checkpointed_layer_is_computed_again_as_a_whole():
    """Whatever trains in it, were it only its last bias."""
    core = core_of(num_hidden_layers=2, vocab_size=200)
    enable = getattr(core.model, "activation_checkpointing_enable", core.model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    core.model.disable_input_require_grads()
    found = cost.cost(core, units(core))
    whole = counted(core)
    assert found.full == pytest.approx(whole, rel=1e-9)
    for name in ("layer.1.output.LayerNorm.weight", "layer.1.output.dense.weight", "layer.0.output.LayerNorm.bias"):
        name = f"bert.encoder.{name}"
        train_only(core, {name})
        real = counted(core) / whole
        assert found.share([other == name for other in found.names]) == pytest.approx(real, rel=0.05)
        work = flops.model_work(core).flop_coefficients
        total = sum(
            (work.get(unit, 0.0) + work.get(f"recomputed_{unit}", 0.0)) * number for unit, number in units(core).items()
        )
        assert total / whole == pytest.approx(real, rel=1e-9)


def test_seconds_are_calibrated_by_a_tensor_without_a_product_of_its_own(assemble, monkeypatch):
    """BERT's deepest is the table of tokens, which is the output layer's matrix too."""
    given = []
    real = calibration.calibrate
    monkeypatch.setattr(choosing, "calibrate", lambda trainer, deepest: given.append(deepest) or real(trainer, deepest))
    built = assemble(method_params={"rho": 0.9, "objective": "time"})
    (deepest,) = given
    assert "word_embeddings" not in deepest
    place = built.selector.cost.names.index(deepest)
    assert built.selector.cost.reach[place] == built.selector.cost.reach[-1]


def test_a_model_that_cannot_be_counted_is_unsupported(assemble, monkeypatch):
    def broken(core):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(products, "traced", broken)
    with pytest.raises(loop.RunEnded, match=r"cannot be counted: RuntimeError: Tensor\.item"):
        assemble()
