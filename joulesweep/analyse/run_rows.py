"""From a run's record to its row of the runs table, and to its rows of the tables of epochs and selections."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from joulesweep.analyse import roofline
from joulesweep.analyse.columns import DEVICES, EPOCHS, ESTIMATED, QUALITY, RUNS, SELECTIONS, named
from joulesweep.analyse.tables import check, combined
from joulesweep.core import files
from joulesweep.core.errors import Corrupt
from joulesweep.core.spec import short_hash
from joulesweep.core.work import COUNTED, USEFUL
from joulesweep.measure import certificate, meters
from joulesweep.reference.cpu_estimate import Estimate
from joulesweep.reference.footprint import Footprint
from joulesweep.runs import record
from joulesweep.runs.headline import beside, by_epoch, estimated, headline, joined, scoped

#: What the parts of a record say in the very words of the tables.
RECORDED = named(RUNS, "status reason oom_bytes started finished code_digest")
MACHINE = named(
    RUNS,
    "hostname platform python cpu_model cpu_cores host_memory_bytes driver threads_per_process git_commit git_dirty",
)
MEASURED = (
    *named(RUNS, "window_s startup_s cpu_s num_passes total_window_s num_steps num_skipped_steps"),
    *named(RUNS, " ".join(COUNTED)),
    *named(RUNS, "samples_per_s tokens_per_s padded_tokens_per_s epochs_per_minute"),
)
SCORED = (*QUALITY, *named(RUNS, "num_validation_texts num_masked"))
CONDITIONS = named(RUNS, "cooldown_s settled idle_s exclusive window_begin window_end")
PEAKS = named(RUNS, "peak_gpu_allocated_bytes peak_gpu_reserved_bytes peak_host_rss_bytes")
BOARD = named(RUNS, "temperature_start_c temperature_end_c sm_clock_mean_mhz power_limit_w")
OF_EPOCH = (*named(EPOCHS, "epoch elapsed_s cpu_s num_steps train_loss"), *QUALITY)
OF_CHOICE = named(
    SELECTIONS,
    "epoch num_candidates trained_share importance_share gap objective rho floor predicted_cost chosen candidates",
)
OF_DEVICE = (
    *named(DEVICES, "device kind uuid status method reason energy_j total_energy_j net_energy_j idle_w tick_s"),
    *named(DEVICES, "mean_power_w power_ratio"),
)
#: The same of a device, which older records lack.
JUDGED = named(DEVICES, "error_j doubt idle_reason net_reason ratio_reason power_method")
Rows = list[dict[str, Any]]
NOT_TRACED = "the trace has no readings of it"
UNRATED = "nothing was counted of a step that trains every tensor"
UNCITED = "the run is older than certificates"
#: What a record says of a certificate, and the column that has it.
CITED = {
    "digest": "certificate",
    "made": "certificate_made",
    "holds": "certificate_holds",
    "fails": "certificate_fails",
    "not_tried": "certificate_not_tried",
    "reason": "certificate_reason",
}


def read(path: Path, energy: dict[str, Any], factors: Footprint | None) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Read a record and make its rows.

    Args:
        path: of the record.
        energy: the config's section `energy`.
        factors: what turns joules into emissions and cost.

    Returns:
        Its row of the runs table without what the manifest and the files beside the record say, and its rows of the
        tables `epochs`, `selections` and `devices`, without what is the run's.

    Raises:
        UserError: missing, or of another version; the line names the file.
        Corrupt: corrupt or foreign.
        ColumnError: what fills a row names what is no column, or names one twice.
    """
    found = record.read(path)
    try:
        row = check(_run(found, energy, factors), RUNS)
        ok = found["status"] == "ok"
        tables = {
            "epochs": _epochs(row, found, energy),
            "selections": _selections(found),
            "devices": _devices(found),
        }
        return row, {name: list(made) if ok else [] for name, made in tables.items()}
    except files.MALFORMED as error:
        raise Corrupt(path, f"corrupt run record: {type(error).__name__}: {error}") from None


def _run(found: dict[str, Any], energy: dict[str, Any], factors: Footprint | None) -> dict[str, Any]:
    accepted, accelerator = found.get("accepted", []), found["spec"]["accelerator"]
    row = combined(
        RUNS,
        {key: found[key] for key in RECORDED},
        {
            "accelerator": accelerator,
            "accepted_codes": " ".join(one["code_digest"] for one in accepted) or None,
            "accepted_reasons": joined(one["reason"] for one in accepted),
        },
        _environment(found["environment"]),
        _certificate(found["environment"], accelerator),
    )
    return combined(RUNS, row, *_measured(found, energy, factors)) if found["status"] == "ok" else row


