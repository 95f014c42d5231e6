"""A model, tokens, a config and specs so small that a whole training takes a fraction of a second."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from joulesweep.core.spec import RunSpec, from_mapping

#: What FLOPs may differ by from those that PyTorch counts: older versions turn positions into angles by a product, in
#: which no parameter has a part.
ANGLES = 1e-9 if version("transformers") >= "5.20" else 2e-4


REPOSITORY = Path(__file__).parent.parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *(f"word{i}" for i in range(95))]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
NUM_TEXTS = 60

#: The smallest config there is: every optional key is left out.
CONFIG: dict[str, Any] = {
    "sweep": "tiny",
    "models": {"bert": {"source": {"local": "model"}}},
    "datasets": {"texts": {"source": {"local": "texts.txt"}, "format": "text"}},
    "grid": {"model": ["bert"], "dataset": ["texts"], "batch_size": [8], "lr": [1e-3]},
    "train": {"epochs": 1},
    "hardware": {"accelerator": "cpu"},
}


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What a run reads: the folder of its model and its token file."""

    model_folder: Path
    tokens: Path


def assets(folder: Path, kind: str = "bert", **tokens: Any) -> Assets:
    """A model and a token file in a folder."""
    return Assets(
        model_folder=model(folder / "model", kind=kind), tokens=token_file(folder / "tokens.safetensors", **tokens)
    )


def config(**changes: Any) -> dict[str, Any]:
    """The smallest config with changes by dotted path, dots written as two underscores: `grid__lr=[1.0]`."""
    raw = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = raw
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return raw


def spec(**changes: Any) -> RunSpec:
    """A run of one epoch over the tiny texts on the CPU."""
    new = {"new_weights": ["cross_attention"]} if changes.get("task") == "seq2seq" else {}  # of an encoder
    given = {
        "model": "bert",
        "model_source": {"source": {"local": "model"}, **new},
        "dataset": "texts",
        "dataset_source": {"source": {"local": "texts.txt"}, "format": "text"},
        "batch_size": 16,
        "lr": 5e-3,
        "repeat": 1,
        "accelerator": "cpu",
        "max_length": 24,
        **changes,
    }
    return from_mapping(given if "max_steps" in given else {"epochs": 1, **given})


def tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer with the tiny vocabulary, saved as transformers saves it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    words.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, SPECIAL, strict=True))}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


#: Families by what they learn.
DECODERS = ("opt", "llama", "gpt2", "bloom")
ENCODER_DECODERS = ("t5", "bart", "bert2bert")
WRITERS = (*DECODERS, *ENCODER_DECODERS)


def task_of(kind: str) -> str:
    """What a family learns."""
    return "seq2seq" if kind in ENCODER_DECODERS else "clm" if kind in DECODERS else "mlm"


def network(kind: str = "bert", seed: int = 0, dropout: float = 0.0, decoder_layers: int = 2, **changes: Any) -> Any:
    """A random model, 16 wide: an encoder, one of `DECODERS`, or one of `ENCODER_DECODERS`.

    Args:
        kind: its family.
        seed: of its weights.
        dropout: everywhere.
        decoder_layers: an encoder has 2.
        changes: other keys of its config.
    """
    import torch
    import transformers

    from joulesweep.axes.task import TASKS

    sizes = {
        "opt": {
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 32,
            "num_hidden_layers": decoder_layers,
            "num_attention_heads": 2,
            "dropout": dropout,
            "init_std": 0.2,
        },
        "llama": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": decoder_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attention_dropout": dropout,
        },
        "gpt2": {
            "n_embd": 16,
            "n_layer": decoder_layers,
            "n_head": 2,
            "resid_pdrop": dropout,
            "embd_pdrop": dropout,
            "attn_pdrop": dropout,
        },
        "bloom": {
            "hidden_size": 16,
            "n_layer": decoder_layers,
            "n_head": 2,
            "hidden_dropout": dropout,
            "attention_dropout": dropout,
        },
        "t5": {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_decoder_layers": decoder_layers,
            "num_heads": 2,
            "dropout_rate": dropout,
            "feed_forward_proj": "gelu",  # a rounded ReLU may be another function
            "decoder_start_token_id": PAD,
        },
        "bart": {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": decoder_layers,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "dropout": dropout,
            "init_std": 0.2,
            "decoder_start_token_id": SEP,
            "forced_eos_token_id": None,
        },
        "distilbert": {
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 32,
            "dropout": dropout,
            "attention_dropout": dropout,
        },
    }.get(
        kind,
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        },
    )
    shape = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 64 if kind in WRITERS else 40,  # room for a prefix
        "pad_token_id": PAD,
        "initializer_range": 0.2,
        **sizes,
        **changes,
    }
    if kind in WRITERS:
        shape |= {"bos_token_id": CLS, "eos_token_id": SEP}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "bert2bert":
            halves = [transformers.AutoConfig.for_model("bert", **shape) for _ in range(2)]
            halves[1].is_decoder = halves[1].add_cross_attention = True
            halves[1].num_hidden_layers = decoder_layers
            encoder = transformers.BertModel(halves[0], add_pooling_layer=False)
            both = transformers.EncoderDecoderModel(encoder=encoder, decoder=transformers.BertLMHeadModel(halves[1]))
            both.config.decoder_start_token_id, both.config.pad_token_id = CLS, PAD
            return both.float()
        about = transformers.AutoConfig.for_model(kind, **shape)
        return getattr(transformers, TASKS[task_of(kind)].auto_class).from_config(about).float()


