"""Turn the results of a GPU day into tables and a page: `python -m benchmarks.gpu_day --read FOLDER`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import gpu_plan
from benchmarks.gpu_common import FAILED, NOT_TRIED, OK
from benchmarks.gpu_results import (
    Results,
    Row,
    against_fp32,
    goals,
    left_out,
    over,
    over_peer,
    promises,
    said,
    speeds,
    turns,
    why_not,
)
from joulesweep.axes.precision import PRECISIONS
from joulesweep.core import files
from joulesweep.core.errors import UserError

WHO = (
    "`trainer`: batches of like lengths, padded to the longest; on a GPU four processes collate. `trainer-compiled`: "
    "the same, compiled; `trainer-plain`: random batches, no such processes. Model, precision and optimizer are ours.\n"
)
MINIATURE = "This is the miniature on a CPU: it shows that every item runs, and says nothing of a GPU."


def write(results: Results, to: Path) -> Path:
    """Write a page, and its numbers as JSON. Returns the page's path.

    Raises:
        UserError: the results are of another version.
    """
    try:
        return _write(results, to)
    except files.MALFORMED as error:
        said_so = f"{type(error).__name__}: {error}"
        folders = ", ".join(map(str, results.folders))
        raise UserError(f"{folders}: results of another version of this program: {said_so}") from None


def _write(results: Results, to: Path) -> Path:
    name = results.gpus[0]["name"] if results.gpus else "cpu"
    date = results.day["date"]
    stem = "gpu_day_" + re.sub(r"[^a-z0-9]+", "-", f"{name} {date}".lower()).strip("-")
    sections = list(_sections(results))
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections)
    head = [f"# The first minutes on {name}, {date}"] + ([] if results.gpus else [MINIATURE])
    files.write_text(to / f"{stem}.md", "\n\n".join([*head, text]) + "\n")
    numbers = {
        "format": "joulesweep-gpu-day",
        "version": 1,
        "machine": {key: value for key, value in results.machine.items() if key not in ("item", "piece", "at_s")},
        "goals": [vars(goal) for goal in goals(results)],
        "speeds": speeds(results),
        "against_fp32": against_fp32(speeds(results)),
        "answers": [{key: row.get(key) for key in ("item", "piece", "status", "reason")} for row in results.rows],
    }
    files.write_json(to / f"{stem}.json", numbers)
    return to / f"{stem}.md"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], num_texts: int = 1) -> str:
    """A Markdown table whose first columns are text; a sentence if there are no rows."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not lines:
        return "Nothing was measured."
    ruled = ["---"] * num_texts + ["---:"] * (len(header) - num_texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ruled, *lines))


def _sections(results: Results) -> Iterator[tuple[str, str]]:
    yield (
        "Goals",
        table(
            ("goal", "verdict", "found", "cause, by the profile"),
            ((goal.name, f"**{goal.verdict}**", goal.found, goal.cause) for goal in goals(results)),
            num_texts=4,
        ),
    )
    yield "Machine", _machine(results)
    yield "What was answered", _answered(results)
    yield "The CPU's losses, found again", _losses(results)
    rows = [(row["promise"], row["verdict"]) for row in promises(results)]
    yield "Certificate", table(("promise", "verdict"), rows, 2) if rows else why_not(results, "c", "certificate")
    measured = speeds(results)
    header = ("way", "precision", "batch", "texts/s", "J/text", "status", "distance to floor", "peak GB", "window s")
    notes = Notes()
    cells = [_speed_cells(row, notes) for row in measured]
    yield "Speeds", notes.below(table(header, cells))
    yield "Against the peers", _peers(results)
    header = ("batch", "precision", "× texts/s of fp32", "× J/text of fp32", "× peak memory of fp32")
    yield "Precisions, plain training", table(header, map(_precision_cells, against_fp32(measured)))
    yield "Partial training", _partial(results)
    yield "Profile", _profile(results)
    yield "Runs by the launching parent", _runs(results)


