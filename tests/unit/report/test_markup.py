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
