"""Every method is found by its file, validates its parameters and leaves a model that trains."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys

import bits
import families
import pytest
import tiers
import tiny_run
import torch

from joulesweep import methods
from joulesweep.core.errors import UserError
from joulesweep.nets import flops
from joulesweep.nets.language_model import LanguageModel


def frozen(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_methods_are_the_files_of_the_folder():
    assert {"full", "freeze-bottom"} <= set(methods.names())
    assert methods.path("freeze-bottom").name == "freeze_bottom.py"
    assert all(methods.path(name).is_file() for name in methods.names())


@pytest.mark.parametrize("name", methods.names())
class TestEveryMethod:
    def test_has_a_docstring_frozen_parameters_and_apply(self, name):
        module = methods.load(name)
        assert module.__doc__
        assert module.Params.__dataclass_params__.frozen
        assert list(inspect.signature(module.apply).parameters) == ["model", "params"]

    def test_every_parameter_has_a_default_or_is_asked_for_by_name(self, name):
        fields = dataclasses.fields(methods.load(name).Params)
        required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
        if required:
            with pytest.raises(UserError, match=required[0]):
                methods.parameters(name, {})
        else:
            assert methods.parameters(name, {}) == methods.load(name).Params()

    def test_imports_no_torch_at_module_level(self, name):
        lines = ast.parse(methods.path(name).read_text(encoding="utf-8")).body
        imports = [node for node in lines if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in imports if "torch" in ast.unparse(node)]

    def test_leaves_parameters_that_train(self, name, monkeypatch):
        if name == "qlora":
            bits.install(monkeypatch, peft=True)
        decodes = methods.incompatible_reason(tiny_run.spec(method=name)) is not None
        network = tiny_run.writer("opt") if decodes else tiny_run.network()
        model = methods.load(name).apply(network, methods.parameters(name, {}))
        wrapped = LanguageModel(model)
        ids = torch.arange(5, 15).reshape(2, 5)
        wrapped(ids, torch.ones_like(ids), ids)[0, 0].backward()
        trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        assert trained
        assert all(parameter.grad is not None for parameter in trained if parameter.ndim > 1)


def test_validating_a_method_imports_no_torch():
    code = (
        "import sys; from joulesweep import methods\n"
        "[methods.parameters(name, {}) for name in methods.names()]\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_full_freezes_nothing():
    model = tiny_run.network()
    assert methods.load("full").apply(model, methods.parameters("full", {})) is model
    assert frozen(model) == set()


@pytest.mark.parametrize(
    ("fraction", "num_layers", "num_frozen"),
    [(0.5, 2, 1), (0.25, 2, 1), (0.75, 2, 1), (0.9, 2, 1), (0.01, 6, 1), (0.25, 6, 2), (0.75, 6, 5), (0.99, 6, 5)],
)
def test_freeze_bottom_freezes_the_embeddings_and_the_lowest_layers(fraction, num_layers, num_frozen):
    """At least one layer and never all; halves are rounded up, not to the even number."""
    model = tiny_run.network(num_hidden_layers=num_layers)
    module = methods.load("freeze-bottom")
    module.apply(model, methods.parameters("freeze-bottom", {"fraction": fraction}))
    below = tuple(f"bert.encoder.layer.{i}." for i in range(num_frozen))
    expected = {name for name, _ in model.named_parameters() if name.startswith(("bert.embeddings.", *below))}
    assert len(expected) > 10
    assert frozen(model) == expected
    assert methods.describe("freeze-bottom", model) == {"num_layers": num_layers, "num_frozen_layers": num_frozen}


def test_of_one_layer_no_share_can_be_frozen():
    with pytest.raises(UserError, match=r"^method freeze-bottom: the model has one layer; a share of it cannot be"):
        methods.load("freeze-bottom").apply(
            tiny_run.network(num_hidden_layers=1), methods.parameters("freeze-bottom", {})
        )


@pytest.mark.parametrize("name", ["freeze-bottom", "last-k"])
def test_layers_that_cannot_be_told_apart_are_refused(name):
    """ALBERT executes one layer several times; XLM keeps the parts of a layer in lists of their own."""
    module, params = methods.load(name), methods.parameters(name, {})
    with pytest.raises(
        UserError, match=rf"^method {name}: the layers of this model share their weights: 1 is executed"
    ):
        module.apply(families.network("mlm-albert"), params)
    with pytest.raises(UserError, match=rf"^method {name}: each layer of this model lies in several lists"):
        module.apply(families.network("mlm-xlm"), params)


def test_groups_of_albert_that_share_nothing_are_layers():
    model = tiny_run.network("albert", num_hidden_groups=2)
    methods.load("freeze-bottom").apply(model, methods.parameters("freeze-bottom", {}))
    assert methods.describe("freeze-bottom", model) == {"num_layers": 2, "num_frozen_layers": 1}
    assert trains(model.albert.encoder.albert_layer_groups[0]) == {False}
    assert trains(model.albert.encoder.albert_layer_groups[1]) == {True}


def test_layers_in_blocks_are_counted_one_by_one():
    """Funnel's lie in lists of lists."""
    model = families.network("mlm-funnel")
    methods.load("last-k").apply(model, methods.parameters("last-k", {"layers": 1}))
    assert methods.describe("last-k", model) == {"num_layers": 2, "num_frozen_layers": 1}


