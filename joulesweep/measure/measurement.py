"""From what the ranks and the trace saw to a run's measurement: joules per pass with their status, and the flags.

Sums over ranks, one row per device, each judged by itself: a counter that moved too few times in the window has no
number (`below_resolution`); a board without a counter, or with one that failed or was reset, has its power readings
integrated (`integrated`). Each number comes with the bound of its error, and, where something contradicts it, with a
doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from joulesweep.core.work import COUNTED
from joulesweep.measure import verdict
from joulesweep.measure.devices import Board
from joulesweep.measure.trace import Trace

CLOCK_STEP_S, CLOCK_STEP = 0.1, 0.005  # wall and monotonic clock may differ by less: seconds, or a share of the window


def combine(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run's outcome from its ranks': energy, CPU time and counts are sums, the window the longest.

    Args:
        ranks: the ranks' results in order; all ok.

    Returns:
        measurement (per pass: window_s, cpu_s, phases, of the training ones the counts of COUNTED, num_steps and
        num_skipped_steps, samples_per_s, tokens_per_s (real tokens, read and written), padded_tokens_per_s,
        epochs_per_minute; of the whole window: num_passes, total_window_s, energy rows with total_energy_j; startup_s,
        products (see `onednn.choose`), attention (see `assembly.attention`), num_compilations_in_window (0 unless a
        compiler met something new there) and peak_memory: host the sum over the processes, GPU the fullest), quality
        (the last epoch's), epochs, losses, summaries, and span: the begin and end of window and idle baseline on the
        monotonic clock, with the time inside meter calls, the step of the wall clock, and the seconds in the window in
        which weights were copied.
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
            "products": parts[0]["products"],
            "attention": parts[0]["attention"],
            "num_compilations_in_window": sum(part["num_compilations_in_window"] for part in parts),
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
            "clock_step_s": max((part["span"]["clock_step_s"] for part in parts), key=abs),
            "weights_s": max(part["span"]["weights_s"] for part in parts),
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
        ticks: update period of each device's counter, in seconds, as it was measured before the run.
    """
    measurement, rows = outcome["measurement"], outcome["measurement"]["energy"]
    window = verdict.Window(trace, outcome["span"], measurement["total_window_s"], measurement["num_passes"])
    whole = {board.device for board in boards if not board.mig}
    by_trace = {device for device, traits in trace.traits.items() if traits.method is not None}
    rows += [verdict.traced(device, window) for device in sorted(by_trace)]
    for row in rows:
        verdict.judge(row, window, ticks.get(row["device"]), integrable=row["device"] in whole | by_trace)
    verdict.doubt_containers(rows)
    read = [row for row in rows if row["energy_j"] is not None]
    for epoch in outcome["epochs"]:
        epoch["energy"] = [verdict.epoch_row(epoch, window, row) for row in read]


def flags(outcome: Mapping[str, Any]) -> list[tuple[str, str] | None]:
    """What counters and clocks of a judged outcome give rise to, as (flag, text)."""
    rows, step_s = outcome["measurement"]["energy"], outcome["span"]["clock_step_s"]
    total_s = outcome["measurement"]["total_window_s"]
    stepped = abs(step_s) > min(CLOCK_STEP_S, CLOCK_STEP * total_s)
    text = f"the wall clock went {step_s:+.3g} s against the monotonic one; seconds are of the monotonic one"
    unknown = [row["device"] for row in rows if verdict.TICK in (row["doubt"] or "")]
    reset = [row["device"] for row in rows if verdict.was_reset(row)]
    return [
        *(("tick_unknown", f"{device}: {verdict.TICK}, and so is the error of its joules") for device in unknown),
        *(("counter_reset", f"{device}: {verdict.RESET} in the window") for device in reset),
        ("clock_stepped", text) if stepped else None,
    ]
