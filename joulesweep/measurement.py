"""From what the ranks and the trace saw to a run's measurement: joules per pass with their status, and the flags.

Sums over ranks, one row per device, each judged by itself: a counter that moved too few times in the window has no
number (`below_resolution`), a board without counter has its power readings integrated (`integrated`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from joulesweep.devices import Board
from joulesweep.meter import NO_COUNTER
from joulesweep.trace import Trace
from joulesweep.units import COUNTED

MIN_TICKS = 10  # fewer updates of the counter in the window: no number
INTEGRATED = "NVML power readings, integrated"


def combine(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run's outcome from its ranks': energy, CPU time and counts are sums, the window the longest.

    Args:
        ranks: the ranks' results in order; all ok.

    Returns:
        measurement (per pass: window_s, cpu_s, phases, of the training ones the counts of COUNTED, num_steps and
        num_skipped_steps, samples_per_s, tokens_per_s (real tokens, read and written), padded_tokens_per_s,
        epochs_per_minute; of the whole window: num_passes, total_window_s, energy rows with total_energy_j; startup_s
        and peak_memory: host the sum over the processes, GPU the fullest), quality (the last epoch's), epochs, losses,
        summaries, and span: the begin and end of window and idle baseline on the monotonic clock, with the time inside
        meter calls.
    """
    parts = [rank["measurement"] for rank in ranks]
    epochs = _epochs(ranks)
    num_passes = parts[0]["num_passes"]
    total_window_s = max(part["total_window_s"] for part in parts)
    window_s = total_window_s / num_passes
    phases = [_phase(of_ranks) for of_ranks in zip(*(part["phases"] for part in parts), strict=True)]
    counts = {name: sum(part[name] for part in parts) for name in COUNTED}
    return {
        "status": "ok",
        "measurement": {
            "window_s": window_s,
            "num_passes": num_passes,
            "total_window_s": total_window_s,
            "startup_s": max(part["startup_s"] for part in parts),
            "cpu_s": sum(part["cpu_s"] for part in parts),
            "energy": [row for part in parts for row in part["energy"]],
            "peak_memory": _peak_memory([part["peak_memory"] for part in parts]),
            "num_steps": parts[0]["num_steps"],
            "num_skipped_steps": parts[0]["num_skipped_steps"],
            **counts,
            "phases": phases,
            "samples_per_s": counts["num_texts"] / window_s,
            "tokens_per_s": (counts["num_tokens"] + counts["num_target_tokens"]) / window_s,
            "padded_tokens_per_s": (counts["num_padded_tokens"] + counts["num_padded_target_tokens"]) / window_s,
            "epochs_per_minute": 60 * counts["num_texts"] / ranks[0]["num_train_texts"] / window_s,
        },
        "span": {
            "begin_s": min(part["span"]["begin_s"] for part in parts),
            "end_s": max(part["span"]["end_s"] for part in parts),
            "idle_begin_s": max(part["span"]["idle_begin_s"] for part in parts),
            "idle_end_s": min(part["span"]["idle_end_s"] for part in parts),
            "meter_s": max(part["span"]["meter_s"] for part in parts),
        },
        "quality": {name: epochs[-1][name] for name in QUALITY},
        "epochs": [{key: value for key, value in row.items() if key in EPOCH} for row in epochs],
        "losses": ranks[0]["losses"],
        "summaries": sorted((row for rank in ranks for row in rank["summaries"]), key=lambda row: int(row["text"])),
    }


