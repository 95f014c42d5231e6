"""Peak memory of each configuration.

Memory that PyTorch allocated on the GPUs, else resident memory of the host, with 95 % intervals over repeats.
"""

from __future__ import annotations

import altair as alt
import polars as pl

from joulesweep.analyse.cells import finished
from joulesweep.analyse.tables import Tables
from joulesweep.report.chart_parts import NO_INTERVAL, by_batch_size, some
from joulesweep.report.theme import INK, Chart, empty, styled, tooltip

PLACE = 50
GIB = 2**30


def draw(tables: Tables) -> Chart:
    """Draw the peak memory of each configuration: of the GPUs if they were used, else of the host."""
    gpu = finished(tables.cells, "peak_gpu_allocated_bytes_mean")
    quantity = "peak_host_rss_bytes" if gpu.is_empty() else "peak_gpu_allocated_bytes"
    cells = finished(tables.cells, f"{quantity}_mean")
    if cells.is_empty():
        return empty(tables, "Peak memory")
    ends = {"value": "mean", "low": "low", "high": "high"}
    cells = cells.with_columns((pl.col(f"{quantity}_{end}") / GIB).alias(name) for name, end in ends.items())
    what = "host memory of all processes" if gpu.is_empty() else "GPU memory allocated by PyTorch"
    bars = alt.Chart().mark_bar(height=13, opacity=0.8)
    bars = bars.encode(x=alt.X("value:Q").title(f"Peak {what} (GiB)"), tooltip=tooltip("value=Peak (GiB)"))
    whiskers = alt.Chart().mark_rule(strokeWidth=1.5)
    chart = by_batch_size(tables, cells, [], bars, whiskers, whisker_colour=alt.value(INK))
    notes = ["Mean over repeats. Dark lines: 95 % interval." if cells["low"].count() else NO_INTERVAL]
    out = tables.cells.filter(pl.col("statuses").str.contains("oom"))["name"].unique(maintain_order=True).to_list()
    if out:
        notes.append(f"Out of memory: {some(out)}")
    return styled(chart, f"Peak {what}", notes)