def test_what_leads_to_the_layers_is_frozen_also_where_products_are_not_counted():
    """The order of the parameters needs no count."""
    model = families.network("mlm-convbert")
    assert flops.model_work(LanguageModel(model)).flop_reason is not None
    model = families.network("mlm-big_bird")
    model.bert.encoder.project = torch.nn.Linear(16, 16)
    model.bert.embeddings.register_forward_hook(lambda module, args, out: model.bert.encoder.project(out))
    methods.load("freeze-bottom").apply(model, methods.parameters("freeze-bottom", {}))
    assert trains(model.bert.encoder.project) == {False}


def test_freeze_bottom_leaves_the_head_but_the_projection_tied_to_the_embeddings():
    model = tiny_run.network()
    methods.load("freeze-bottom").apply(model, methods.parameters("freeze-bottom", {}))
    assert model.cls.predictions.transform.dense.weight.requires_grad
    assert not model.cls.predictions.decoder.weight.requires_grad


def test_freeze_bottom_freezes_the_embeddings_of_a_model_that_names_them_otherwise():
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(4, 2)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))

        def get_input_embeddings(self):
            return self.words

    model = Other()
    methods.load("freeze-bottom").apply(model, methods.parameters("freeze-bottom", {"fraction": 0.25}))
    assert frozen(model) == {"words.weight", "blocks.0.weight", "blocks.0.bias"}


def test_freeze_bottom_refuses_a_model_without_layers():
    with pytest.raises(UserError, match=r"^method freeze-bottom: the model has no list of layers$"):
        methods.load("freeze-bottom").apply(torch.nn.Linear(2, 2), methods.parameters("freeze-bottom", {}))


@pytest.mark.parametrize("fraction", [0, 1, 1.0, -0.5, 2])
def test_a_share_that_freezes_nothing_or_everything_is_refused(fraction):
    with pytest.raises(UserError, match=rf"^method freeze-bottom: fraction must lie between 0 and 1, got {fraction}$"):
        methods.parameters("freeze-bottom", {"fraction": fraction})


def test_unknown_methods_and_parameters_are_told_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown method 'freeze-botom'; .*\(did you mean 'freeze-bottom'\?\)"):
        methods.load("freeze-botom")
    with pytest.raises(UserError, match=r"^unknown parameter of method full 'fraction'; allowed: none$"):
        methods.parameters("full", {"fraction": 0.5})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("float", [1, 0.5], ["x", True, None]),
        ("int", [1], [1.0, True, "1"]),
        ("str", ["a"], [1]),
        ("bool", [True], [1, "yes"]),
    ],
)
def test_a_parameter_of_a_plain_type_takes_that_type_only(monkeypatch, kind, good, bad):
    params = dataclasses.make_dataclass(
        "Params", [("size", {"float": float, "int": int, "str": str, "bool": bool}[kind])]
    )
    monkeypatch.setattr(methods, "load", lambda name: type("Module", (), {"Params": params}))
    for value in good:
        assert methods.parameters("sample", {"size": value}).size == value
    for value in bad:
        with pytest.raises(UserError) as caught:
            methods.parameters("sample", {"size": value})
        assert str(caught.value) == f"parameter size of method sample: must be of type {kind}, got {value!r}"


