"""The results of a GPU day: its numbers, and which goals hold.

Joules are judged here, by the readings that were written down beside the results: the product's own verdict, as often
as one likes. A goal without a measurement is `not tried`; one whose interval holds the goal `cannot be told yet`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_common, gpu_trace
from benchmarks.gpu_common import NO_TIME, NOT_TRIED, OK
from benchmarks.gpu_contest import COMPILED, TRAINERS
from joulesweep.analyse import roofline
from joulesweep.analyse.statistics import Ratio, paired_ratio
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import BoardIdentity, Span, as_json, read_phase, read_reading
from joulesweep.measure import certificate, verdict
from joulesweep.measure.trace import Trace

HOLDS, FAILS, UNTOLD = "holds", "fails", "cannot be told yet"
VERDICTS = (HOLDS, FAILS, NOT_TRIED)
GOAL_PRECISION = "bf16-mixed"

Row = dict[str, Any]


class Results:
    """What a GPU day left behind, in one call or in several, on boards of one kind.

    Args:
        folders: where its results lie, in the order of the calls. What a later call carried out stands in place of what
            an earlier one did; turns of contests stand beside each other.

    Raises:
        UserError: there are none, or they are of other boards.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.rows: list[Row] = []
        self.traces: list[tuple[Trace, dict[str, float | None]]] = []
        for call, folder in enumerate(folders):
            try:
                rows = list(gpu_common.rows(folder / gpu_common.RESULTS))
            except (OSError, ValueError) as error:
                raise UserError(f"{folder / gpu_common.RESULTS}: cannot be read: {error}") from None
            if not rows or "boards" not in rows[0]:
                raise UserError(f"{folder}: no results of a GPU day")
            self.rows += [{**row, "call": call} for row in rows]
            if _names(self.day) != _names(rows[0]):
                raise UserError(f"{folder}: of {_names(rows[0])}, not of {_names(self.day)} as {folders[0]}")
            self.traces.append(gpu_trace.restored(gpu_common.rows(folder / gpu_common.POWER)))

    def answers(self, letter: str) -> list[Row]:
        """The answers to an item's pieces, each once; a later call does not replace one that was carried out."""
        rows: dict[tuple[str, int | None], Row] = {}
        for row in self.rows:
            if row["item"] == letter and row["piece"]:
                key = row["piece"], row["call"] if "turn" in row else None
                if row["status"] == OK or rows.get(key, row)["status"] != OK:
                    rows[key] = row
        return list(rows.values())

    def ok(self, letter: str) -> list[Row]:
        """The pieces of an item that were carried out."""
        return [row for row in self.answers(letter) if row["status"] == OK]

    @functools.cached_property
    def machine(self) -> Row:
        """Facts about the machine from item a; empty if it was not answered."""
        return next((row for row in self.ok("a") if row["piece"] == "machine"), {})

    @property
    def day(self) -> Row:
        """The first line of the results: date and boards."""
        return self.rows[0]

    @property
    def gpus(self) -> list[Row]:
        """The boards that computed."""
        return list(self.day["boards"])

    def joules(self, row: Mapping[str, Any], window_row: Mapping[str, Any], num_passes: int = 1) -> Row:
        """A window's joules per pass, judged: {energy_j, error_j, status, reason, doubt}.

        Args:
            row: the answer that the window belongs to.
            window_row: energy: the meter's rows; span; and the window's seconds as window_s.
            num_passes: over which they are shared out.
        """
        kind = "gpu" if self.gpus else "cpu"
        trace, ticks = self.traces[row["call"]]
        window = verdict.Window(trace, Span(**window_row["span"]), window_row["window_s"], num_passes)
        read = [read_reading(**energy) for energy in window_row["energy"] if energy["kind"] == kind]
        judged = [
            as_json(verdict.finalise_energy(energy, window, ticks.get(energy.device), integrable=kind == "gpu"))
            for energy in read
        ]
        keys = ("energy_j", "error_j", "status", "reason", "doubt")
        if len(judged) == 1:
            return {key: judged[0].get(key) for key in keys}
        return {**dict.fromkeys(keys), "status": "unavailable", "reason": f"{len(judged)} devices"}


