"""Check the conditions of a measurement before, during and after it, and derive its flags.

A flag does not invalidate a number; it tells what to know before comparing it.
"""

from __future__ import annotations

import datetime
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from joulesweep.core import bounded, processes
from joulesweep.core.outcome import (
    BoardConditions,
    Conditions,
    DeviceEnergy,
    Flag,
    Overhead,
    Preempted,
    RankResult,
    Span,
    WholeRunEnergy,
)
from joulesweep.core.spec import RunSpec
from joulesweep.measure import contention, measurement, meters, sensors, settling, verdict, watch
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import BoardState, Trace
from joulesweep.measure.watch import BoardLook, Watch

HEADLINE_TICKS = 100  # fewer updates of the counter in the window: flagged
SKIPPED = 0.01  # of the steps; a loss scale that is too high at first takes a few to come down
PROCESS_END_S = 2.0  # a driver takes a moment to forget processes that ended


@dataclass(frozen=True, kw_only=True)
class Before:
    """The state of the machine before the run's processes started.

    Attributes:
        ticks: update period of each device's counter in seconds, None where unknown.
        cooldown_s: seconds waited for the boards to settle, or None if there was nothing to wait for.
        settled: whether they settled; None if unknown.
        rests: how the wait for each board ended, by device.
        looks: processes on each board, and its power limit, by device.
        silent: why devices did not answer, by device; they are not read.
    """

    ticks: dict[str, float | None]
    cooldown_s: float | None = None
    settled: bool | None = None
    rests: dict[str, settling.Rest] = field(default_factory=dict)
    looks: dict[str, BoardLook] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The part of the machine that a run held.

    Attributes:
        boards: the leased boards.
        exclusive: what it held alone: "gpu" its boards, "node" the machine, "none" only its boards.
        shared_host: whether other runs used the machine meanwhile.
        one_device: whether a strategy for several devices ran on one.
    """

    boards: Sequence[Board]
    exclusive: str
    shared_host: bool
    one_device: bool


def prepare(
    spec: RunSpec, boards: Sequence[Board], others: Sequence[meters.Sensor], ensure_parent_alive: Callable[[], None]
) -> Before:
    """Measure the counters' ticks (once per host), let the boards cool down, and look for other processes."""
    names = [*(board.device for board in boards), *(sensor.device for sensor in others)]
    askers = {device: bounded.Asker() for device in names}
    readers = [reader for board in boards if (reader := askers[board.device].ask(meters.sensor, board))]
    counters = [(reader.board.device, reader.board.uuid, reader.energy_j) for reader in readers if reader.board.counts]
    counters += [(sensor.device, sensor.device, sensor.energy_j) for sensor in others if sensor.traits.method is None]
    ticks = {}
    for device, name, read in counters:
        ensure_parent_alive()
        ticks[device] = askers[device].ask(sensors.cached_tick, name, read, more_s=sensors.TICK_LIMIT_S)
    readers = [reader for reader in readers if askers[reader.board.device].silent is None]
    rest = settling.settle(readers, spec.cooldown_s, ensure_parent_alive) if readers and spec.cooldown_s else None
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
    """Look at boards after the run's processes ended, by device; also returns why boards do not answer."""
    askers = {board.device: bounded.Asker() for board in boards}
    readers = [reader for board in boards if (reader := askers[board.device].ask(meters.sensor, board))]
    looks, deadline_s = _look(readers, askers), time.monotonic() + PROCESS_END_S
    while any(look.others for look in looks.values()) and time.monotonic() < deadline_s:
        time.sleep(0.1)
        looks = _look(readers, askers)
    return looks, {device: asker.silent for device, asker in askers.items() if asker.silent is not None}


def _look(readers: Sequence[meters.BoardSensor], askers: Mapping[str, bounded.Asker]) -> dict[str, BoardLook]:
    looks = {reader.board.device: askers[reader.board.device].ask(watch.look_at, reader) for reader in readers}
    return {device: look for device, look in looks.items() if look is not None}