def _measured(found: dict[str, Any], energy: dict[str, Any], factors: Footprint | None) -> Iterator[dict[str, Any]]:
    """The columns of a run that is ok, in parts."""
    measurement, accelerator = found["measurement"], found["spec"]["accelerator"]
    conditions = measurement["conditions"]
    guess = estimated(found, energy, measurement["cpu_s"], measurement["window_s"])
    joules, work = headline(measurement["energy"], accelerator, conditions["exclusive"]), roofline.columns(found)
    yield {key: measurement[key] for key in MEASURED}
    yield {key: measurement["peak_memory"][key.removeprefix("peak_")] for key in PEAKS}
    yield {key: found["quality"][key] for key in SCORED}
    yield joules
    yield beside(measurement["energy"])
    yield work
    yield {"useful_flops_per_j": _ratio(work.get("useful_flops"), joules.get("energy_j"))}
    yield {"estimated_energy_method": guess.method if guess else None, **_estimate_columns(guess)}
    yield _footprint(joules.get("energy_j"), guess, factors)
    yield _flags(measurement["flags"])
    yield _conditions(conditions)
    yield {"meter_overhead_fraction": _overhead(measurement["overhead"], measurement["total_window_s"])}


def _environment(environment: dict[str, Any]) -> dict[str, Any]:
    versions = environment["versions"]
    return {
        **{key: environment[key] for key in MACHINE},
        "gpus": joined(gpu["name"] for gpu in environment["gpus"]),
        "gpu_uuids": joined(gpu["uuid"] for gpu in environment["gpus"]),
        **{f"{name}_version": versions.get(name) for name in ("torch", "transformers", "zeus")},
        "environment": fingerprint(environment),
    }


def _certificate(environment: dict[str, Any], accelerator: str) -> dict[str, str | None]:
    """Digests of the certificates of what computed, and why there are none."""
    rows = [row for row in _cited(environment) if (row["name"] == certificate.HOST) == (accelerator == "cpu")]
    return {
        "certificate": joined(row["digest"] for row in rows),
        "certificate_reason": joined(row["reason"] for row in rows),
    }


def _cited(environment: dict[str, Any]) -> list[dict[str, Any]]:
    """What a record says of certificates."""
    if "certificates" in environment:
        return list(environment["certificates"])
    names = [*(gpu["uuid"] for gpu in environment["gpus"]), certificate.HOST]
    return [{**dict.fromkeys(CITED), "name": name, "reason": UNCITED} for name in names]


def fingerprint(environment: dict[str, Any]) -> str:
    """Hash of what must agree for two runs to share a mean: kinds of board, driver, versions.

    Host names, board UUIDs and the cores granted to one job may differ: a cluster spreads equal jobs over equal nodes.
    So may the number of boards: a record lists those of its run, and one board is compared with two.
    """
    versions = environment["versions"]
    return short_hash(
        {
            "cpu_model": environment["cpu_model"],
            "host_memory_gib": round(environment["host_memory_bytes"] / 2**30),
            "gpus": sorted({(gpu["name"], gpu["memory_bytes"]) for gpu in environment["gpus"]}),
            "driver": environment["driver"],
            "torch": versions.get("torch"),
            "transformers": versions.get("transformers"),
        }
    )


def _footprint(energy_j: float | None, guess: Estimate | None, factors: Footprint | None) -> dict[str, Any]:
    """Emissions and cost of the joules that were read; emissions of estimated ones in a column of their own."""
    if factors is None:
        return {}
    return {
        "co2e_g": factors.co2e_g(energy_j),
        "cost": factors.cost(energy_j),
        "estimated_co2e_g": factors.co2e_g(guess.mid_j) if guess else None,
    }


def _flags(flags: list[dict[str, str]]) -> dict[str, str | None]:
    """Names of the flags, and a line of text for each of them."""
    texts: dict[str, list[str]] = {}
    for row in flags:
        if not row["flag"].isidentifier():
            raise ValueError(f"flag is {row['flag']!r}")
        texts.setdefault(row["flag"], []).append(" ".join(row["text"].split()))
    lines = ["; ".join(dict.fromkeys(said)) for said in texts.values()]
    return {"flags": ", ".join(texts) or None, "flag_texts": "\n".join(lines) or None}


def add_flag(row: dict[str, Any], flag: str, text: str) -> None:
    """Add a flag to a row of the runs table unless it is there."""
    if flag not in (row["flags"] or "").split(", "):
        row["flags"] = ", ".join(filter(None, [row["flags"], flag]))
        row["flag_texts"] = "\n".join(filter(None, [row["flag_texts"], text]))


