"""Build the pieces of a page: filled templates, tables, and the contents of script elements."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from joulesweep.core import files
from joulesweep.measure.sensors import cache_folder
from joulesweep.report import theme
from joulesweep.report.numbers import FormattedNumber

TEMPLATES = Path(__file__).parent / "templates"
ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def filled(name: str, /, **data: object) -> Markup:
    """Fill in a template.

    Args:
        name: of a file in the folder `templates`.
        data: values for the names in the template; a missing name is an error.
    """
    return Markup(ENVIRONMENT.get_template(name).render(data))


def table(headings: Mapping[str, str], rows: Iterable[Sequence[str | FormattedNumber]], label: str = "Table") -> Markup:
    """Render a table that scrolls on narrow pages; its first column names the rows.

    Args:
        headings: each with the class of its column: "" for numbers, "text", or "text wrap" for long texts.
        rows: an entry per heading: a text, or a number with its interval or remark.
        label: what the table is, for readers who do not see it.
    """
    entries = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    return filled("table.html.j2", headings=headings, kinds=list(headings.values()), rows=entries, label=label)


@functools.cache
def vega() -> Markup:
    """Vega-Lite in the version that Altair targets, with its dependencies, for a script element.

    It takes a second to make, and is kept for later pages.
    """
    kept = cache_folder() / f"vega-{version('vl-convert-python')}-{_version()}.js"
    with contextlib.suppress(OSError):
        return Markup(kept.read_text(encoding="utf-8"))
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _version()).replace("</script", "<\\/script")
    with contextlib.suppress(OSError):
        files.write_text(kept, bundle)
    return Markup(bundle)


def svg(spec: dict[str, Any]) -> str:
    """Draw a Vega-Lite specification."""
    return str(vl_convert.vegalite_to_svg(spec, vl_version=_version()))


def _version() -> str:
    """The version of Vega-Lite that Altair writes."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def embedded_chart(chart: Any) -> Markup:  # noqa: ANN401 - Altair has one type per kind of composition
    """A chart for a script element, in the colours of the page's style sheet."""
    return Markup(theme.themed(str(embedded(chart.to_dict()))))


def embedded(value: object) -> Markup:
    """Encode a value as JSON for a script element; "<" is escaped, so nothing ends the element early."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))
