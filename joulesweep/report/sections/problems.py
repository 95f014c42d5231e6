"""What became of the runs without numbers: outcomes, failures, and the commands that re-run them."""

from __future__ import annotations

from joulesweep.report import evidence
from joulesweep.report.markup import filled, table
from joulesweep.report.sections import Results, Section

PLACE = 70


def section(results: Results) -> Section | None:
    """The runs that are not ok; None if all are."""
    runs = results.tables.runs
    problems = evidence.problems(runs)
    if not problems:
        return None
    asked = {"Memory asked for": ""} if any(problem["asked"] for problem in problems) else {}
    headings = {"Configuration": "text", "Repeat": "text", "Status": "text", **asked, "Reason": "text wrap"}
    rows = [
        [
            " · ".join(filter(None, [problem["name"], problem["panel"]])),
            *(problem["repeats"], problem["status"]),
            *([problem["asked"] or "–"] if asked else []),
            problem["reasons"] or "no reason recorded",
        ]
        for problem in problems
    ]
    html = filled(
        "problems.html.j2", table=table(headings, rows, "Runs without numbers"), retries=evidence.retries(runs)
    )
    return Section(title="Outcomes and failures", html=html)