def test_a_missing_parameter_is_told(monkeypatch):
    params = dataclasses.make_dataclass("Params", [("size", int)], kw_only=True)
    monkeypatch.setattr(methods, "load", lambda name: type("Module", (), {"Params": params}))
    with pytest.raises(UserError, match=r"^method sample needs the parameter size$"):
        methods.parameters("sample", {})


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_last_k_trains_the_last_layers_and_what_comes_after_them(layers):
    model = methods.load("last-k").apply(tiny_run.network(), methods.parameters("last-k", {"layers": layers}))
    expected = {
        name
        for name, _ in model.named_parameters()
        if "embeddings" not in name and not any(f"layer.{i}." in name for i in range(2 - layers))
    }
    assert trained(model) == expected
    assert "cls.predictions.bias" in expected


def test_the_positions_of_a_decoder_are_frozen_with_its_embeddings():
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "vocab_size": 50}
    config = AutoConfig.for_model("opt", word_embed_proj_dim=16, max_position_embeddings=40, **shape)
    for name in ("last-k", "freeze-bottom"):
        model = AutoModelForCausalLM.from_config(config)
        params = methods.parameters(name, {"layers": 1} if name == "last-k" else {})
        methods.load(name).apply(model, params)
        assert not any("embed" in name or "layers.0." in name for name in trained(model))
        assert {name.split(".")[2] for name in trained(model)} == {"layers", "final_layer_norm"}


def test_lora_trains_its_adapters_alone_and_merges_into_the_model_it_was():
    plain, model = tiny_run.network().eval(), tiny_run.network()
    before = plain.state_dict()
    module = methods.load("lora")
    module.apply(model, methods.parameters("lora", {"r": 2, "targets": ["key", "dense"]}))
    assert trained(model) == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trained(model)) == 2 * (
        2 * (1 + 3) + 1
    )  # two matrices each: key and three dense of a layer, and the head's
    ids = torch.arange(5, 15).reshape(2, 5)
    assert torch.equal(model.eval()(ids).logits, plain(ids).logits)  # an adapter begins with nothing
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    adapted = model(ids).logits
    assert not torch.allclose(adapted, plain(ids).logits)
    module.merge(model)
    torch.testing.assert_close(model(ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("last-k", {"layers": -1}, "layers must be at least 0, got -1"),
        ("lora", {"r": 0}, "r and alpha must be at least 1, got 0 and 32"),
        ("lora", {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ("lora", {"targets": "query"}, "targets must be names of layers, got 'query'"),
        ("lora", {"targets": []}, "targets must be names of layers, got []"),
        ("lora", {"rank": 8}, "rank"),
        ("greentrainer", {"rho": 0.0}, "rho must lie above 0 and be at most 1, got 0.0"),
        ("greentrainer", {"rho": 1.5}, "rho must lie above 0 and be at most 1, got 1.5"),
        ("greentrainer", {"objective": "joules"}, "objective must be flops or time, got 'joules'"),
        ("greentrainer", {"reselect_epochs": -1}, "reselect_epochs must be at least 0, got -1"),
        ("greentrainer", {"importance_batches": 0}, "importance_batches must be at least 1, got 0"),
        ("greentrainer", {"lora": {"r": -1}}, "r and alpha must be at least 1, got -1 and 32"),
        ("random", {"rho": 2.0}, "rho must lie above 0 and be at most 1, got 2.0"),
    ],
)
def test_a_parameter_that_means_nothing_is_one_clear_line(name, given, problem):
    with pytest.raises(UserError) as caught:
        methods.parameters(name, given)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("method ", "unknown parameter of method "))


def test_a_method_that_fits_nothing_of_the_model_is_one_clear_line():
    with pytest.raises(UserError, match=r"^unknown target of method lora 'quary'; .* \(did you mean 'query'\?\)$"):
        methods.load("lora").apply(tiny_run.network(), methods.parameters("lora", {"targets": ["quary"]}))
    with pytest.raises(UserError, match="method last-k: layers 3 of a model that has 2"):
        methods.load("last-k").apply(tiny_run.network(), methods.parameters("last-k", {"layers": 3}))
    with pytest.raises(UserError, match=r"^method last-k: the model has no list of layers$"):
        methods.load("last-k").apply(torch.nn.Linear(2, 2), methods.parameters("last-k", {}))


def test_lora_refuses_a_matrix_that_is_shared():
    """Merged, its addition would change the embeddings too."""
    with pytest.raises(
        UserError, match=r"target cls.predictions.decoder of method lora: its matrix is also that of bert"
    ):
        methods.load("lora").apply(tiny_run.network(), methods.parameters("lora", {"targets": ["decoder"]}))


def test_what_leads_from_the_embeddings_to_the_layers_is_frozen_with_them():
    from transformers import AutoConfig, AutoModelForMaskedLM

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("electra", embedding_size=8, vocab_size=50, **shape))
    methods.load("freeze-bottom").apply(model, methods.parameters("freeze-bottom", {}))
    assert {"electra.embeddings_project.weight", "electra.embeddings_project.bias"} <= frozen(model)
    assert "electra.encoder.layer.1.output.dense.weight" in trained(model)


