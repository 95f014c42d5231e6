"""What each change does, and which changes depend on each other."""

from __future__ import annotations

import polars as pl
from markupsafe import Markup

from joulesweep.report.sections import Results, Section

PLACE = 30
MAX_SENTENCES = 4


def section(results: Results) -> Section | None:
    """The chart's heading, and the interactions in words; None without effects."""
    effects = results.tables.effects
    if effects.is_empty():
        return None
    texts = _sentences(effects.filter(kind="interaction").drop_nulls("text"))
    items = Markup().join(Markup("<li>{}</li>").format(text) for text in texts[:MAX_SENTENCES])
    more = f"{len(texts) - MAX_SENTENCES} more are in tables/effects.parquet." if len(texts) > MAX_SENTENCES else ""
    html = Markup("<ul>{}</ul>").format(items) if texts else Markup()
    return Section(
        title="Effects of single changes",
        short="Effects",
        html=html + Markup('<p class="note">{}</p>').format(more) if more else html,
    )


def _sentences(interactions: pl.DataFrame) -> list[str]:
    """What depends on what, in words: those of the largest differences first, of memory last."""
    apart = pl.col("ratio").log().max() - pl.col("ratio").log().min()
    memory = pl.col("quantity").str.starts_with("peak_").first()
    groups = interactions.group_by("text", maintain_order=True).agg(apart.alias("apart"), memory.alias("memory"))
    return groups.sort("memory", -pl.col("apart"), maintain_order=True)["text"].to_list()
