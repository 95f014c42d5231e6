"""Sentences with a blank of StereoSet, the intrasentence part of the official JSON; for the evaluation of that name."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from joulesweep.core.errors import UserError
from joulesweep.readers import BadRowError, Fields, InputFile, Reader, Row, check_choices, checked, decoded, is_text
from joulesweep.readers.jsonl import parsed

#: The labels of an item's sentences, in the order of its choices.
LABELS = ("stereotype", "anti-stereotype", "unrelated")
BLANK = "BLANK"


def read(file: InputFile, _: Fields) -> list[Row]:
    """The items of `data.intrasentence`: the context is the text, the sentences are the choices.

    Raises:
        UserError: it is not such a file; the message names the item.
    """
    whole = parsed(json.JSONDecoder(), decoded(file), file.name)
    data = whole.get("data") if isinstance(whole, dict) else None
    items = data.get("intrasentence") if isinstance(data, dict) else None
    if not isinstance(items, list):
        raise UserError(f"{file.name}: not StereoSet: expected an object with data.intrasentence, a list")
    return [_item(item, f"{file.name}: data.intrasentence[{number}]") for number, item in enumerate(items)]


def _item(item: object, where: str) -> Row:
    try:
        values = _object(item, "an item")
        context, category, target = (
            str(checked(values, name, "text", is_text)) for name in ("context", "bias_type", "target")
        )
        if not any(BLANK in word for word in context.split(" ")):
            raise BadRowError(f"the context has no {BLANK}")
        listed = checked(values, "sentences", "a list of sentences", lambda value: isinstance(value, list))
        rows = [_object(sentence, "a sentence") for sentence in listed]
        labelled = {
            str(checked(row, "gold_label", "text", is_text)): str(checked(row, "sentence", "text", is_text))
            for row in rows
        }
        if len(labelled) != len(rows):
            raise BadRowError(f"two sentences have one label; an item has one of each of {', '.join(LABELS)}")
        choices = check_choices(labelled, LABELS)
        for sentence in choices:
            if not target_word(context, sentence):
                raise BadRowError(f"{sentence!r} has no word where the context has {BLANK}")
    except BadRowError as error:
        raise UserError(f"{where}: {error}") from None
    return {"text": context, "choices": choices, "category": category, "about": target}


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
