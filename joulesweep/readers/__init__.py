"""Readers that turn files into rows of text: one module per format, looked up by name.

A reader is a module `joulesweep/readers/<format>.py` (underscores for the hyphens of its name) with

* a docstring, whose first line says what it reads;
* `READER`: a `Reader`, which declares what the format can do and how it is read.

A reader reads only the fields that the config names, and guesses nothing from other columns or rows. Bad input raises a
`UserError` with the file, the line, and what is allowed.

Validating a config imports these modules, so they import nothing heavy at module level. A new module needs no other
edit: the config, its schema, the documentation and the digest of the code pick it up.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypedDict

from joulesweep.core.errors import UserError, one_of

#: Keys of a data set's config that name further fields; a format declares which of them it accepts.
OPTIONS = ("target", "choices", "answer")


class Row(TypedDict):
    """A text of a data set.

    Attributes:
        text: the input.
        targets: the target to train on, then other references, if there are any.
        choices: all choices of a multiple-choice text.
        answer: index of the right choice, which is the target.
        category: of an evaluation's item.
        about: what such an item is about: the term that it stereotypes, or the direction of a pair.
    """

    text: str
    targets: NotRequired[list[str]]
    choices: NotRequired[list[str]]
    answer: NotRequired[int]
    category: NotRequired[str]
    about: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file to read: its name in errors and in the manifest, and its current path."""

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A data set of the hub.

    Attributes:
        name: its name in errors.
        folder: the folder of its files.
        subset: the name of its configuration, or None.
        splits: the splits to pool; a part of one is `train[:10%]`.
        scratch: a folder for temporary files.
    """

    name: str
    folder: Path
    subset: str | None
    splits: list[str]
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of the fields that a config selects; None for those that it does not name.

    Attributes:
        header: whether the first line of a file names its columns; if not, a field's name is its number, from 0.
    """

    text: str | None = None
    target: str | None = None
    choices: str | None = None
    answer: str | None = None
    header: bool = True

    @property
    def named(self) -> list[str]:
        """The names that are set, the text's first."""
        return [name for name in (self.text, self.target, self.choices, self.answer) if name is not None]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What a format can do, and how it is read; exactly one of the two functions is set.

    Attributes:
        needs_field: whether the config must name the field of the text (key `field`); otherwise it may not.
        options: the keys of `OPTIONS` that the config may set.
        headerless: whether files may lack the line that names the columns (key `header`).
        has_targets: whether texts always have targets, without a field in the config.
        of_evaluation: whether rows are items of an evaluation, with `choices` to compare, and no texts to train on.
        read: returns the rows of one file.
        read_snapshot: returns the rows of a data set of the hub.
    """

    needs_field: bool = False
    options: tuple[str, ...] = ()
    headerless: bool = False
    has_targets: bool = False
    of_evaluation: bool = False
    read: Callable[[InputFile, Fields], list[Row]] | None = None
    read_snapshot: Callable[[Snapshot, Fields], list[Row]] | None = None


def names() -> list[str]:
    """Names of all formats, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def path(name: str) -> Path:
    """The path of a reader's file."""
    return Path(__file__).parent / f"{name.replace('-', '_')}.py"


def module(name: str) -> ModuleType:
    """The module of a reader.

    Raises:
        UserError: no such format.
    """
    if name not in names():
        raise UserError(one_of("format", name, names()))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def load(name: str) -> Reader:
    """The reader of a format.

    Raises:
        UserError: no such format.
    """
    reader: Reader = module(name).READER
    return reader


def of_hub() -> list[str]:
    """The formats that read data sets of the hub."""
    return [name for name in names() if load(name).read_snapshot is not None]


def of_texts() -> list[str]:
    """The formats of texts to train on."""
    return [name for name in names() if not load(name).of_evaluation]


class BadRowError(UserError):
    """A problem of a row; the code that reads the file adds its name and line."""


def decoded(file: InputFile) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8; the message says where.
    """
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UserError(f"{file.name}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file.name}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None


def row(values: Mapping[str, Any], fields: Fields) -> Row:
    """A row from the values of the selected fields.

    Raises:
        BadRowError: a field is missing or has the wrong type.
    """
    text = checked(values, str(fields.text), "text", is_text)
    if fields.target is not None:
        target = checked(values, fields.target, "text or a list of texts", _is_text_or_texts)
        return with_targets(text, [target] if isinstance(target, str) else target)
    if fields.choices is None:
        return {"text": text}
    choices = checked(values, fields.choices, "a list of at least 2 texts", _are_choices)
    answer = checked(values, str(fields.answer), "the index of a choice", _is_whole)
    if not 0 <= answer < len(choices):
        allowed = f"0 to {len(choices) - 1}"
        raise BadRowError(f"field {fields.answer!r} is {answer}, expected the index of a choice, {allowed}")
    return {**with_targets(text, [choices[answer]]), "choices": choices, "answer": answer}


def with_targets(text: str, targets: list[str]) -> Row:
    """A row with those targets that are not blank."""
    return {"text": text, "targets": [target for target in targets if target.strip()]}


def checked(values: Mapping[str, Any], field: str, expected: str, is_good: Callable[[Any], bool]) -> Any:  # noqa: ANN401
    """The value of a field of a row, if it has the right type.

    Args:
        values: the row's values by field.
        field: the field's name.
        expected: the expected type, in words.
        is_good: whether a value has that type.

    Raises:
        BadRowError: there is no such field, or its value has another type.
    """
    if field not in values:
        raise BadRowError(one_of("field", field, values))
    value = values[field]
    if not is_good(value):
        raise BadRowError(f"field {field!r} is {_kind(value)}, expected {expected}")
    if not all(is_unicode(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
        raise BadRowError(f"field {field!r} is not valid Unicode")
    return value


def is_text(value: object) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def are_texts(value: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(map(is_text, value))


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, which JSON can write and UTF-8 cannot."""
    return re.search("[\ud800-\udfff]", text) is None


def _is_text_or_texts(value: object) -> bool:
    return is_text(value) or are_texts(value)


def _are_choices(value: object) -> bool:
    return isinstance(value, list) and are_texts(value) and len(value) > 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_choices(given: Mapping[str, str], expected: Sequence[str]) -> list[str]:
    """The texts of an item in the expected order.

    Args:
        given: texts by their label.
        expected: every label, in order.

    Raises:
        BadRowError: a label is missing or unknown, or a text is empty.
    """
    for label in given:
        if label not in expected:
            raise BadRowError(one_of("label", label, expected))
    for label in expected:
        if not given.get(label, "").strip():
            raise BadRowError(f"no sentence labelled {label!r}; an item has one of each of {', '.join(expected)}")
    return [given[label] for label in expected]


def _kind(value: object) -> str:
    """The name of a value's type in errors."""
    if isinstance(value, list):
        others = [item for item in value if not is_text(item)]
        return f"a list with {_kind(others[0])}" if others else "a list"
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object", str: "text"}
    return kinds.get(type(value), "null" if value is None else f"a {type(value).__name__}")
