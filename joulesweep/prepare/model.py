"""Fetch a model's config, weights and tokenizer into one folder, and check that it loads without running its code."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from joulesweep.axes.task import TASKS
from joulesweep.core.errors import UserError, brief_repr
from joulesweep.core.files import sha256_of
from joulesweep.plan.config import FileSource, HubSource, ModelConfig, RandomSource, TrainedTokenizer
from joulesweep.plan.grid import model_source
from joulesweep.prepare import vocabulary
from joulesweep.prepare.sources import AnySource, copy_files, describe, nearest
from joulesweep.prepare.tokens import load_tokenizer, vocabulary_size

FORMAT = "joulesweep-model"
VERSION = 1

INDEX = "model.safetensors.index.json"
#: Keys that count at least 1, by transformers' common names.
SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings")
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
BYTE_ORDER_MARK = "\ufeff"
UNBUILT = 10**9  #: number of unfit weights of a model that cannot be built
#: Keys of a model's generation config that are kept: its tokens, and keys that change no output.
KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "transformers_version",
    "_from_model_config",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict_in_generate",
)


def fetch_model(
    model: ModelConfig, folder: Path, tasks: Collection[str] = (), texts: Path | None = None
) -> dict[str, object]:
    """Fetch a model's config, weights and tokenizer into a folder, which is written completely or not at all.

    Args:
        model: where it comes from.
        folder: where it goes; an existing one is replaced.
        tasks: tasks of `axes.task.TASKS` that it must be able to learn; without any, one task is enough.
        texts: the data set that its tokenizer is to be trained on, as `scripts.fetch_dataset` wrote it.

    Returns:
        Its manifest: format, version, source, files (name: SHA-256); for a hub source, the resolved commits
        (revision, tokenizer_revision; else null); tasks: for each one the reason why the model cannot learn it (null
        if it can) and the weights that begin at random (new_weights); generation: generation settings of its files,
        which runs ignore; tokenizer: of one that is trained, how (see `vocabulary.Trained`), and its embeddings are
        among the new weights. The manifest depends on the files only, not on the tasks.

    Raises:
        UserError: it cannot be downloaded or found, cannot be loaded without running its code, lacks weights that the
            tasks need, or has too few embeddings for its tokenizer.
    """
    # A fixed name: a killed fetch leaves at most one folder, which the next fetch removes.
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    result = work / "model"
    result.mkdir(parents=True)
    try:
        revision = _fetch_weights(model, result, work)
        tokenizer_revision, trained = None, None
        tokenizer = elsewhere(model)
        if tokenizer is not None:
            tokenizer_revision = copy_files(tokenizer, TOKENIZER_FILES, result, work / "tokenizer")
        if isinstance(model.tokenizer, TrainedTokenizer):
            _require_tokenizer(result, describe(tokenizer or model.source))
            trained = vocabulary.train(result, model.tokenizer, texts, TOKENIZER_FILES)
        fitness = _tasks(result, model)
        _check_tasks(fitness, tasks, describe(model.source))
        _check_tokenizer(
            result, model, next(row["num_embeddings"] for row in fitness.values() if row["reason"] is None)
        )
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
        "tasks": {
            task: {"reason": row["reason"], "new_weights": row["new_weights"] + (trained.tensors if trained else [])}
            for task, row in fitness.items()
        },
        "generation": _generation(folder),
        **({"tokenizer": asdict(trained)} if trained else {}),
    }


def elsewhere(model: ModelConfig) -> FileSource | None:
    """Where the files of a tokenizer are, if not beside the model: its own, or that of which kind one is trained."""
    return model.tokenizer.like if isinstance(model.tokenizer, TrainedTokenizer) else model.tokenizer


def _fetch_weights(model: ModelConfig, result: Path, work: Path) -> str | None:
    """Put the config and the weights (unless random) into the folder; return the commit of a hub source."""
    if isinstance(model.source, RandomSource):
        (result / "config.json").write_text(_random_config(model.source.random), encoding="utf-8")
        return None
    patterns = MODEL_FILES if elsewhere(model) is not None else MODEL_FILES + TOKENIZER_FILES
    revision = copy_files(model.source, patterns, result, work / "source")
    _check_config(result, describe(model.source))
    _check_weights(result, model.source)
    return revision


def _random_config(mapping: dict[str, object]) -> str:
    """The text of config.json for a model with random weights."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    keys = dict(mapping)
    model_type = str(keys.pop("model_type"))
    _check_model_type(model_type, "random")
    default = AutoConfig.for_model(model_type)
    known_keys = {*default.to_dict(), *default.attribute_map}
    for key in keys:
        meant = _meant(key, model_type, known_keys)
        if meant is not None:
            raise UserError(f"random: unknown key of a {model_type} config {key!r} (did you mean {meant!r}?)")
    for key, value in keys.items():
        least = _least(key, default)
        if least is not None and isinstance(value, int) and value < least:
            raise UserError(f"random: {key}: must be at least {least}, got {brief_repr(value)}")
    try:
        return str(AutoConfig.for_model(model_type, **keys).to_json_string())
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"random: {' '.join(str(error).split())}") from None


