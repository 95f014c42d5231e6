"""Collect the evidence behind a sweep's numbers: machines, meters, conditions, flags, drift, and its own cost."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import polars as pl

from joulesweep.analyse.columns import RUNS, UNREADABLE
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core import quantities
from joulesweep.measure import meters
from joulesweep.measure.certificate import HOST
from joulesweep.reference import cpu_estimate
from joulesweep.reference.footprint import Footprint
from joulesweep.report import numbers
from joulesweep.runs import record

KIND = ("energy_status", "energy_scope")
MAX_NAMED = 8  # boards in one line
MAX_REASONS = 3

#: Columns of the runs table about a machine, with their names in the report.
HARDWARE = {
    "cpu_model": "CPU",
    "cpu_cores": "hardware threads granted",
    "host_memory_bytes": "memory",
    "gpus": "GPUs metered",
    "driver": "NVIDIA driver",
    "torch_version": "torch",
    "transformers_version": "transformers",
    "zeus_version": "zeus",
    "python": "Python",
    "platform": "platform",
    "hostname": "hosts",
}

#: The meaning of each flag.
FLAGS = {
    "short_window": "The window is too short for a headline number: single steps of the counter matter in it.",
    "power_disagrees": "Mean power × time and the counter's joules are further apart than 10 % and the errors of both: "
    "they are in no ranking.",
    "tick_unknown": "How often a counter moves is unknown, and so is the error of its joules: they are in no ranking.",
    "counter_reset": "A counter was reset in the window: a board's power readings were integrated instead; a CPU has "
    "none, and no joules.",
    "clock_stepped": "The wall clock was stepped in the window, or the machine slept; seconds are monotonic.",
    "throttled": "Something limited a board's clocks.",
    "other_processes": "Other processes computed on a board of the run, before, during or after it.",
    "shared_host": "Another run used the host at the same time: CPU and DRAM joules include its share. "
    "A configuration is marked only if such joules are in its scope.",
    "contended": "Other processes used the CPU, or the run's threads waited for a core, which may have slowed it. "
    "CPU joules, if counted, include the others' share.",
    "trace_stopped": "A meter stopped answering before or in the run: its readings are missing from then on.",
    "not_settled": "Temperature or power still moved when the cool-down ended.",
    "skipped_steps": "Loss scaling skipped more than 1 % of the steps, since their gradients overflowed: nothing was "
    "learned in them. A few at the start are normal; in a short training they matter.",
    "resumed": "The run was preempted, and went on from a checkpoint: its seconds and joules are sums over its "
    "attempts. Each attempt began with a warm-up outside of the window, and perhaps with colder boards.",
    "unreadable_file": "A file beside the run's record could not be read; the next snakemake repeats the run.",
    "boards_differ": "Runs that are compared used different boards. Boards of one kind differ by about ±5 % in what "
    "their sensors say, which no interval over repeats covers; measure.pin_boards keeps a sweep on the same ones.",
    "limits_differ": "Runs that are compared had different power limits.",
    "temperatures_differ": "Boards of runs that are compared began more than 5 °C apart.",
    "new_weights": "A part of the model was not in its files and began at random, as the config allows: it learned "
    "everything in the run.",
    "nodes_differ": "The nodes of the run differ in processor, memory, kind of board or software; the slowest one sets "
    "the pace of all.",
    "one_device": "A strategy for several devices ran on one: it shows only the overhead of its wrapper.",
}


#: Meaning of the columns that relate a run to the hardware limit.
WORK = {
    "padded_flop_share": (
        "the share of the computed matrix arithmetic that was spent on padding, on attention between texts of one "
        "packed row, which the mask discards, or on predictions that no loss uses."
    ),
    "mfu": (
        "useful arithmetic (no padding, nothing computed twice) per second, of the GPUs' peak rate in that precision."
    ),
    "floor_distance": (
        "an estimate of the least time of a step, as a share of its time. The estimate is the useful arithmetic at the "
        "peak rate plus one trip of weights, gradients and optimizer state through the memory at its peak bandwidth "
        "(resources/gpus.csv); a run that does both at once, or keeps the state in a cache, can be faster than that."
    ),
}


def work(tables: Tables) -> list[str]:
    """The meaning of the shown columns of `WORK`, and why some of their numbers are missing."""
    shown = [quantity for quantity in WORK if tables.cells[f"{quantity}_mean"].count()]
    lines = [f"{RUNS[quantity].heading}: {WORK[quantity]}" for quantity in shown]
    for quantity, column in (("padded_flop_share", "flop_reason"), ("floor_distance", "floor_reason")):
        if quantity in shown:
            lines += [f"Where it is missing: {reason}." for reason in tables.runs[column].drop_nulls().unique().sort()]
    recalled = tables.runs.filter(pl.col("peak_status") == "recalled")["gpus"].unique().sort().to_list()
    if recalled and "mfu" in shown:
        lines.append(f"Peak rates of {_some(recalled)} are from memory: compare resources/gpus.csv with the datasheet.")
    return list(dict.fromkeys(lines))


def problems(runs: pl.DataFrame) -> list[Row]:
    """Runs that are not ok, grouped by configuration and status, with the memory that they asked for."""
    keys = ["name", "panel", "status"]
    groups = runs.filter(pl.col("status") != "ok").group_by(keys, maintain_order=True)
    order = {cell: i for i, cell in enumerate(runs.select("name", "panel").unique(maintain_order=True).rows())}
    return [
        {
            **dict(zip(keys, values, strict=True)),
            "repeats": ", ".join(map(str, sorted(part["repeat"]))),
            "reasons": _some(_kinds(part["reason"].drop_nulls()), "; ", MAX_REASONS),
            "asked": quantities.span(part["oom_bytes"], "B"),
        }
        for values, part in sorted(groups, key=lambda group: order[group[0][:2]])
    ]


def _kinds(reasons: Iterable[str]) -> list[str]:
    """The reasons in short, merging those that differ in bytes and boards alone."""
    kinds: dict[str, str] = {}
    for reason in map(record.brief, reasons):
        kinds.setdefault(re.sub(r"[\d.]+ ([KMGT]iB|bytes)\b|GPU \d+", "", reason), reason)
    return list(kinds.values())


def retries(runs: pl.DataFrame) -> list[tuple[int, str, str]]:
    """For every status but ok in the sweep: the number of runs, and the command that re-runs them."""
    counts = runs.filter(pl.col("status") != "ok").group_by("status", maintain_order=True).len().rows()
    rerun = {status: f"joulesweep rerun --status {status}" for status in record.STATUSES}
    return [(number, status, rerun.get(status, "snakemake --cores 2")) for status, number in counts]


def environments(runs: pl.DataFrame) -> list[Row]:
    """Every environment with its facts; different values of one fact are listed."""
    parts = runs.drop_nulls("environment").group_by("environment", maintain_order=True)
    shown: dict[str, Callable[[Any], str]] = {"host_memory_bytes": lambda value: quantities.one(value, "B")}
    return [
        {
            "id": name,
            "num_runs": part.height,
            "facts": {
                word: ", ".join(shown.get(key, str)(value) for value in part[key].drop_nulls().unique().sort())
                or "none"
                for key, word in HARDWARE.items()
            },
        }
        for (name,), part in parts
    ]


def energy(runs: pl.DataFrame) -> list[Row]:
    """How the joules of the finished runs were obtained: status, scope, method or reason, tick and boards."""
    keys = ["energy_status", "energy_scope", "energy_method", "energy_reason"]
    groups = runs.filter(pl.col("status") == "ok").group_by(keys, maintain_order=True)
    return [
        {
            **dict(zip(keys, values, strict=True)),
            "num_runs": part.height,
            "tick": quantities.span((value and 1000 * value for value in part["energy_tick_s"]), "ms"),
            "boards": _some(sorted({uuid for uuids in part["gpu_uuids"].drop_nulls() for uuid in uuids.split(", ")})),
        }
        for values, part in groups
    ]


def _some(names: list[str], between: str = ", ", most: int = MAX_NAMED) -> str:
    more = len(names) - most
    return between.join(names[:most]) + (f" and {more} more" if more > 0 else "")


def estimates(grid: Mapping[str, Any], runs: pl.DataFrame) -> Row | None:
    """How the estimated joules were obtained; None if the config asks for none."""
    if not grid["config"]["energy"]["estimate"]:
        return None
    methods = runs.drop_nulls("estimated_energy_method").group_by("estimated_energy_method", maintain_order=True)
    return {
        "methods": methods.len("num_runs").rows(),
        "source": "the config (energy.cpu_watts)" if grid["config"]["energy"]["cpu_watts"] else cpu_estimate.source(),
        "margin": f"{cpu_estimate.MARGIN:.0%}",
    }


def certificates(devices: pl.DataFrame) -> Row:
    """The certificates of the devices that runs read, merged for a host, and the devices without one, with reasons."""
    of_host = pl.col("uuid").fill_null(pl.lit(HOST)).alias("name")
    keys = ["name", *(column for column in devices.columns if column.startswith("certificate"))]
    groups = devices.with_columns(of_host).group_by(keys, maintain_order=True).agg(num_runs=pl.col("run").n_unique())
    lacking = groups.filter(pl.col("certificate").is_null())
    return {
        "certified": groups.filter(pl.col("certificate").is_not_null()).to_dicts(),
        "lacking": _some(lacking["name"].unique(maintain_order=True).to_list()),
        "reasons": _some(lacking["certificate_reason"].unique(maintain_order=True).to_list(), "; ", 1),
    }


def code(runs: pl.DataFrame) -> list[Row]:
    """The versions of the code that made the records."""
    keys = ["git_commit", "git_dirty", "code_digest", "accepted_reasons"]
    return runs.drop_nulls("code_digest").group_by(keys, maintain_order=True).len("num_runs").to_dicts()


def flags(runs: pl.DataFrame) -> list[Row]:
    """Every flag with its meaning, its number of runs, their configurations, and the text of one run."""
    entries: dict[str, Row] = {}
    for row in runs.drop_nulls("flags").iter_rows(named=True):
        for flag, text in zip(row["flags"].split(", "), row["flag_texts"].split("\n"), strict=True):
            example = f"{row['name']} r{row['repeat']}: {text}"
            first = {"flag": flag, "meaning": FLAGS.get(flag, ""), "num_runs": 0, "names": {}, "example": example}
            entry = entries.setdefault(flag, first)
            entry["num_runs"] += 1
            entry["names"][row["name"]] = None
    return [{**entry, "names": _some(list(entry["names"]))} for entry in entries.values()]


def conditions(runs: pl.DataFrame) -> dict[str, str]:
    """The conditions under which finished runs were measured: smallest and largest known values."""
    ok = runs.filter(pl.col("status") == "ok")
    facts = {
        "passes over the training in a window": _counts(ok["num_passes"].drop_nulls().to_list()),
        "length of a window": quantities.span(ok["total_window_s"], "s"),
        "temperature of the hottest board at the start": quantities.span(ok["temperature_start_c"], "°C"),
        "… at the end": quantities.span(ok["temperature_end_c"], "°C"),
        "mean SM clock": quantities.span(ok["sm_clock_mean_mhz"], "MHz"),
        "power limit": quantities.span(ok["power_limit_w"], "W"),
        "idle power, all boards of a run": quantities.span(ok["idle_w"], "W"),
        "waited for boards to settle": quantities.span(ok["cooldown_s"], "s"),
        "share of a window spent on measuring": _at_most(ok["meter_overhead_fraction"].drop_nulls().to_list()),
        "mean power × time ÷ the counter's joules": cross_check(ok),
        "largest error of joules": _largest_error(ok),
    }
    return {word: text for word, text in facts.items() if text is not None}


def _counts(values: list[int]) -> str | None:
    return " to ".join(map(str, sorted({min(values), max(values)}))) if values else None


def _largest_error(ok: pl.DataFrame) -> str | None:
    """The largest relative error of a run's joules, from counter, window and method, without the sensor's."""
    known = ok.filter(pl.col("energy_j") > 0).select(pl.col("energy_error_j") / pl.col("energy_j"))
    return _at_most(known.to_series().drop_nulls().to_list())


def _at_most(fractions: list[float]) -> str | None:
    return f"at most {quantities.digits(100 * max(fractions))} %" if fractions else None


def cross_check(ok: pl.DataFrame) -> str | None:
    """Compare mean power times time with the counters' joules."""
    ratios = ok["power_ratio"].drop_nulls().to_list()
    if not ratios:
        return None
    refuted = ok["flags"].fill_null("").str.split(", ").list.contains("power_disagrees").sum()
    return f"median {statistics.median(ratios):.3f} of {len(ratios)} runs; {refuted} refuted by it"


