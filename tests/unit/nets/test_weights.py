"""A model is that of its files, whole, or it is refused by the names of what is missing: at fetch, and in the run."""

from __future__ import annotations

import json
import re

import pytest
import tiers
import tiny_run
import torch
from safetensors.torch import load_file, save_file

from joulesweep.core.errors import UserError
from joulesweep.nets import build, weights
from joulesweep.plan.config import ModelConfig
from joulesweep.prepare.model import fetch_model


def without(*parts):
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def prefixed(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def another_layer(state):
    return state | {name.replace(".1.", ".2."): tensor.clone() for name, tensor in state.items() if ".1." in name}


def of_old_names(state):
    return {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for name, t in state.items()}


@pytest.fixture
def saved(tmp_path):
    """A family's model saved after a change of its weights, and of its config."""

    def saved(kind, change=lambda state: state, **config):
        folder = tiny_run.model(tmp_path / "model", kind=kind)
        path = folder / "model.safetensors"
        state = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(change(state), path, metadata={"format": "pt"})
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**about, **config}))
        return folder

    return saved


def fetch(folder, tmp_path, tasks=(), **model):
    given = ModelConfig(source={"local": str(folder)}, **model)
    return fetch_model(given, tmp_path / "fetched", tasks)


#: One of each task first.
KINDS = tuple(dict.fromkeys(("bert", "gpt2", "t5", "roberta", "distilbert", "electra", *tiny_run.WRITERS)))
REFUSED = [
    ("bert", prefixed("module."), r"the files have names that begin with 'module\.'"),
    ("t5", prefixed("module."), r"names that begin with 'module\.'"),
    ("bert", without("cls."), r"cls\.predictions\.bias, .*new_weights: \[head\]"),
    ("llama", without("lm_head"), r"not in the files: lm_head\.weight; .*\[head\]"),
    ("bart", without("decoder.layers.0.fc1"), r"model\.decoder\.layers\.0\.fc1\.bias, model\.\S+\.weight$"),
    ("bert", another_layer, r"layers that config\.json leaves out: bert\.encoder\.layer\.2\."),
    ("bert", prefixed("_orig_mod."), r"the files have names that begin with '_orig_mod\.'"),
    ("bert", prefixed("student.model."), r"names that begin with 'student\.model\.'"),
    ("llama", prefixed("_fsdp_wrapped_module."), r"names that begin with '_fsdp_wrapped_module\.'"),
    ("electra", without("generator"), r"generator_lm_head\.bias, .*\[head\]"),
    ("bert", without("layer.1."), r"bert\.encoder\.layer\.1\.\S+, .*… \(16 weights\)$"),
    ("gpt2", without("ln_f.bias"), r"not in the files: transformer\.ln_f\.bias$"),
]


@pytest.mark.parametrize(("kind", "change", "line"), tiers.first(6, REFUSED))
def test_files_that_are_not_the_whole_model_are_refused_by_name(saved, tmp_path, kind, change, line):
    folder, task = saved(kind, change), tiny_run.task_of(kind)
    for tasks in ((), (task,)):
        with pytest.raises(UserError, match=line) as at_fetch:
            fetch(folder, tmp_path, tasks)
        assert str(at_fetch.value).startswith(f"{folder}: task {task}: ")
        assert not (tmp_path / "fetched").exists()
    with pytest.raises(UserError, match=line) as in_run:
        build.build(folder, task)
    assert f"{folder}: {in_run.value}" == str(at_fetch.value)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"vocab_size": 200},
            r"has shape \[100, 16\] in the files and \[200, 16\] by config\.json, and 1 more$",
        ),
        ({"intermediate_size": 48}, r"layer\.0\.intermediate\.dense\.bias has shape \[32\] in the files and \[48\]"),
        ({"hidden_size": 32}, r"has shape \[16\] in the files and \[32\]"),
        (
            {"max_position_embeddings": 8},
            r"position\S+\.weight has shape \[40, 16\] in the files and \[8, 16\]",
        ),
        ({"num_attention_heads": 3}, "the model cannot be built: .*not a multiple of the number of attention heads"),
        ({"hidden_act": "nosuch"}, "the model cannot be built: .*nosuch"),
    ],
)
def test_shapes_and_sizes_that_do_not_fit_are_one_line(saved, tmp_path, config, line):
    folder = saved("bert", **config)
    with pytest.raises(UserError, match=line) as caught:
        fetch(folder, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *tiers.first(3, ((kind, lambda state: state) for kind in KINDS)),
        ("bert", of_old_names),
        ("bert", lambda state: state | {"bert.pooler.dense.weight": torch.ones(16, 16)}),
        ("bert", lambda state: state | {"bert.embeddings.position_ids": torch.arange(40)[None]}),
        ("bert", lambda state: state | {"cls.seq_relationship.weight": torch.ones(2, 16)}),
        ("bert", lambda state: state | {"cls.predictions.decoder.weight": torch.ones(100, 16)}),  # tied, and said twice
        ("gpt2", lambda state: {name.removeprefix("transformer."): t for name, t in state.items()}),
        ("bert", lambda state: {name: t.half() if t.is_floating_point() else t for name, t in state.items()}),
    ],
)
def test_whole_models_are_taken_whatever_the_hub_has_put_beside_them(saved, tmp_path, kind, change):
    folder, task = saved(kind, change), tiny_run.task_of(kind)
    manifest = fetch(folder, tmp_path, [task])
    assert manifest["tasks"][task] == {"reason": None, "new_weights": []}
    build.build(folder, task)


