"""The report in a browser that reaches no network: drawn, filtered, sorted, compared, by mouse and keyboard."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import browser
import known_sweeps
import pages
import pytest
import synthetic
import tiers

from joulesweep.report import page as report
from joulesweep.report.sections import configurations

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium to open the report with")
AXE = next((name for name in ("axe_playwright_python", "axe_core_python") if importlib.util.find_spec(name)), None)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.page(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def opened(tab, folder, html, **media):
    (folder / "report.html").write_text(html, encoding="utf-8")
    tab.console.clear()
    tab.requests.clear()
    tab.emulate(**media)
    tab.open(folder / "report.html")
    return tab


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_gpus")
    return report.build(*pages.build(folder, known_sweeps.on_a30, known_sweeps.TWO_GPUS, **synthetic.GPU_CONFIG))


CASES = {
    "estimated": (pages.as_it_is, None, {}),
    "two models": (synthetic.measured, {"model": ["tiny", "other"]}, {}),
    "failed": (lambda row: synthetic.failed(row, "oom", "full"), None, {}),
    "choosing": (synthetic.choosing, synthetic.METHODS, {}),
}


@pytest.mark.parametrize("case", tiers.first(1, CASES))
def test_every_chart_is_drawn_without_network(tab, tmp_path, case):
    change, axes, sections = CASES[case]
    opened(tab, tmp_path, report.build(*pages.build(tmp_path, change, axes, **sections)))
    assert tab.evaluate(
        "all('.view').length === all('.view svg').length && "
        "all('.view').every((view) => view.querySelectorAll('path').length > 2)"
    )
    assert tab.console == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert bool(tab.evaluate("all('.view').length")) == (case != "failed")


def test_the_browser_test_can_fail(tab, tmp_path, two_gpus):
    broken = two_gpus.replace('"mark": {"type": "point"', '"mark": {"type": "no-such-mark"')
    assert broken != two_gpus
    assert opened(tab, tmp_path, broken).console != []


@pytest.mark.parametrize("width", tiers.first(2, [1400, 420, 1000]))
@pytest.mark.parametrize("dark", tiers.first(1, [False, True]))
def test_nothing_is_wider_than_the_page(tab, tmp_path, two_gpus, width, dark):
    opened(tab, tmp_path, two_gpus, width=width, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = (
        "all('.view').filter((view) => view.querySelector('svg').getBoundingClientRect().width > view.clientWidth + 1)"
    )
    assert tab.evaluate(f"{wide}.length") == 0
    texts = (
        "all('.view svg text').filter((text) => { const box = text.getBoundingClientRect(), "
        "frame = text.closest('svg').getBoundingClientRect(); return text.textContent && "
        "(box.left < frame.left - 2 || box.right > frame.right + 2); }).map((text) => text.textContent)"
    )
    assert tab.evaluate(texts) == []
    assert tab.console == []


def test_charts_follow_the_colour_scheme(tab, tmp_path, two_gpus):
    ink = "getComputedStyle(document.querySelector('.view svg text')).fill"
    opened(tab, tmp_path, two_gpus)
    light = tab.evaluate(ink)
    tab.emulate(dark=True)  # without loading it again
    assert tab.evaluate(ink) != light
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"


def test_a_legend_hides_marks(tab, tmp_path, two_gpus):
    opened(tab, tmp_path, two_gpus)
    pale = "all('#figure-quality .mark-symbol path').filter((mark) => mark.getAttribute('opacity') < 0.5).length"
    assert tab.evaluate(pale) == 0
    tab.evaluate("document.querySelector('#figure-quality .legend button').focus()")
    tab.press("Space")
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    assert tab.evaluate(pale) == 14  # one GPU: 15 cells, one of which ran out of memory
    tab.press("Enter")
    assert tab.evaluate(pale) == 0


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_table_sorts_by_key(tab, tmp_path, two_gpus, key):
    opened(tab, tmp_path, two_gpus)
    heading = "all('#all thead button').find((button) => button.textContent.includes('energy'))"
    tab.evaluate(f"{heading}.focus()")
    tab.press(key)
    assert tab.evaluate("document.activeElement.parentElement.getAttribute('aria-sort')") == "ascending"
    values = f"[...table.tBodies[0].rows].map((row) => row.cells[{heading}.parentElement.cellIndex].dataset.value)"
    shown = tab.evaluate(values)
    numbers = [float(value) for value in shown if value is not None]
    assert len(numbers) == 44 and numbers == sorted(numbers) and shown[-1] is None  # what ran out of memory is last
    tab.press(key)
    assert [float(value) for value in tab.evaluate(values)[:-1]] == numbers[::-1]


def typed(tab, text):
    tab.evaluate(f"filter.value = {json.dumps(text)}; filter.dispatchEvent(new Event('input'))")
    return tab.evaluate(
        "[...body.rows].filter((row) => !row.hidden).map((row) => row.querySelector('label').textContent.trim())"
    )


def test_the_table_filters_by_words(tab, tmp_path, two_gpus):
    opened(tab, tmp_path, two_gpus)
    assert typed(tab, "DDP2 bf16 bs32") == ["ddp2 bf16-mixed bs32"]
    assert tab.evaluate("byId('count').textContent") == "1 of 45 shown"
    assert len(typed(tab, "oom")) == 1 and typed(tab, "<b>") == [] and len(typed(tab, "")) == 45


def test_a_clicked_mark_and_a_ticked_row_are_compared(tab, tmp_path, two_gpus):
    opened(tab, tmp_path, two_gpus)
    tab.evaluate("byId('figure-quality').scrollIntoView()")
    box = tab.evaluate(
        "(() => { const mark = document.querySelector('#figure-quality .mark-symbol path'); "
        "const box = mark.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    tab.click(*box)
    assert tab.evaluate("all('#compare tbody tr').length") == 1 and tab.evaluate("all('#all tr.picked').length") == 1
    tab.evaluate("all('#all tbody tr:not(.picked) input')[3].focus()")
    tab.press("Space")
    assert tab.evaluate("all('#compare tbody tr').length") == 2
    tab.evaluate("document.querySelector('#compare button').focus()")
    tab.press("Enter")
    assert (
        tab.evaluate("all('#compare tbody tr').length") == 1 and tab.evaluate("all('#all input:checked').length") == 1
    )
    assert tab.console == []


def test_the_first_tab_skips_to_the_answer(tab, tmp_path, two_gpus):
    opened(tab, tmp_path, two_gpus)
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"


@pytest.mark.slow
def test_rows_kept_back_are_made_when_they_are_asked_for(tab, tmp_path, monkeypatch):
    monkeypatch.setattr(configurations, "MAX_ROWS", 3)
    opened(tab, tmp_path, report.build(*pages.build(tmp_path, synthetic.on_gpus, **synthetic.GPU_CONFIG)))
    assert tab.evaluate("body.rows.length") == 3
    assert typed(tab, "ddp2") and tab.evaluate("body.rows.length") == 8
    assert tab.evaluate("[...body.rows].every((row) => row.cells.length === table.tHead.rows[0].cells.length)")


@pytest.mark.slow
@pytest.mark.skipif(AXE is None, reason="no axe-core to check with")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (420, True)])
def test_axe_has_no_complaint(tab, tmp_path, two_gpus, width, dark):
    opened(tab, tmp_path, two_gpus, width=width, dark=dark)
    tab.evaluate("document.querySelector('#all input').click()")
    location = importlib.util.find_spec(AXE).submodule_search_locations[0]
    tab.evaluate((Path(location) / "axe.min.js").read_text(encoding="utf-8") + "\n0")
    told = tab.evaluate(
        "axe.run(document).then((found) => found.violations.map((one) => [one.impact, one.id, one.nodes[0].html]))"
    )
    assert told == []