def layers_of(model) -> list:
    """Of a tiny writer, in order of execution: of an encoder-decoder 2 of the encoder, then 3 of the decoder."""
    halves = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
    names = ("block", "layers", "h", "encoder.layer")
    lists = [m for half in halves for name, m in half.named_modules() if name.endswith(names)]
    return [layer for one in lists if isinstance(one, torch.nn.ModuleList) for layer in one]


def trains(module) -> set[bool]:
    return {parameter.requires_grad for parameter in module.parameters()}


@pytest.mark.parametrize("kind", tiny_run.WRITERS)
@pytest.mark.parametrize(
    ("name", "given"),
    tiers.first(
        1, [("freeze-bottom", {"fraction": 0.34}), ("last-k", {"layers": 2}), ("freeze-bottom", {"fraction": 0.8})]
    ),
)
def test_layers_are_frozen_in_order_of_execution(kind, name, given):
    model = tiny_run.writer(kind)
    methods.load(name).apply(model, methods.parameters(name, given))
    layers = layers_of(model)
    assert len(layers) == (5 if kind in tiny_run.ENCODER_DECODERS else 3)
    num_frozen = len(layers) - 2 if name == "last-k" else round(given["fraction"] * len(layers))
    assert [trains(layer) for layer in layers] == [{i >= num_frozen} for i in range(len(layers))]
    tables = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding) and "relative" not in n]
    assert all(trains(table) == {False} for table in tables)


@pytest.mark.parametrize(
    ("kind", "with_embeddings", "after_encoder"),
    [
        ("bloom", ["transformer.word_embeddings_layernorm"], []),
        ("t5", [], ["encoder.final_layer_norm"]),
        ("bart", ["model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"], []),
        ("bert2bert", ["encoder.embeddings.LayerNorm", "decoder.bert.embeddings.LayerNorm"], []),
    ],
)
def test_what_lies_between_frozen_parts_is_frozen_with_them(kind, with_embeddings, after_encoder):
    """What leads from embeddings to layers always, what ends an encoder where all of its layers are frozen."""
    for fraction, whole in ((0.2, False), (0.7, True)):
        model = tiny_run.writer(kind)
        methods.load("freeze-bottom").apply(model, methods.parameters("freeze-bottom", {"fraction": fraction}))
        assert all(trains(model.get_submodule(name)) == {False} for name in with_embeddings)
        assert all(trains(model.get_submodule(name)) == {not whole} for name in after_encoder)


