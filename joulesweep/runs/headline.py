"""How a run's headline energy is derived; shared by the progress line and the tables.

Standard library only. A total sums numbers of one status only. A run's headline has every device that computed (each
GPU of a GPU run, else the CPU), all measured or all integrated, and the other kinds of device whose every row has that
status too. CPU and memory count only if the run had the machine to itself: else their joules include those of other
runs. A kind that contains others, such as a plug at the wall, is in no sum. The scope names the kinds in the sum:
"gpu", "gpu+cpu+dram".

If a device that computed has no such number, the headline is null. Joules that other readings of the same window
contradict are doubtful: they stay in the tables, with the reason, but are not ranked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from joulesweep.core.outcome import DeviceEnergy, Epoch, EpochEnergy, Status
from joulesweep.measure import meters
from joulesweep.reference.cpu_estimate import Asked, Estimate, estimate_cpu
from joulesweep.runs.record import RunRecord

READ = ("measured", "integrated")  # statuses of a number that was read from the machine
UNTRACED = EpochEnergy(
    device="", energy_j=None, status="unavailable", reason="not every device was read after each epoch"
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A run's joules as columns of the runs table; null if a device of the scope has no number.

    Attributes:
        energy_j: per pass.
        energy_error_j: bound of its error, without the accuracy of the boards' sensors.
        total_energy_j: of the whole window.
        net_energy_j: energy_j without idle power.
        idle_w: idle power.
        energy_tick_s: the slowest counter's.
        power_ratio: the one furthest from 1.
        energy_scope: kinds of device whose joules these are; None where there are none.
        energy_status: of the number; without one, the statuses of all devices.
        energy_method: how it was measured.
        energy_reason: null if and only if energy_j is a number.
        energy_doubt: why the joules are doubtful; null where they are not.
    """

    energy_j: float | None = None
    energy_error_j: float | None = None
    total_energy_j: float | None = None
    net_energy_j: float | None = None
    idle_w: float | None = None
    energy_tick_s: float | None = None
    power_ratio: float | None = None
    energy_scope: str | None = None
    energy_status: str
    energy_method: str | None
    energy_reason: str | None
    energy_doubt: str | None = None


@dataclass(frozen=True, kw_only=True)
class AtThePlug:
    """Joules of the whole machine as columns of the runs table; all null for a run without a plug.

    Attributes:
        wall_j: per pass; the headline's are among them.
        wall_error_j: bound of the error of wall_j, without the accuracy of the plug.
        wall_method: how the plug was read.
        wall_doubt: what contradicts wall_j.
        wall_reason: why wall_j is null.
    """

    wall_j: float | None = None
    wall_error_j: float | None = None
    wall_method: str | None = None
    wall_doubt: str | None = None
    wall_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochJoules:
    """Joules up to the end of an epoch as columns of the epochs table, over the devices of the headline."""

    energy_j: float | None
    energy_status: str
    energy_reason: str | None


def headline_rows(rows: Sequence[DeviceEnergy], accelerator: str, exclusive: str) -> list[DeviceEnergy]:
    """The energy rows whose sum is a run's headline; empty if there is no headline.

    Args:
        rows: `energy` of a record's measurement.
        accelerator: "cuda" or "cpu": what computed.
        exclusive: "node" if the run had the machine to itself.
    """
    addable = [kind for kind in meters.kinds().values() if not kind.contains]
    kinds = [kind.name for kind in addable if exclusive == "node" or not kind.of_host]
    computing = _computing(accelerator)
    statuses = {_status(row) for row in rows if row.kind == computing}
    if computing not in kinds or len(statuses) != 1 or not statuses <= set(READ):
        return []
    of_kind = [[row for row in rows if row.kind == kind] for kind in kinds]
    return [row for same in of_kind if {_status(row) for row in same} == statuses for row in same]


def headline(rows: Sequence[DeviceEnergy], accelerator: str, exclusive: str) -> Headline:
    """The headline of a run.

    Args:
        rows: `energy` of a record's measurement.
        accelerator: "cuda" or "cpu": what computed.
        exclusive: "node" if the run had the machine to itself.
    """
    addends = headline_rows(rows, accelerator, exclusive)
    if not addends:
        return _no_headline([row for row in rows if row.kind == _computing(accelerator)], exclusive)
    ratios = [row.power_ratio for row in addends if row.power_ratio is not None]
    return Headline(
        energy_j=_total(row.energy_j for row in addends),
        energy_error_j=_total(row.error_j for row in addends),
        total_energy_j=_total(row.total_energy_j for row in addends),
        net_energy_j=_total(row.net_energy_j for row in addends),
        idle_w=_total(row.idle_w for row in addends),
        energy_tick_s=max((row.tick_s for row in addends if row.tick_s is not None), default=None),
        power_ratio=max(ratios, key=lambda ratio: abs(ratio - 1), default=None),
        energy_scope="+".join(dict.fromkeys(row.kind for row in addends)),
        energy_status=addends[0].status,
        energy_method=join_unique(row.method for row in addends),
        energy_reason=None,
        energy_doubt=join_unique(f"{row.device}: {row.doubt}" for row in addends if row.doubt),
    )


