"""Power of each board against seconds: of the recommended configuration, its baseline, and flagged runs.

One run each. The measured window is shaded. Each line has at most 150 points, averages of readings.
"""

from __future__ import annotations

import altair as alt
import polars as pl

from joulesweep.report import theme
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.results import Results
from joulesweep.report.theme import Chart, tooltip, values

TITLE = "Power while training"
PLACE = 60
SECTION = "conditions"
MAX_POINTS = 150  # of one trace: its plot has fewer pixels
MAX_PLOTS = 6
TRACE = "name device t_s power_w window_s"


def draw(results: Results) -> Figure:
    """Draw power against seconds for the runs that a reader may doubt, with the measured window marked."""
    ok = results.tables.runs.filter(pl.col("status") == "ok")
    chosen = runs(results, ok)
    traced = results.tables.power.filter(pl.col("run").is_in(list(chosen))).drop_nulls("power_w")
    if traced.is_empty():
        return nothing(TITLE, results.why_empty or "No power could be read.")
    traced = _thinned(traced)
    shown = {run: title for run, title in chosen.items() if run in set(traced["run"])}
    plots = [Plot(chart=_plot(traced.filter(run=run)), title=title) for run, title in list(shown.items())[:MAX_PLOTS]]
    notes = ["One line per device, seconds from the begin of the measured window, which is shaded."]
    left = ok.height - len(plots)
    notes += [f"Other runs, not drawn: {left}; tables/power.parquet has their readings."] if left else []
    return Figure(title=TITLE, notes=notes, plots=plots, columns=3 if len(plots) > 2 else len(plots))


def runs(results: Results, ok: pl.DataFrame) -> dict[str, str]:
    """The drawn runs, by id, with their titles: the first of each role, and the first of each flag."""
    titles: dict[str, str] = {}
    first = ok.with_columns(key=pl.format("{}.{}", "cell", "environment")).unique(
        "key", keep="first", maintain_order=True
    )
    for key, role in results.roles(2).items():
        for run, name in first.filter(key=key).select("run", "name").rows():
            titles[run] = f"{role}: {name}"
    flagged = ok.drop_nulls("flags").unique("flags", keep="first", maintain_order=True)
    for run, name, flags in flagged.select("run", "name", "flags").rows():
        titles.setdefault(run, f"{flags}: {name}")
    return titles


def _thinned(traced: pl.DataFrame) -> pl.DataFrame:
    """Reduce each line to at most `MAX_POINTS`: means over equal stretches of time."""
    line = ("run", "device")
    begin_s, end_s = (getattr(pl.col("t_s"), end)().over(line) for end in ("min", "max"))
    place = ((pl.col("t_s") - begin_s) / (end_s - begin_s) * MAX_POINTS).fill_nan(0).floor().clip(0, MAX_POINTS - 1)
    stretches = traced.with_columns(stretch=place).group_by(*line, "name", "stretch", maintain_order=True)
    means = stretches.agg(pl.col("window_s").first(), pl.col("t_s", "power_w").mean())
    return means.sort(*line, "t_s", maintain_order=True)


def _plot(traced: pl.DataFrame) -> Chart:
    x = alt.X("t_s:Q").title("Seconds").axis(tickCount=5)
    window = alt.Chart(theme.rows([{"begin": 0.0, "end": traced["window_s"][0]}]))
    band = window.mark_rect(color=theme.GRID).encode(x=alt.X("begin:Q"), x2="end:Q")
    line = alt.Chart(values(traced, TRACE)).mark_line(strokeWidth=1.3, color=theme.COLOURS[0])
    y = alt.Y("power_w:Q").title("Power (W)").axis(tickCount=4)
    line = line.encode(x=x, y=y, detail="device:N", tooltip=tooltip("power_w=Power (W)", "t_s=Seconds"))
    return alt.layer(band, line).properties(height=130)
