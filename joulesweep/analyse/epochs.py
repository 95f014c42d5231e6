"""Select the epochs whose joules are comparable."""

from __future__ import annotations

import polars as pl

GROUP = ("cell", "environment", "epoch")


def with_joules(epochs: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The epochs for which every repeat of a cell has joules, and why there are none.

    Args:
        epochs: the epochs table.

    Returns:
        Rows with joules of one scope and status, and those of the untrained model; or no rows and the reason.
    """
    trained = epochs.filter(pl.col("epoch") > 0)
    whole = (pl.col("energy_j").is_null() | pl.col("energy_scope").is_null()).sum().over(GROUP) == 0
    read = trained.filter(whole)
    for column, word in (("energy_scope", "scopes"), ("energy_status", "statuses")):
        kinds = read[column].unique(maintain_order=True).to_list()
        if len(kinds) > 1:
            return read.clear(), f"joules of different {word} are not drawn together: {', '.join(kinds)}"
    reasons = trained["energy_reason"].drop_nulls().unique(maintain_order=True).to_list()
    untrained = epochs.filter(pl.col("epoch") == 0).join(read.select("run").unique(), on="run", how="semi")
    return pl.concat([untrained, read]), reasons[0] if reasons else "no epoch has joules in every repeat"
