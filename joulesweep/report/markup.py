"""Pieces of a page: templates that are filled in, tables, and what stands inside script elements."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from joulesweep.report.numbers import Words

TEMPLATES = Path(__file__).parent / "templates"


def filled(name: str, /, **data: object) -> Markup:
    """A template with its data.

    Args:
        name: of a file in the folder `templates`.
        data: what the template names; a name that lacks is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template(name).render(data))


def table(headings: Mapping[str, str], rows: Iterable[Sequence[str | Words]]) -> Markup:
    """A table that scrolls where the page is too narrow.

    Args:
        headings: each with the class of its column: "" of numbers, "text", or "text wrap" of long texts.
        rows: an entry per heading: a text, or a number and below it its interval or a remark.
    """
    entries = [[(one, "") if isinstance(one, str) else one for one in row] for row in rows]
    return filled("table.html.j2", headings=headings, kinds=list(headings.values()), rows=entries)


@functools.cache
def vega() -> Markup:
    """Vega-Lite of the version that Altair writes for, with all it needs, for a script element."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return Markup(bundle.replace("</script", "<\\/script"))


def embedded(value: object) -> Markup:
    """JSON that may stand inside a script element: no "<" is left that could end it."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))
