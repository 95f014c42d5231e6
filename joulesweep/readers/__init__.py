"""How a file becomes rows of text: one file per format, found by its name.

A reader is a module `joulesweep/readers/<format>.py` (underscores for the hyphens of its name) with

* a docstring, whose first line says what it reads;
* `READER`: a `Reader`, which says once what the format can do and how it is read.

A text is what the file says: a reader looks at the fields that are asked for, and guesses nothing from other columns or
rows. What it cannot read is a `UserError` that says which file, which line, and what was allowed.

A config is validated with these files, so none imports anything heavy at module level. Nothing else needs to be edited:
the config, its schema, the documentation and the digest of the code find a new one.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypedDict

from joulesweep.core.errors import UserError, one_of

#: Keys of a data set's config that name a field beside that of the text; a format says which of them it takes.
OPTIONS = ("target", "choices", "answer")


class Row(TypedDict):
    """A text of a data set.

    Attributes:
        text: what is read.
        targets: of a text with targets, the one to be trained on, then other references if there are any.
        choices: of a multiple-choice text, all of them.
        answer: the index of the right one, which is the target.
    """

    text: str
    targets: NotRequired[list[str]]
    choices: NotRequired[list[str]]
    answer: NotRequired[int]


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file to read: the name that errors and the manifest give it, and where it lies now."""

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A data set of the hub.

    Attributes:
        name: what errors call it.
        folder: its files.
        subset: the name of its configuration, or None.
        splits: to be pooled; a part of one is `train[:10%]`.
        scratch: a folder for what is made meanwhile.
    """

    name: str
    folder: Path
    subset: str | None
    splits: list[str]
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of the fields that a config asks for; None where it names none."""

    text: str | None = None
    target: str | None = None
    choices: str | None = None
    answer: str | None = None

    @property
    def named(self) -> list[str]:
        """Those that are named, the text's first."""
        return [name for name in dataclasses.astuple(self) if name is not None]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What a format can do, and how it is read; exactly one of the two functions is given.

    Attributes:
        needs_field: whether the config names the field of the text (key `field`); otherwise it may not.
        options: which of `OPTIONS` the config may name.
        has_targets: whether texts have targets although the config names no field for them.
        read: makes the rows of one file.
        read_snapshot: makes the rows of a data set of the hub.
    """

    needs_field: bool = False
    options: tuple[str, ...] = ()
    has_targets: bool = False
    read: Callable[[InputFile, Fields], list[Row]] | None = None
    read_snapshot: Callable[[Snapshot, Fields], list[Row]] | None = None


def names() -> list[str]:
    """Every format there is, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def path(name: str) -> Path:
    """The file of a reader."""
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
    """The formats in which data sets of the hub are read."""
    return [name for name in names() if load(name).read_snapshot is not None]


class BadRowError(UserError):
    """What is wrong with a row; who reads the file adds where it stands."""


def decoded(file: InputFile) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8; the line says where.
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
    """A row from the values of the fields that are asked for.

    Raises:
        BadRowError: a field is missing or holds something else.
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
    """A row with those of its targets that say something."""
    return {"text": text, "targets": [target for target in targets if target.strip()]}


def checked(values: Mapping[str, Any], field: str, expected: str, is_good: Callable[[Any], bool]) -> Any:  # noqa: ANN401
    """The value of a field of a row.

    Args:
        values: of the row, by field.
        field: which.
        expected: what it must be, in words.
        is_good: whether a value is that.

    Raises:
        BadRowError: there is no such field, or its value is something else.
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
    """Whether a text has no half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    return re.search("[\ud800-\udfff]", text) is None


def _is_text_or_texts(value: object) -> bool:
    return is_text(value) or are_texts(value)


def _are_choices(value: object) -> bool:
    return isinstance(value, list) and are_texts(value) and len(value) > 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    """What an error calls a value."""
    if isinstance(value, list):
        others = [item for item in value if not is_text(item)]
        return f"a list with {_kind(others[0])}" if others else "a list"
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object", str: "text"}
    return kinds.get(type(value), "null" if value is None else f"a {type(value).__name__}")
