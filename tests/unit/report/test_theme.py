"""Colours: apart for every eye, dark enough on white and light enough on black."""

from __future__ import annotations

import itertools
import json
import re

import altair as alt
import pytest

from joulesweep.report import theme
from joulesweep.report.figure import Figure, Plot, nothing
from joulesweep.report.markup import TEMPLATES

CSS = (TEMPLATES / "report.css").read_text(encoding="utf-8")
#: Machado, Oliveira & Fernandes 2009 (doi:10.1109/TVCG.2009.113), severity 1: linear RGB as deuteranopes see it.
DEUTERANOPE = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


def scheme(dark):
    """The variables of one scheme."""
    light, _, rest = CSS.partition("@media screen and (prefers-color-scheme: dark)")
    return dict(re.findall(r"--([\w-]+): (#\w{6});", rest.partition("\n}")[0] if dark else light))


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one, other):
    """WCAG's contrast ratio."""
    lums = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(linear, (one, other)))
    return (lums[1] + 0.05) / (lums[0] + 0.05)


def lab(rgb):
    """CIE L*a*b* of linear RGB."""
    r, g, b = rgb
    xyz = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505, 0.2126 * r + 0.7152 * g + 0.0722 * b
    xyz += ((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,)
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def seen(colour):
    """How a deuteranope sees a colour."""
    rgb = linear(colour)
    return [min(1, max(0, sum(m * part for m, part in zip(row, rgb, strict=True)))) for row in DEUTERANOPE]


@pytest.mark.parametrize("dark", [False, True])
def test_marks_stand_out_from_the_page(dark):
    variables = scheme(dark)
    for name in [*(f"mark-{i}" for i in range(1, 9)), "saves", "unsure", "chart-ink", "chart-faint", "pale"]:
        least = 2.5 if name == "pale" else 3
        assert contrast(variables[name], variables["paper"]) >= least, name


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_below_it(dark):
    variables = scheme(dark)
    for text, below in itertools.product(("ink", "faint", "accent", "warn", "good"), ("paper", "card")):
        assert contrast(variables[text], variables[below]) >= 4.5, (text, below)
    for text, below in (("good", "good-card"), ("ink", "good-card"), ("ink", "warn-card"), ("faint", "good-card")):
        assert contrast(variables[text], variables[below]) >= 4.5, (text, below)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_apart_for_deuteranopes(dark):
    variables = scheme(dark)
    marks = [lab(seen(variables[f"mark-{i}"])) for i in range(1, 9)]
    for (i, one), (j, other) in itertools.combinations(enumerate(marks, 1), 2):
        apart = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        assert apart > (20 if max(i, j) <= 4 else 10), (i, j)


def test_the_style_sheet_has_the_colours_of_the_charts():
    light = scheme(dark=False)
    assert {name: colour.lower() for colour, name in theme.VARIABLES.items()} == {
        name: light[name] for name in theme.VARIABLES.values()
    }
    assert set(theme.VARIABLES.values()) <= scheme(dark=True).keys()


def plot():
    data = theme.rows([{"x": 1.23456789, "c": "a"}])
    return Plot(chart=alt.Chart(data).mark_point(color=theme.COLOURS[0]).encode(x="x:Q"), title="one")


def test_a_page_names_variables_and_a_file_colours():
    figure = Figure(title="A", notes=["b"], plots=[plot()])
    (view,) = figure.views()
    assert '"var(--mark-1)"' in view and theme.COLOURS[0] not in view
    assert theme.COLOURS[0] in json.dumps(figure.whole().to_dict())
    assert json.loads(view)["width"] == "container"


def test_numbers_have_five_digits():
    assert "1.2346" in plot().chart.to_json()


def test_a_figure_keeps_its_params_and_its_notes_in_a_file():
    figure = Figure(title="A", notes=["note"], plots=[plot(), plot()], columns=2, params={"hidden": []})
    whole = figure.whole().to_dict()
    assert whole["title"]["subtitle"] == ["note"] and whole["columns"] == 2
    assert [param["name"] for param in whole["params"]] == ["hidden"]
    assert all(json.loads(view)["params"][0]["name"] == "hidden" for view in figure.views())


def test_an_empty_figure_says_why_in_a_file_too():
    assert nothing("A", "no run").whole().to_dict()["title"]["subtitle"] == ["no run"]
