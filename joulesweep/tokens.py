"""Tokenise a data set once per tokenizer: flat ids and offsets, which the training process maps into memory."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from joulesweep.errors import UserError
from joulesweep.spec import canonical

FORMAT = "joulesweep-tokens"
VERSION = 1
BATCH = 1000  #: texts at a time: what the tokenizer says of each token takes far more memory than its id


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """A data set's tokens, without the special tokens that a model wants around each text.

    Attributes:
        ids: token ids of all texts, one after another; int32, (num_tokens,).
        offsets: text i is `ids[offsets[i]:offsets[i + 1]]`; int64, (num_texts + 1,).
        group: equal texts share a number, counted from 0 in the order of first appearance; int32, (num_texts,).
        manifest: see `tokenise`.
    """

    ids: np.ndarray[Any, np.dtype[np.int32]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    group: np.ndarray[Any, np.dtype[np.int32]]
    manifest: dict[str, Any]


def tokenise(texts_file: Path, model_folder: Path) -> TokenSet:
    """Tokenise every text of a fetched data set, uncut.

    Args:
        texts_file: JSON lines with the key text, as `scripts.fetch_dataset` writes them.
        model_folder: a fetched model.

    Returns:
        The tokens with their manifest: format, version, num_texts, num_tokens; num_without_tokens (texts that the
        tokenizer reduces to nothing; they stay, with no ids); vocab_size (highest id + 1); mask_id and pad_id (null
        where the tokenizer has none); prefix and suffix (ids that the model wants before and after each text);
        special_ids; sha256 of `ids` as little-endian int32.

    Raises:
        UserError: no such files, texts without a single token, or a tokenizer that cannot be loaded.
    """
    texts = read_texts(texts_file)
    tokenizer = load_tokenizer(model_folder)
    encoded = [row for start in range(0, len(texts), BATCH) for row in _encode(tokenizer, texts[start : start + BATCH])]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    ids = np.fromiter((i for row in encoded for i in row), dtype="<i4", count=int(offsets[-1]))
    if not len(ids):
        raise UserError(f"{texts_file}: the tokenizer of {model_folder} makes no token of any text")
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int32)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "num_texts": len(texts),
        "num_tokens": len(ids),
        "num_without_tokens": int((np.diff(offsets) == 0).sum()),
        **_describe_tokenizer(tokenizer, model_folder),
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
    }
    return TokenSet(ids=ids, offsets=offsets, group=group, manifest=manifest)


def write(path: Path, tokens: TokenSet) -> None:
    """Write tokens as safetensors, whole or not at all; the file's metadata has the manifest as JSON in `manifest`."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray[Any, Any]] = {"ids": tokens.ids, "offsets": tokens.offsets, "group": tokens.group}
    # One key: the library writes several in a random order, and equal tokens should be equal files.
    content = save(tensors, metadata={"manifest": canonical(tokens.manifest)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def read_texts(path: Path) -> list[str]:
    """Read the texts that `scripts.fetch_dataset` wrote.

    Raises:
        UserError: the file is missing or corrupt; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 may stand inside a text
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a fetched data set") from None
    return [_text(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers has no type that fits all
    """Load the tokenizer of a fetched model, from its files alone.

    Raises:
        UserError: it cannot be loaded.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a fetched model")
    from transformers import AutoTokenizer

    # What it warns of (texts longer than the model's limit, code it was not allowed to run) does not matter here.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever the many tokenizer classes raise on bad files
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {' '.join(str(error).split())}") from error


def vocabulary_size(tokenizer: Any) -> int:  # noqa: ANN401
    """One more than the highest id: what `len(tokenizer)` is where ids have no holes."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


def _text(line: str, where: str) -> str:
    try:
        return str(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{where}: corrupt data set: expected {{"text": …}}; fetch it again') from None


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:  # noqa: ANN401
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"])


def _describe_tokenizer(tokenizer: Any, folder: Path) -> dict[str, Any]:  # noqa: ANN401
    prefix, suffix = _around(tokenizer, folder)
    return {
        "vocab_size": vocabulary_size(tokenizer),
        "mask_id": tokenizer.mask_token_id,
        "pad_id": tokenizer.pad_token_id,
        "prefix": prefix,
        "suffix": suffix,
        "special_ids": sorted(set(tokenizer.all_special_ids)),
    }


def _around(tokenizer: Any, folder: Path) -> tuple[list[int], list[int]]:  # noqa: ANN401
    """The ids that the tokenizer puts before and after a text, found by comparing a text with and without."""
    bare = tokenizer("a b", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a b", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise UserError(f"{folder}: cannot tell which ids its tokenizer puts around a text")
