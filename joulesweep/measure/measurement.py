"""Combine rank results and the power trace into one measurement: joules per pass with their status, and flags.

Sums over ranks; each device has a row, evaluated independently: a counter that moved too few times in the window has no
number (`below_resolution`); for a board without a counter, or with one that failed or was reset, the power readings are
integrated (`integrated`). Each number has a bound of its error and, if another reading contradicts it, a doubt. The
functions do not change their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from joulesweep.core.outcome import (
    ChosenPhase,
    Conditions,
    DeviceEnergy,
    EpochEnd,
    Flag,
    Measurement,
    Overhead,
    PeakMemory,
    Phase,
    PlainPhase,
    Preempted,
    RankResult,
    Span,
    Windowed,
)
from joulesweep.core.work import COUNTED
from joulesweep.measure import verdict
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import Trace

End = TypeVar("End", bound=EpochEnd)
CLOCK_STEP_S, CLOCK_STEP = 0.1, 0.005  # wall and monotonic clock may differ by less: seconds, or a share of the window


def merge_windows(ranks: Sequence[Windowed]) -> Mapping[str, Any]:
    """Merge the windows of a run's ranks, see `merge_ranks`; returns the fields of `Windowed` that change."""
    return {
        "total_window_s": max(rank.total_window_s for rank in ranks),
        "span": _span([rank.span for rank in ranks]),
        "energy": [reading for rank in ranks for reading in rank.energy],
        "cpu_s": sum(rank.cpu_s for rank in ranks),
        "startup_s": max(rank.startup_s for rank in ranks),
        "peak_memory": _peak_memory([rank.peak_memory for rank in ranks]),
        "num_compilations_in_window": sum(rank.num_compilations_in_window for rank in ranks),
    }


def merge_preempted(ranks: Sequence[Preempted]) -> Preempted:
    """Merge the results of ranks that stopped after the same step."""
    return replace(
        ranks[0],
        **merge_windows(ranks),
        epochs=[_epoch(of_ranks) for of_ranks in zip(*(rank.epochs for rank in ranks), strict=True)],
        files=[file for rank in ranks for file in rank.files],
    )


def merge_ranks(ranks: Sequence[RankResult]) -> RankResult:
    """Merge the results of a run's ranks: energy, CPU time and counts are summed, the window is the longest.

    Host memory is the sum over the processes, GPU memory the maximum; the idle baseline is when all ranks were idle.

    Args:
        ranks: the results in order of rank.
    """
    return replace(
        ranks[0],
        **merge_windows(ranks),
        phases=[_phase(of_ranks) for of_ranks in zip(*(rank.phases for rank in ranks), strict=True)],
        epochs=[_epoch(of_ranks) for of_ranks in zip(*(rank.epochs for rank in ranks), strict=True)],
        summaries=sorted((summary for rank in ranks for summary in rank.summaries), key=lambda summary: summary.text),
    )


def _span(spans: Sequence[Span]) -> Span:
    return Span(
        begin_s=min(span.begin_s for span in spans),
        end_s=max(span.end_s for span in spans),
        idle_begin_s=max(span.idle_begin_s for span in spans),
        idle_end_s=min(span.idle_end_s for span in spans),
        meter_s=max(span.meter_s for span in spans),
        clock_step_s=max((span.clock_step_s for span in spans), key=abs),
        weights_s=max(span.weights_s for span in spans),
    )


def _peak_memory(peaks: Sequence[PeakMemory]) -> PeakMemory:
    allocated = [peak.gpu_allocated_bytes for peak in peaks if peak.gpu_allocated_bytes is not None]
    reserved = [peak.gpu_reserved_bytes for peak in peaks if peak.gpu_reserved_bytes is not None]
    return PeakMemory(
        host_rss_bytes=sum(peak.host_rss_bytes or 0 for peak in peaks),
        gpu_allocated_bytes=max(allocated, default=None),
        gpu_reserved_bytes=max(reserved, default=None),
    )


def _phase(of_ranks: Sequence[PlainPhase | ChosenPhase]) -> PlainPhase | ChosenPhase:
    """A phase of all ranks: counts are summed, the rest is rank 0's."""
    return replace(of_ranks[0], **_counts(of_ranks))  # type: ignore[arg-type]


def _counts(phases: Sequence[Phase]) -> dict[str, int]:
    return {name: sum(getattr(phase, name) for phase in phases) for name in COUNTED}