def estimated(record: RunRecord, asked: Asked, cpu_s: float, wall_s: float) -> Estimate | None:
    """Estimated joules of a CPU run, if the config asks for them; None for GPU runs, which are never estimated.

    Nodes draw their idle power each; what the first one's processor draws is taken for the others'.

    Args:
        record: the run's.
        asked: the config's settings of estimates.
        cpu_s: CPU seconds of all processes, on all nodes.
        wall_s: seconds that they took.
    """
    if not asked.estimate or record.spec.accelerator != "cpu":
        return None
    machine, num_nodes = record.environment, len(record.nodes or [None])
    return estimate_cpu(cpu_s, num_nodes * wall_s, machine.cpu_model, machine.cpu_cores, asked.cpu_watts)


def join_unique(values: Iterable[str | None]) -> str | None:
    """Join the distinct texts, in order; None if there are none."""
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def beside(rows: Sequence[DeviceEnergy]) -> AtThePlug:
    """Joules at the plug, which contain those of a run's headline.

    Args:
        rows: `energy` of a record's measurement.
    """
    around = [row for row in rows if row.kind == meters.WALL.name]
    if not around:
        return AtThePlug()
    wall_j = _total(row.energy_j for row in around)
    return AtThePlug(
        wall_j=wall_j,
        wall_error_j=_total(row.error_j for row in around),
        wall_method=join_unique(row.method for row in around),
        wall_doubt=join_unique(row.doubt for row in around),
        wall_reason=join_unique(row.reason for row in around) if wall_j is None else None,
    )


def _computing(accelerator: str) -> str:
    """The kind of device that runs of an accelerator compute on."""
    return next(kind.name for kind in meters.kinds().values() if kind.accelerator == accelerator)


def _status(row: DeviceEnergy) -> Status:
    """A row's status; "unavailable" if it claims a number but has none."""
    return "unavailable" if row.status in READ and row.energy_j is None else row.status


def _total(values: Iterable[float | None]) -> float | None:
    """The sum over the devices; None if one has no number."""
    known = list(values)
    return None if None in known else math.fsum(value for value in known if value is not None)


def _no_headline(computing: Sequence[DeviceEnergy], exclusive: str) -> Headline:
    """A headline without joules, with the reason."""
    lacking = [row for row in computing if _status(row) not in READ]
    reasons = [f"{row.device}: {row.reason}" for row in lacking if row.reason]
    if computing and not lacking and len({_status(row) for row in computing}) > 1:
        states = ", ".join(f"{row.device} is {row.status}" for row in computing)
        reasons = [f"a total is of one status only: {states}"]
    elif computing and not lacking:
        reasons = [f"measure.exclusive is {exclusive}: joules of the CPU may be those of other runs as well"]
    return Headline(
        energy_status=join_unique(_status(row) for row in lacking) or "unavailable",
        energy_method=join_unique(row.method for row in lacking),
        energy_reason="; ".join(reasons) or "the record names no energy meter",
    )


def by_epoch(epoch: Epoch, devices: Sequence[str]) -> EpochJoules:
    """An epoch's joules over the devices of the headline.

    Args:
        epoch: of a record.
        devices: of `headline_rows`; empty if the run has no joules.
    """
    rows = {row.device: row for row in epoch.energy}
    addends = [rows.get(device, UNTRACED) for device in devices]
    lacking = [row for row in addends if row.energy_j is None]
    if addends and not lacking and len({row.status for row in addends}) > 1:
        reason = "a total is of one status only"
        return EpochJoules(energy_j=None, energy_status="unavailable", energy_reason=reason)
    if not addends or lacking:
        status = join_unique(row.status for row in lacking) or "unavailable"
        reason = join_unique(row.reason for row in lacking) or "the run has no joules"
        return EpochJoules(energy_j=None, energy_status=status, energy_reason=reason)
    joules = _total(row.energy_j for row in addends)
    return EpochJoules(energy_j=joules, energy_status=addends[0].status, energy_reason=None)
