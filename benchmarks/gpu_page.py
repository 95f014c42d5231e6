"""From the results of a GPU day to tables, a page, and which goals hold: `python -m benchmarks.gpu_day --read FOLDER`.

Joules are judged here, by the readings that were written down beside the results: the product's own verdict, as often
as one likes. A goal without a measurement is `not tried`; one whose interval holds the goal `cannot be told yet`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_common, gpu_day, gpu_trace
from benchmarks.gpu_common import FAILED, NOT_TRIED, OK
from joulesweep import floors, record, verdict
from joulesweep.errors import UserError
from joulesweep.precision import PRECISIONS
from joulesweep.stats import Ratio, paired_ratio

HOLDS, FAILS, UNTOLD = "holds", "fails", "cannot be told yet"
GOAL_PRECISION = "bf16-mixed"
PEERS = ("trainer", "trainer-default")
MINIATURE = "This is the miniature on a CPU: it shows that every item runs, and says nothing of a GPU."

Row = dict[str, Any]


class Results:
    """What a GPU day left behind.

    Args:
        folder: where its results lie.

    Raises:
        UserError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.rows = list(gpu_common.rows(folder / gpu_common.RESULTS))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / gpu_common.RESULTS}: cannot be read: {error}") from None
        if not self.rows or "boards" not in self.rows[0]:
            raise UserError(f"{folder}: no results of a GPU day")
        self.trace, self.ticks = gpu_trace.restored(gpu_common.rows(folder / gpu_common.POWER))

    def ok(self, letter: str) -> list[Row]:
        """The pieces of an item that were carried out."""
        return [row for row in self.rows if row["item"] == letter and row["piece"] and row["status"] == OK]

    @functools.cached_property
    def machine(self) -> Row:
        """What item a says of the machine; empty where it was not answered."""
        return next((row for row in self.ok("a") if row["piece"] == "machine"), {})

    @property
    def day(self) -> Row:
        """When and on which boards it was: the first line."""
        return self.rows[0]

    @property
    def gpus(self) -> list[Row]:
        """The boards that computed."""
        return list(self.day["boards"])

    def joules(self, found: Mapping[str, Any], num_passes: int = 1) -> Row:
        """A window's joules by pass, judged: {energy_j, error_j, status, reason, doubt}.

        Args:
            found: energy: the meter's rows; span; and the window's seconds as window_s.
            num_passes: over which they are shared out.
        """
        kind = "gpu" if self.gpus else "cpu"
        window = verdict.Window(self.trace, found["span"], found["window_s"], num_passes)
        judged = []
        for row in (dict(row) for row in found["energy"] if row["kind"] == kind):
            verdict.judge(row, window, self.ticks.get(row["device"]), integrable=kind == "gpu")
            judged.append(row)
        keys = ("energy_j", "error_j", "status", "reason", "doubt")
        if len(judged) == 1:
            return {key: judged[0].get(key) for key in keys}
        return {**dict.fromkeys(keys), "status": "unavailable", "reason": f"{len(judged)} devices"}


def speeds(results: Results) -> list[Row]:
    """Measured trainings of items d and f: a row for each, with joules per text and the distance to the floor."""
    found = []
    for row in [*results.ok("d"), *results.ok("f")]:
        measured, spec = row["measurement"], row["spec"]
        window = {"energy": measured["energy"], "span": row["span"], "window_s": measured["total_window_s"]}
        joules = results.joules(window, measured["num_passes"])
        texts = measured["num_texts"]
        floor = floors.columns(
            {
                "measurement": measured,
                "spec": {"precision": spec["precision"], "devices": 1, "accelerator": _accelerator(results)},
                "environment": {"gpus": results.gpus},
            }
        )
        found.append(
            {
                **{key: spec.get(key) for key in ("engine", "batching", "head", "precision", "batch_size")},
                "texts_per_s": measured["samples_per_s"],
                "j_per_text": _over(joules["energy_j"], texts),
                "error_j_per_text": _over(joules["error_j"], texts),
                "joules": joules,
                "floor_distance": floor.get("floor_distance"),
                "floor_reason": floor.get("floor_reason"),
                "peak_bytes": measured["peak_memory"]["gpu_reserved_bytes"]
                or measured["peak_memory"]["host_rss_bytes"],
                "window_s": measured["total_window_s"],
                "startup_s": measured["startup_s"],
            }
        )
    return found


