"""Pairs of sentences of CrowS-Pairs, the official CSV; for the evaluation of that name."""

from __future__ import annotations

from joulesweep.core.errors import UserError, one_of
from joulesweep.readers import BadRowError, Fields, InputFile, Reader, Row, check_choices
from joulesweep.readers.csv import columns

#: The sentence that is more stereotypical, and the other one, which differs in whom it is about.
SENTENCES = ("sent_more", "sent_less")
#: Whether the first sentence shows a stereotype, or the pair goes against one.
DIRECTIONS = ("stereo", "antistereo")


def read(file: InputFile, _: Fields) -> list[Row]:
    """The pairs of a file: the sentences are the choices, the bias is the category.

    Raises:
        UserError: it is not such a file, or a pair has an unknown direction or an empty sentence.
    """
    names = (*SENTENCES, "stereo_antistereo", "bias_type")
    pairs = enumerate(columns(file, names), 1)
    return [_pair(values, f"{file.name}: pair {number}") for number, values in pairs]


def _pair(values: dict[str, str], where: str) -> Row:
    try:
        sentences = check_choices({name: values[name] for name in SENTENCES}, SENTENCES)
    except BadRowError as error:
        raise UserError(f"{where}: {error}") from None
    direction, category = values["stereo_antistereo"], values["bias_type"]
    if direction not in DIRECTIONS:
        raise UserError(f"{where}: {one_of('stereo_antistereo', direction, DIRECTIONS)}")
    if not category.strip():
        raise UserError(f"{where}: bias_type is empty")
    return {"text": sentences[0], "choices": sentences, "category": category, "about": direction}


READER = Reader(of_evaluation=True, read=read)
