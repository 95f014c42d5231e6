"""Fetch a model: config, weights and tokenizer in one folder, checked to load without running anyone's code."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from joulesweep.config import ModelConfig, RandomSource
from joulesweep.errors import UserError, one_of
from joulesweep.grid import model_source
from joulesweep.record import read_json
from joulesweep.sources import copy_files, describe, nearest, sha256_of
from joulesweep.tokens import load_tokenizer, vocabulary_size

FORMAT = "joulesweep-model"
VERSION = 1

INDEX = "model.safetensors.index.json"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors", INDEX)
#: Any one of these holds a vocabulary; without one, transformers would silently build an empty tokenizer.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def fetch_model(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Fetch a model's config, weights and tokenizer into a folder, which is there afterwards whole or not at all.

    Args:
        model: where it comes from.
        folder: where it goes; an existing one is replaced.

    Returns:
        Its manifest: format, version, source, files (name: SHA-256) and, for a hub source, the resolved commits
        (revision, tokenizer_revision; else null). The same files give the same manifest.

    Raises:
        UserError: it cannot be had, or it is not a model that can be loaded without running its code.
    """
    # A fixed name, so that a killed fetch leaves one folder behind at most, and the next fetch removes it.
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    result = work / "model"
    result.mkdir(parents=True)
    try:
        revision = _fetch_weights(model, result, work)
        tokenizer_revision = None
        if model.tokenizer is not None:
            tokenizer_revision = copy_files(model.tokenizer, TOKENIZER_FILES, result, work / "tokenizer")
        _check_tokenizer(result, model)
        if folder.exists():
            folder.replace(work / "replaced")
        result.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": model_source(model),
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        "revision": revision,
        "tokenizer_revision": tokenizer_revision,
    }


def _fetch_weights(model: ModelConfig, result: Path, work: Path) -> str | None:
    """Put the config and the weights (none with random ones) into the folder; the commit if from the hub."""
    if isinstance(model.source, RandomSource):
        (result / "config.json").write_text(_random_config(model.source.random), encoding="utf-8")
        return None
    wanted = MODEL_FILES if model.tokenizer is not None else MODEL_FILES + TOKENIZER_FILES
    revision = copy_files(model.source, wanted, result, work / "source")
    _check_config(result, describe(model.source))
    _check_weights(result, describe(model.source))
    return revision


def _random_config(mapping: dict[str, Any]) -> str:
    """The config.json of a model with random weights."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    keys = dict(mapping)
    model_type = str(keys.pop("model_type"))
    _check_model_type(model_type, "random")
    default = AutoConfig.for_model(model_type)
    known = sorted({*default.to_dict(), *default.attribute_map})
    for key in keys:
        if key not in known:
            raise UserError(f"random: {one_of(f'key of a {model_type} config', key, known)}")
    try:
        return str(AutoConfig.for_model(model_type, **keys).to_json_string())
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"random: {' '.join(str(error).split())}") from None


def _check_config(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: no config.json; expected a model in the Hugging Face form")
    config = _read(folder / "config.json", "model config", name)
    if "model_type" not in config:
        raise UserError(f"{name}: config.json: no model_type")
    _check_model_type(str(config["model_type"]), f"{name}: config.json")


def _read(path: Path, what: str, name: str) -> dict[str, Any]:
    """Read a JSON file; an error names the source, not the folder where the file lies for now."""
    try:
        return read_json(path, what)
    except UserError as error:
        raise UserError(f"{name}: {path.name}: {str(error).partition(': ')[2]}") from None


def _check_model_type(model_type: str, where: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        hint = nearest(model_type, CONFIG_MAPPING_NAMES)
        raise UserError(f"{where}: unknown model_type {model_type!r}; allowed: those built into transformers{hint}")


def _check_weights(folder: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    weights = [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        shards = _read(folder / INDEX, "index of shards", name).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{name}: {INDEX}: no weight_map")
        weights = [folder / PurePosixPath(shard).name for shard in sorted(set(shards.values()))]
    if not any(path.is_file() for path in weights):
        remedy = "load it once with transformers and save it with save_pretrained(), which writes safetensors"
        raise UserError(f"{name}: no *.safetensors weights; {remedy}")
    for path in weights:
        if not path.is_file():
            raise UserError(f"{name}: {path.name} is missing, which {INDEX} names")
        try:
            with safe_open(path, "numpy") as opened:
                opened.keys()
        except SafetensorError as error:  # cut off, or the pointer that git leaves without its LFS
            raise UserError(f"{name}: {path.name} is corrupt or incomplete: {error}") from None


def _check_tokenizer(folder: Path, model: ModelConfig) -> None:
    name = describe(model.tokenizer or model.source)
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise UserError(f"{name}: no tokenizer; expected one of: {', '.join(VOCABULARIES)}")
    if model.tokenizer is None:
        return
    rows = _read(folder / "config.json", "model config", name).get("vocab_size")
    tokens = vocabulary_size(load_tokenizer(folder))
    if rows is not None and rows < tokens:
        raise UserError(f"{name}: tokenizer has {tokens} tokens, the model only vocab_size {rows}")
