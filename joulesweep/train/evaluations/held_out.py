"""Loss on the held-out texts of another data set, such as general text: what the training makes a model forget.

The texts are those that the data set's own split holds out, and their masks are fixed, so that the losses before and
after the training, and of all runs, are of the same words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulesweep.train.evaluations import Metric, Reader, Scores

FORMAT = None
TASKS = ("mlm", "clm", "seq2seq")


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters.

    Attributes:
        dataset: a name under `datasets:`.
        texts: number of its held-out texts at most, drawn once for all runs.
    """

    dataset: str
    texts: int = 1000

    def __post_init__(self) -> None:
        """Check the values."""
        if self.texts < 1:
            raise ValueError(f"texts must be at least 1, got {self.texts}")


def scores(reader: Reader, params: Params) -> Scores:
    """Return the loss of every text in nats, `loss_sum`, and its number of predicted tokens, `num_predicted`."""
    sums, counts = reader.text_losses(params.texts)
    return Scores(
        categories=[params.dataset] * len(sums),
        about=[],
        by_name={"loss_sum": sums, "num_predicted": counts},
    )


def metrics(scores: Scores) -> list[Metric]:
    """Return the loss in nats per predicted token; None if no token is predicted."""
    sums, num_predicted = scores.by_name["loss_sum"], math.fsum(scores.by_name["num_predicted"])
    loss = math.fsum(sums) / num_predicted if num_predicted else None
    return [Metric(category=scores.categories[0], name="loss", value=loss, n=len(sums))]