def _accelerator(results: Results) -> str:
    return "cuda" if results.gpus else "cpu"


def _over(value: float | None, number: float) -> float | None:
    return None if value is None else value / number


def turns(results: Results) -> dict[tuple[int, str], dict[str, dict[int, Row]]]:
    """Windows of the contest: by batch size and precision, by contestant and turn, with texts per second and joules."""
    found: dict[tuple[int, str], dict[str, dict[int, Row]]] = {}
    for row in results.ok("e"):
        if "turn" in row:
            joules = results.joules(row)
            numbers = {"texts_per_s": row["num_texts"] / row["window_s"], "window_s": row["window_s"]}
            numbers |= {"j_per_text": _over(joules["energy_j"], row["num_texts"]), "joules": joules}
            of_name = found.setdefault((row["batch_size"], row["precision"]), {}).setdefault(row["contestant"], {})
            of_name[row["turn"]] = numbers
    return found


def over_peer(of_size: Mapping[str, Mapping[int, Row]], peer: str, key: str = "texts_per_s") -> Ratio | None:
    """How many times as much ours does of something as a peer, over the turns that both have."""
    ours = next((of_size[name] for name in of_size if name.startswith("ours")), {})
    theirs = of_size.get(peer, {})
    both = [turn for turn in ours if turn in theirs and ours[turn][key] and theirs[turn][key]]
    return paired_ratio([ours[t][key] for t in both], [theirs[t][key] for t in both]) if both else None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What was to be reached, and whether it was.

    Attributes:
        name: of the goal.
        verdict: `HOLDS`, `FAILS`, `UNTOLD` or `NOT_TRIED`.
        found: the number, or why there is none.
        cause: what the profile says, of one that is missed.
    """

    name: str
    verdict: str
    found: str
    cause: str = ""


def goals(results: Results) -> list[Goal]:
    """The goals of a GPU day, in order; on a CPU none of them is tried."""
    if not results.gpus:
        return [Goal(name=name, verdict=NOT_TRIED, found="no GPU") for name, _ in GOALS]
    found = []
    for name, judge in GOALS:
        told, text, size = judge(results)
        cause = profiled(results, size) if told == FAILS and size is not None else ""
        found.append(Goal(name=name, verdict=told, found=text, cause=cause))
    return found


Told = tuple[str, str, int | None]


def _faster(size: int, wanted: float, results: Results) -> Told:
    """Ours against the faster of the Trainer's two settings."""
    of_size = turns(results).get((size, GOAL_PRECISION), {})
    ratios = [ratio for peer in PEERS if (ratio := over_peer(of_size, peer)) is not None]
    if not ratios:
        return NOT_TRIED, _why_not(results, "e", f"batch {size}"), size
    least = min(ratios, key=lambda ratio: ratio.ratio)
    text = said(least)
    if least.low is None or least.high is None:
        return UNTOLD, f"{text}, one turn", size
    return HOLDS if least.low >= wanted else FAILS if least.high < wanted else UNTOLD, text, size


def _near_floor(size: int, wanted: float, results: Results) -> Told:
    """The best of the ways to train at a batch size."""
    tried = [row for row in speeds(results) if row["batch_size"] == size and row["precision"] == GOAL_PRECISION]
    known = [row for row in tried if row["floor_distance"] is not None]
    if not known:
        reason = tried[0]["floor_reason"] if tried else _why_not(results, "d", f"batch {size}")
        return NOT_TRIED, reason, size
    best = max(known, key=lambda row: row["floor_distance"])
    text = f"{best['floor_distance']:.3f} ({best['engine']}, {best['batching']})"
    return HOLDS if best["floor_distance"] >= wanted else FAILS, text, size


