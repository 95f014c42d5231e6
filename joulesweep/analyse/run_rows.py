"""From a run's record to its row of the runs table, and to its rows of the tables of epochs and selections."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from joulesweep.analyse import roofline
from joulesweep.analyse.columns import DEVICES, EPOCHS, ESTIMATED, QUALITY, RUNS, SELECTIONS, named
from joulesweep.analyse.tables import Row, check, combined
from joulesweep.core.errors import Corrupt
from joulesweep.core.outcome import (
    ChosenPhase,
    Citation,
    Conditions,
    Environment,
    Flag,
    Measurement,
    Overhead,
    Phase,
    WholeRunEnergy,
)
from joulesweep.core.spec import short_hash
from joulesweep.core.work import COUNTED, USEFUL
from joulesweep.measure import certificate, meters
from joulesweep.reference.cpu_estimate import Asked, Estimate
from joulesweep.reference.footprint import Footprint
from joulesweep.runs import record
from joulesweep.runs.headline import beside, by_epoch, estimated, headline, joined, scoped
from joulesweep.runs.record import RunRecord

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
    *named(DEVICES, "mean_power_w power_ratio error_j doubt idle_reason net_reason ratio_reason power_method"),
)
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


def read(path: Path, asked: Asked, factors: Footprint | None) -> tuple[Row, dict[str, list[Row]]]:
    """Read a record and make its rows.

    Args:
        path: of the record.
        asked: what the config says of estimates.
        factors: what turns joules into emissions and cost.

    Returns:
        Its row of the runs table without what the manifest and the files beside the record say, and its rows of the
        tables `epochs`, `selections` and `devices`, without what is the run's.

    Raises:
        UserError: missing, or of another version; the line names the file.
        Corrupt: corrupt or foreign, or a number that cannot be.
        ColumnError: what fills a row names what is no column, or names one twice.
    """
    found = record.read(path)
    try:
        row = check(_run(found, asked, factors), RUNS)
        if found.measurement is None:
            return row, {"epochs": [], "selections": [], "devices": []}
        return row, {
            "epochs": list(_epochs(row, found, found.measurement, asked)),
            "selections": list(_selections(found.measurement)),
            "devices": list(_devices(found, found.measurement)),
        }
    except (ArithmeticError, ValueError) as error:  # a window of no seconds, a number beyond the largest
        raise Corrupt(path, f"corrupt run record: {type(error).__name__}: {error}") from None


def _taken(source: object, keys: Iterable[str]) -> Row:
    """Columns that have the names of attributes."""
    return {key: getattr(source, key) for key in keys}


def _run(found: RunRecord, asked: Asked, factors: Footprint | None) -> Row:
    accepted, accelerator = found.accepted or [], found.spec.accelerator
    row = combined(
        RUNS,
        _taken(found, RECORDED),
        {
            "accelerator": accelerator,
            "accepted_codes": " ".join(one.code_digest for one in accepted) or None,
            "accepted_reasons": joined(one.reason for one in accepted),
        },
        _environment(found.environment),
        _certificate(found.environment, accelerator),
    )
    if found.measurement is None:
        return row
    return combined(RUNS, row, *_measured(found, found.measurement, asked, factors))


def _measured(found: RunRecord, measured: Measurement, asked: Asked, factors: Footprint | None) -> Iterator[Row]:
    """The columns of a run that is ok, in parts."""
    accelerator = found.spec.accelerator
    guess = estimated(found, asked, measured.cpu_s, measured.window_s)
    joules = headline(measured.energy, accelerator, measured.conditions.exclusive)
    work = roofline.columns(found, measured)
    yield _taken(measured, MEASURED)
    yield {key: getattr(measured.peak_memory, key.removeprefix("peak_")) for key in PEAKS}
    yield _taken(found.quality, SCORED)
    yield vars(joules)
    yield vars(beside(measured.energy))
    yield vars(work)
    yield {"useful_flops_per_j": _ratio(work.useful_flops, joules.energy_j)}
    yield {"estimated_energy_method": guess.method if guess else None, **_estimate_columns(guess)}
    yield _footprint(joules.energy_j, guess, factors)
    yield _flags(measured.flags)
    yield _conditions(measured.conditions)
    yield {"meter_overhead_fraction": _overhead(measured.overhead, measured.total_window_s)}


def _environment(environment: Environment) -> Row:
    versions = environment.versions
    return {
        **_taken(environment, MACHINE),
        "gpus": joined(gpu.name for gpu in environment.gpus),
        "gpu_uuids": joined(gpu.uuid for gpu in environment.gpus),
        **{f"{name}_version": versions.get(name) for name in ("torch", "transformers", "zeus")},
        "environment": fingerprint(environment),
    }


def _certificate(environment: Environment, accelerator: str) -> dict[str, str | None]:
    """Digests of the certificates of what computed, and why there are none."""
    cited = [one for one in _cited(environment) if (one.name == certificate.HOST) == (accelerator == "cpu")]
    return {
        "certificate": joined(one.digest for one in cited),
        "certificate_reason": joined(one.reason for one in cited),
    }


def _cited(environment: Environment) -> list[Citation]:
    """What a record says of certificates."""
    if environment.certificates is not None:
        return environment.certificates
    names = [*(gpu.uuid for gpu in environment.gpus), certificate.HOST]
    return [Citation(device=name, name=name, reason=UNCITED) for name in names]


def fingerprint(environment: Environment) -> str:
    """Hash of what must agree for two runs to share a mean: kinds of board, driver, versions.

    Host names, board UUIDs and the cores granted to one job may differ: a cluster spreads equal jobs over equal nodes.
    So may the number of boards: a record lists those of its run, and one board is compared with two.
    """
    versions = environment.versions
    return short_hash(
        {
            "cpu_model": environment.cpu_model,
            "host_memory_gib": round(environment.host_memory_bytes / 2**30),
            "gpus": sorted({(gpu.name, gpu.memory_bytes) for gpu in environment.gpus}),
            "driver": environment.driver,
            "torch": versions.get("torch"),
            "transformers": versions.get("transformers"),
        }
    )


def _footprint(energy_j: float | None, guess: Estimate | None, factors: Footprint | None) -> Row:
    """Emissions and cost of the joules that were read; emissions of estimated ones in a column of their own."""
    if factors is None:
        return {}
    return {
        "co2e_g": factors.co2e_g(energy_j),
        "cost": factors.cost(energy_j),
        "estimated_co2e_g": factors.co2e_g(guess.mid_j) if guess else None,
    }


def _flags(flags: Sequence[Flag]) -> dict[str, str | None]:
    """Names of the flags, and a line of text for each of them."""
    texts: dict[str, list[str]] = {}
    for one in flags:
        if not one.flag.isidentifier():
            raise ValueError(f"flag is {one.flag!r}")
        texts.setdefault(one.flag, []).append(" ".join(one.text.split()))
    lines = ["; ".join(dict.fromkeys(said)) for said in texts.values()]
    return {"flags": ", ".join(texts) or None, "flag_texts": "\n".join(lines) or None}


def add_flag(row: Row, flag: str, text: str) -> None:
    """Add a flag to a row of the runs table unless it is there."""
    if flag not in (row["flags"] or "").split(", "):
        row["flags"] = ", ".join(filter(None, [row["flags"], flag]))
        row["flag_texts"] = "\n".join(filter(None, [row["flag_texts"], text]))


def _conditions(conditions: Conditions) -> Row:
    """Conditions of the window: the hottest board's temperatures, the mean clock, the highest limit."""
    boards = conditions.boards
    known = {key: [value for board in boards if (value := getattr(board, key)) is not None] for key in BOARD}
    largest = {key: max(values, default=None) for key, values in known.items()}
    clocks = known["sm_clock_mean_mhz"]
    return {
        **largest,
        "sm_clock_mean_mhz": statistics.fmean(clocks) if clocks else None,
        "throttle_reasons": joined(_all(board.throttle_reasons or () for board in boards)),
        **_taken(conditions, CONDITIONS),
    }


