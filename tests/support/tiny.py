"""Models small enough to be made by each test: a tokenizer of eleven words, a BERT of one layer, 8 wide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "a", "b", "##s"]
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def bert_tokenizer(folder: Path, **special: str) -> Path:
    """A BERT-like tokenizer, saved as transformers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens([*SPECIAL.values(), *special.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4, **SPECIAL, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def bert_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a BERT that learns hidden words."""
    width, words = 8, len(WORDS)
    layer = "bert.encoder.layer.0"
    found = {
        "bert.embeddings.word_embeddings.weight": (words, width),
        "bert.embeddings.position_embeddings.weight": (16, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "cls.predictions.bias": (words,),
    }
    normalised = ("bert.embeddings", f"{layer}.attention.output", f"{layer}.output", "cls.predictions.transform")
    for name in normalised:
        found |= {f"{name}.LayerNorm.{kind}": (width,) for kind in ("weight", "bias")}
    square = [f"{layer}.attention.self.{kind}" for kind in ("query", "key", "value")]
    square += [f"{layer}.attention.output.dense", "cls.predictions.transform.dense"]
    shapes = {**dict.fromkeys(square, (8, 8)), f"{layer}.intermediate.dense": (16, 8), f"{layer}.output.dense": (8, 16)}
    for name, shape in shapes.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


BERT_CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


def bert_weights() -> dict[str, np.ndarray]:
    """Weights of a BERT that learns hidden words, all of them 0.01."""
    return {name: np.full(shape, 0.01, dtype=np.float32) for name, shape in bert_shapes().items()}


def bert_model(folder: Path) -> Path:
    """A folder in the Hugging Face form: config, weights and tokenizer, and some litter."""
    bert_tokenizer(folder, mask_token="[MASK]")
    (folder / "config.json").write_text(json.dumps(BERT_CONFIG))
    save_file(bert_weights(), folder / "model.safetensors")
    for litter in ("pytorch_model.bin", "heads.pt", "README.md", "modeling_bert.py", "adapter.safetensors"):
        (folder / litter).write_text("not for us")
    return folder
