"""Train a tokenizer on a data set's training texts, and give its tokens embeddings: fast vocabulary transfer.

A token of the new vocabulary that the old one has keeps its embedding; any other begins at the mean of the old
embeddings of the pieces into which the old tokenizer cuts its text (Gee et al. 2022, arXiv 2402.09977). Random
weights need none of this.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.core.errors import UserError
from joulesweep.core.files import read_json, sha256_of, write_json
from joulesweep.plan.config import DatasetConfig, TrainedTokenizer
from joulesweep.prepare.fetched import Text, read_texts
from joulesweep.prepare.tokens import load_tokenizer, vocabulary_size

BATCH = 1000  #: texts at a time
CONTINUES = "##"  # WordPiece's mark of a piece inside a word


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A tokenizer that was trained.

    Attributes:
        texts_sha256: of the data set's file.
        split: how its validation texts were kept out: kind, share, seed.
        num_texts: training texts, of all its texts; targets count with their text.
        vocab_size: tokens that it has, at most as many as were asked for.
        num_kept: tokens whose embeddings are those of the model's files; 0 of random weights.
        num_averaged: tokens whose embeddings are means of others.
        tensors: names of the weights with a row per token, which are new by this.
    """

    texts_sha256: str
    split: list[str | float]
    num_texts: int
    vocab_size: int
    num_kept: int
    num_averaged: int
    tensors: list[str]


def train(folder: Path, asked: TrainedTokenizer, texts: Path | None, files: Iterable[str]) -> Trained:
    """Replace a model's tokenizer by one of its kind that is trained on texts, and the rows of its embeddings.

    Args:
        folder: with the model's config, its weights unless they are random, and a tokenizer.
        asked: what to train it on, and how many tokens it may have.
        texts: the data set, as `scripts.fetch_dataset` wrote it.
        files: names of a tokenizer's files, of which the old ones are removed.

    Raises:
        UserError: the tokenizer is of a kind that cannot be trained, or the model's embeddings cannot be told apart.
    """
    if texts is None or not isinstance(asked.trained_on, DatasetConfig):
        raise UserError("tokenizer: trained_on: the texts are missing")
    old = load_tokenizer(folder)
    rows = training_texts(read_texts(texts), asked.trained_on)
    lines = [line for row in rows for line in (row.text, *row.targets[:1])]
    symbols = _symbols(old, lines)
    new = _trained(old, lines, asked.vocab_size, symbols, folder.name)
    for name in files:
        (folder / name).unlink(missing_ok=True)
    new.save_pretrained(folder)
    _unmark(folder, set(symbols))
    new = load_tokenizer(folder)
    num_rows = _rewrite_config(folder, old, new)
    pieces = _pieces(old, new)
    tensors = _transfer(folder, num_rows, [ids for ids, _ in pieces])
    kept = sum(same for _, same in pieces)
    return Trained(
        texts_sha256=sha256_of(texts),
        split=[asked.trained_on.split, asked.trained_on.validation_fraction, asked.trained_on.split_seed],
        num_texts=len(rows),
        vocab_size=vocabulary_size(new),
        num_kept=kept if tensors else 0,
        num_averaged=len(pieces) - kept if tensors else 0,
        tensors=tensors,
    )


def training_texts(rows: Sequence[Text], dataset: DatasetConfig) -> list[Text]:
    """The texts that runs on the data set train on: none that they validate with."""
    import torch

    from joulesweep.train.corpus import Corpus, split

    numbers: dict[str, int] = {}
    group = torch.tensor([numbers.setdefault(row.text, len(numbers)) for row in rows])
    none = torch.zeros(0, dtype=torch.int64)
    corpus = Corpus(ids=none, offsets=none, learned=none, group=group, mask_id=None, pad_id=0, vocab_size=0)
    kept, _ = split(corpus, dataset.split, dataset.validation_fraction, dataset.split_seed)
    return [rows[i] for i in kept.tolist()]


def _symbols(old: Any, lines: Sequence[str]) -> list[str]:  # noqa: ANN401 - of any family
    """WordPiece's symbols inside words, sorted; none of other kinds.

    Its trainer numbers them in a random order and decides ties between pairs by number: given first, in this order,
    they make the same vocabulary in every process.
    """
    backend = getattr(old, "backend_tokenizer", None)
    if backend is None or json.loads(backend.to_str())["model"]["type"] != "WordPiece":
        return []
    normalise = backend.normalizer.normalize_str if backend.normalizer else str
    words = {word for line in lines for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalise(line))}
    return sorted({CONTINUES + symbol for word in words for symbol in word[1:]})


def _unmark(folder: Path, symbols: Collection[str]) -> None:
    """Take symbols that the trainer was given as special tokens from a saved tokenizer's list of these."""
    for file, key in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "extra_special_tokens")):
        saved = dict(read_json(folder / file, "tokenizer"))
        entries = [
            one for one in saved.get(key) or [] if (one["content"] if isinstance(one, dict) else one) not in symbols
        ]
        if symbols and key in saved:
            write_json(folder / file, {**saved, key: entries})