def _all(lists: Iterable[Iterable[str]]) -> list[str]:
    return [value for values in lists for value in values]


def _ratio(flops: float | None, energy_j: float | None) -> float | None:
    return flops / energy_j if flops and energy_j else None


def _overhead(overhead: Overhead, total_window_s: float) -> float | None:
    """What measuring took, as a share of the window: time in the meter's calls and CPU time of the trace."""
    if overhead.trace_cpu_s is None:
        return None
    return (overhead.meter_s + overhead.trace_cpu_s) / total_window_s


def _estimate_columns(guess: Estimate | None) -> Row:
    values = (guess.mid_j, guess.low_j, guess.high_j) if guess else (None, None, None)
    return dict(zip(ESTIMATED, values, strict=True))


def _epochs(row: Row, found: RunRecord, measured: Measurement, asked: Asked) -> Iterator[Row]:
    """Rows of the epochs table, without the run's name; joules are cumulative, and of the untrained model none."""
    headed = scoped(measured.energy, found.spec.accelerator, measured.conditions.exclusive)
    devices = [one.device for one in headed]
    for epoch in found.epochs:
        guess = estimated(found, asked, epoch.cpu_s, epoch.elapsed_s) if epoch.epoch else None
        joules, scope = vars(by_epoch(epoch, devices)), {"energy_scope": row.get("energy_scope")}
        part = check(combined(EPOCHS, _taken(epoch, OF_EPOCH), joules, scope), EPOCHS)
        yield combined(EPOCHS, part, _estimate_columns(guess))