def _metering(most: float, results: Results) -> Told:
    """What metering took of the run by the launching parent."""
    measured = next((row["measurement"] for row in results.ok("i") if row["piece"] == "a whole run"), None)
    if measured is None:
        return NOT_TRIED, _why_not(results, "i", "a whole run"), None
    parts = [measured["overhead"]["meter_s"], measured["overhead"]["trace_cpu_s"]]
    if None in parts:
        return NOT_TRIED, "the run had no trace", None
    share = sum(parts) / measured["total_window_s"]
    return HOLDS if share < most else FAILS, f"{share:.2%} of {measured['total_window_s']:.1f} s", None


def _certified(results: Results) -> Told:
    """Every promise of the certificate that was tried."""
    promises = certified(results)
    by_verdict = {told: [name for name, found in promises if found == told] for told in (HOLDS, FAILS, NOT_TRIED)}
    if not by_verdict[HOLDS] and not by_verdict[FAILS]:
        return NOT_TRIED, _why_not(results, "c", "certificate"), None
    text = ", ".join(f"{len(names)} {told}" for told, names in by_verdict.items() if names)
    if by_verdict[FAILS]:
        return FAILS, f"{text}: {'; '.join(by_verdict[FAILS])}", None
    return HOLDS, text, None


def certified(results: Results) -> list[tuple[str, str]]:
    """The promises of the certificate with their verdicts."""
    path = results.folder / gpu_common.CERTIFICATE[".json"]
    if not path.exists() or not results.ok("c"):
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [(str(row["promise"]), str(row["verdict"])) for row in found["promises"]]


def _why_not(results: Results, letter: str, piece: str) -> str:
    """Why a piece has no numbers."""
    reasons = [
        row["reason"] for row in results.rows
        if row["item"] == letter and piece in (row["piece"] or "") and row.get("reason")
    ]  # fmt: skip
    return reasons[0] if reasons else "no answer"


GOALS: tuple[tuple[str, Callable[[Results], Told]], ...] = (
    ("5 × transformers.Trainer at batch 32, bf16-mixed", functools.partial(_faster, 32, 5.0)),
    ("3 × transformers.Trainer at batch 256, bf16-mixed", functools.partial(_faster, 256, 3.0)),
    ("distance to the floor 0.35 at batch 256", functools.partial(_near_floor, 256, 0.35)),
    ("distance to the floor 0.5 at batch 1024", functools.partial(_near_floor, 1024, 0.5)),
    ("metering takes less than 0.5 %", functools.partial(_metering, 0.005)),
    ("the certificate holds", _certified),
)


def profiled(results: Results, size: int) -> str:
    """What the profile says of our best way at a batch size, or at the nearest one."""
    rows = [row for row in results.ok("h") if row["device"] and row["spec"]["batching"] == "packed"]
    if not rows:
        return "no profile"
    row = min(rows, key=lambda row: (abs(math.log(row["spec"]["batch_size"] / size)), row["spec"]["engine"] != "graph"))
    device, waits = row["device"], sum(wait["seconds"] for wait in row["waits"])
    top = device["kernels"][0] if device["kernels"] else None
    return (
        f"{row['spec']['engine']}, batch {row['spec']['batch_size']}: the device had nothing to do "
        f"{device['idle_share']:.0%} of the time, {device['num_kernels'] / row['num_steps']:.0f} kernels a step, "
        f"the host waited {waits / row['num_steps'] * 1e3:.2f} ms a step"
        + (f"; longest kernel {top['name'][:60]} ({top['seconds'] / device['busy_s']:.0%})" if top else "")
    )