def sweep_energy(tables: Tables, factors: Footprint | None) -> Row | None:
    """The joules that the sweep itself used in the finished runs' windows, one line per status and scope.

    No joule is counted twice: runs hold exclusive leases on their GPUs, and CPU and memory are in scope only for runs
    with the machine to themselves. `whole` has the joules of finished runs from start-up to end.
    """
    ok = tables.runs.filter(pl.col("status") == "ok")
    known = ok.drop_nulls("total_energy_j")
    unsummed = _apart(tables.devices) + _at_the_plug(tables.devices)
    if known.is_empty() and not unsummed:
        return None
    repeated = tables.anchors.drop_nulls("anchor_total_energy_j")
    repeated = repeated.rename({f"anchor_{key}": key for key in KIND} | {"anchor_total_energy_j": "total_energy_j"})
    lines = [
        _used(math.fsum(part["total_energy_j"]), f"{status}, scope {scope}, {part.height} {what}", factors)
        for frame, what in ((known, "runs"), (repeated, "anchors"))
        for (status, scope), part in frame.group_by(KIND, maintain_order=True)
    ]
    return {"lines": lines + unsummed, "whole": _whole(tables.devices), "num_lacking": ok.height - known.height}


def _whole(devices: pl.DataFrame) -> str | None:
    """Joules from start-up to end, of the finished runs whose devices in scope were all read that long."""
    runs = (
        devices.filter("in_scope")
        .group_by("run")
        .agg(pl.col("whole_run_energy_j").sum(), pl.col("whole_run_energy_j").is_null().any().alias("lacks"))
    )
    known = runs.filter(~pl.col("lacks"))
    if known.is_empty():
        return None
    return f"{quantities.one(math.fsum(known['whole_run_energy_j']), 'J')} in {known.height} runs"