def _devices(found: RunRecord, measured: Measurement) -> Iterator[Row]:
    """Rows of the devices table, without the run's name."""
    headed = scoped(measured.energy, found.spec.accelerator, measured.conditions.exclusive)
    in_scope = {one.device for one in headed}
    whole = {one.device: one for one in measured.overhead.whole_run_energy}
    cited = {one.name: one for one in _cited(found.environment)}
    for row in measured.energy:
        run = whole.get(row.device, WholeRunEnergy(device=row.device, energy_j=None, reason=NOT_TRACED))
        of_host = meters.kind(row.kind) in (meters.CPU, meters.DRAM)  # no certificate is of any other kind without UUID
        name = row.uuid or (certificate.HOST if of_host else row.device)
        citation = cited.get(name, Citation(device=row.device, name=name, reason=UNCITED))
        parts = (
            _taken(row, OF_DEVICE),
            {"whole_run_energy_j": run.energy_j, "whole_run_reason": run.reason},
            {column: _text(getattr(citation, key)) for key, column in CITED.items()},
            {"in_scope": row.device in in_scope},
        )
        yield check(combined(DEVICES, *parts), DEVICES)


def _text(value: str | list[str] | None) -> str | None:
    return joined(value) if isinstance(value, list) else value


def _selections(measured: Measurement) -> Iterator[Row]:
    """Rows of the selections table, without the run's name: one per phase whose tensors a method chose."""
    rating: Phase | None = None
    for phase in measured.phases or ():
        if phase.kind == "rating":
            rating = phase
        elif isinstance(phase, ChosenPhase):
            own = {"num_chosen": len(phase.chosen), **_counted(phase, rating), **_timed(phase, rating)}
            yield check(combined(SELECTIONS, _taken(phase, OF_CHOICE), own), SELECTIONS)


def _timed(phase: Phase, rating: Phase | None) -> dict[str, float | None]:
    """Seconds that rating and choosing took, and a step of training what was chosen."""
    return {
        "rating_s": None if rating is None else rating.elapsed_s,
        "step_s": phase.elapsed_s / phase.num_steps if phase.num_steps else None,
    }


def _counted(phase: Phase, rating: Phase | None) -> Row:
    """What the chosen tensors cost, as a share of all: FLOPs of the phase over those had each tensor been trained.

    While tensors are rated each of them needs its gradient, so that phase has the coefficients of training them all.
    """
    reason = UNRATED if rating is None else phase.flop_reason or rating.flop_reason
    if rating is None or reason:
        return {"counted_cost": None, "cost_reason": reason}
    mixed = (phase, dataclasses.replace(phase, flop_coefficients=rating.flop_coefficients))
    # With what checkpointing computes again: the prediction has that too.
    chosen, every = (roofline.flops(one, USEFUL) + roofline.recomputed(one, USEFUL) for one in mixed)
    return {"counted_cost": chosen / every, "cost_reason": None}
