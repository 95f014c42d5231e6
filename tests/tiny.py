"""Models small enough to be made by each test: a tokenizer of eleven words, weights of one tensor."""

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


def bert_model(folder: Path) -> Path:
    """A folder in the Hugging Face form: config, weights (not a whole model's) and tokenizer, and some litter."""
    bert_tokenizer(folder, mask_token="[MASK]")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(WORDS)}))
    save_file({"weight": np.zeros(3, dtype=np.float32)}, folder / "model.safetensors")
    for litter in ("pytorch_model.bin", "heads.pt", "README.md", "modeling_bert.py", "adapter.safetensors"):
        (folder / litter).write_text("not for us")
    return folder
