"""The rule for a run's joules, one for the progress line and the tables. Standard library only.

A total is a sum of numbers of one status. A run's headline has every device that computed (each GPU of a GPU run, else
the CPU), all measured or all integrated, and the other kinds of device whose every row has that status too. CPU and
memory count only where the run had the machine to itself: else their joules are its neighbours' as well. A kind that
contains others, as a plug at the wall does, is in no sum. Which kinds are in is the scope: "gpu", "gpu+cpu+dram". Where
one that computed has no such number, the headline is null. Joules that are contradicted by what else was read of the
same window are doubtful: they stay in the tables, with the reason, and take part in no ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from joulesweep.measure import meters
from joulesweep.reference.cpu_estimate import Estimate, estimate_cpu

READ = ("measured", "integrated")  # statuses of a number that was read from the machine
UNTRACED = {"energy_j": None, "status": "unavailable", "reason": "not every device was read after each epoch"}


def scoped(rows: Sequence[dict[str, Any]], accelerator: str, exclusive: str) -> list[dict[str, Any]]:
    """The energy rows whose sum is a run's headline; none where there is no headline.

    Args:
        rows: `energy` of a record's measurement.
        accelerator: "cuda" or "cpu": what computed.
        exclusive: "node" if the run had the machine to itself.
    """
    addable = [kind for kind in meters.kinds().values() if not kind.contains]
    kinds = [kind.name for kind in addable if exclusive == "node" or not kind.of_host]
    computing = _computing(accelerator)
    statuses = {_status(row) for row in rows if row["kind"] == computing}
    if computing not in kinds or len(statuses) != 1 or not statuses <= set(READ):
        return []
    of_kind = [[row for row in rows if row["kind"] == kind] for kind in kinds]
    return [row for same in of_kind if {_status(row) for row in same} == statuses for row in same]


def headline(rows: Sequence[dict[str, Any]], accelerator: str, exclusive: str) -> dict[str, Any]:
    """A run's joules as columns of the runs table.

    Args:
        rows: `energy` of a record's measurement.
        accelerator: "cuda" or "cpu": what computed.
        exclusive: "node" if the run had the machine to itself.

    Returns:
        energy_j (per pass), energy_error_j (what it may be off by at most, the boards' own accuracy apart),
        total_energy_j (whole window), net_energy_j (without idle power), idle_w, energy_tick_s
        (the slowest counter's), power_ratio (the one furthest from 1), each null where a device lacks it;
        energy_scope, energy_status, energy_method, energy_reason (null if and only if energy_j is a number),
        energy_doubt (why the joules are doubtful, null where they are not).
    """
    found = scoped(rows, accelerator, exclusive)
    if not found:
        return _no_headline([row for row in rows if row["kind"] == _computing(accelerator)], exclusive)
    known = {key: [row[key] for row in found if row[key] is not None] for key in ("tick_s", "power_ratio")}
    return {
        **{key: _total(found, key) for key in ("energy_j", "total_energy_j", "net_energy_j", "idle_w")},
        "energy_error_j": _total(found, "error_j"),
        "energy_doubt": joined(f"{row['device']}: {row['doubt']}" for row in found if row["doubt"]),
        "energy_scope": "+".join(dict.fromkeys(row["kind"] for row in found)),
        "energy_status": found[0]["status"],
        "energy_method": joined(row["method"] for row in found),
        "energy_reason": None,
        "energy_tick_s": max(known["tick_s"], default=None),
        "power_ratio": max(known["power_ratio"], key=lambda ratio: abs(ratio - 1), default=None),
    }


def estimated(found: dict[str, Any], wanted: dict[str, Any], cpu_s: float, wall_s: float) -> Estimate | None:
    """Estimated joules where the config asks for them; of CPU runs alone, since nothing is guessed of a GPU.

    Args:
        found: the run's record.
        wanted: the config's section `energy`.
        cpu_s: CPU seconds of all processes.
        wall_s: seconds that they took.
    """
    if not wanted["estimate"] or found["spec"]["accelerator"] != "cpu":
        return None
    machine = found["environment"]
    return estimate_cpu(cpu_s, wall_s, machine["cpu_model"], machine["cpu_cores"], wanted["cpu_watts"])


def joined(values: Iterable[str | None]) -> str | None:
    """Each different text once, in order; None if there is none."""
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def beside(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joules at the plug, which contain those of a run's headline, as columns of the runs table.

    Args:
        rows: `energy` of a record's measurement.

    Returns:
        wall_j (per pass), wall_error_j, wall_method, wall_doubt, wall_reason (why wall_j is null); nothing without one.
    """
    around = [row for row in rows if row["kind"] == meters.WALL.name]
    if not around:
        return {}
    reasons = [row["reason"] for row in around] if _total(around, "energy_j") is None else []
    return {
        "wall_j": _total(around, "energy_j"),
        "wall_error_j": _total(around, "error_j"),
        "wall_method": joined(row["method"] for row in around),
        "wall_doubt": joined(row["doubt"] for row in around),
        "wall_reason": joined(reasons),
    }


def _computing(accelerator: str) -> str:
    """The kind of device that runs of an accelerator compute on."""
    return next(kind.name for kind in meters.kinds().values() if kind.accelerator == accelerator)


def _status(row: dict[str, Any]) -> str:
    """A row's status; one that claims a number and has none is no reading."""
    lacks = row["status"] in READ and row["energy_j"] is None
    return "unavailable" if lacks else str(row["status"])


def _total(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """The sum over the devices, None if one lacks the number."""
    values = [row[key] for row in rows]
    return None if None in values else math.fsum(values)


def _no_headline(computing: Sequence[dict[str, Any]], exclusive: str) -> dict[str, Any]:
    """Why there are no joules."""
    lacking = [row for row in computing if _status(row) not in READ]
    reasons = [f"{row['device']}: {row['reason']}" for row in lacking if row["reason"]]
    if computing and not lacking and len({_status(row) for row in computing}) > 1:
        states = ", ".join(f"{row['device']} is {row['status']}" for row in computing)
        reasons = [f"a total is of one status only: {states}"]
    elif computing and not lacking:
        reasons = [f"measure.exclusive is {exclusive}: joules of the CPU may be those of other runs as well"]
    return {
        "energy_status": joined(_status(row) for row in lacking) or "unavailable",
        "energy_method": joined(row["method"] for row in lacking),
        "energy_reason": "; ".join(reasons) or "the record names no energy meter",
    }


def by_epoch(epoch: dict[str, Any], devices: Sequence[str]) -> dict[str, Any]:
    """An epoch's joules over the devices of the headline: energy_j, energy_status, energy_reason.

    Args:
        epoch: of a record.
        devices: of `scoped`; none where the run has no joules.
    """
    rows = {row["device"]: row for row in epoch["energy"]}
    found = [rows.get(device, UNTRACED) for device in devices]
    lacking = [row for row in found if row["energy_j"] is None]
    if not lacking and len({row["status"] for row in found}) > 1:
        lacking = [{"status": "unavailable", "reason": "a total is of one status only"}]
    if not found or lacking:
        status = joined(row["status"] for row in lacking) or "unavailable"
        reason = joined(row["reason"] for row in lacking) or "the run has no joules"
        return {"energy_j": None, "energy_status": status, "energy_reason": reason}
    return {"energy_j": _total(found, "energy_j"), "energy_status": found[0]["status"], "energy_reason": None}
