"""The conditions of a measurement: what was looked at before, during and after it, and the flags that follow.

A flag does not make a number invalid; it says what a reader should know before comparing it.
"""

from __future__ import annotations

import datetime
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulesweep.core import bounded, processes
from joulesweep.core.spec import RunSpec
from joulesweep.measure import contention, measurement, meters, sensors, settling, verdict, watch
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import Trace
from joulesweep.measure.watch import BoardLook, Watch

HEADLINE_TICKS = 100  # fewer updates of the counter in the window: flagged
SKIPPED = 0.01  # of the steps; a loss scale that is too high at first takes a few to come down
PROCESS_END_S = 2.0  # a driver takes a moment to forget processes that ended


@dataclass(frozen=True, kw_only=True)
class Before:
    """What was found before the run's processes started.

    Attributes:
        ticks: update period of each device's counter in seconds, None where unknown.
        cooldown_s: seconds waited for the boards to settle, or None where there was nothing to wait for.
        settled: whether they did, or None.
        rests: how the wait for each board ended, by device.
        looks: who computed on each board, and its limit, by device.
        silent: why devices did not answer, by device: they are not read.
    """

    ticks: dict[str, float | None]
    cooldown_s: float | None = None
    settled: bool | None = None
    rests: dict[str, settling.Rest] = field(default_factory=dict)
    looks: dict[str, BoardLook] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """What a run had of the machine.

    Attributes:
        boards: its own.
        exclusive: what it had alone: "gpu" its boards, "node" the machine, "none" no more than its boards.
        shared_host: whether other runs worked on the machine meanwhile.
    """

    boards: Sequence[Board]
    exclusive: str
    shared_host: bool


def prepare(
    spec: RunSpec, boards: Sequence[Board], others: Sequence[meters.Sensor], wanted: Callable[[], None]
) -> Before:
    """Measure the counters' ticks (once per host), let the boards cool down, look for other processes."""
    names = [*(board.device for board in boards), *(sensor.device for sensor in others)]
    askers = {device: bounded.Asker() for device in names}
    readers = [reader for board in boards if (reader := askers[board.device].ask(meters.sensor, board))]
    counters = [(reader.board.device, reader.board.uuid, reader.energy_j) for reader in readers if reader.board.counts]
    counters += [(one.device, one.device, one.energy_j) for one in others if one.traits.method is None]
    ticks = {}
    for device, name, read in counters:
        wanted()
        ticks[device] = askers[device].ask(sensors.known_tick, name, read, more_s=sensors.TICK_LIMIT_S)
    readers = [reader for reader in readers if askers[reader.board.device].silent is None]
    rest = settling.settle(readers, spec.cooldown_s, wanted) if readers and spec.cooldown_s else None
    silent = {device: asker.silent for device, asker in askers.items() if asker.silent is not None}
    silent |= rest.silent if rest else {}
    readers = [reader for reader in readers if reader.board.device not in silent]
    looks = {reader.board.device: askers[reader.board.device].ask(watch.look_at, reader) for reader in readers}
    silent |= {device: asker.silent for device, asker in askers.items() if asker.silent is not None}
    return Before(
        ticks=ticks,
        cooldown_s=rest.waited_s if rest else None,
        settled=rest.settled if rest else None,
        rests=rest.boards if rest else {},
        looks={device: look for device, look in looks.items() if look is not None},
        silent=silent,
    )


def look_after(boards: Sequence[Board]) -> tuple[dict[str, BoardLook], dict[str, str]]:
    """Who computes on boards after the run's own processes ended, by device; and why boards do not answer."""
    askers = {board.device: bounded.Asker() for board in boards}
    readers = [reader for board in boards if (reader := askers[board.device].ask(meters.sensor, board))]
    found, deadline_s = _look(readers, askers), time.monotonic() + PROCESS_END_S
    while any(look.others for look in found.values()) and time.monotonic() < deadline_s:
        time.sleep(0.1)
        found = _look(readers, askers)
    return found, {device: asker.silent for device, asker in askers.items() if asker.silent is not None}


def _look(readers: Sequence[meters.BoardSensor], askers: Mapping[str, bounded.Asker]) -> dict[str, BoardLook]:
    looks = {reader.board.device: askers[reader.board.device].ask(watch.look_at, reader) for reader in readers}
    return {device: look for device, look in looks.items() if look is not None}


