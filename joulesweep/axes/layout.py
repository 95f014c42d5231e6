"""Values of the axes batching (layout of texts in rows) and head (where the output layer is computed)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Batching:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        packs: whether several texts share a row without attending to each other.
        pads_fully: whether each text is padded to `max_length`; otherwise to the longest of its batch.
    """

    about: str
    packs: bool = False
    pads_fully: bool = False

    @property
    def few_shapes(self) -> bool:
        """Whether batches have only a few different shapes."""
        return self.packs or self.pads_fully


BATCHINGS: dict[str, Batching] = {
    "dynamic": Batching(about="texts padded to the longest of their micro-batch"),
    "fixed": Batching(about="every text padded to `max_length`", pads_fully=True),
    "packed": Batching(about="several texts to a row of `max_length` tokens, which do not see each other", packs=True),
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """One row of the table.

    Attributes:
        about: one line for the documentation.
        everywhere: whether the output layer is computed at every position; otherwise where something is predicted.
    """

    about: str
    everywhere: bool


HEADS: dict[str, Head] = {
    "masked": Head(about="the output layer at predicted positions only", everywhere=False),
    "dense": Head(about="the output layer at every position", everywhere=True),
}