def against_fp32(rows: Sequence[Row]) -> list[Row]:
    """Plain trainings in each precision over fp32, by batch size: ratios of speed, joules per text and peak memory."""
    plain = [row for row in rows if (row["engine"], row["batching"], row["head"]) == ("eager", "dynamic", "dense")]
    base = {row["batch_size"]: row for row in plain if row["precision"] == "fp32"}
    found = []
    for row in sorted(plain, key=lambda row: row["batch_size"]):
        other = base.get(row["batch_size"])
        if other is not None and row is not other:
            same = row["joules"]["status"] == other["joules"]["status"] and not (
                row["joules"]["doubt"] or other["joules"]["doubt"]
            )
            known = same and row["j_per_text"] and other["j_per_text"]
            found.append(
                {
                    "batch_size": row["batch_size"],
                    "precision": row["precision"],
                    "speed": row["texts_per_s"] / other["texts_per_s"],
                    "joules": row["j_per_text"] / other["j_per_text"] if known else None,
                    "memory": row["peak_bytes"] / other["peak_bytes"],
                }
            )
    return found


# The page


def write(folder: Path, to: Path) -> Path:
    """Write a page with its numbers beside it as JSON. Returns the page's path.

    Raises:
        UserError: there are no results.
    """
    results = Results(folder)
    name = results.gpus[0]["name"] if results.gpus else "cpu"
    date = results.day["date"]
    stem = "gpu_day_" + re.sub(r"[^a-z0-9]+", "-", f"{name} {date}".lower()).strip("-")
    sections = list(_sections(results))
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections)
    head = [f"# The first minutes on {name}, {date}"] + ([] if results.gpus else [MINIATURE])
    record.write_text(to / f"{stem}.md", "\n\n".join([*head, text]) + "\n")
    numbers = {
        "format": "joulesweep-gpu-day",
        "version": 1,
        "machine": {key: value for key, value in results.machine.items() if key not in ("item", "piece", "at_s")},
        "goals": [vars(goal) for goal in goals(results)],
        "speeds": speeds(results),
        "against_fp32": against_fp32(speeds(results)),
        "answers": [{key: row.get(key) for key in ("item", "piece", "status", "reason")} for row in results.rows],
    }
    record.write_json(to / f"{stem}.json", numbers)
    return to / f"{stem}.md"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a line instead where there are no rows."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not lines:
        return "Nothing was measured."
    ruled = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ruled, *lines))


def _sections(results: Results) -> Iterator[tuple[str, str]]:
    yield (
        "Goals",
        table(
            ("goal", "verdict", "found", "cause, by the profile"),
            ((goal.name, f"**{goal.verdict}**", goal.found, goal.cause) for goal in goals(results)),
        ),
    )
    yield "Machine", _machine(results)
    yield "What was answered", _answered(results)
    yield "The CPU's losses, found again", _losses(results)
    promises = certified(results)
    yield "Certificate", table(("promise", "verdict"), promises) if promises else _why_not(results, "c", "certificate")
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
    versions = ", ".join(f"{name} {found}" for name, found in place["versions"].items() if found)
    lines = [
        *(
            f"- {gpu['name']}, {(gpu['memory_bytes'] or 0) / 2**30:.0f} GiB, driver {place['driver']}"
            for gpu in results.gpus
        ),
        f"- {place['cpu_model']}, {place['cpu_cores']} cores",
        f"- Python {place['python']}, {versions}, CUDA {machine['cuda']}",
        f"- code: commit {pack['git_commit']}{' with changes' if pack['git_dirty'] else ''}, packed {pack['date']}",
    ]
    return "\n".join(lines)


