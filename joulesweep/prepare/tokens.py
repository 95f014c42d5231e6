"""Tokenise a data set once per tokenizer, into flat ids and offsets that the training process maps into memory."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from joulesweep.core.errors import UserError
from joulesweep.core.spec import canonical
from joulesweep.prepare.fetched import Text, read_texts

FORMAT = "joulesweep-tokens"
VERSION = 1
MAX_TRIES = 1000  #: tokens of its vocabulary that a tokenizer is tried with
BATCH = 1000  #: texts at a time: the tokenizer's output takes far more memory per token than the id


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """A data set's tokens, without the special tokens that a model expects around each text.

    Attributes:
        ids: token ids of all texts, one after another; int32, (num_tokens,).
        offsets: text i is `ids[offsets[i]:offsets[i + 1]]`; int64, (num_texts + 1,).
        group: equal texts share a number, counted from 0 in the order of first appearance; int32, (num_texts,).
        manifest: see `tokenise`.
        target_ids: token ids of the target of each text, one after another; int32, (num_target_tokens,).
        target_offsets: as `offsets`, of `target_ids`; int64, (num_texts + 1,).
        words: what white space separates in each text; int32, (num_texts,).
        characters: of each text; int32, (num_texts,).
        target_words: as `words`, of the target of each text.
        target_characters: as `characters`, of the target of each text.
        choice_ids: token ids of all choices of all texts, one after another; int32, (num_choice_tokens,).
        choice_offsets: as `offsets`, of `choice_ids`; int64, (num_choices + 1,).
        choice_text: the text that each choice belongs to; int32, (num_choices,), ascending.
        answer: index of each text's right choice, from 0; int32, (num_texts,).

    The arrays of targets or choices are None if the data set has none.
    """

    ids: np.ndarray[Any, np.dtype[np.int32]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    group: np.ndarray[Any, np.dtype[np.int32]]
    manifest: dict[str, object]
    target_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None
    target_offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None
    words: np.ndarray[Any, np.dtype[np.int32]]
    characters: np.ndarray[Any, np.dtype[np.int32]]
    target_words: np.ndarray[Any, np.dtype[np.int32]] | None = None
    target_characters: np.ndarray[Any, np.dtype[np.int32]] | None = None
    choice_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None
    choice_offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None
    choice_text: np.ndarray[Any, np.dtype[np.int32]] | None = None
    answer: np.ndarray[Any, np.dtype[np.int32]] | None = None


def tokenise(texts_file: Path, model_folder: Path, prompt: str = "{source}") -> TokenSet:
    """Tokenise every text of a fetched data set, its target and its choices, without truncation.

    Args:
        texts_file: JSON lines as `scripts.fetch_dataset` writes them.
        model_folder: a fetched model.
        prompt: the text before a target, with {source} in the place of the input.

    Returns:
        The tokens with their manifest: format, version, num_texts, num_tokens; num_without_tokens (texts that the
        tokenizer reduces to nothing; they stay, with no ids); num_target_tokens; vocab_size (highest id + 1); mask_id,
        pad_id, bos_id and eos_id (null where the tokenizer has none; where it has cls and sep, these begin and end a
        text); prefix and suffix (ids that the model expects before and after each text); prompt_before and prompt_after
        (ids of the prompt's parts); special_ids; sha256 of `ids` as little-endian int32, followed by the arrays of
        targets and choices in the order above.

    Raises:
        UserError: a file is missing, no text has a token, only some texts have targets, or the tokenizer cannot be
            loaded.
    """
    rows = read_texts(texts_file)
    _check_alike(rows, texts_file)
    tokenizer = load_tokenizer(model_folder)
    # A space at a prompt's end moves to the front of what follows: in byte-level BPE " word" is one token, while a
    # space and "word" are two, which models have rarely seen side by side.
    before, after = prompt.split("{source}")
    to_text, to_target = (part[len(part.rstrip()) :] for part in (before, after))
    ids, offsets = _tokens(tokenizer, [to_text + row.text for row in rows])
    if not len(ids):
        raise UserError(f"{texts_file}: the tokenizer of {model_folder} makes no token of any text")
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(row.text, len(numbers)) for row in rows], dtype=np.int32)
    labels: dict[str, np.ndarray[Any, Any]] = {}
    if rows[0].targets:
        targets = [to_target + row.targets[0] for row in rows]
        labels["target_ids"], labels["target_offsets"] = _tokens(tokenizer, targets)
    if rows[0].choices:
        choices = [to_target + choice for row in rows for choice in row.choices]
        labels["choice_ids"], labels["choice_offsets"] = _tokens(tokenizer, choices)
        num_choices = [len(row.choices) for row in rows]
        labels["choice_text"] = np.repeat(np.arange(len(rows), dtype=np.int32), num_choices)
        labels["answer"] = np.array([row.answer for row in rows], dtype=np.int32)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "num_texts": len(rows),
        "num_tokens": len(ids),
        "num_without_tokens": int((np.diff(offsets) == 0).sum()),
        "num_target_tokens": len(labels.get("target_ids", ())),
        **_describe_tokenizer(tokenizer, model_folder),
        "prompt_before": _encode(tokenizer, [before.rstrip()])[0],
        "prompt_after": _encode(tokenizer, [after.rstrip()])[0],
        "sha256": hashlib.sha256(b"".join(array.tobytes() for array in (ids, *labels.values()))).hexdigest(),
    }
    counted = sizes("", [row.text for row in rows])
    counted |= sizes("target_", [row.targets[0] for row in rows]) if rows[0].targets else {}
    return TokenSet(ids=ids, offsets=offsets, group=group, manifest=manifest, **labels, **counted)


def sizes(kind: str, texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Words and characters of each text, whatever the tokenizer makes of it.

    Args:
        kind: before the names of the arrays: "" or "target_".
        texts: the texts.

    Returns:
        Two arrays of a `TokenSet` by name; int32, (num_texts,).
    """
    return {
        f"{kind}words": np.array([len(text.split()) for text in texts], dtype=np.int32),
        f"{kind}characters": np.array([len(text) for text in texts], dtype=np.int32),
    }


def write(path: Path, tokens: TokenSet) -> None:
    """Write tokens as safetensors, completely or not at all, with the manifest as JSON in the file's metadata."""
    from safetensors.numpy import save

    arrays = {field.name: getattr(tokens, field.name) for field in fields(tokens) if field.name != "manifest"}
    tensors = {name: array for name, array in arrays.items() if array is not None}
    # One key: the library writes several in a random order, and equal tokens should be equal files.
    content = save(tensors, metadata={"manifest": canonical(tokens.manifest)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers has no type that fits all
    """Load the tokenizer of a fetched model from its files, without network.

    Raises:
        UserError: it cannot be loaded.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a fetched model")
    from transformers import AutoTokenizer

    # Its warnings (texts longer than the model's limit, code that it may not run) do not matter here.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizer classes raise many kinds of errors on bad files
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {' '.join(str(error).split())}") from error


def vocabulary_size(tokenizer: Any) -> int:  # noqa: ANN401
    """One more than the highest id, which equals `len(tokenizer)` if ids have no gaps."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


def _check_alike(rows: list[Text], path: Path) -> None:
    for kind in ("targets", "choices"):
        num_with = sum(bool(getattr(row, kind)) for row in rows)
        if num_with not in (0, len(rows)):
            raise UserError(f"{path}: corrupt data set: {num_with} of {len(rows)} texts have {kind}; fetch it again")


def _tokens(
    tokenizer: Any,  # noqa: ANN401
    texts: list[str],
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Ids of all texts, one after another, and the offset of each, with the end."""
    encoded = [row for start in range(0, len(texts), BATCH) for row in _encode(tokenizer, texts[start : start + BATCH])]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.fromiter((i for row in encoded for i in row), dtype="<i4", count=int(offsets[-1])), offsets


def _encode(tokenizer: Any, texts: list[str], special: bool = False) -> list[list[int]]:  # noqa: ANN401
    """The ids of each text, with or without special tokens around it."""
    try:
        encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    except Exception as error:  # of the tokenizers library: some tokenizers have no token for unknown words
        raise UserError(f"the tokenizer fails on a text: {' '.join(str(error).split())}") from None
    return list(encoded["input_ids"])


def _describe_tokenizer(tokenizer: Any, folder: Path) -> dict[str, object]:  # noqa: ANN401
    prefix, suffix = _around(tokenizer, folder)
    return {
        "vocab_size": vocabulary_size(tokenizer),
        "mask_id": tokenizer.mask_token_id,
        "pad_id": tokenizer.pad_token_id,
        "bos_id": tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_id": tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        "prefix": prefix,
        "suffix": suffix,
        "special_ids": sorted(set(tokenizer.all_special_ids)),
    }


def _own_words(tokenizer: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield single tokens as texts, for tokenizers that know neither letters nor an unknown-word token."""
    special = set(tokenizer.all_special_ids)
    known = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index not in special)
    for _, token in known[:MAX_TRIES]:
        yield tokenizer.convert_tokens_to_string([token])


def _around(tokenizer: Any, folder: Path) -> tuple[list[int], list[int]]:  # noqa: ANN401
    """The ids that the tokenizer puts before and after a text, by comparing encodings with and without them."""
    for text in itertools.chain(["a b"], _own_words(tokenizer)):
        try:
            (bare,), (whole,) = (_encode(tokenizer, [text], special) for special in (False, True))
        except UserError:  # no word that it knows
            continue
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    raise UserError(f"{folder}: cannot tell which ids its tokenizer puts around a text")