def describe(
    result: RankResult | Preempted,
    energy: Sequence[DeviceEnergy],
    spec: RunSpec,
    before: Before,
    trace: Trace,
    hold: Hold,
    seen: Watch,
) -> tuple[Conditions, list[Flag]]:
    """The conditions and the flags of a measurement.

    Args:
        result: of all ranks.
        energy: the final joules of each device.
        spec: the run's.
        before: the state before its processes started.
        trace: the readings of the run.
        hold: the part of the machine that the run holds.
        seen: the watch of the run.
    """
    span = result.span
    after, silent = look_after([board for board in hold.boards if board.device not in before.silent])
    boards = [_state(board, trace, spec, span, before, after, seen) for board in hold.boards]
    host_j = any(meters.kind(row.kind).of_host and row.energy_j is not None for row in energy)
    cpu_s, num_threads = result.cpu_s * result.num_passes, spec.threads_per_device * spec.node_devices
    cpu = contention.describe(seen.looks.cpu, span, cpu_s, num_threads)
    conditions = Conditions(
        **vars(cpu),
        boards=boards,
        cooldown_s=before.cooldown_s,
        settled=before.settled,
        settled_by=" and ".join(sorted({rest.settled_by for rest in before.rests.values() if rest.settled_by})) or None,
        idle_s=max(0.0, span.idle_end_s - span.idle_begin_s),
        exclusive=hold.exclusive,
        window_begin=_utc(span.begin_s),
        window_end=_utc(span.end_s),
    )
    some = [
        *(short(row, result.total_window_s) for row in energy),
        *(_disagrees(row) for row in energy),
        *measurement.flags(result, energy),
        *(_throttled(board) for board in boards),
        _others(boards),
        _shared(hold, host_j),
        _contended(
            contention.causes(cpu, span.window_s, cpu_s, spec.accelerator == "cpu"),
            host_j and bool(cpu.foreign_cpu_s),
        ),
        _not_settled(spec, before),
        *(
            Flag(flag="trace_stopped", text=f"{device}: {reason} before the run: it was not read")
            for device, reason in before.silent.items()
        ),
        _stopped(seen, silent, trace, span),
        _skipped(result),
        _one_device(spec, hold),
    ]
    return conditions, [flag for flag in some if flag is not None]


def overhead(span: Span, trace: Trace) -> Overhead:
    """The cost of measuring, and the run's joules from the trace's first to its last reading."""
    return Overhead(
        meter_s=span.meter_s,
        weights_s=span.weights_s,
        **trace.cost(span.begin_s, span.end_s),
        whole_run_s=trace.times_s[-1] - trace.times_s[0] if trace.times_s else None,
        whole_run_energy=whole_run(trace),
    )


def whole_run(trace: Trace) -> list[WholeRunEnergy]:
    """Joules from the trace's first to its last reading: start-up, idling, window and scoring."""
    begin_s, end_s = (trace.times_s[0], trace.times_s[-1]) if trace.times_s else (0.0, 0.0)
    rows = []
    for device, series in trace.series.items():
        energy_j = _gained_j(series.energy_j)
        if energy_j is None:
            power_w = trace.mean_power_w(device, begin_s, end_s)
            energy_j = None if power_w is None else power_w * (end_s - begin_s)
        reason = "neither its counter nor its power was read from begin to end" if energy_j is None else None
        rows.append(WholeRunEnergy(device=device, energy_j=energy_j, reason=reason))
    return rows


def _gained_j(counter: Sequence[float | None]) -> float | None:
    """The rise of a counter from its first to its last reading; None if one is missing or the counter fell."""
    if len(counter) < 2 or counter[0] is None or counter[-1] is None:
        return None
    known = [value for value in counter if value is not None]
    fell = any(later < earlier for earlier, later in itertools.pairwise(known))
    return None if fell else counter[-1] - counter[0]


