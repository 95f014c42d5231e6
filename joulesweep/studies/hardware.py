"""How training scales over devices in seconds and in joules, on each machine, and which machine takes the fewest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import polars as pl

from joulesweep.analyse.cells import LAYOUT, doubtful, finished, why_not_ranked
from joulesweep.analyse.comparisons import Comparisons, asked
from joulesweep.analyse.statistics import NO_INTERVAL, Ratio, times
from joulesweep.analyse.studies.across import SENSORS, unpaired_ratio
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import percent
from joulesweep.studies import Answer, Entry, Table

QUESTION = "How far does training scale before it takes more joules, and which hardware takes the fewest?"
PROTOCOL = (
    "Only the number of devices varies, and on several machines the hardware; model, texts, method, precision and the "
    "texts of a step over all devices are the same. Of each number n, paired by seed and on one kind of machine: "
    "efficiency in seconds is T1 / (n · Tn), efficiency in joules J1 / Jn, of joules by counters without doubt. Joules "
    "rise where the 95 % interval of Jn / J1 is above 1 by more than the margin, even if the boards' sensors, each "
    "off by up to 5 %, explain what they can. Machines are compared at the number of devices at which each takes the "
    "fewest joules, with Welch's interval, under the same condition; that choice is not corrected for."
)
SOURCE = "Maina et al. 2025 (arXiv 2506.08433), conclusion, question 3: they measured on one kind of board"
NEEDED = "it takes boards with a counter (NVIDIA from Volta on) or readable RAPL: joulesweep doctor tells"
#: Columns in which the cells of a ladder agree, beside the texts of a step.
SHARED = ("model", "dataset", "task", "method", "method_params", "precision", *LAYOUT, "lr", "max_grad_norm")
NO_MORE, MORE, OPEN = "no more", "more", "cannot be told yet"
SENSORS_MAY, SENSORS_HIDE = "more, which sensors may explain", "no more, if sensors agree"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A number of devices beside one device.

    Attributes:
        row: its cell.
        joules: Jn / J1; None where a side's are not measured.
        seconds: Tn / T1; None without a common seed.
    """

    row: Row
    joules: Ratio | None
    seconds: Ratio | None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The numbers of devices of one strategy, on one machine, of one training.

    Attributes:
        machine: its boards or processor.
        training: what is trained, the same on every machine.
        name: of the training, as sentences call it.
        base: the cell of one device.
        steps: those of more, fewest devices first.
        why: why joules are not compared; None where they are.
    """

    machine: str
    training: tuple[object, ...]
    name: str
    base: Row
    steps: Sequence[Step]
    why: str | None


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """How far the first training scales on each machine and which takes the fewest; other trainings are findings."""
    ladders, margin = _ladders(tables), asked(config)[0]
    if not ladders:
        none = not tables.cells.filter(pl.col("num_ok") > 0).height
        why = "no run has finished" if none else "it takes finished runs on one device and on more, otherwise the same"
        return Answer(sentence=f"How far joules scale cannot be told: {why}.", answered=False)
    shown = [_table(ladder, margin) for ladder in ladders]
    seconds = [text for ladder in ladders if (text := _seconds(ladder))]
    known = [ladder for ladder in ladders if _told(ladder)]
    if not known:
        why = ladders[0].why or f"one repeat tells no noise ({NO_INTERVAL}); it takes grid.repeats of 3 or more"
        return Answer(
            sentence=f"How far joules scale cannot be told: {why}.", answered=False, findings=seconds, tables=shown
        )
    first = [ladder for ladder in known if ladder.training == known[0].training]
    parts = [_scales(ladder, margin) for ladder in first] + [_fewest(first, tables.runs)]
    rest = [f"{ladder.name}: {_scales(ladder, margin)}." for ladder in known if ladder not in first]
    lost = [f"{_where(one)}: joules are not compared: {one.why}." for one in ladders if one.why]
    sentence = f"{'; '.join(part for part in parts if part)}."
    return Answer(sentence=sentence, answered=True, findings=[*rest, *lost, *seconds], tables=shown)


def _ladders(tables: Tables) -> list[Ladder]:
    """Every ladder that has one device and more, in the order of the sweep."""
    comparisons, machines = Comparisons(tables.runs), _machines(tables.runs)
    cells = finished(tables.cells, "window_s_mean").with_columns(
        texts=pl.col("batch_size") * pl.when(batch_size_scope="per_device").then("devices").otherwise(1)
    )
    ladders = []
    for key, part in cells.group_by(*SHARED, "texts", "environment", maintain_order=True):
        base = part.filter(devices=1).sort(pl.col("strategy") != "single", maintain_order=True).head(1)
        for (strategy, nodes), more in part.filter(pl.col("devices") > 1).group_by(
            "strategy", "nodes", maintain_order=True
        ):
            if base.height:
                compared = pl.concat([base, more.unique("devices", keep="first").sort("devices")])
                ladder = _ladder(comparisons, compared, machines[str(key[-1])], (*key[:-1], strategy, nodes))
                ladders.append(ladder)
    return ladders


def _ladder(comparisons: Comparisons, cells: pl.DataFrame, machine: str, training: tuple[object, ...]) -> Ladder:
    base, *more = cells.to_dicts()
    steps = [
        Step(
            row=row,
            joules=comparisons.ratio(row, base, "energy_j"),
            seconds=comparisons.ratio(row, base, "window_s"),
        )
        for row in more
    ]
    reason = why_not_ranked(cells)
    if reason is None and not any(step.joules for step in steps):
        doubts = doubtful(cells)
        reason = f"doubtful joules ({doubts[0]})" if doubts else "no seed is common to one device and more"
    name = " · ".join([f"{base['model']} on {base['dataset']}", base["precision"], f"{base['texts']} texts a step"])
    return Ladder(
        machine=machine,
        training=training,
        name=name,
        base=base,
        steps=steps,
        why=None if reason is None else f"{reason}; {NEEDED}",
    )


def _machines(runs: pl.DataFrame) -> dict[str, str]:
    """What to call each environment: its boards or processor, with its digest where another has the same."""
    ok = runs.filter(status="ok").unique("environment", keep="first", maintain_order=True)
    names: dict[str, str] = {row["environment"]: row["gpus"] or row["cpu_model"] for row in ok.iter_rows(named=True)}
    values = list(names.values())
    return {key: name if values.count(name) == 1 else f"{name} ({key[:8]})" for key, name in names.items()}


def _told(ladder: Ladder) -> bool:
    return ladder.why is None and any(step.joules and step.joules.low is not None for step in ladder.steps)


def _where(ladder: Ladder) -> str:
    return f"{ladder.name}, {ladder.steps[0].row['strategy']} on {ladder.machine}"


def _verdict(step: Step, margin: float) -> str:
    """Whether joules rise by more than the margin; two sensors can move a ratio of boards by `SENSORS`."""
    ratio = step.joules
    if ratio is None or ratio.low is None or ratio.high is None:
        return OPEN
    if ratio.low > 1 + margin:
        return MORE if not _has_boards(step.row) or ratio.low > (1 + margin) * SENSORS else SENSORS_MAY
    if ratio.high > 1 + margin:
        return OPEN
    return NO_MORE if not _has_boards(step.row) or ratio.high * SENSORS <= 1 + margin else SENSORS_HIDE


def _has_boards(row: Row) -> bool:
    return "gpu" in str(row["energy_scope"]).split("+")


def _scales(ladder: Ladder, margin: float) -> str:
    """How far one ladder goes, without a full stop."""
    known = [(step, step.joules) for step in ladder.steps if step.joules is not None and step.joules.low is not None]
    rising = [one for one in known if _verdict(one[0], margin) == MORE]
    step, ratio = rising[0] if rising else known[-1]
    number = step.row["devices"]
    begin = f"On {ladder.machine} {step.row['strategy']}"
    took = f"measured joules on {number} devices over one {times(ratio)}"
    if rising:
        return f"{begin} takes over {percent(margin)} % more joules from {number} devices on ({took})"
    words = {
        NO_MORE: f"scales to {number} devices without taking over {percent(margin)} % more joules",
        SENSORS_HIDE: f"scales to {number} devices without taking over {percent(margin)} % more joules, if the boards' "
        "sensors agree",
        SENSORS_MAY: f"is not shown to take more joules up to {number} devices, as the boards' sensors may explain it",
        OPEN: f"is not shown to take over {percent(margin)} % more joules up to {number} devices",
    }
    return f"{begin} {words[_verdict(step, margin)]} ({took})"


def _joules(row: Row, runs: pl.DataFrame) -> list[float]:
    own = runs.filter(cell=row["cell"], environment=row["environment"], status="ok", energy_status="measured")
    joules: list[float] = own.filter(pl.col("energy_doubt").is_null(), pl.col("energy_j") > 0)["energy_j"].to_list()
    return joules


def _fewest(ladders: Sequence[Ladder], runs: pl.DataFrame) -> str:
    """The machine with the fewest joules against each other, at the best number of devices; empty with one machine."""
    best: list[tuple[float, Ladder, Row, list[float]]] = []
    for ladder in ladders:
        rows = [ladder.base, *(step.row for step in ladder.steps)]
        known = [(row, joules) for row in rows if (joules := _joules(row, runs))]
        means = [fmean(map(math.log, joules)) for _, joules in known]
        row, joules = known[means.index(min(means))]
        best.append((min(means), ladder, row, joules))
    (_, least, row, joules), *others = sorted(best, key=lambda one: one[0])
    words = [_against(row, joules, one[1], one[2], one[3]) for one in others]
    return f"{least.machine} at {_number(row)}: {', '.join(words)}" if words else ""


def _number(row: Row) -> str:
    return f"{row['devices']} device{'s' if row['devices'] > 1 else ''}"


def _against(row: Row, joules: Sequence[float], other: Ladder, rival: Row, rivals: Sequence[float]) -> str:
    """What the best machine takes over another, as far as it may be claimed."""
    beside = f"{other.machine} at {_number(rival)}"
    if row["energy_scope"] != rival["energy_scope"]:
        return f"not compared with {beside}, whose joules have another scope"
    ratio = unpaired_ratio(joules, rivals)
    if ratio.verdict != "lower" or ratio.high is None:
        return f"fewer measured joules than {beside} are not shown ({times(ratio)})"
    if _has_boards(row) and ratio.high >= 1 / SENSORS:
        return f"the boards' sensors may explain the difference to {beside} ({times(ratio)}), so nothing is claimed"
    return f"fewer measured joules than {beside} ({times(ratio)})"


def _efficiency(ratio: Ratio | None, number: int = 1) -> Entry:
    """One over a ratio and a number of devices, with its interval."""
    if ratio is None:
        return "–"
    ends = [None if end is None else 1 / (number * end) for end in (ratio.high, ratio.low)]
    rest = NO_INTERVAL if None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}"
    return f"{1 / (number * ratio.ratio):.3f}", rest


def _seconds(ladder: Ladder) -> str:
    """The efficiency in seconds at every number of devices."""
    entries = [(step.row["devices"], _efficiency(step.seconds, step.row["devices"])) for step in ladder.steps]
    parts = [f"{entry[0]} ({entry[1]}) on {number}" for number, entry in entries if not isinstance(entry, str)]
    return f"{_where(ladder)}: efficiency in seconds {', '.join(parts)} devices." if parts else ""


def _table(ladder: Ladder, margin: float) -> Table:
    headings = {"Devices": "text", "Efficiency in seconds": "", "Efficiency in joules": "", "Joules": "text"}
    rows: list[list[Entry]] = [["1", "1", "1" if ladder.why is None else "–", ""]]
    for step in ladder.steps:
        number, is_known = step.row["devices"], ladder.why is None
        joules = _efficiency(step.joules) if is_known else "–"
        verdict = _verdict(step, margin) if is_known else "not compared"
        rows.append([str(number), _efficiency(step.seconds, number), joules, verdict])
    return Table(title=f"Scaling: {_where(ladder)}", headings=headings, rows=rows)
