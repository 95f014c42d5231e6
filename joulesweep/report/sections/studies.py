"""The questions that the config names under `studies:`, each with its answer, from `joulesweep.studies`."""

from __future__ import annotations

from joulesweep import studies
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 15


def section(results: Results) -> Section | None:
    """A question and its answer for each study; None if the config names none."""
    answers = studies.answers(results.tables, results.manifest["config"])
    parts = [
        {
            "question": studies.load(name).QUESTION,
            "protocol": studies.load(name).PROTOCOL,
            "source": studies.load(name).SOURCE,
            "answer": answer,
            "tables": [(one.title, table(one.headings, one.rows, one.title)) for one in answer.tables],
        }
        for name, answer in answers.items()
    ]
    title = "The study's question" if len(parts) == 1 else "The studies' questions"
    html = filled("studies.html.j2", parts=parts)
    return Section(title=title, short="Studies", html=html, text_first=True) if parts else None
