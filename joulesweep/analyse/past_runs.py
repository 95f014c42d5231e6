"""Read from records, or from rows of the runs table, what runs took: what `planning` predicts others from.

Records are read as plain JSON, without their validation, which takes longer than the whole plan.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from joulesweep.analyse.estimator import Job
from joulesweep.analyse.planning import MOST_WAITED, Past
from joulesweep.core.outcome import DeviceEnergy
from joulesweep.reference.cpu_estimate import Asked, estimate_cpu
from joulesweep.runs.headline import READ, headline, headline_rows
from joulesweep.runs.record import FORMAT, VERSION

CONTENDED = "contended"  # the flag of runs that waited for cores
LEAST_S = 0.05  # around a window; records have whole seconds
FIELDS = {item.name for item in dataclasses.fields(DeviceEnergy)}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What tells whether runs on two machines take equally long.

    Attributes:
        cpu_model: the processor's name.
        gpus: kinds of boards, each once.
        name: how it is called in words.
    """

    cpu_model: str
    gpus: tuple[str, ...]
    name: str = "this machine"


def of_record(job: Job, record: Mapping[str, Any], asked: Asked) -> Past:
    """What a run took, by its record.

    Args:
        job: the run.
        record: its record.json.
        asked: the config's settings for estimates.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: it is no record.
    """
    took_s = _seconds(record["started"], record["finished"])
    measured = record["measurement"]
    if measured is None:
        return Past(job=job, status=record["status"], around_s=max(took_s, LEAST_S))
    conditions = measured["conditions"]
    before_s = (conditions.get("cooldown_s") or 0.0) + took_s
    flags = {flag["flag"] for flag in measured["flags"]}
    waited = _waited(conditions, CONTENDED in flags, record["spec"]["accelerator"])
    return Past(
        job=job,
        status=record["status"],
        window_s=measured["window_s"],
        around_s=max(before_s - measured["total_window_s"], measured["startup_s"], LEAST_S),
        waited=waited,
        **(_read(measured, record["spec"]["accelerator"]) or _estimated(measured, record, asked, waited)),
    )


def of_row(row: Mapping[str, Any]) -> Past:
    """What a run took, by its row of the runs table; joules around the window are in another table, and left out."""
    job = Job(run=row["run"], cell=row["cell"], label=row["name"], axes=row)
    took_s = _seconds(row["started"], row["finished"])
    if row["status"] != "ok":
        return Past(job=job, status=row["status"], around_s=max(took_s, LEAST_S))
    before_s = (row["cooldown_s"] or 0.0) + took_s
    estimated_j = row["estimated_energy_j"]
    joules: dict[str, Any] = {}
    if row["energy_j"] is not None and not row["energy_doubt"]:
        joules = {key: row[key] for key in ("energy_j", "energy_status", "energy_scope")}
    elif estimated_j:
        joules = {"energy_j": estimated_j, "energy_status": "estimated"}
    return Past(
        job=job,
        status="ok",
        window_s=row["window_s"],
        around_s=max(before_s - row["total_window_s"], row["startup_s"], LEAST_S),
        waited=_waited(row, CONTENDED in (row["flags"] or "").split(", "), row["accelerator"]),
        **joules,
    )


def _read(measured: Mapping[str, Any], accelerator: str) -> dict[str, Any]:
    """The joules that meters read, as fields of `Past`; empty where there are none, or where they are doubtful."""
    rows = [DeviceEnergy(**{key: row[key] for key in row.keys() & FIELDS}) for row in measured["energy"]]
    exclusive = measured["conditions"]["exclusive"]
    joules = headline(rows, accelerator, exclusive)
    if joules.energy_j is None or joules.energy_doubt or joules.energy_status not in READ:
        return {}
    whole = {row["device"]: row["energy_j"] for row in measured["overhead"]["whole_run_energy"]}
    each: list[float | None] = [whole.get(row.device) for row in headline_rows(rows, accelerator, exclusive)]
    known = [value for value in each if value is not None]
    return {
        "energy_j": joules.energy_j,
        "around_j": sum(known) - (joules.total_energy_j or 0.0) if len(known) == len(each) else None,
        "energy_status": joules.energy_status,
        "energy_scope": joules.energy_scope,
    }


def _estimated(measured: Mapping[str, Any], record: Mapping[str, Any], asked: Asked, waited: float) -> dict[str, Any]:
    """Estimated joules, as fields of `Past`; empty where the config asks for none, or the run was on a GPU."""
    if not asked.estimate or record["spec"]["accelerator"] != "cpu":
        return {}
    machine = record["environment"]
    of_machine = machine["cpu_model"], machine["cpu_cores"], asked.cpu_watts
    wall_s = measured["window_s"] * len(record.get("nodes", [None]))
    guess = estimate_cpu(measured["cpu_s"], wall_s, *of_machine)
    alone = estimate_cpu(measured["cpu_s"], wall_s * (1 - waited), *of_machine)
    return {
        "energy_j": guess.mid_j,
        "energy_status": "estimated",
        "spread": (guess.low_j / guess.mid_j, guess.high_j / guess.mid_j),
        "waited_j": 1 - alone.mid_j / guess.mid_j,
    }


def _waited(conditions: Mapping[str, Any], contended: bool, accelerator: str) -> float:
    """Share of its time in which a run that computes on the CPU waited for cores that others used."""
    if not contended or accelerator != "cpu":
        return 0.0
    share = conditions.get("cpu_wait_share")
    if share is None:  # an older record
        share = 1 - (conditions.get("cpu_share") or 1.0)
    return min(max(share, 0.0), MOST_WAITED)


def _seconds(started: str, finished: str) -> float:
    begin, end = (datetime.datetime.fromisoformat(moment) for moment in (started, finished))
    return (end - begin).total_seconds()


def check(record: Mapping[str, Any], run: str) -> None:
    """Check that a record can be planned from.

    Raises:
        ValueError: it is another run's, or of another version.
        LookupError, TypeError, ValueError: it is corrupt.
    """
    if (record["format"], record["version"], record["run"]) != (FORMAT, VERSION, run):
        raise ValueError("another record")
    of_record(Job(run=run, cell="", label="", axes={}), record, Asked(False))
    machine_of(record)


def is_of(record: Mapping[str, Any], machine: Machine) -> bool:
    """Whether a run was measured on such a machine: the same processor, and the same kinds of boards if it used any."""
    environment = record["environment"]
    if record["spec"]["accelerator"] == "cpu":
        return bool(environment["cpu_model"] == machine.cpu_model)
    return {board["name"] for board in environment["gpus"]} == set(machine.gpus)


def machine_of(record: Mapping[str, Any]) -> Machine:
    """The machine that a run was measured on."""
    environment = record["environment"]
    gpus = tuple(sorted({board["name"] for board in environment["gpus"]}))
    return Machine(environment["cpu_model"], gpus, environment["hostname"])


def named(records: Sequence[Mapping[str, Any]], name: str) -> list[Machine]:
    """The machines of some records that have a host name, or kinds of boards or a processor with such a name."""
    machines = list(dict.fromkeys(machine_of(record) for record in records))
    word = name.casefold()
    exact = [machine for machine in machines if machine.name.casefold() == word]
    return exact or [
        machine for machine in machines if any(word in text.casefold() for text in (machine.cpu_model, *machine.gpus))
    ]
