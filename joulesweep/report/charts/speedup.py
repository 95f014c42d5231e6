"""Texts per second of each configuration relative to the baseline, with 95 % intervals over pairs of equal seed.

The baseline trains and computes as the first configuration of the grid does (method, strategy, precision, batching,
head, engine, micro-batch size, checkpointing); model, data set, learning rate and batch size are the same.
"""

from __future__ import annotations

import altair as alt
import polars as pl

from joulesweep.analyse.cells import finished
from joulesweep.analyse.tables import Tables
from joulesweep.report import theme
from joulesweep.report.chart_parts import by_batch_size, some
from joulesweep.report.theme import Chart, empty, styled, tooltip

PLACE = 30


def draw(tables: Tables) -> Chart:
    """Draw texts per second relative to the baseline that trains the same, paired by seed."""
    cells = finished(tables.cells, "speedup").filter(~pl.col("is_baseline"))
    if cells.is_empty():
        no_peer_reason = "no other configuration finished beside its baseline"
        return empty(tables, "Speed-up", no_peer_reason if tables.cells["num_ok"].sum() else None)
    cells = cells.rename({"speedup": "value", "speedup_low": "low", "speedup_high": "high"})
    x = alt.X("value:Q").title("Speed-up: texts per second ÷ those of the baseline").scale(zero=False, padding=12)
    line = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=theme.INK, strokeDash=[4, 3]).encode(x=alt.datum(1))
    whiskers = alt.Chart().mark_rule(strokeWidth=2, opacity=0.8)
    points = alt.Chart().mark_point(filled=True, size=70, opacity=1).encode(x=x, tooltip=tooltip("value=Speed-up"))
    baselines = cells["baseline"].str.replace(r" bs\S+$", "").unique(maintain_order=True).to_list()
    notes = [
        f"Dashed line: {some(baselines)} at the same batch size.",
        "Bars: 95 % interval over pairs of equal seed." if cells["low"].count() else "One pair each: no interval.",
    ]
    return styled(by_batch_size(tables, cells, [line], points, whiskers), "Speed-up over the baseline", notes)