def test_a_head_may_be_new_where_the_config_says_so(saved, tmp_path):
    folder = saved("bert", without("cls."))
    manifest = fetch(folder, tmp_path, ["mlm"], new_weights=["head"])
    assert manifest["tasks"]["mlm"]["reason"] is None
    assert "cls.predictions.transform.dense.weight" in manifest["tasks"]["mlm"]["new_weights"]
    assert manifest["source"]["new_weights"] == ["head"]
    build.build(folder, "mlm", ["head"])
    with pytest.raises(UserError, match=r"layer\.1"):
        fetch(saved("bert", without("cls.", "layer.1.")), tmp_path, new_weights=["head"])


def test_an_encoder_writes_texts_with_an_attention_that_may_be_new(saved, tmp_path):
    folder = saved("bert")
    manifest = fetch(folder, tmp_path)
    line = "add new_weights: [cross_attention] beside the model's source"
    assert manifest["tasks"]["seq2seq"]["reason"].endswith(line)
    assert manifest["tasks"]["mlm"]["reason"] is None
    with pytest.raises(UserError, match=re.escape(line)):
        fetch(folder, tmp_path, ["mlm", "seq2seq"])
    allowed = fetch(folder, tmp_path, ["mlm", "seq2seq"], new_weights=["cross_attention"])
    new = allowed["tasks"]["seq2seq"]["new_weights"]
    assert new
    assert all(name.startswith("decoder.bert.encoder.layer.") and ".crossattention." in name for name in new)
    assert allowed["tasks"]["mlm"]["new_weights"] == []


def test_a_decoder_taken_out_of_an_encoder_decoder_has_no_embeddings(saved, tmp_path):
    """transformers trains BART alone as a decoder, with random embeddings."""
    manifest = fetch(saved("bart"), tmp_path)
    assert manifest["tasks"]["seq2seq"]["reason"] is None
    assert "model.decoder.embed_tokens.weight" in manifest["tasks"]["clm"]["reason"]


def test_a_manifest_does_not_depend_on_the_tasks_of_the_sweep(saved, tmp_path):
    folder = saved("bert")
    assert fetch(folder, tmp_path, ["mlm"]) == fetch(folder, tmp_path, ["mlm", "clm"]) == fetch(folder, tmp_path)


@pytest.mark.parametrize("apart", [False, True])
def test_a_tokenizer_larger_than_the_embeddings_is_refused(saved, tmp_path, apart):
    folder = saved("bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    tokenizer["added_tokens"].append({"id": 100, "content": "newword", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="tokenizer has 101 tokens, the model only vocab_size 100"):
        fetch(folder, tmp_path, **({"tokenizer": {"local": str(folder)}} if apart else {}))


def test_a_config_of_random_weights_that_cannot_be_built_is_one_line(tmp_path):
    tiny_run.tokenizer(tmp_path / "tokenizer")
    random = {"model_type": "bert", "hidden_size": 128, "num_attention_heads": 3}
    given = ModelConfig(source={"random": random}, tokenizer={"local": str(tmp_path / "tokenizer")})
    with pytest.raises(UserError, match=r"^random: task mlm: the model cannot be built: .*attention heads") as caught:
        fetch_model(given, tmp_path / "fetched")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "clm"), ("t5", "seq2seq")])
def test_the_reason_is_that_of_the_task_which_the_family_has(tmp_path, kind, task):
    tiny_run.tokenizer(tmp_path / "tokenizer")
    wrong = {"gpt2": {"activation_function": "nosuch"}, "t5": {"feed_forward_proj": "gated-nosuch"}}[kind]
    given = ModelConfig(
        source={"random": {"model_type": kind, **wrong}}, tokenizer={"local": str(tmp_path / "tokenizer")}
    )
    with pytest.raises(UserError, match=rf"^random: task {task}: the model cannot be built: .*nosuch"):
        fetch_model(given, tmp_path / "fetched")


def test_trying_reads_headers_alone(saved, tmp_path, monkeypatch):
    """A large model is tried in no memory: what is loaded has no content."""
    folder, asked = saved("bert"), []
    of = weights.Fit.of
    monkeypatch.setattr(weights.Fit, "of", lambda model, info: asked.append(model) or of(model, info))
    build.tried(folder, "mlm")
    assert {type(parameter.data).__name__ for parameter in asked[0].parameters()} == {"FakeTensor"}


def test_a_family_that_looks_at_what_it_draws_is_tried_all_the_same(saved, tmp_path):
    folder = saved("modernbert", without("head.", "decoder."))
    manifest = fetch(folder, tmp_path, new_weights=["head"])
    assert manifest["tasks"]["mlm"]["reason"] is None
    assert any(name.startswith("head.") for name in manifest["tasks"]["mlm"]["new_weights"])


def test_new_weights_of_random_models_mean_nothing():
    with pytest.raises(ValueError, match="new_weights: has no meaning with random weights"):
        ModelConfig(source={"random": {"model_type": "bert"}}, tokenizer={"local": "x"}, new_weights=["head"])


def test_parts_come_in_one_order():
    one, other = (
        ModelConfig(source={"local": "x"}, new_weights=parts)
        for parts in (["head", "cross_attention"], ["cross_attention", "head", "head"])
    )
    assert one == other
    assert set(one.new_weights) == set(weights.PARTS)


def test_names_are_few():
    assert weights.some(["a", "b", "c"]) == "a, b, c"
    assert weights.some(list("abcdef")) == "a, b, c, … (6 weights)"
