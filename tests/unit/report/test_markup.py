from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from joulesweep.report import markup


def test_a_table_has_numbers_with_intervals_and_escapes_texts():
    html = markup.table({"A <b>": "text wrap", "J": ""}, [["x & y", ("1.00 J", "[0.90, 1.10]")], ["z", ("–", "")]])
    assert '<thead><tr><th scope="col" class="text">A &lt;b&gt;</th><th scope="col">J</th></tr></thead>' in html
    first = '<th scope="row" class="text">x &amp; y</th><td>1.00 J<span class="interval">[0.90, 1.10]</span></td>'
    assert f'<tr>{first}</tr>\n<tr><th scope="row" class="text">z</th><td>–</td></tr>' in html


def test_a_template_whose_data_lack_is_an_error():
    with pytest.raises(UndefinedError, match="retries"):
        markup.filled("problems.html.j2", table="")


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A cache of its own, and how often Vega-Lite was bundled."""
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        markup.vl_convert, "javascript_bundle", lambda *asked_for: asked.append(asked_for) or "a </script>"
    )
    markup.vega.cache_clear()
    yield asked
    markup.vega.cache_clear()


def test_vega_lite_is_bundled_once_for_all_pages_of_a_machine(asked):
    first = markup.vega()
    markup.vega.cache_clear()  # as in another process
    assert markup.vega() == first == "a <\\/script>" and len(asked) == 1


def test_another_version_is_bundled_anew(asked, monkeypatch):
    markup.vega()
    markup.vega.cache_clear()
    monkeypatch.setattr(markup, "version", lambda package: "99")
    markup.vega()
    assert len(asked) == 2


def test_where_nothing_can_be_kept_it_is_bundled_for_each(asked, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        markup.vega.cache_clear()
        assert markup.vega() == "a <\\/script>"
    assert len(asked) == 2