def _machine(results: Results) -> str:
    machine = results.machine
    if not machine:
        return "Not answered."
    place, pack = machine["environment"], machine["pack"]
    changes = " with changes" if pack["git_dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items() if version)
    lines = [
        *(
            f"- {gpu['name']}, {(gpu['memory_bytes'] or 0) / 2**30:.0f} GiB, driver {place['driver']}"
            for gpu in results.gpus
        ),
        f"- {place['cpu_model']}, {place['cpu_cores']} cores",
        f"- Python {place['python']}, {versions}, CUDA {machine['cuda']}",
        f"- code: commit {str(pack['git_commit'])[:12]}{changes}, packed {pack['date']}",
    ]
    return "\n".join(lines)


def _answered(results: Results) -> str:
    rows = []
    for item in gpu_plan.PLAN:
        answers = results.answers(item.letter)
        ended = [row for row in results.rows if row["item"] == item.letter and row["piece"] is None]
        counts = [sum(row["status"] == status for row in answers) for status in (OK, NOT_TRIED, FAILED)]
        rows.append(
            (f"{item.letter} {item.about}", " + ".join(f"{row['seconds']:.1f}" for row in ended) or "–", *counts)
        )
    failed = [row for item in gpu_plan.PLAN for row in results.answers(item.letter) if row["status"] == FAILED]
    text = table(("item", "s", OK, NOT_TRIED, FAILED), rows)
    return "\n".join(
        [text, "", *(f"- failed: {row['item']} {row['piece']}: {row['reason']}" for row in failed)]
    ).strip()


def _losses(results: Results) -> str:
    """Differences of losses from the CPU's in fp32, a row per way and a column per precision, marked if too large."""
    rows = [row for row in [*results.answers("a"), *results.answers("b")] if row["piece"] != "machine"]
    ways: dict[str, dict[str, str]] = {}
    reasons = Notes()
    for row in rows:
        words = [word for word in row["piece"].split() if word not in PRECISIONS]
        (precision,) = [word for word in row["piece"].split() if word in PRECISIONS] or [""]
        ways.setdefault(" ".join(words), {})[precision] = _agreement(row, reasons)
    header = ("way", *PRECISIONS, "else")
    cells = ((way, *(agreements.get(name, "") for name in (*PRECISIONS, ""))) for way, agreements in ways.items())
    return reasons.below(table(header, cells))


class Notes:
    """Numbered reasons below a table, each listed once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, text: str | None) -> str:
        """A reason's number in brackets."""
        return f"[{self.numbers.setdefault(text or 'no reason', len(self.numbers) + 1)}]"

    def below(self, text: str) -> str:
        """A table with its notes."""
        return "\n".join([text, "", *(f"{number}. {note}" for note, number in self.numbers.items())]).strip()


def _agreement(row: Row, reasons: Notes) -> str:
    if row["status"] != OK:
        return f"{row['status']} {reasons.mark(row['reason'])}"
    if "apart" in row:
        text = f"{row['apart']:.1e}"
        return text if row["agrees"] else f"**{text}, more than {row['allowed']:.0e}**"
    if "spread" in row:
        text = f"steps differ by {row['spread']:.1e}, repeated by {row['repeated_apart']:.1e}"
        return text if row["agrees"] else f"**{text}**"
    return f"{row['compile_s']:.0f} s"


def _speed_cells(row: Row, notes: Notes) -> tuple[str, ...]:
    joules = row["joules"]
    status = joules["status"] if not joules["doubt"] else f"doubtful {notes.mark(joules['doubt'])}"
    error = f" ± {row['error_j_per_text']:.2g}" if row["error_j_per_text"] is not None else ""
    return (
        f"{row['engine']}, {row['batching']}, {row['head']}",
        row["precision"],
        str(row["batch_size"]),
        f"{row['texts_per_s']:,.0f}",
        _number(row["j_per_text"], "{:.4g}") + error,
        status if row["j_per_text"] is not None else f"{status} {notes.mark(joules['reason'])}",
        f"{row['floor_distance']:.3f}" if row["floor_distance"] is not None else f"– {notes.mark(row['floor_reason'])}",
        f"{row['peak_bytes'] / 1e9:.2f}",
        f"{row['window_s']:.1f}",
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _peers(results: Results) -> str:
    rows = []
    for (size, precision), of_size in turns(results).items():
        for name, of_name in of_size.items():
            mean = sum(turn["texts_per_s"] for turn in of_name.values()) / len(of_name)
            is_peer = not name.startswith("ours")
            ratios = [over_peer(of_size, name, key) if is_peer else None for key in ("texts_per_s", "j_per_text")]
            rows.append((name, precision, size, len(of_name), f"{mean:,.0f}", *map(said, ratios)))
    absent = [f"- left out: {name}: {reason}" for name, reason in left_out(results).items()]
    header = ("who", "precision", "batch", "turns", "texts/s", "ours is × as fast", "ours takes × the J/text")
    return "\n".join([table(header, rows), "", *([WHO] if rows else []), *sorted(absent)]).strip()


def _precision_cells(row: Row) -> tuple[str, ...]:
    joules = _number(row["joules"], "{:.2f}")
    return str(row["batch_size"]), row["precision"], f"{row['speed']:.2f}", joules, f"{row['memory']:.2f}"


def _partial(results: Results) -> str:
    rows = []
    for row in results.ok("g"):
        per_step = []
        for kind in ("chosen", "full"):
            joules = results.joules(row, row[kind])
            per_step.append(over(joules["energy_j"], row[kind]["num_steps"]) if not joules["doubt"] else None)
        ratio = per_step[0] / per_step[1] if per_step[0] and per_step[1] else None
        numbers = (f"{row['predicted']:.3f}", f"{row['measured']:.3f}", f"{row['off']:+.1%}", _number(ratio, "{:.3f}"))
        rows.append((row["model"], row["objective"], row["rho"], *numbers))
    header = ("model", "objective", "ρ", "predicted cost", "measured seconds", "off", "measured joules")
    return table(header, rows)


def _profile(results: Results) -> str:
    rows, tops = [], []
    for row in results.ok("h"):
        device, steps = row["device"], row["num_steps"]
        waits = sum(wait["seconds"] for wait in row["waits"]) / steps * 1e3
        cells = ("–", "–", "–")
        if device:
            idle = f"{device['idle_share']:.0%}"
            cells = (f"{device['num_kernels'] / steps:.0f}", f"{device['num_copies'] / steps:.0f}", idle)
        rows.append((row["piece"], f"{row['seconds'] / steps * 1e3:.2f}", *cells, f"{waits:.2f}"))
        longest = (device["kernels"] if device else row["host"])[:6]
        tops.append(
            f"- {row['piece']}: "
            + "; ".join(f"{kernel['name'][:70]} {kernel['seconds'] / steps * 1e3:.3f} ms" for kernel in longest)
        )
    header = ("way", "ms a step, unprofiled", "kernels", "copies", "device idle", "host waits ms")
    return "\n".join([table(header, rows), "", *tops]).strip()


def _runs(results: Results) -> str:
    lines = []
    for row in results.ok("i"):
        if "measurement" in row:
            measured = row["measurement"]
            flags = ", ".join(flag["flag"] for flag in measured["flags"]) or "none"
            rows = [
                (
                    device["device"],
                    _number(device["energy_j"], "{:.5g}"),
                    _number(device["error_j"], "{:.2g}"),
                    device["status"],
                    _number(device["tick_s"], "{:.3f}"),
                    _number(device["power_ratio"], "{:.4f}"),
                    _number(device["idle_w"], "{:.1f}"),
                    device["reason"] or device["doubt"] or "",
                )
                for device in measured["energy"]
            ]
            lines.append(table(("device", "J", "± J", "status", "tick s", "power ratio", "idle W", ""), rows))
            lines.append(f"{row['piece']}: {measured['total_window_s']:.1f} s, flags: {flags}.")
        else:
            free = f"its board free after {_seconds(row['board_free_s'])}" if row["has_board"] else "it had no board"
            gone = _seconds(row["processes_gone_s"])
            left = "a record was left" if row["record_left"] else "no record was left"
            lines.append(f"{row['piece']}: {row['num_processes']} processes gone after {gone}, {free}, {left}.")
    return "\n\n".join(lines) or "Nothing was measured."


def _seconds(value: float | None) -> str:
    return "more than the time waited" if value is None else f"{value:.2f} s"
