"""Read a config file strictly: refuse what YAML readers disagree about, in one line with file and line number.

Values are text, true or false, null and decimal numbers, in lists and mappings. Octal numbers, 1:30, dates, yes and no,
duplicate keys, tags, and files that are too large or too deep are errors. A quoted value is always text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from joulesweep.core.errors import UserError, brief_repr, mistaken

MOST_BYTES = 200_000  # of a file
MOST_VALUES = 100_000  # of a file, with every alias written out
MOST_DEPTH = 40
LARGEST = 2**63 - 1  # largest 64-bit integer

NULLS = ("", "~", "null", "Null", "NULL")
TRUTHS = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
REAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")
OCTAL = re.compile(r"0o[0-7]+")  # YAML 1.2's
#: Types that YAML 1.1 gives to plain words that YAML 1.2 and people may read as something else.
KINDS = {
    "bool": "yes, no, on and off are true or false to some readers of YAML; write true or false, or quote it as text",
    "int": "some readers of YAML take this for another number; write it in plain decimals, or quote it as text",
    "float": "some readers of YAML take this for another number; write it in plain decimals, or quote it as text",
    "timestamp": "some readers of YAML take this for a date; quote it as text",
}

Location = tuple[int | str, ...]  #: ("grid", "lr", 0)


@dataclass(frozen=True)
class Place:
    """File and line of each value of a config, for errors.

    Attributes:
        name: the whole config, as errors name it.
        lines: file and line of each value ("my.yaml:12"), by its location.
    """

    name: str = "config"
    lines: Mapping[Location, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def at(self, *location: int | str) -> str:
        """File and line of a value, or else of what contains it."""
        here: Location = ()
        for part in location:
            if (*here, part) in self.lines:
                here = (*here, part)
        return self.lines.get(here, self.name)

    def refusal(self, problem: str, *location: int | str) -> UserError:
        """The error to raise for a value."""
        return UserError(f"{self.at(*location)}: {dotted(location)}: {problem}")


def read(path: Path, name: str | None = None) -> tuple[Any, Place]:
    """Read a file.

    Args:
        path: the file.
        name: its name in errors; its path by default.

    Returns:
        Its value, made of mappings, lists, text, numbers, booleans and None; and the place of each part.

    Raises:
        UserError: it cannot be read, is not YAML, or holds an ambiguous or absurd value.
    """
    name = name or str(path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{name}: {len(content):,} bytes; a config has at most {MOST_BYTES:,}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None
    return parse(text, name)


def parse(text: str, name: str) -> tuple[Any, Place]:
    """Parse a text, as `read` does."""
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON allows tabs as indentation, YAML does not
    return _Reader(text, name).document()


def scalar(text: str) -> Any:  # noqa: ANN401 - any scalar
    """The value of a plain word.

    Raises:
        ValueError: it is ambiguous or absurd; the message says why.
    """
    if text in NULLS:
        return None
    if text in TRUTHS:
        return TRUTHS[text]
    if WHOLE.fullmatch(text):
        if len(text) > len(str(LARGEST)) + 1 or abs(int(text)) > LARGEST:
            raise ValueError(f"{brief_repr(text)}: a number beyond 64 bits; quote it if it is text")
        return int(text)
    if REAL.fullmatch(text):
        return _real(text)
    kind = _kind(text)
    if kind == "float" and text.lower().lstrip("+-") in (".inf", ".nan"):
        raise ValueError(f"{text}: not a number that a sweep can have")
    if kind in KINDS:
        raise ValueError(f"{brief_repr(text)}: {KINDS[kind]}")
    return text


def _real(text: str) -> float:
    value = float(text)
    is_zero = not re.search("[1-9]", re.split("[eE]", text)[0])
    if not is_zero and not sys.float_info.min <= abs(value) <= sys.float_info.max:
        raise ValueError(f"{brief_repr(text)}: a number beyond 64 bits; quote it if it is text")
    return value


def _kind(text: str) -> str:
    """The type that PyYAML, a reader of YAML 1.1, gives to a plain word."""
    if OCTAL.fullmatch(text):
        return "int"
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers.get(text[0], [])
    tags = (tag for tag, pattern in resolvers if pattern.match(text))
    return next(tags, "str").rpartition(":")[2]


class _Reader:
    """Builds the value from YAML's events, and limits their nesting and number."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.events: Iterator[Any] = self._parsed(text)
        self.lines: dict[Location, str] = {}
        self.anchors: dict[str, tuple[Any, int]] = {}  # value and number of values
        self.num_values = 0
        self.mistakes: list[UserError] = []  # those after which reading can go on

    def _parsed(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
            line = text.count("\n", 0, bad.start()) + 1 if bad else 1
            raise UserError(f"{self.name}:{line}: not YAML: {error.reason}") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = " ".join(str(part) for part in (error.problem, error.context) if part)
            raise UserError(f"{self.name}:{mark.line + 1 if mark else 1}: not YAML: {problem}") from None

    def refuse(self, event: Any, problem: str, location: Location = ()) -> UserError:  # noqa: ANN401 - yaml's events
        where = f"{dotted(location)}: " if location else ""
        return UserError(f"{self.name}:{event.start_mark.line + 1}: {where}{problem}")

    def document(self) -> tuple[Any, Place]:
        value = None
        self.lines[()] = self.name
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refuse(event, "a second document begins; a config file is one")
            elif isinstance(event, yaml.NodeEvent):
                value = self.node(event, ())
        if self.mistakes:
            raise mistaken(self.mistakes)
        return value, Place(self.name, self.lines)

    def node(self, event: Any, location: Location) -> Any:  # noqa: ANN401 - YAML's events and values
        """The value that begins with an event."""
        self.lines.setdefault(location, f"{self.name}:{event.start_mark.line + 1}")
        if len(location) > MOST_DEPTH:
            raise self.refuse(event, f"nested deeper than {MOST_DEPTH} levels")
        before = self.num_values
        self.num_values += 1
        if isinstance(event, yaml.AliasEvent):
            value = self.alias(event, location)
        elif isinstance(event, yaml.ScalarEvent):
            value = self.scalar_or_none(event, location)
        elif event.tag not in (None, "!"):
            raise self.refuse(event, f"tags such as {brief_repr(event.tag)} have no meaning here", location)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.sequence(location)
        else:
            value = self.mapping(location)
        if self.num_values > MOST_VALUES:
            raise self.refuse(event, f"more than {MOST_VALUES:,} values", location)
        if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            self.anchors[event.anchor] = (value, self.num_values - before)
        return value

    def alias(self, event: Any, location: Location) -> Any:  # noqa: ANN401
        if event.anchor not in self.anchors:
            raise self.refuse(event, f"*{event.anchor} names no value that is complete before it", location)
        value, size = self.anchors[event.anchor]
        self.num_values += size
        return value

    def scalar_or_none(self, event: Any, location: Location) -> Any:  # noqa: ANN401
        """A scalar's value; None if it is refused, which is told in the end."""
        try:
            return self.scalar(event, location)
        except UserError as error:
            self.mistakes.append(error)
            return None

    def scalar(self, event: Any, location: Location) -> Any:  # noqa: ANN401
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise self.refuse(event, f"tags such as {brief_repr(event.tag)} have no meaning here", location)
        if re.search("[\ud800-\udfff]", event.value):
            raise self.refuse(event, "half of a surrogate pair is no text", location)
        if not event.implicit[0]:
            return event.value
        if location[-1:] == ("revision",) and re.fullmatch(r"[0-9]+[eE][0-9]+", event.value):
            return event.value  # a short commit, which is text in YAML 1.1 as well
        try:
            return scalar(event.value)
        except ValueError as error:
            raise self.refuse(event, str(error), location) from None

    def sequence(self, location: Location) -> list[Any]:
        items: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.node(event, (*location, len(items))))
        return items

    def mapping(self, location: Location) -> dict[str, object]:
        items: dict[str, object] = {}
        merged: dict[str, object] = {}
        key_lines: dict[str, int] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key, line = self.key(event, location), event.start_mark.line + 1
            if key in key_lines:
                again = f"the key is given twice, first in line {key_lines[key]}"
                self.mistakes.append(self.refuse(event, again, (*location, key)))
            key_lines.setdefault(key, line)
            self.lines[*location, key] = f"{self.name}:{line}"
            value = self.node(next(self.events), (*location, key))
            if key == "<<" and event.implicit[0]:
                merged = self.merged(value, event, location)
            else:
                items[key] = value
        return {**merged, **items}

    def merged(self, value: Any, event: Any, location: Location) -> dict[str, object]:  # noqa: ANN401
        """The keys that `<<: *anchor` or `<<: [*anchor, …]` adds; those of the first mapping win."""
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, dict) for item in values):
            raise self.refuse(event, "<< merges mappings, and only those", location)
        merged = {key: item for mapping in reversed(values) for key, item in mapping.items()}
        for key in merged:
            self.lines.setdefault((*location, key), f"{self.name}:{event.start_mark.line + 1}")
        return merged

    def key(self, event: Any, location: Location) -> str:  # noqa: ANN401
        if not isinstance(event, yaml.ScalarEvent):
            raise self.refuse(event, "a key is text", location)
        key = "<<" if event.value == "<<" else self.scalar(event, location)
        if not isinstance(key, str):
            raise self.refuse(event, f"key {brief_repr(event.value)}: a key is text; quote it", location)
        return key


def override(value: Any, place: Place, new: Any, where: str) -> tuple[Any, Place]:  # noqa: ANN401
    """Override parts of a config, as Snakemake's `--config` does: mappings key by key, other values whole.

    Args:
        value: the config.
        place: the place of its values.
        new: the overriding value.
        where: where the overriding value comes from.

    Returns:
        The new config and its place.
    """
    if not (isinstance(value, dict) and isinstance(new, dict)):
        return new, Place(place.name, {(): where})
    lines, result = dict(place.lines), dict(value)
    for key, item in new.items():
        inner = {at[1:]: line for at, line in lines.items() if at[:1] == (key,)}
        result[key], below = override(result.get(key), Place(place.name, inner), item, where)
        lines = {at: line for at, line in lines.items() if at[:1] != (key,)}
        lines |= {(key, *at): line for at, line in below.lines.items()}
    return result, Place(place.name, lines)


def dotted(location: Location) -> str:
    """`("grid", "batch_size", 1)` as `grid.batch_size[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "the file"