def writer(kind: str, **changes: Any) -> Any:
    """One of `WRITERS` whose decoder is deeper than an encoder before it: neither is taken for the other."""
    return network(kind, decoder_layers=3, **changes)


def model(folder: Path, seed: int = 0, dropout: float = 0.0, kind: str = "bert") -> Path:
    """A folder with a random model and its tokenizer."""
    network(kind, seed=seed, dropout=dropout).save_pretrained(folder)
    tokenizer(folder)
    return folder


#: What stands around a text before its target, and the special tokens of its ends.
PROMPT: dict[str, Any] = {"prompt_before": [90, 91], "prompt_after": [92], "bos_id": CLS, "eos_id": SEP}


def token_file(
    path: Path, num_texts: int = NUM_TEXTS, targets: bool = False, choices: bool = False, **about: Any
) -> Path:
    """Texts of 1 to 20 tokens that count upwards, so that there is something to learn; every fourth is a copy.

    Args:
        path: of the file.
        num_texts: how many.
        targets: whether each has one, of 1 to 10 tokens: they count downwards from the text's last one.
        choices: whether each has 2 to 4 of them, of which one is the target; two of them may be equal.
        about: other entries of the manifest, such as those of `PROMPT`.
    """
    import torch
    from safetensors.torch import save_file

    draw = random.Random(0)
    bodies: list[list[int]] = []
    for i in range(num_texts):
        first, length = draw.randrange(len(SPECIAL), 70), draw.randint(1, 20)
        bodies.append(bodies[i - 3] if i % 4 == 3 else list(range(first, first + length)))
    groups: dict[tuple[int, ...], int] = {}
    group = [groups.setdefault(tuple(body), len(groups)) for body in bodies]
    offsets = torch.tensor([0, *(len(body) for body in bodies)]).cumsum(0)
    ids = torch.tensor([token for body in bodies for token in body], dtype=torch.int32)
    tensors = {"ids": ids, "offsets": offsets, "group": torch.tensor(group, dtype=torch.int32)}
    answers = [[max(len(SPECIAL), body[-1] - i) for i in range(1 + body[0] % 10)] for body in bodies]
    if targets or choices:
        tensors |= _parts("target", answers)
    if choices:
        options, owners, right = [], [], []
        for i, answer in enumerate(answers):
            own = [[draw.randrange(len(SPECIAL), 95) for _ in range(draw.randint(1, 9))] for _ in range(1 + i % 3)]
            right.append(draw.randint(0, len(own)))
            own.insert(right[-1], own[0] if i % 7 == 0 else answer)
            options += own
            owners += [i] * len(own)
        tensors |= _parts("choice", options)
        tensors |= {"choice_text": torch.tensor(owners).int(), "answer": torch.tensor(right).int()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    usual = {"prefix": [CLS], "suffix": [SEP], "mask_id": MASK, "pad_id": PAD, "vocab_size": len(VOCABULARY)}
    path.with_suffix(".json").write_text(json.dumps({**usual, **about}), encoding="utf-8")
    return path


def _parts(name: str, rows: list[list[int]]) -> dict[str, Any]:
    import torch

    return {
        f"{name}_ids": torch.tensor([token for row in rows for token in row], dtype=torch.int32),
        f"{name}_offsets": torch.tensor([0, *map(len, rows)]).cumsum(0),
    }