def _answered(results: Results) -> str:
    rows = []
    for item in gpu_day.PLAN:
        own = [row for row in results.rows if row["item"] == item.letter]
        ended = next((row for row in own if row["piece"] is None), None)
        counts = [sum(row["status"] == status for row in own if row["piece"]) for status in (OK, NOT_TRIED, FAILED)]
        rows.append((f"{item.letter} {item.about}", f"{ended['seconds']:.1f}" if ended else "–", *counts))
    failed = [row for row in results.rows if row["status"] == FAILED]
    text = table(("item", "s", OK, NOT_TRIED, FAILED), rows)
    return "\n".join(
        [text, "", *(f"- failed: {row['item']} {row['piece']}: {row['reason']}" for row in failed)]
    ).strip()


def _losses(results: Results) -> str:
    """A row per way, a column per precision: how far the losses are from the CPU's in fp32, marked where too far."""
    rows = [row for row in results.rows if row["item"] in ("a", "b") and row["piece"] not in (None, "machine")]
    ways: dict[str, dict[str, str]] = {}
    reasons = Notes()
    for row in rows:
        words = [word for word in row["piece"].split() if word not in PRECISIONS]
        (precision,) = [word for word in row["piece"].split() if word in PRECISIONS] or [""]
        ways.setdefault(" ".join(words), {})[precision] = _agreement(row, reasons)
    header = ("way", *PRECISIONS, "else")
    cells = ((way, *(found.get(name, "") for name in (*PRECISIONS, ""))) for way, found in ways.items())
    return reasons.below(table(header, cells))


class Notes:
    """Reasons that stand below a table, each once, by number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, text: str | None) -> str:
        """The number by which a reason is found below."""
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


def said(ratio: Ratio | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return "–"
    ends = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.ratio:.2f}{ends}"


def _peers(results: Results) -> str:
    rows = []
    for (size, precision), of_size in turns(results).items():
        for name, of_name in of_size.items():
            mean = sum(turn["texts_per_s"] for turn in of_name.values()) / len(of_name)
            is_peer = not name.startswith("ours")
            ratios = [over_peer(of_size, name, key) if is_peer else None for key in ("texts_per_s", "j_per_text")]
            rows.append((name, precision, size, len(of_name), f"{mean:,.0f}", *map(said, ratios)))
    left_out = {
        f"- left out at {row['piece']}: {name}: {reason}"
        for row in results.ok("e")
        for name, reason in row.get("left_out", {}).items()
    }
    header = ("who", "precision", "batch", "turns", "texts/s", "ours is × as fast", "ours takes × the J/text")
    return "\n".join([table(header, rows), "", *sorted(left_out)]).strip()


def _precision_cells(row: Row) -> tuple[str, ...]:
    joules = _number(row["joules"], "{:.2f}")
    return str(row["batch_size"]), row["precision"], f"{row['speed']:.2f}", joules, f"{row['memory']:.2f}"


def _partial(results: Results) -> str:
    rows = []
    for row in results.ok("g"):
        per_step = []
        for kind in ("chosen", "full"):
            joules = results.joules(row[kind])
            per_step.append(_over(joules["energy_j"], row[kind]["num_steps"]) if not joules["doubt"] else None)
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
            + "; ".join(f"{one['name'][:70]} {one['seconds'] / steps * 1e3:.3f} ms" for one in longest)
        )
    header = ("way", "ms a step", "kernels", "copies", "device idle", "host waits ms")
    return "\n".join([table(header, rows), "", *tops]).strip()


def _runs(results: Results) -> str:
    lines = []
    for row in results.ok("i"):
        if "measurement" in row:
            measured = row["measurement"]
            flags = ", ".join(flag["flag"] for flag in measured["flags"]) or "none"
            rows = [
                (
                    one["device"],
                    _number(one["energy_j"], "{:.5g}"),
                    _number(one["error_j"], "{:.2g}"),
                    one["status"],
                    _number(one["tick_s"], "{:.3f}"),
                    _number(one["power_ratio"], "{:.4f}"),
                    _number(one["idle_w"], "{:.1f}"),
                    one["reason"] or one["doubt"] or "",
                )
                for one in measured["energy"]
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