def _epoch(of_ranks: Sequence[End]) -> End:
    """Rank 0's epoch, with CPU seconds of all ranks and the slowest rank's clock."""
    cpu_s, elapsed_s = sum(epoch.cpu_s for epoch in of_ranks), max(epoch.elapsed_s for epoch in of_ranks)
    return replace(of_ranks[0], cpu_s=cpu_s, elapsed_s=elapsed_s)


def finalise_energy(
    result: RankResult | Preempted,
    trace: Trace,
    boards: Sequence[Board],
    ticks: Mapping[str, float | None],
    earlier_s: float = 0.0,
) -> tuple[list[DeviceEnergy], list[EpochEnd]]:
    """Compute the final joules of each device, and add joules to the epochs.

    Args:
        result: of all ranks.
        trace: the readings of the run.
        boards: the run's.
        ticks: update period of each device's counter, in seconds, as it was measured before the run.
        earlier_s: seconds of the window in earlier attempts; epochs that ended then get no joules here.
    """
    window = verdict.Window(trace, result.span, result.total_window_s, result.num_passes)
    whole = {board.device for board in boards if not board.mig}
    by_trace = {device for device, traits in trace.traits.items() if traits.method is not None}
    readings = [*result.energy, *(verdict.traced(device, window) for device in sorted(by_trace))]
    energy = verdict.with_doubt_of_containers(
        [
            verdict.finalise_energy(row, window, ticks.get(row.device), integrable=row.device in whole | by_trace)
            for row in readings
        ]
    )
    read = [row for row in energy if row.energy_j is not None]
    epochs = [
        replace(epoch, energy=[verdict.epoch_energy(epoch, window, row, earlier_s) for row in read])
        if not earlier_s or epoch.elapsed_s > earlier_s
        else epoch
        for epoch in result.epochs
    ]
    return energy, epochs


def measured(
    result: RankResult,
    energy: Sequence[DeviceEnergy],
    flags: Sequence[Flag],
    conditions: Conditions,
    overhead: Overhead,
) -> Measurement:
    """Build a run's measurement, per pass.

    Args:
        result: of all ranks.
        energy: the final joules of each device.
        flags: all flags of the run.
        conditions: of the measurement.
        overhead: of the measurement.
    """
    counts, window_s = _counts(result.training), result.window_s
    return Measurement(
        **counts,  # type: ignore[arg-type] # each of these is a count
        window_s=window_s,
        num_passes=result.num_passes,
        total_window_s=result.total_window_s,
        startup_s=result.startup_s,
        cpu_s=result.cpu_s,
        energy=list(energy),
        peak_memory=result.peak_memory,
        num_steps=result.num_steps,
        num_skipped_steps=result.num_skipped_steps,
        phases=result.phases,
        products=result.products,
        attention=result.attention,
        num_compilations_in_window=result.num_compilations_in_window,
        samples_per_s=counts["num_texts"] / window_s,
        tokens_per_s=(counts["num_tokens"] + counts["num_target_tokens"]) / window_s,
        padded_tokens_per_s=(counts["num_padded_tokens"] + counts["num_padded_target_tokens"]) / window_s,
        epochs_per_minute=60 * counts["num_texts"] / result.num_train_texts / window_s,
        flags=list(flags),
        conditions=conditions,
        overhead=overhead,
        texts=result.texts,
    )


def flags(result: RankResult | Preempted, energy: Sequence[DeviceEnergy]) -> list[Flag]:
    """The flags of a run's counters and clocks.

    Args:
        result: of all ranks.
        energy: the final joules of each device.
    """
    step_s = result.span.clock_step_s
    stepped = abs(step_s) > min(CLOCK_STEP_S, CLOCK_STEP * result.total_window_s)
    text = f"the wall clock went {step_s:+.3g} s against the monotonic one; seconds are of the monotonic one"
    unknown = [row.device for row in energy if verdict.TICK in (row.doubt or "")]
    reset = [row.device for row in energy if verdict.was_reset(row)]
    return [
        *(
            Flag(flag="tick_unknown", text=f"{device}: {verdict.TICK}, and so is the error of its joules")
            for device in unknown
        ),
        *(Flag(flag="counter_reset", text=f"{device}: {verdict.RESET} in the window") for device in reset),
        *([Flag(flag="clock_stepped", text=text)] if stepped else []),
    ]