def _least(key: str, default: Any) -> int | None:  # noqa: ANN401 - a config of transformers
    """The smallest value of a config's key that counts something, as its default shows; None for other keys."""
    usual = getattr(default, key, None)
    if isinstance(usual, bool) or not isinstance(usual, int) or usual < 1 or key.endswith("_id"):
        return None
    return 1 if default.attribute_map.get(key, key) in {default.attribute_map.get(name, name) for name in SIZES} else 0


def _meant(key: str, model_type: str, known_keys: Collection[str]) -> str | None:
    """The known key that the user probably meant by an unknown one; None for a known key.

    transformers accepts every key and silently ignores those that the model's code does not read, such as
    misspellings and other families' names for a size.

    Args:
        key: the key of the config.
        model_type: the model type of the config.
        known_keys: keys of the default config.
    """
    if key in known_keys:
        return None
    library = Path(str(importlib.util.find_spec("transformers").origin)).parent  # type: ignore[union-attr]
    families = library / "models"
    common = [library / "configuration_utils.py", library / "generation" / "configuration_utils.py"]
    family = _family(model_type)
    if key in _asked_for([*common, *families.glob(f"{family}/*.py")]):
        return None
    elsewhere = key in _asked_for(families.glob("*/configuration_*.py"))
    return next(iter(difflib.get_close_matches(key, sorted(known_keys), n=1, cutoff=0.6 if elsewhere else 0.85)), None)


def _family(model_type: str) -> str:
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    return str(model_type_to_module_name(model_type))


def _asked_for(sources: Iterable[Path]) -> set[str]:
    """Keys that source files read from a config: `self.key`, `config.key`, `getattr(config, "key"`, `key: int`."""
    words = re.compile(r'(?:self|config)\.(\w+)|[(,] ?"(\w+)"|^    (\w+):', re.MULTILINE)
    matches = (words.findall(path.read_text(encoding="utf-8")) for path in sources)
    return {word for rows in matches for row in rows for word in row if word}