def _phase(of_ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A phase of all ranks: their counts summed, the rest the first one's."""
    return {**of_ranks[0], **{name: sum(phase[name] for phase in of_ranks) for name in COUNTED}}


QUALITY = ("validation_loss", "perplexity", "masked_accuracy", "choice_accuracy", "num_validation_texts", "num_masked")
EPOCH = ("epoch", "elapsed_s", "cpu_s", "num_steps", "train_loss", *QUALITY[:4])


def _epochs(ranks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank 0's epochs, with CPU seconds of all ranks and the slowest rank's clock."""
    return [
        {**rows[0], "cpu_s": sum(row["cpu_s"] for row in rows), "elapsed_s": max(row["elapsed_s"] for row in rows)}
        for rows in zip(*(rank["epochs"] for rank in ranks), strict=True)
    ]


def _peak_memory(parts: Sequence[dict[str, int | None]]) -> dict[str, int | None]:
    def fullest(key: str) -> int | None:
        values = [part[key] for part in parts if part[key] is not None]
        return max(values) if values else None  # type: ignore[type-var]

    return {
        "host_rss_bytes": sum(part["host_rss_bytes"] or 0 for part in parts),
        "gpu_allocated_bytes": fullest("gpu_allocated_bytes"),
        "gpu_reserved_bytes": fullest("gpu_reserved_bytes"),
    }


def judge(outcome: dict[str, Any], trace: Trace, boards: Sequence[Board], ticks: Mapping[str, float | None]) -> None:
    """Give the outcome's energy rows their final numbers and statuses, in place, and each epoch rows of its own.

    Args:
        outcome: of `combine`; its energy rows have total_energy_j of the whole window.
        trace: the readings of the run.
        boards: the run's.
        ticks: update period of each device's counter, in seconds.
    """
    measurement, span = outcome["measurement"], outcome["span"]
    without_counter = {board.device for board in boards if not board.has_counter and not board.mig}
    for row in measurement["energy"]:
        if row["device"] in without_counter:
            _integrate(row, trace, span)
        if row["device"] in trace.zones and row["status"] == "measured":
            _unwrap(row, trace, span)
        _add_numbers(row, measurement, trace, span, ticks.get(row["device"]))
    read = [row["device"] for row in measurement["energy"] if row["energy_j"] is not None]
    for epoch in outcome["epochs"]:
        epoch["energy"] = [_epoch_row(epoch, trace, span, device, ticks.get(device)) for device in read]


def _unwrap(row: dict[str, Any], trace: Trace, span: dict[str, float]) -> None:
    """Add the ranges of a RAPL counter that Zeus missed: it looks once a second whether the counter began again."""
    traced_j = trace.energy_between(row["device"], span["begin_s"], span["end_s"])
    if traced_j is not None:
        range_j = trace.zones[row["device"]].range_j
        missed = round((traced_j - row["total_energy_j"]) / range_j)
        if missed:
            row["total_energy_j"] += missed * range_j
            row["method"] += f", {missed:+d} range of {range_j:g} J that it missed"


def _integrate(row: dict[str, Any], trace: Trace, span: dict[str, float]) -> None:
    """The joules of a board without counter: its power readings over the window."""
    power_w = trace.mean_power_w(row["device"], span["begin_s"], span["end_s"])
    if not power_w:
        row["reason"] = f"{NO_COUNTER}, and its power could not be read"
    else:
        total_j = power_w * (span["end_s"] - span["begin_s"])
        row.update(total_energy_j=total_j, status="integrated", method=INTEGRATED, reason=None)


def _add_numbers(
    row: dict[str, Any], measurement: dict[str, Any], trace: Trace, span: dict[str, float], tick_s: float | None
) -> None:
    """Joules per pass, net of idle, tick and cross-check of one device; no joules where its counter is too slow."""
    device, total_j, total_s = row["device"], row["total_energy_j"], measurement["total_window_s"]
    slow = _too_slow(total_j, total_s, tick_s) if row["status"] == "measured" else None
    if slow is not None:
        row.update(status="below_resolution", reason=slow, total_energy_j=None)
        total_j = None
    energy_j = None if total_j is None else total_j / measurement["num_passes"]
    idle_w = _idle_w(trace, device, span, tick_s)
    power_w = _power_w(trace, device, span["begin_s"], span["end_s"])
    checked = power_w is not None and total_j is not None and row["status"] == "measured"
    row.update(
        energy_j=energy_j,
        tick_s=tick_s,
        idle_w=idle_w,
        net_energy_j=None if idle_w is None or energy_j is None else energy_j - idle_w * measurement["window_s"],
        mean_power_w=power_w,
        power_ratio=power_w * total_s / total_j if checked else None,
    )


def _too_slow(total_j: float, total_s: float, tick_s: float | None) -> str | None:
    """Why a counter's reading is no measurement of this window; None if it is one."""
    if tick_s is not None and total_s < MIN_TICKS * tick_s:
        return f"the window of {total_s:.3g} s is shorter than {MIN_TICKS} updates of the counter ({tick_s:.3g} s each)"
    return "the counter did not advance in the window" if total_j <= 0 else None


def _idle_w(trace: Trace, device: str, span: dict[str, float], tick_s: float | None) -> float | None:
    """Mean power of the idle baseline: by the counter where it is fast enough, else by the power readings."""
    begin_s, end_s = span["idle_begin_s"], span["idle_end_s"]
    if end_s <= begin_s:
        return None
    energy_j = trace.energy_between(device, begin_s, end_s)
    if energy_j and end_s - begin_s >= MIN_TICKS * (tick_s or 0.0):
        return energy_j / (end_s - begin_s)
    return trace.mean_power_w(device, begin_s, end_s)


def _power_w(trace: Trace, device: str, begin_s: float, end_s: float) -> float | None:
    """Mean power in a span: of a board by its power readings, of a RAPL zone by its counter."""
    if device in trace.zones:
        energy_j = trace.energy_between(device, begin_s, end_s)
        return None if energy_j is None else energy_j / (end_s - begin_s)
    return trace.mean_power_w(device, begin_s, end_s)


def _epoch_row(
    epoch: dict[str, Any], trace: Trace, span: dict[str, float], device: str, tick_s: float | None
) -> dict[str, Any]:
    """One device's joules since the window began, from the trace: {device, energy_j, status, reason}."""
    elapsed_s = epoch["elapsed_s"]
    if not epoch["epoch"]:
        return _no_joules(device, "unavailable", "nothing trained yet")
    if elapsed_s < MIN_TICKS * (tick_s or 0.0):
        slow = f"shorter than {MIN_TICKS} updates of the counter ({tick_s:.3g} s each)"
        return _no_joules(device, "below_resolution", slow)
    energy_j = _joules_between(trace, device, span["begin_s"], span["begin_s"] + elapsed_s)
    if energy_j is None:
        return _no_joules(device, "unavailable", "the trace has no reading on both sides")
    if energy_j <= 0:
        return _no_joules(device, "below_resolution", "the counter did not advance by then")
    return {"device": device, "energy_j": energy_j, "status": "integrated", "reason": None}


def _joules_between(trace: Trace, device: str, begin_s: float, end_s: float) -> float | None:
    energy_j = trace.energy_between(device, begin_s, end_s)
    if energy_j is not None:
        return energy_j
    power_w = trace.mean_power_w(device, begin_s, end_s)
    return None if power_w is None else power_w * (end_s - begin_s)


def _no_joules(device: str, status: str, reason: str) -> dict[str, Any]:
    return {"device": device, "energy_j": None, "status": status, "reason": reason}
