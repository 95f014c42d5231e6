"""Build the pieces of a page: filled templates, tables, and the contents of script elements."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from joulesweep.report.numbers import FormattedNumber

TEMPLATES = Path(__file__).parent / "templates"


def filled(name: str, /, **data: object) -> Markup:
    """Fill in a template.

    Args:
        name: of a file in the folder `templates`.
        data: values for the names in the template; a missing name is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template(name).render(data))


def table(headings: Mapping[str, str], rows: Iterable[Sequence[str | FormattedNumber]]) -> Markup:
    """Render a table that scrolls on narrow pages.

    Args:
        headings: each with the class of its column: "" for numbers, "text", or "text wrap" for long texts.
        rows: an entry per heading: a text, or a number with its interval or remark.
    """
    entries = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    return filled("table.html.j2", headings=headings, kinds=list(headings.values()), rows=entries)


@functools.cache
def vega() -> Markup:
    """Vega-Lite in the version that Altair targets, with its dependencies, for a script element."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return Markup(bundle.replace("</script", "<\\/script"))


def embedded(value: object) -> Markup:
    """Encode a value as JSON for a script element; "<" is escaped, so nothing ends the element early."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))