@pytest.mark.parametrize("kind", tiny_run.WRITERS)
def test_lora_knows_its_usual_targets_and_merges(kind):
    """GPT-2's linear layers hold their matrices the other way round; a warm-started model has halves of a kind."""
    model, module = tiny_run.writer(kind).eval(), methods.load("lora")
    before = model.state_dict().keys()
    module.apply(model, methods.parameters("lora", {"r": 2, "dropout": 0.0}))
    assert trained(model) and all("lora_" in name for name in trained(model))
    adapted = {name.split(".lora_")[0] for name in trained(model)}
    usual = {"gpt2": {"c_attn"}, "bloom": {"query_key_value"}, "t5": {"q", "v"}, "bert2bert": {"query", "value"}}
    assert {name.rpartition(".")[2] for name in adapted} == usual.get(kind, {"q_proj", "v_proj"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    ids = torch.arange(5, 15).reshape(2, 5)
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    expected = model(**given).logits
    module.merge(model)
    torch.testing.assert_close(model(**given).logits, expected, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == before


def test_lora_leaves_the_relative_positions_of_t5_alone():
    model = methods.load("lora").apply(tiny_run.writer("t5"), methods.parameters("lora", {}))
    assert not any("relative" in name for name in trained(model))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("mlm-distilbert", ["q_lin", "v_lin"]),
        ("mlm-camembert", ["query", "value"]),
        ("mlm-albert", ["query", "value"]),
        ("mlm-mpnet", ["q", "v"]),
        ("mlm-modernbert", ["Wqkv"]),
        ("clm-phi3", ["qkv_proj"]),
        ("clm-qwen3_moe", ["q_proj", "v_proj"]),
        ("clm-mamba", ["in_proj"]),
        ("clm-ctrl", ["Wq", "Wv"]),
        ("seq2seq-marian", ["q_proj", "v_proj"]),
        ("seq2seq-umt5", ["q", "v"]),
        ("mlm-nomic_bert", ["q_proj", "v_proj"]),
        ("mlm-eurobert", ["q_proj", "v_proj"]),
        ("mlm-roformer", ["query", "value"]),
        ("mlm-big_bird", ["query", "value"]),
        ("clm-olmo2", ["q_proj", "v_proj"]),
        ("clm-smollm3", ["q_proj", "v_proj"]),
        ("clm-qwen2_moe", ["q_proj", "v_proj"]),
        ("clm-gpt_oss", ["q_proj", "v_proj"]),
        ("seq2seq-mbart", ["q_proj", "v_proj"]),
        ("seq2seq-m2m_100", ["q_proj", "v_proj"]),
        ("seq2seq-pegasus", ["q_proj", "v_proj"]),
        ("seq2seq-longt5", ["q", "v"]),
        ("seq2seq-led", ["query", "value"]),
        ("seq2seq-blenderbot", ["q_proj", "v_proj"]),
    ],
)
def test_lora_finds_targets_by_their_usual_names_where_peft_knows_none(family, targets):
    model, module = families.network(family), methods.load("lora")
    module.apply(model, methods.parameters("lora", {}))
    assert trained(model) and all("lora_" in name for name in trained(model))
    assert methods.describe("lora", model) == {"lora_targets": targets}
    module.merge(model)
    assert methods.describe("greentrainer", model) == {}


def test_lora_takes_every_linear_layer_of_a_model_with_names_of_its_own():
    model, other = families.network("clm-rwkv"), families.network("clm-rwkv")
    methods.load("lora").apply(model, methods.parameters("lora", {}))
    inside = {name for name, part in other.rwkv.blocks.named_modules() if isinstance(part, torch.nn.Linear)}
    adapted = {name.partition(".lora_")[0].removeprefix("rwkv.blocks.") for name in trained(model)}
    assert adapted == inside  # and not the output layer
    assert methods.describe("lora", model) == {"lora_targets": sorted({name.rpartition(".")[2] for name in inside})}


def test_lora_refuses_a_model_without_linear_layers():
    from types import SimpleNamespace

    model = torch.nn.Sequential(torch.nn.Embedding(3, 2))
    model.config = SimpleNamespace(model_type="novel")
    with pytest.raises(UserError, match=r"^method lora: the model has no linear layer of its own in its layers$"):
        methods.load("lora").apply(model, methods.parameters("lora", {}))


@pytest.mark.parametrize("name", methods.names())
def test_a_method_has_functions_of_the_contract_alone(name):
    """Else a misspelt one would never be called."""
    module = methods.load(name)
    own = {
        key: list(inspect.signature(value).parameters)
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and key[0] != "_"
    }
    contract = {
        key: list(inspect.signature(value).parameters)[1:]
        for key, value in vars(methods.Method).items()
        if inspect.isfunction(value) and key[0] != "_"
    }
    assert "apply" in own
    assert {key: contract.get(key) for key in own} == own