def _check_config(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: no config.json; expected a model in the Hugging Face form")
    config = _read(folder / "config.json", "model config", name)
    if "model_type" not in config:
        raise UserError(f'{name}: config.json: no model_type; add the family\'s, such as "model_type": "bert"')
    _check_model_type(str(config["model_type"]), f"{name}: config.json")


def _read(path: Path, what: str, name: str) -> dict[str, object]:
    """Read a model's JSON file; accept NaN and a byte order mark, as the tools that write such files do.

    The mark is removed, because transformers does not accept it. An error names the source, not the temporary file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith(BYTE_ORDER_MARK):
            text = text.removeprefix(BYTE_ORDER_MARK)
            path.write_text(text, encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: {path.name}: corrupt {what}: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: {path.name}: corrupt {what}: not a JSON object")
    return value


def _check_model_type(model_type: str, where: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        hint = nearest(model_type, CONFIG_MAPPING_NAMES)
        raise UserError(f"{where}: unknown model_type {model_type!r}; allowed: those built into transformers{hint}")


def _remedy(source: AnySource) -> str:
    resaved = "load it once with transformers and save it with save_pretrained(), which writes safetensors"
    if not isinstance(source, HubSource):
        return resaved
    download = f"hf download {source.hub} --revision {source.revision}"
    return f"if the repository has model.safetensors, run where there is network: {download}; else {resaved}"


def _check_weights(folder: Path, source: AnySource) -> None:
    from safetensors import SafetensorError, safe_open

    name, weights = describe(source), [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        shards = _read(folder / INDEX, "index of shards", name).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{name}: {INDEX}: no weight_map")
        for weight, shard in shards.items():
            if not (isinstance(shard, str) and PurePosixPath(shard).name):
                where = f"{name}: {INDEX}: weight_map: {weight}"
                raise UserError(f"{where}: must be the name of a file, got {brief_repr(shard)}")
        weights = [folder / PurePosixPath(shard).name for shard in sorted(set(shards.values()))]
    present = {path.name for path in folder.iterdir() if path.is_file()}  # an index may name what no system takes
    if not any(path.name in present for path in weights):
        raise UserError(f"{name}: no *.safetensors weights; {_remedy(source)}")
    for path in weights:
        if path.name not in present:
            raise UserError(f"{name}: {path.name} is missing, which {INDEX} names")
        try:
            with safe_open(path, "numpy") as opened:
                opened.keys()
        except SafetensorError as error:  # cut off, or the pointer that git leaves without its LFS
            raise UserError(f"{name}: {path.name} is corrupt or incomplete: {error}") from None


class Fitness(TypedDict):
    """Whether a model can learn a task.

    Attributes:
        reason: why not, or None.
        new_weights: names of the weights that its files lack.
        num_embeddings: rows of its embedding table, None if it has none.
        num_unfit: number of weights that do not fit.
    """

    reason: str | None
    new_weights: list[str]
    num_embeddings: int | None
    num_unfit: float


def _tasks(folder: Path, model: ModelConfig) -> dict[str, Fitness]:
    """Whether the folder's model can learn each task."""
    from joulesweep.nets.build import NoModel, tried

    fitness: dict[str, Fitness] = {}
    for task in TASKS:
        row: Fitness = {"reason": None, "new_weights": [], "num_embeddings": None, "num_unfit": UNBUILT}
        try:
            fit, row["num_embeddings"] = tried(folder, task)
        except UserError as error:
            row |= {"reason": str(error), "num_unfit": math.inf if isinstance(error, NoModel) else UNBUILT}
        else:
            reason = fit.refusal(model.new_weights)
            row["reason"] = reason and f"task {task}: {reason}"
            row |= {"new_weights": [*fit.missing], "num_unfit": fit.num_unfit}
        fitness[task] = row
    return fitness


def _check_tasks(fitness: Mapping[str, Fitness], tasks: Collection[str], name: str) -> None:
    """Refuse a model that cannot learn all of the tasks; without tasks, one that can learn none at all."""
    reasons = [fitness[task]["reason"] for task in tasks]
    if not tasks and all(row["reason"] for row in fitness.values()):
        # Report the most likely task: the one that lacks least; for BART, which also fits mlm, seq2seq.
        order = {
            task: (row["num_unfit"], row["num_unfit"] < UNBUILT and not TASKS[task].encoder_decoder)
            for task, row in fitness.items()
        }
        reasons = [fitness[min(order, key=order.__getitem__)]["reason"]]
    for reason in filter(None, reasons):
        raise UserError(f"{name}: {reason}")


def _generation(folder: Path) -> dict[str, object]:
    """Generation settings of the model's files that runs ignore: they generate as the sweep's config says.

    The tokens that begin, end and pad a text are kept, so they are not listed.
    """
    from transformers import GenerationConfig

    usual = GenerationConfig().to_dict()
    settings: dict[str, object] = {}
    for file in ("config.json", "generation_config.json"):
        config = _read(folder / file, "model config", folder.name) if (folder / file).is_file() else {}
        settings |= {key: config[key] for key in config if key in usual and key not in KEPT and config[key] is not None}
    return {key: value for key, value in settings.items() if value != usual[key]}


def _require_tokenizer(folder: Path, name: str) -> None:
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise UserError(f"{name}: no tokenizer; expected one of: {', '.join(VOCABULARIES)}")


def _check_tokenizer(folder: Path, model: ModelConfig, num_embeddings: int | None) -> None:
    name = describe(elsewhere(model) or model.source)
    _require_tokenizer(folder, name)
    tokens = vocabulary_size(load_tokenizer(folder))
    if num_embeddings is not None and num_embeddings < tokens:
        raise UserError(f"{name}: tokenizer has {tokens} tokens, the model only vocab_size {num_embeddings}")