def _names(day: Row) -> str:
    return ", ".join(str(board["name"]) for board in day["boards"]) or "no GPU"


def speeds(results: Results) -> list[Row]:
    """Measured trainings of items d and f: a row for each, with joules per text and the distance to the floor."""
    rows = []
    for row in [*results.ok("d"), *results.ok("f")]:
        measured, spec = row["measurement"], row["spec"]
        window = {"energy": measured["energy"], "span": row["span"], "window_s": measured["total_window_s"]}
        joules = results.joules(row, window, measured["num_passes"])
        texts = measured["num_texts"]
        floor = _floor(results, spec, measured)
        rows.append(
            {
                **{key: spec.get(key) for key in ("engine", "batching", "head", "precision", "batch_size")},
                "texts_per_s": measured["samples_per_s"],
                "j_per_text": over(joules["energy_j"], texts),
                "error_j_per_text": over(joules["error_j"], texts),
                "joules": joules,
                "floor_distance": floor.floor_distance,
                "floor_reason": floor.floor_reason,
                "peak_bytes": measured["peak_memory"]["gpu_reserved_bytes"]
                or measured["peak_memory"]["host_rss_bytes"],
                "window_s": measured["total_window_s"],
                "startup_s": measured["startup_s"],
            }
        )
    return rows


def _floor(results: Results, spec: Row, measured: Row) -> roofline.Roofline:
    boards = [
        BoardIdentity(**{name: board[name] for name in ("name", "uuid", "memory_bytes")}) for board in results.gpus
    ]
    accelerator = "cuda" if boards else "cpu"
    phases = [read_phase(phase) for phase in measured["phases"]]
    return roofline.roofline(spec["precision"], 1, accelerator, boards, measured["window_s"], phases)


def over(value: float | None, number: float) -> float | None:
    """A share of a number that may be missing."""
    return None if value is None else value / number


Turn = tuple[int, str, int]  # call, contest, and which one it was


def turns(results: Results) -> dict[tuple[int, str], dict[str, dict[Turn, Row]]]:
    """Windows of the contests: by batch size and precision, contestant and turn, with texts per second and joules."""
    windows: dict[tuple[int, str], dict[str, dict[Turn, Row]]] = {}
    for row in results.ok("e"):
        if "turn" in row:
            joules = results.joules(row, row)
            numbers = {"texts_per_s": row["num_texts"] / row["window_s"], "window_s": row["window_s"]}
            numbers |= {"j_per_text": over(joules["energy_j"], row["num_texts"]), "joules": joules}
            of_name = windows.setdefault((row["batch_size"], row["precision"]), {}).setdefault(row["contestant"], {})
            of_name[row["call"], row["contest"], row["turn"]] = numbers
    return windows


def over_peer(of_size: Mapping[str, Mapping[Turn, Row]], peer: str, key: str = "texts_per_s") -> Ratio | None:
    """Ratio of our values to a peer's, over the turns that both have."""
    ours = next((of_size[name] for name in of_size if name.startswith("ours")), {})
    theirs = of_size.get(peer, {})
    both = [turn for turn in ours if turn in theirs and ours[turn][key] and theirs[turn][key]]
    return paired_ratio([ours[t][key] for t in both], [theirs[t][key] for t in both]) if both else None


def left_out(results: Results) -> dict[str, str]:
    """Reasons why contestants took no part or stopped, by name."""
    return {name: why for row in results.ok("e") for name, why in row.get("left_out", {}).items()}


