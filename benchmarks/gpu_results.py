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
from benchmarks.gpu_common import NOT_TRIED, OK
from joulesweep import floors, verdict
from joulesweep.errors import UserError
from joulesweep.stats import Ratio, paired_ratio

HOLDS, FAILS, UNTOLD = "holds", "fails", "cannot be told yet"
GOAL_PRECISION = "bf16-mixed"
PEERS = ("trainer", "trainer-default")

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
                "j_per_text": over(joules["energy_j"], texts),
                "error_j_per_text": over(joules["error_j"], texts),
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


def over(value: float | None, number: float) -> float | None:
    """A share of a number that may be missing."""
    return None if value is None else value / number


def turns(results: Results) -> dict[tuple[int, str], dict[str, dict[int, Row]]]:
    """Windows of the contest: by batch size and precision, by contestant and turn, with texts per second and joules."""
    found: dict[tuple[int, str], dict[str, dict[int, Row]]] = {}
    for row in results.ok("e"):
        if "turn" in row:
            joules = results.joules(row)
            numbers = {"texts_per_s": row["num_texts"] / row["window_s"], "window_s": row["window_s"]}
            numbers |= {"j_per_text": over(joules["energy_j"], row["num_texts"]), "joules": joules}
            of_name = found.setdefault((row["batch_size"], row["precision"]), {}).setdefault(row["contestant"], {})
            of_name[row["turn"]] = numbers
    return found


def over_peer(of_size: Mapping[str, Mapping[int, Row]], peer: str, key: str = "texts_per_s") -> Ratio | None:
    """How many times as much ours does of something as a peer, over the turns that both have."""
    ours = next((of_size[name] for name in of_size if name.startswith("ours")), {})
    theirs = of_size.get(peer, {})
    both = [turn for turn in ours if turn in theirs and ours[turn][key] and theirs[turn][key]]
    return paired_ratio([ours[t][key] for t in both], [theirs[t][key] for t in both]) if both else None


def said(ratio: Ratio | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return "–"
    ends = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.ratio:.2f}{ends}"


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
        return NOT_TRIED, why_not(results, "e", f"batch {size}"), size
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
        reason = tried[0]["floor_reason"] if tried else why_not(results, "d", f"batch {size}")
        return NOT_TRIED, reason, size
    best = max(known, key=lambda row: row["floor_distance"])
    text = f"{best['floor_distance']:.3f} ({best['engine']}, {best['batching']})"
    return HOLDS if best["floor_distance"] >= wanted else FAILS, text, size


def _metering(most: float, results: Results) -> Told:
    """What metering took of the run by the launching parent."""
    measured = next((row["measurement"] for row in results.ok("i") if row["piece"] == "a whole run"), None)
    if measured is None:
        return NOT_TRIED, why_not(results, "i", "a whole run"), None
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
        return NOT_TRIED, why_not(results, "c", "certificate"), None
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


def why_not(results: Results, letter: str, piece: str) -> str:
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
