"""The questions of a VizWiz-VQA annotation file as published."""

from __future__ import annotations

import json

from joulesweep.core.errors import UserError
from joulesweep.readers import Fields, InputFile, Reader, Row, decoded, is_unicode
from joulesweep.readers.jsonl import parsed, whole

EXPECTED = "expected VizWiz-VQA annotations: a list of objects with image and question"


def read(file: InputFile, _: Fields) -> list[Row]:
    """The questions of `[{"image": …, "question": …}, …]`.

    Raises:
        UserError: the file has another form.
    """
    annotations = parsed(json.JSONDecoder(parse_int=whole), decoded(file), file.name)
    if not isinstance(annotations, list):
        raise UserError(f"{file.name}: not a list; {EXPECTED}")
    for index, annotation in enumerate(annotations):
        question = annotation.get("question") if isinstance(annotation, dict) else None
        if not isinstance(question, str) or not is_unicode(question):
            raise UserError(f"{file.name}: annotation {index} has no question in text; {EXPECTED}")
    return [{"text": annotation["question"]} for annotation in annotations]


READER = Reader(read=read)
