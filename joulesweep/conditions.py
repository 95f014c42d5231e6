"""The conditions of a measurement: what was looked at before, during and after it, and the flags that follow.

A flag does not make a number invalid; it says what a reader should know before comparing it.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulesweep import measurement, sensors, verdict
from joulesweep.devices import Board
from joulesweep.lease import Lease
from joulesweep.spec import RunSpec
from joulesweep.trace import Trace

HEADLINE_TICKS = 100  # fewer updates of the counter in the window, or less than HEADLINE_S on a GPU: flagged
HEADLINE_S = 30.0
SKIPPED = 0.01  # of the steps; a loss scale that is too high at first takes a few to come down
PROCESS_END_S = 2.0  # a driver takes a moment to forget processes that ended


@dataclass(frozen=True, kw_only=True)
class Before:
    """What was found before the run's processes started.

    Attributes:
        ticks: update period of each device's counter in seconds, None where unknown.
        cooldown_s: seconds waited for the boards to settle, or None where there was nothing to wait for.
        settled: whether they did, or None.
        strangers: device names that other processes computed on.
    """

    ticks: dict[str, float | None]
    cooldown_s: float | None
    settled: bool | None
    strangers: list[str]


def prepare(
    spec: RunSpec, boards: Sequence[Board], zones: Sequence[sensors.Zone], wanted: Callable[[], None]
) -> Before:
    """Measure the counters' ticks (once per host), let the boards cool down, look for other processes."""
    readers = [sensors.BoardSensor(board) for board in boards]
    ticks = {
        reader.board.device: sensors.known_tick(reader.board.uuid, reader.energy_j)
        for reader in readers
        if reader.board.counts
    }
    ticks |= {zone.device: sensors.known_tick(zone.device, zone.energy_j) for zone in zones}
    waited_s, settled = (
        sensors.settle(readers, spec.cooldown_s, wanted) if readers and spec.cooldown_s else (None, None)
    )
    return Before(ticks=ticks, cooldown_s=waited_s, settled=settled, strangers=_strangers(readers))


def _strangers(readers: Sequence[sensors.BoardSensor]) -> list[str]:
    return [reader.board.device for reader in readers if reader.process_ids()]


def strangers_after(boards: Sequence[Board]) -> list[str]:
    """Devices that still compute after the run's own processes ended: others' work."""
    readers, deadline_s = [sensors.BoardSensor(board) for board in boards], time.monotonic() + PROCESS_END_S
    found = _strangers(readers)
    while found and time.monotonic() < deadline_s:
        time.sleep(0.1)
        found = _strangers(readers)
    return found


def describe(
    outcome: Mapping[str, Any], spec: RunSpec, before: Before, trace: Trace, lease: Lease
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The conditions and the flags of a measurement that `measurement.judge` has finished.

    Returns:
        {boards, cooldown_s, settled, idle_s, exclusive, window_begin, window_end}, and rows {flag, text}.
    """
    span, after = outcome["span"], strangers_after(lease.boards)
    states = [_state(board, trace, span) for board in lease.boards]
    energy = outcome["measurement"]["energy"]
    host_j = any(row["kind"] != "gpu" and row["energy_j"] is not None for row in energy)
    conditions = {
        "boards": states,
        "cooldown_s": before.cooldown_s,
        "settled": before.settled,
        "idle_s": max(0.0, span["idle_end_s"] - span["idle_begin_s"]),
        "exclusive": lease.exclusive,
        "window_begin": _utc(span["begin_s"]),
        "window_end": _utc(span["end_s"]),
    }
    found = [
        *(_short(row, outcome["measurement"]["total_window_s"]) for row in energy),
        *(_disagrees(row) for row in energy),
        *measurement.flags(outcome),
        *(_throttled(state) for state in states),
        ("other_processes", _others(before.strangers, after)) if before.strangers or after else None,
        ("shared_host", "other runs used the machine at the same time; CPU and DRAM joules hold their share too")
        if lease.shared_host() and host_j
        else None,
        ("not_settled", f"temperature or power still moved after the cool-down of {spec.cooldown_s:g} s")
        if before.settled is False
        else None,
        _skipped(outcome["measurement"]),
        ("one_device", f"{spec.strategy} on one device: what this shows is the overhead of its wrapper")
        if spec.strategy != "single" and spec.devices == 1
        else None,
    ]
    return conditions, [{"flag": flag, "text": text} for flag, text in filter(None, found)]


def _utc(at_s: float) -> str:
    """A time of the monotonic clock as UTC, to the millisecond."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=time.monotonic() - at_s)
    return moment.isoformat(timespec="milliseconds")


def _state(board: Board, trace: Trace, span: Mapping[str, float]) -> dict[str, Any]:
    """One board's temperatures at the edges of the window, its clocks and what held them down in it."""
    of_board = [(at_s, state) for at_s, device, state in trace.states if device == board.device]
    inside = [state for at_s, state in of_board if span["begin_s"] <= at_s <= span["end_s"]]
    clocks = [state["sm_clock_mhz"] for state in inside if state["sm_clock_mhz"] is not None]
    return {
        "device": board.device,
        "uuid": board.uuid,
        "temperature_start_c": _nearest(of_board, span["begin_s"]),
        "temperature_end_c": _nearest(of_board, span["end_s"]),
        "sm_clock_mean_mhz": statistics.fmean(clocks) if clocks else None,
        "sm_clock_min_mhz": min(clocks, default=None),
        "power_limit_w": sensors.BoardSensor(board).power_limit_w(),
        "throttle_reasons": sorted({reason for state in inside for reason in state["throttles"] or ()}),
    }


def _nearest(states: Sequence[tuple[float, dict[str, Any]]], at_s: float) -> float | None:
    nearest = min(states, key=lambda entry: abs(entry[0] - at_s), default=None)
    return None if nearest is None else nearest[1]["temperature_c"]


Flag = tuple[str, str] | None


def _short(row: Mapping[str, Any], total_s: float) -> Flag:
    """A headline wants max(30 s, 100 updates of the counter) on a GPU, 100 updates of a CPU's."""
    needed_s = max(HEADLINE_TICKS * (row["tick_s"] or 0.0), HEADLINE_S if row["kind"] == "gpu" else 0.0)
    if row["energy_j"] is None or total_s >= needed_s:
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


def _others(before: Sequence[str], after: Sequence[str]) -> str:
    when = [f"{', '.join(devices)} {word}" for devices, word in ((before, "before"), (after, "after")) if devices]
    return f"other processes computed on {' and '.join(when)} the run: its joules hold their share too"
