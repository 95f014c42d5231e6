"""Which axes of a sweep a chart shows by colour and by shape, and configurations in words.

Colour stands for the first axis that varies in the sweep, shape for the second; the batch size is told by labels and by
order. A colour has one meaning on the whole page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from joulesweep.analyse.cells import method_words
from joulesweep.analyse.tables import Row
from joulesweep.report.figure import Key
from joulesweep.report.theme import COLOURS, SHAPES

OTHERS = "others"


def spread(row: Row) -> str:
    """On what a configuration trains: "1 GPU", "2 GPUs, DDP", "2 processes, DDP", "8 GPUs on 2 nodes, DDP"."""
    one, several = ("GPU", "GPUs") if row["gpus"] else ("process", "processes")
    place = f"{row['devices']} {one if row['devices'] == 1 else several}"
    place += f" on {row['nodes']} nodes" if (row["nodes"] or 1) > 1 else ""
    return place if row["strategy"] == "single" else f"{place}, {row['strategy'].upper()}"


def _checkpointed(row: Row) -> str:
    return "checkpointed" if row["checkpoint_activations"] else "stored activations"


#: Titles of the axes, and their values in words, by the order in which they get colour and shape.
AXES: Mapping[str, Callable[[Row], str]] = {
    "Method": method_words,
    "Devices": spread,
    "Precision": lambda row: str(row["precision"]),
    "Engine": lambda row: str(row["engine"]),
    "Optimizer": lambda row: str(row["optimizer"]),
    "Batching": lambda row: str(row["batching"]),
    "Head": lambda row: f"{row['head']} head",
    "Micro-batch": lambda row: f"micro-batch {row['micro_batch_size']}" if row["micro_batch_size"] else "whole batch",
    "Activations": _checkpointed,
    "Learning rate": lambda row: f"lr {row['lr']:g}",
    "Clipping": lambda row: f"clipped at {row['max_grad_norm']:g}" if row["max_grad_norm"] else "unclipped",
}


@dataclass(frozen=True)
class Looks:
    """What colour and shape mean in one sweep.

    Attributes:
        varying: titles of the axes that vary, in the order of `AXES`.
        keys: the legend: a colour for each value of the first of them, a shape for each of the second.
    """

    varying: Sequence[str]
    keys: Sequence[Key]

    def colour(self, row: Row) -> str:
        """What the colour of a configuration says."""
        return self._value(row, 0)

    def shape(self, row: Row) -> str:
        """What its shape says."""
        return self._value(row, 1)

    def untold(self) -> list[str]:
        """The axes that neither colour nor shape tells apart."""
        return list(self.varying[2:])

    def words(self, row: Row) -> str:
        """A configuration in words: the axes that vary, and its batch size."""
        said = [AXES[title](row) for title in self.varying] or [spread(row), str(row["precision"])]
        return " · ".join([*said, f"batch {row['batch']}"])

    def _value(self, row: Row, place: int) -> str:
        if len(self.varying) <= place:
            return ""
        value = AXES[self.varying[place]](row)
        return value if value in self._values else f"{OTHERS}, {self.varying[place].lower()}"

    @functools.cached_property
    def _values(self) -> set[str]:
        return {key.value for key in self.keys}


def looks(cells: pl.DataFrame) -> Looks:
    """What colour and shape mean in a sweep.

    Args:
        cells: its cells table.
    """
    values: dict[str, dict[str, None]] = {title: {} for title in AXES}
    for row in cells.iter_rows(named=True):
        if row["num_ok"] or not cells["num_ok"].sum():
            for title, words in AXES.items():
                values[title][words(row)] = None
    varying = [title for title, distinct in values.items() if len(distinct) > 1]
    keys = [
        key
        for title, marks in zip(varying, ("colour", "shape"), strict=False)
        for key in _keys(title, values[title], marks)
    ]
    return Looks(varying, keys)


def _keys(title: str, distinct: Iterable[str], kind: str) -> Iterator[Key]:
    """A colour or a shape for each value; what is beyond the last one shares it."""
    choices, labels = COLOURS if kind == "colour" else SHAPES, list(distinct)
    if len(labels) > len(choices):
        more = len(labels) - len(choices) + 1
        labels = [*labels[: len(choices) - 1], f"{OTHERS}, {title.lower()}"]
        yield from _keys_of(title, labels[:-1], choices, kind)
        yield Key(axis=title, value=labels[-1], label=f"{more} others", **{kind: choices[-1]})
    else:
        yield from _keys_of(title, labels, choices, kind)


def _keys_of(title: str, labels: Sequence[str], choices: Sequence[str], kind: str) -> Iterator[Key]:
    for label, choice in zip(labels, choices, strict=False):
        yield Key(axis=title, value=label, label=label, **{kind: choice})