def _trained(
    old: Any,  # noqa: ANN401 - of any family
    lines: Sequence[str],
    vocab_size: int,
    symbols: Sequence[str],
    name: str,
) -> Any:  # noqa: ANN401
    """A new tokenizer of the old one's kind, its first tokens after the special ones being some symbols."""
    if not hasattr(old, "train_new_from_iterator"):
        raise UserError(f"{name}: its tokenizer cannot be trained anew: it is none of the tokenizers library")
    batches = (list(lines[start : start + BATCH]) for start in range(0, len(lines), BATCH))
    try:
        return old.train_new_from_iterator(
            batches, vocab_size, new_special_tokens=list(symbols) or None, show_progress=False
        )
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{name}: its tokenizer cannot be trained anew: {' '.join(str(error).split())}") from None


def _rewrite_config(folder: Path, old: Any, new: Any) -> int:  # noqa: ANN401 - of any family
    """Write the new ids into the model's configs; return how many embeddings the model had."""
    config = dict(read_json(folder / "config.json", "model config"))
    num_rows = config.get("vocab_size")
    if not isinstance(num_rows, int):
        raise UserError(
            "config.json: no vocab_size, which a tokenizer that is trained changes; give the model's own one"
        )
    if any(folder.glob("*.safetensors")):
        alike = [
            key for key, value in config.items() if type(value) is int and value == num_rows and key != "vocab_size"
        ]
        if alike:
            raise UserError(f"config.json: vocab_size equals {alike[0]}: cannot tell which weights are embeddings")
    for file in ("config.json", "generation_config.json"):
        if (folder / file).is_file():
            keys = dict(read_json(folder / file, "model config"))
            keys |= {key: _renumbered(keys[key], old, new) for key in keys if key.endswith("_token_id")}
            write_json(
                folder / file, {**keys, **({"vocab_size": vocabulary_size(new)} if file == "config.json" else {})}
            )
    return num_rows


def _renumbered(ids: Any, old: Any, new: Any) -> Any:  # noqa: ANN401 - an id, several, or null
    """The new ids of special tokens; null where the new vocabulary lacks one."""
    if isinstance(ids, list):
        return [_renumbered(one, old, new) for one in ids]
    token = old.convert_ids_to_tokens(ids) if isinstance(ids, int) and 0 <= ids < vocabulary_size(old) else None
    return new.get_vocab().get(token)


def _pieces(old: Any, new: Any) -> list[tuple[list[int], bool]]:  # noqa: ANN401 - of any family
    """For each new id the old ids whose embeddings it begins with, and whether it is the same token."""
    vocabulary = old.get_vocab()
    rows: list[tuple[list[int], bool]] = [([], False)] * vocabulary_size(new)
    for token, index in new.get_vocab().items():
        same = token in vocabulary
        rows[index] = ([vocabulary[token]] if same else _cut(token, old, new, vocabulary), same)
    return rows


def _cut(token: str, old: Any, new: Any, vocabulary: dict[str, int]) -> list[int]:  # noqa: ANN401 - of any family
    """The old ids of a token's text; of its symbols where the text is no whole one, as of bytes."""
    inside = token.startswith(CONTINUES)
    text = token.removeprefix(CONTINUES) if inside else new.convert_tokens_to_string([token])
    ids = [i for i in old(text, add_special_tokens=False)["input_ids"] if i != old.unk_token_id]
    if inside and ids:
        first = CONTINUES + old.convert_ids_to_tokens(ids[0])
        ids[0] = vocabulary.get(first, ids[0])
    return ids if ids and "\ufffd" not in text else [vocabulary[symbol] for symbol in token if symbol in vocabulary]


def _transfer(folder: Path, num_rows: int, pieces: Sequence[Sequence[int]]) -> list[str]:
    """Give each tensor that has a row per old token a row per new one; return their names."""
    from safetensors.torch import load_file, save_file

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        changed = [name for name, one in tensors.items() if one.ndim in (1, 2) and one.shape[0] == num_rows]
        for name in changed:
            tensors[name] = _averaged(tensors[name], pieces)
        if changed:
            save_file(tensors, path, metadata={"format": "pt"})
        names += changed
    return sorted(names)


def _averaged(rows: Any, pieces: Sequence[Sequence[int]]) -> Any:  # noqa: ANN401 - tensors; torch is imported late
    """The mean of some rows for each new one, of all rows where it has none; in the dtype of the rows."""
    import torch

    exact = rows.float()
    whole = exact.mean(0)
    return torch.stack([exact[list(ids)].mean(0) if ids else whole for ids in pieces]).to(rows.dtype).contiguous()