def said(ratio: Ratio | None) -> str:
    """A ratio with its interval, as text."""
    if ratio is None:
        return "–"
    ends = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.ratio:.2f}{ends}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal and whether it was reached.

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
    """The goals of a GPU day, in order; on a CPU none is tried."""
    if not results.gpus:
        return [Goal(name=name, verdict=NOT_TRIED, found="no GPU") for name, _ in GOALS]
    reached = []
    for name, judge in GOALS:
        outcome, text, size = judge(results)
        cause = profiled(results, size) if outcome == FAILS and size is not None else ""
        reached.append(Goal(name=name, verdict=outcome, found=text, cause=cause))
    return reached


Told = tuple[str, str, int | None]


def _faster(size: int, least: float, results: Results) -> Told:
    """Verdict on our speed against the fastest Trainer that was measured; those not measured are named."""
    of_size = turns(results).get((size, GOAL_PRECISION), {})
    ratios = {peer: ratio for peer in TRAINERS if (ratio := over_peer(of_size, peer)) is not None}
    took_part = ratios.keys() | ({"ours"} & of_size.keys())
    absent = [_absent(results, name) for name in ("ours", *TRAINERS) if name not in took_part]
    if "trainer" not in ratios:
        return NOT_TRIED, "; ".join(absent), size
    fastest = min(ratios, key=lambda peer: ratios[peer].ratio)
    text = "; ".join([f"{said(ratios[fastest])}, against {fastest}", *absent])
    ends = [(ratio.low, ratio.high) for ratio in ratios.values()]
    if any(high is not None and high < least for _, high in ends):
        return FAILS, text, size
    if any(low is None for low, _ in ends):
        return UNTOLD, f"{text}; one turn", size
    return HOLDS if all(low is not None and low >= least for low, _ in ends) else UNTOLD, text, size


def _absent(results: Results, name: str) -> str:
    """Reason why a contestant was not measured."""
    took_place = any(row["piece"] == "trainers" for row in results.ok("e"))
    reason = left_out(results).get(name) or (NO_TIME if took_place else why_not(results, "e", "trainers"))
    return f"{'not compiled' if name == COMPILED else f'without {name}'}: {reason}"


def _near_floor(size: int, least: float, results: Results) -> Told:
    """Verdict on how close our best way to train comes to the floor at a batch size."""
    tried = [row for row in speeds(results) if row["batch_size"] == size and row["precision"] == GOAL_PRECISION]
    known = [row for row in tried if row["floor_distance"] is not None]
    if not known:
        reason = tried[0]["floor_reason"] if tried else why_not(results, "d", f"batch {size}")
        return NOT_TRIED, reason, size
    best = max(known, key=lambda row: row["floor_distance"])
    text = f"{best['floor_distance']:.3f} ({best['engine']}, {best['batching']})"
    return HOLDS if best["floor_distance"] >= least else FAILS, text, size


def _metering(most: float, results: Results) -> Told:
    """Verdict on metering's share of the run by the launching parent; without a run, the certificate's."""
    measured = next((row["measurement"] for row in results.ok("i") if row["piece"] == "a whole run"), None)
    parts = [None] if measured is None else [measured["overhead"][key] for key in ("meter_s", "trace_cpu_s")]
    if None not in parts:
        share = sum(parts) / measured["total_window_s"]
        return HOLDS if share < most else FAILS, f"{share:.2%} of {measured['total_window_s']:.1f} s", None
    reason = why_not(results, "i", "a whole run") if measured is None else "the run had no trace"
    cost = next((row for row in promises(results) if row["promise"] == "cost"), None)
    if cost is None or cost["verdict"] == NOT_TRIED:
        return NOT_TRIED, reason, None
    text = f"{cost['value']:.2%} of 30 s, as the certificate promises; of a whole run: {reason}"
    return str(cost["verdict"]), text, None


def _certified(results: Results) -> Told:
    """Every promise of the certificate that was tried."""
    rows = promises(results)
    by_verdict = {outcome: [row["promise"] for row in rows if row["verdict"] == outcome] for outcome in VERDICTS}
    if not by_verdict[HOLDS] and not by_verdict[FAILS]:
        return NOT_TRIED, why_not(results, "c", "certificate"), None
    text = ", ".join(f"{len(names)} {outcome}" for outcome, names in by_verdict.items() if names)
    if by_verdict[FAILS]:
        return FAILS, f"{text}: {'; '.join(by_verdict[FAILS])}", None
    return HOLDS, text, None


