"""A figure: a title, notes, and one or more plots that a page lays out to its width."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from joulesweep.report import theme
from joulesweep.report.theme import Chart

GAP = 70  # pixels beside a plot, for its axis


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot of a figure: a chart with a single pair of axes.

    Attributes:
        chart: without width, title or look of its own.
        title: what it shows of the figure; empty if the figure has one plot.
    """

    chart: Chart
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Key:
    """An entry of a figure's legend, by which a reader filters its marks.

    Attributes:
        axis: what the entry is about: "Devices".
        value: as the marks' data have it.
        label: in words.
        colour: of its marks; None if it stands for a shape.
        shape: of its marks; None if it stands for a colour.
    """

    axis: str
    value: str
    label: str
    colour: str | None = None
    shape: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a chart's file draws.

    Attributes:
        title: what the reader should see in it.
        notes: how to read it, and what it leaves out; a sentence each.
        plots: none where there is nothing to draw: `notes` then say why.
        columns: plots beside each other on a wide page.
        labels: pixels that labels left of each plot need.
        shared: whether all plots of a line have the labels of its first one.
        keys: the legend.
        params: values that the page's controls set, by name.
    """

    title: str
    notes: Sequence[str]
    plots: Sequence[Plot] = ()
    columns: int = 1
    labels: int = 0
    shared: bool = False
    keys: Sequence[Key] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    def whole(self) -> Chart:
        """The figure as one chart, for a file of its own."""
        if not self.plots:
            text = alt.Chart(theme.rows([{"text": "Nothing to draw."}])).mark_text(fontSize=13).encode(text="text:N")
            return theme.styled(text.properties(width=480, height=60), self.title, self.notes)
        width = theme.WIDTH // self.columns - GAP - self.labels
        plots = [plot.chart.properties(width=width, title=plot.title) for plot in self.plots]
        chart = alt.concat(*plots, columns=self.columns) if len(plots) > 1 else plots[0]
        chart = chart.add_params(*(alt.param(name=name, value=value) for name, value in self.params.items()))
        return theme.styled(chart, self.title, self.notes)

    def views(self) -> list[str]:
        """The plots as JSON for a page, each as wide as its container there; the page has the common look."""
        return [theme.themed(json.dumps(self._view(plot), allow_nan=False)) for plot in self.plots]

    def _view(self, plot: Plot) -> dict[str, Any]:
        spec: dict[str, Any] = plot.chart.to_dict()
        for default in ("config", "$schema"):
            spec.pop(default, None)
        params = [{"name": name, "value": value} for name, value in self.params.items()]
        if params:
            spec["params"] = [*params, *spec.get("params", [])]
        return {**spec, "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}


def nothing(title: str, why: str) -> Figure:
    """A figure with nothing to draw, and the reason."""
    return Figure(title=title, notes=[why])