def _conditions(conditions: dict[str, Any]) -> dict[str, Any]:
    """Conditions of the window: the hottest board's temperatures, the mean clock, the highest limit."""
    boards = conditions["boards"]
    known = {key: [board[key] for board in boards if board[key] is not None] for key in BOARD}
    largest = {key: max(values, default=None) for key, values in known.items()}
    clocks = known["sm_clock_mean_mhz"]
    return {
        **largest,
        "sm_clock_mean_mhz": statistics.fmean(clocks) if clocks else None,
        "throttle_reasons": joined(_all(board["throttle_reasons"] or () for board in boards)),
        **{key: conditions[key] for key in CONDITIONS},
    }


def _all(lists: Iterable[Iterable[str]]) -> list[str]:
    return [value for values in lists for value in values]


def _ratio(flops: float | None, energy_j: float | None) -> float | None:
    return flops / energy_j if flops and energy_j else None


def _overhead(overhead: dict[str, Any], total_window_s: float) -> float | None:
    """What measuring took, as a share of the window: time in the meter's calls and CPU time of the trace."""
    parts = [overhead["meter_s"], overhead["trace_cpu_s"]]
    return None if None in parts else float(sum(parts) / total_window_s)


def _estimate_columns(guess: Estimate | None) -> dict[str, Any]:
    values = (guess.mid_j, guess.low_j, guess.high_j) if guess else (None, None, None)
    return dict(zip(ESTIMATED, values, strict=True))


def _epochs(row: dict[str, Any], found: dict[str, Any], energy: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the epochs table, without the run's name; joules are cumulative, and of the untrained model none."""
    measurement = found["measurement"]
    headed = scoped(measurement["energy"], row["accelerator"], measurement["conditions"]["exclusive"])
    for epoch in found["epochs"]:
        guess = estimated(found, energy, epoch["cpu_s"], epoch["elapsed_s"]) if epoch["epoch"] else None
        same = {key: epoch[key] for key in OF_EPOCH}
        joules = by_epoch(epoch, [one["device"] for one in headed])
        part = check(combined(EPOCHS, same, joules, {"energy_scope": row.get("energy_scope")}), EPOCHS)
        yield combined(EPOCHS, part, _estimate_columns(guess))


def _devices(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the devices table, without the run's name."""
    measurement = found["measurement"]
    exclusive = measurement["conditions"]["exclusive"]
    headed = {one["device"] for one in scoped(measurement["energy"], found["spec"]["accelerator"], exclusive)}
    whole = {one["device"]: one for one in measurement["overhead"]["whole_run_energy"]}
    for row in measurement["energy"]:
        run = whole.get(row["device"], {"energy_j": None, "reason": NOT_TRACED})
        certified = row["uuid"] or (certificate.HOST if meters.kind(row["kind"]) in (meters.CPU, meters.DRAM) else None)
        cited = next((one for one in _cited(found["environment"]) if one["name"] == certified), {"reason": UNCITED})
        parts = (
            {key: row[key] for key in OF_DEVICE},
            {key: row.get(key) for key in JUDGED},
            {"whole_run_energy_j": run["energy_j"], "whole_run_reason": run["reason"]},
            {column: _text(cited.get(key)) for key, column in CITED.items()},
            {"in_scope": row["device"] in headed},
        )
        yield check(combined(DEVICES, *parts), DEVICES)


def _text(value: str | list[str] | None) -> str | None:
    return joined(value) if isinstance(value, list) else value


def _selections(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the selections table, without the run's name: one per phase whose tensors a method chose."""
    rating = None
    for phase in found["measurement"].get("phases", ()):
        if phase["kind"] == "rating":
            rating = phase
        elif "chosen" in phase:
            same = {key: phase[key] for key in OF_CHOICE}
            own = {"num_chosen": len(phase["chosen"]), **_counted(phase, rating), **_timed(phase, rating)}
            yield check(combined(SELECTIONS, same, own), SELECTIONS)


def _timed(phase: Mapping[str, Any], rating: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Seconds that rating and choosing took, and a step of training what was chosen."""
    return {
        "rating_s": None if rating is None else rating["elapsed_s"],
        "step_s": phase["elapsed_s"] / phase["num_steps"] if phase["num_steps"] else None,
    }


def _counted(phase: Mapping[str, Any], rating: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the chosen tensors cost, as a share of all: FLOPs of the phase over those had each tensor been trained.

    While tensors are rated each of them needs its gradient, so that phase has the coefficients of training them all.
    """
    reason = UNRATED if rating is None else phase["flop_reason"] or rating["flop_reason"]
    if rating is None or reason:
        return {"counted_cost": None, "cost_reason": reason}
    mixed = [{**phase, "flop_coefficients": one["flop_coefficients"]} for one in (phase, rating)]
    # With what checkpointing computes again: the prediction has that too.
    chosen, every = (roofline.flops(one, USEFUL) + roofline.recomputed(one, USEFUL) for one in mixed)
    return {"counted_cost": chosen / every, "cost_reason": None}