def _apart(devices: pl.DataFrame) -> list[str]:
    """Joules of boards that runs on the CPU metered: they are in no run's sum, and never added to others."""
    read = devices.filter(~pl.col("in_scope"), kind="gpu").drop_nulls("total_energy_j")
    return [
        f"{quantities.one(math.fsum(part['total_energy_j']), 'J')} ({status}, of boards that are in no run's sum: "
        f"{_some(part['device'].unique().sort().to_list())} of {part['run'].n_unique()} runs)"
        for (status,), part in read.group_by("status", maintain_order=True)
    ]


def _at_the_plug(devices: pl.DataFrame) -> list[str]:
    """Joules of whole machines in the windows of runs, which contain those of the runs' devices."""
    read = devices.filter(kind=meters.WALL.name).drop_nulls("total_energy_j")
    return [
        f"{quantities.one(math.fsum(part['total_energy_j']), 'J')} ({status}, at the plug of the machine: those of its "
        f"devices are among them, {part['run'].n_unique()} runs)"
        for (status,), part in read.group_by("status", maintain_order=True)
    ]


def _used(energy_j: float, kind: str, factors: Footprint | None) -> str:
    """Joules, with emissions and price if the config asks for them."""
    parts = [f"{quantities.one(energy_j, 'J')} ({kind})"]
    if factors is not None:
        co2e_g, cost = factors.co2e_g(energy_j), factors.cost(energy_j)
        parts += [f"{quantities.one(co2e_g, 'g')} CO2e"] if co2e_g is not None else []
        parts += [quantities.one(cost, factors.currency or "")] if cost is not None else []
    return " = ".join(parts)