def _utc(at_s: float) -> str:
    """A time of the monotonic clock as UTC, to the millisecond."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=time.monotonic() - at_s)
    return moment.isoformat(timespec="milliseconds")


def _state(
    board: Board,
    trace: Trace,
    spec: RunSpec,
    span: Span,
    before: Before,
    after: Mapping[str, BoardLook],
    seen: Watch,
) -> BoardConditions:
    """One board's conditions: temperatures, clocks, power limit, throttling and other processes.

    Args:
        board: the board.
        trace: the readings of the run.
        spec: the run's.
        span: its window.
        before: the state before the run.
        after: the look at each board after it.
        seen: the watch of the run.
    """
    of_board = [(at_s, state) for at_s, device, state in trace.states if device == board.device]
    inside = [state for at_s, state in of_board if span.begin_s <= at_s <= span.end_s]
    clocks = [state.sm_clock_mhz for state in inside if state.sm_clock_mhz is not None]
    rest, early = before.rests.get(board.device), before.looks.get(board.device)
    during = [look for at_s, of, look in seen.looks.boards if of == board.device and _within(at_s, span)]
    limits = [look.power_limit_w for look in (*during, early) if look and look.power_limit_w]
    return BoardConditions(
        device=board.device,
        uuid=board.uuid,
        temperature_start_c=_nearest(of_board, span.begin_s),
        temperature_end_c=_nearest(of_board, span.end_s),
        sm_clock_mean_mhz=statistics.fmean(clocks) if clocks else None,
        sm_clock_min_mhz=min(clocks, default=None),
        throttle_reasons=_reasons([state.throttles for state in inside]),
        settled_by=rest.settled_by if rest else None,
        slope_c_per_min=rest.slope_c_per_min if rest else None,
        anchor_c=rest.anchor_c if rest else None,
        power_limit_w=limits[0] if limits else None,
        other_processes=_company({"before": [early], "during": during, "after": [after.get(board.device)]}, spec),
    )


def _reasons(looks: Sequence[Sequence[str] | None]) -> list[str] | None:
    """All observed throttle reasons; None if the board did not always report them, or was not read."""
    if not looks or None in looks:
        return None
    return sorted({reason for reasons in looks for reason in reasons or ()})


def _company(looks: Mapping[str, Sequence[BoardLook | None]], spec: RunSpec) -> list[str] | None:
    """When other processes computed on a board; None if unknown for any of the times."""
    whole = processes.sees_whole_machine()
    by_time = {
        when: watch.others(
            [look for look in of if look is not None], when == "during" and spec.accelerator == "cuda", whole
        )
        for when, of in looks.items()
    }
    seen_when = [when for when, others in by_time.items() if others]
    return seen_when if seen_when or None not in by_time.values() else None


def _within(at_s: float, span: Span) -> bool:
    """Whether a look belongs to the window: it is inside, or at most one look period before it."""
    return span.begin_s - watch.LOOK_PERIOD_S <= at_s <= span.end_s


def _nearest(states: Sequence[tuple[float, BoardState]], at_s: float) -> float | None:
    nearest = min(states, key=lambda entry: abs(entry[0] - at_s), default=None)
    return None if nearest is None else nearest[1].temperature_c


def short(row: DeviceEnergy, total_s: float) -> Flag | None:
    """Flag a window that is too short for a headline: 100 updates of the counter, and 30 s on a GPU."""
    kind = meters.kind(row.kind)
    needed_s = max(HEADLINE_TICKS * (row.tick_s or 0.0), kind.headline_s)
    if row.energy_j is None or total_s >= needed_s or kind.contains:
        return None
    text = f"{row.device}: window of {total_s:.3g} s; a headline needs measure.min_seconds of {needed_s:.3g}"
    return Flag(flag="short_window", text=text)


def _disagrees(row: DeviceEnergy) -> Flag | None:
    if verdict.POWER not in (row.doubt or ""):
        return None
    text = f"{row.device}: mean power × time is {row.power_ratio:.3g} × the counter's joules"
    return Flag(flag="power_disagrees", text=text)


def _throttled(board: BoardConditions) -> Flag | None:
    if not board.throttle_reasons:
        return None
    return Flag(flag="throttled", text=f"{board.device}: clocks held down by {', '.join(board.throttle_reasons)}")


def _skipped(result: RankResult | Preempted) -> Flag | None:
    skipped, steps = result.num_skipped_steps, result.num_steps
    if skipped <= SKIPPED * steps:
        return None
    return Flag(flag="skipped_steps", text=f"loss scaling skipped {skipped} of {steps} steps")


def _others(boards: Sequence[BoardConditions]) -> Flag | None:
    by_time = {
        when: [board.device for board in boards if when in (board.other_processes or ())]
        for when in ("before", "during", "after")
    }
    phrases = [f"{', '.join(devices)} {when}" for when, devices in by_time.items() if devices]
    text = f"other processes computed on {' and '.join(phrases)} the run: its joules hold their share too"
    return Flag(flag="other_processes", text=text) if phrases else None


def _shared(hold: Hold, host_j: bool) -> Flag | None:
    if not (hold.shared_host and host_j):
        return None
    text = "other runs used the machine at the same time; CPU and DRAM joules hold their share too"
    return Flag(flag="shared_host", text=text)


def _contended(causes: Sequence[str], with_others_j: bool) -> Flag | None:
    if not causes:
        return None
    more = ["CPU and DRAM joules hold the others' share"] if with_others_j else []
    return Flag(flag="contended", text="; ".join([*causes, *more]))


def _not_settled(spec: RunSpec, before: Before) -> Flag | None:
    if before.settled is not False:
        return None
    text = f"temperature or power still moved after the cool-down of {spec.cooldown_s:g} s"
    return Flag(flag="not_settled", text=text)


def _one_device(spec: RunSpec, hold: Hold) -> Flag | None:
    if not hold.one_device:
        return None
    text = f"{spec.strategy} on one device: what this shows is the overhead of its wrapper"
    return Flag(flag="one_device", text=text)


def _stopped(seen: Watch, silent: Mapping[str, str], trace: Trace, span: Span) -> Flag | None:
    if seen.stopped is None:
        return None
    last_s = trace.times_s[-1] if trace.times_s else span.begin_s
    names = f" ({', '.join(silent)})" if silent else ""
    text = f"{seen.stopped}{names}; the last reading is of {last_s - span.begin_s:.3g} s of the window"
    return Flag(flag="trace_stopped", text=text)
