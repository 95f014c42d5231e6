from __future__ import annotations

import types

import pytest
from markupsafe import Markup

from joulesweep.report import charts, page, sections
from joulesweep.report.sections import Section


def test_sections_are_in_order_of_their_places_and_absent_ones_left_out(monkeypatch):
    def module(place, title):
        made = Section(title=title, html=Markup()) if title else None
        return types.SimpleNamespace(section=lambda results: made, **({"PLACE": place} if place else {}))

    modules = {"a": module(None, "last"), "b": module(20, "second"), "c": module(10, "first"), "d": module(15, None)}
    monkeypatch.setattr(sections, "names", lambda: sorted(modules))
    monkeypatch.setattr(sections, "load", modules.get)
    assert [(name, one.title) for name, one in sections.made(None).items()] == [
        ("c", "first"),
        ("b", "second"),
        ("a", "last"),
    ]


def test_every_section_says_where_it_stands():
    places = [sections.load(name).PLACE for name in sections.names()]
    assert len(set(places)) == len(places)


def test_a_chart_of_a_section_that_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setattr(charts, "by_section", lambda: {"selection": ["tensors"]})
    with pytest.raises(LookupError, match=r"tensors: unknown section 'selection'.*'selections'"):
        page.build({}, None)


def test_every_chart_is_in_a_section():
    by_section = charts.by_section()
    assert by_section.keys() <= set(sections.names())
    assert sorted(name for drawn in by_section.values() for name in drawn) == charts.names()