def drift(anchors: pl.DataFrame) -> list[Row]:
    """By day, the ratios of repeated measurements to the first, and their means."""
    return [
        {
            "day": day,
            "num_anchors": part.height,
            "time": _ratios(part["window_ratio"]),
            "energy": _ratios(part["energy_ratio"]),
            "warnings": _warnings(part),
        }
        for (day,), part in anchors.group_by("day", maintain_order=True)
    ]


def _ratios(ratios: pl.Series) -> numbers.FormattedNumber:
    """The mean ratio, and the single ratios if there are several."""
    known = ratios.drop_nulls().to_list()
    if not known:
        return numbers.ABSENT
    return f"{statistics.fmean(known):.3f}×", ", ".join(f"{ratio:.3f}" for ratio in known) if len(known) > 1 else ""


def _warnings(part: pl.DataFrame) -> str:
    counted = {
        "another environment, not comparable": (part["same_environment"] == False).sum(),  # noqa: E712 - a column
        "another version of the code, not comparable": (part["same_code"] == False).sum(),  # noqa: E712
        "joules of another scope or status": (part["same_scope"] == False).sum(),  # noqa: E712
        "record cannot be read": (part["status"] == UNREADABLE).sum(),
        "not finished": (~part["status"].is_in(["ok", UNREADABLE])).sum(),
        "no first measurement": part["window_s"].null_count(),
    }
    return "; ".join(f"{word} ({count} of {part.height})" for word, count in counted.items() if count)