def describe(
    outcome: Mapping[str, Any], spec: RunSpec, before: Before, trace: Trace, hold: Hold, seen: Watch
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The conditions and the flags of a measurement that `measurement.judge` has finished.

    Returns:
        {boards, cooldown_s, settled, settled_by, idle_s, exclusive, window_begin, window_end} with the numbers of
        `contention.describe`, and rows {flag, text}.
    """
    span, measured = outcome["span"], outcome["measurement"]
    after, silent = look_after([board for board in hold.boards if board.device not in before.silent])
    states = [_state(board, trace, span, before) for board in hold.boards]
    for board, state in zip(hold.boards, states, strict=True):
        state |= _company(board.device, spec, span, before, after, seen)
    energy = measured["energy"]
    host_j = any(meters.kind(row["kind"]).of_host and row["energy_j"] is not None for row in energy)
    cpu_s, num_threads = measured["cpu_s"] * measured["num_passes"], spec.threads_per_device * spec.devices
    cpu = contention.describe(seen.looks.cpu, span, cpu_s, num_threads)
    conditions = {
        "boards": states,
        "cooldown_s": before.cooldown_s,
        "settled": before.settled,
        "settled_by": " and ".join(sorted({rest.settled_by for rest in before.rests.values() if rest.settled_by}))
        or None,
        "idle_s": max(0.0, span["idle_end_s"] - span["idle_begin_s"]),
        "exclusive": hold.exclusive,
        "window_begin": _utc(span["begin_s"]),
        "window_end": _utc(span["end_s"]),
        **cpu,
    }
    found = [
        *(_short(row, outcome["measurement"]["total_window_s"]) for row in energy),
        *(_disagrees(row) for row in energy),
        *measurement.flags(outcome),
        *(_throttled(state) for state in states),
        _others(states),
        ("shared_host", "other runs used the machine at the same time; CPU and DRAM joules hold their share too")
        if hold.shared_host and host_j
        else None,
        _contended(
            contention.causes(cpu, span["end_s"] - span["begin_s"], cpu_s, spec.accelerator == "cpu"),
            host_j and bool(cpu["foreign_cpu_s"]),
        ),
        ("not_settled", f"temperature or power still moved after the cool-down of {spec.cooldown_s:g} s")
        if before.settled is False
        else None,
        *(
            ("trace_stopped", f"{device}: {reason} before the run: it was not read")
            for device, reason in before.silent.items()
        ),
        _stopped(seen, silent, trace, span),
        _skipped(outcome["measurement"]),
        ("one_device", f"{spec.strategy} on one device: what this shows is the overhead of its wrapper")
        if spec.strategy != "single" and spec.devices == 1
        else None,
    ]
    return conditions, [{"flag": flag, "text": text} for flag, text in filter(None, found)]


def whole_run(trace: Trace) -> dict[str, Any]:
    """Seconds and joules from the trace's first to its last reading: start-up, idling, window and scoring.

    Returns:
        {whole_run_s, whole_run_energy: rows {device, energy_j, reason}}; None where they are unknown.
    """
    begin_s, end_s = (trace.times_s[0], trace.times_s[-1]) if trace.times_s else (0.0, 0.0)
    rows = []
    for device, series in trace.series.items():
        energy_j = _gained_j(series.energy_j)
        if energy_j is None:
            power_w = trace.mean_power_w(device, begin_s, end_s)
            energy_j = None if power_w is None else power_w * (end_s - begin_s)
        reason = "neither its counter nor its power was read from begin to end" if energy_j is None else None
        rows.append({"device": device, "energy_j": energy_j, "reason": reason})
    return {"whole_run_s": end_s - begin_s if trace.times_s else None, "whole_run_energy": rows}


def _gained_j(counter: Sequence[float | None]) -> float | None:
    """What a counter gained from its first to its last reading; None where one lacks, or it fell."""
    if len(counter) < 2 or counter[0] is None or counter[-1] is None:
        return None
    known = [value for value in counter if value is not None]
    fell = any(later < earlier for earlier, later in itertools.pairwise(known))
    return None if fell else counter[-1] - counter[0]


def _utc(at_s: float) -> str:
    """A time of the monotonic clock as UTC, to the millisecond."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=time.monotonic() - at_s)
    return moment.isoformat(timespec="milliseconds")


def _state(board: Board, trace: Trace, span: Mapping[str, float], before: Before) -> dict[str, Any]:
    """One board's temperatures at the edges of the window, its clocks and what held them down in it."""
    of_board = [(at_s, state) for at_s, device, state in trace.states if device == board.device]
    inside = [state for at_s, state in of_board if span["begin_s"] <= at_s <= span["end_s"]]
    clocks = [state["sm_clock_mhz"] for state in inside if state["sm_clock_mhz"] is not None]
    rest = before.rests.get(board.device)
    return {
        "device": board.device,
        "uuid": board.uuid,
        "temperature_start_c": _nearest(of_board, span["begin_s"]),
        "temperature_end_c": _nearest(of_board, span["end_s"]),
        "sm_clock_mean_mhz": statistics.fmean(clocks) if clocks else None,
        "sm_clock_min_mhz": min(clocks, default=None),
        "throttle_reasons": _reasons([state["throttles"] for state in inside]),
        "settled_by": rest.settled_by if rest else None,
        "slope_c_per_min": rest.slope_c_per_min if rest else None,
        "anchor_c": rest.anchor_c if rest else None,
    }


def _reasons(looks: Sequence[Sequence[str] | None]) -> list[str] | None:
    """All reasons that were seen; None where the board did not always tell, or was not looked at."""
    if not looks or None in looks:
        return None
    return sorted({reason for reasons in looks for reason in reasons or ()})


def _company(
    device: str,
    spec: RunSpec,
    span: Mapping[str, float],
    before: Before,
    after: Mapping[str, BoardLook],
    seen: Watch,
) -> dict[str, Any]:
    """When others computed on a board (None: unknown), and its power limit in the window."""
    inside = [look for at_s, of, look in seen.looks.boards if of == device and _within(at_s, span)]
    looks: dict[str, list[BoardLook | None]] = {
        "before": [before.looks.get(device)],
        "during": [*inside],
        "after": [after.get(device)],
    }
    whole = processes.sees_whole_machine()
    found = {
        when: watch.others(
            [look for look in of if look is not None], when == "during" and spec.accelerator == "cuda", whole
        )
        for when, of in looks.items()
    }
    seen_when = [when for when, others in found.items() if others]
    limits = [look.power_limit_w for look in (*inside, before.looks.get(device)) if look and look.power_limit_w]
    return {
        "power_limit_w": limits[0] if limits else None,
        "other_processes": seen_when if seen_when or None not in found.values() else None,
    }


def _within(at_s: float, span: Mapping[str, float]) -> bool:
    """Whether a look belongs to the window: it is in it, or no further away than the next look."""
    return span["begin_s"] - watch.LOOK_PERIOD_S <= at_s <= span["end_s"]


def _nearest(states: Sequence[tuple[float, dict[str, Any]]], at_s: float) -> float | None:
    nearest = min(states, key=lambda entry: abs(entry[0] - at_s), default=None)
    return None if nearest is None else nearest[1]["temperature_c"]


Flag = tuple[str, str] | None


def _short(row: Mapping[str, Any], total_s: float) -> Flag:
    """A headline wants 100 updates of the counter, and on a GPU 30 s."""
    needed_s = max(HEADLINE_TICKS * (row["tick_s"] or 0.0), meters.kind(row["kind"]).headline_s)
    if row["energy_j"] is None or total_s >= needed_s or meters.kind(row["kind"]).contains:
        return None
    return (
        "short_window",
        f"{row['device']}: window of {total_s:.3g} s; a headline needs measure.min_seconds of {needed_s:.3g}",
    )


def _disagrees(row: Mapping[str, Any]) -> Flag:
    if verdict.POWER not in (row["doubt"] or ""):
        return None
    return "power_disagrees", f"{row['device']}: mean power × time is {row['power_ratio']:.3g} × the counter's joules"


def _throttled(state: Mapping[str, Any]) -> Flag:
    if not state["throttle_reasons"]:
        return None
    return "throttled", f"{state['device']}: clocks held down by {', '.join(state['throttle_reasons'])}"


def _skipped(measurement: Mapping[str, Any]) -> Flag:
    skipped, steps = measurement["num_skipped_steps"], measurement["num_steps"]
    return ("skipped_steps", f"loss scaling skipped {skipped} of {steps} steps") if skipped > SKIPPED * steps else None


def _others(states: Sequence[Mapping[str, Any]]) -> Flag:
    by_time = {
        when: [state["device"] for state in states if when in (state["other_processes"] or ())]
        for when in ("before", "during", "after")
    }
    told = [f"{', '.join(devices)} {when}" for when, devices in by_time.items() if devices]
    text = f"other processes computed on {' and '.join(told)} the run: its joules hold their share too"
    return ("other_processes", text) if told else None


def _contended(causes: Sequence[str], with_others_j: bool) -> Flag:
    if not causes:
        return None
    return "contended", "; ".join([*causes, *(["CPU and DRAM joules hold the others' share"] if with_others_j else [])])


def _stopped(seen: Watch, silent: Mapping[str, str], trace: Trace, span: Mapping[str, float]) -> Flag:
    if seen.stopped is None:
        return None
    last_s = trace.times_s[-1] if trace.times_s else span["begin_s"]
    names = f" ({', '.join(silent)})" if silent else ""
    return (
        "trace_stopped",
        f"{seen.stopped}{names}; the last reading is of {last_s - span['begin_s']:.3g} s of the window",
    )