def promises(results: Results) -> list[Row]:
    """The promises of the certificate, {promise, verdict, value, …}, of the last call that has one.

    One that was made again of the readings, by `joulesweep certify --read`, goes before the one that came along.
    """
    for folder in reversed(results.folders):
        paths = sorted(folder.glob("*.json"), key=lambda path: path.name == gpu_common.CERTIFICATE[".json"])
        for path in paths:
            made = _json(path)
            if made.get("format") == certificate.FORMAT:
                return list(made["promises"])
    return []


def _json(path: Path) -> Row:
    """A file's mapping; empty if it has none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def why_not(results: Results, letter: str, piece: str) -> str:
    """Reason why a piece has no numbers."""
    reasons = [row["reason"] for row in results.answers(letter) if piece in row["piece"] and row.get("reason")]
    return reasons[-1] if reasons else "no answer"


GOALS: tuple[tuple[str, Callable[[Results], Told]], ...] = (
    ("5 × the fastest transformers.Trainer at batch 32, bf16-mixed", functools.partial(_faster, 32, 5.0)),
    ("3 × the fastest transformers.Trainer at batch 256, bf16-mixed", functools.partial(_faster, 256, 3.0)),
    ("distance to the floor 0.35 at batch 256", functools.partial(_near_floor, 256, 0.35)),
    ("distance to the floor 0.5 at batch 1024", functools.partial(_near_floor, 1024, 0.5)),
    ("metering takes less than 0.5 %", functools.partial(_metering, 0.005)),
    ("the certificate holds", _certified),
)


def profiled(results: Results, size: int) -> str:
    """The profile of our best way at a batch size; if there is none, of the nearest one."""
    rows = [row for row in results.ok("h") if row["device"] and row["spec"]["batching"] == "packed"]
    if not rows:
        return "no profile"
    row = min(rows, key=lambda row: (abs(math.log(row["spec"]["batch_size"] / size)), row["spec"]["engine"] != "graph"))
    device, waits = row["device"], sum(wait["seconds"] for wait in row["waits"])
    top = device["kernels"][0] if device["kernels"] else None
    return (
        ("" if row["spec"]["batch_size"] == size else f"no profile at batch {size}; nearest: ")
        + f"{row['spec']['engine']}, batch {row['spec']['batch_size']}: the device had nothing to do "
        f"{device['idle_share']:.0%} of the time, {device['num_kernels'] / row['num_steps']:.0f} kernels a step, "
        f"the host waited {waits / row['num_steps'] * 1e3:.2f} ms a step"
        + (f"; longest kernel {top['name'][:60]} ({top['seconds'] / device['busy_s']:.0%})" if top else "")
    )


def against_fp32(rows: Sequence[Row]) -> list[Row]:
    """Plain trainings in each precision over fp32, by batch size: ratios of speed, joules per text and peak memory."""
    plain = [row for row in rows if (row["engine"], row["batching"], row["head"]) == ("eager", "dynamic", "dense")]
    base = {row["batch_size"]: row for row in plain if row["precision"] == "fp32"}
    ratios = []
    for row in sorted(plain, key=lambda row: row["batch_size"]):
        other = base.get(row["batch_size"])
        if other is not None and row is not other:
            same = row["joules"]["status"] == other["joules"]["status"] and not (
                row["joules"]["doubt"] or other["joules"]["doubt"]
            )
            known = same and row["j_per_text"] and other["j_per_text"]
            ratios.append(
                {
                    "batch_size": row["batch_size"],
                    "precision": row["precision"],
                    "speed": row["texts_per_s"] / other["texts_per_s"],
                    "joules": row["j_per_text"] / other["j_per_text"] if known else None,
                    "memory": row["peak_bytes"] / other["peak_bytes"],
                }
            )
    return ratios
