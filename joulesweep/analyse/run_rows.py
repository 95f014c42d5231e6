"""Turn a run's record into its row of the runs table and its rows of the other tables."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from joulesweep.analyse import roofline
from joulesweep.analyse.columns import DEVICES, EPOCHS, ESTIMATED, EVALUATIONS, QUALITY, RUNS, SELECTIONS, named
from joulesweep.analyse.tables import Row, check, combined
from joulesweep.core.errors import Corrupt
from joulesweep.core.outcome import (
    BatchJob,
    ChosenPhase,
    Citation,
    Conditions,
    Environment,
    Flag,
    Measurement,
    Overhead,
    Phase,
    Quality,
    WholeRunEnergy,
)
from joulesweep.core.spec import short_hash
from joulesweep.core.work import COUNTED, USEFUL
from joulesweep.measure import certificate, meters
from joulesweep.reference.cpu_estimate import Asked, Estimate
from joulesweep.reference.footprint import Footprint
from joulesweep.runs import record
from joulesweep.runs.headline import beside, by_epoch, estimated, headline, headline_rows, join_unique
from joulesweep.runs.record import RunRecord

#: Columns whose names are also attributes of a part of the record.
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
OF_BATCH = named(RUNS, "node account partition")
CONDITIONS = named(RUNS, "cooldown_s settled idle_s cpu_wait_share exclusive window_begin window_end")
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
#: Tables whose rows a record makes, besides the one of runs.
OTHERS = ("epochs", "selections", "devices", "evaluations")
NOT_TRACED = "the trace has no readings of this device"
UNRATED = "no step that trains every tensor was counted"
UNCITED = "the run is older than certificates"
#: Attributes of a citation of a certificate, and their columns.
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
        asked: the config's settings for estimates.
        factors: convert joules into emissions and cost.

    Returns:
        The row of the runs table, without the columns from the manifest and from the files beside the record; and the
        rows of the tables `OTHERS`, without the columns of the run itself.

    Raises:
        UserError: the record is missing, or of another version; the line names the file.
        Corrupt: the record is corrupt or foreign, or has an impossible number.
        ColumnError: the code fills an unknown column, or one column twice.
    """
    run_record = record.read(path)
    try:
        row = check(_run(run_record, asked, factors), RUNS)
        if run_record.measurement is None:
            return row, {name: [] for name in OTHERS}
        return row, {
            "epochs": list(_epochs(row, run_record, run_record.measurement, asked)),
            "selections": list(_selections(run_record.measurement)),
            "devices": list(_devices(run_record, run_record.measurement)),
            "evaluations": [check(dict(vars(score)), EVALUATIONS) for score in run_record.evaluations or ()],
        }
    except (ArithmeticError, ValueError) as error:  # a window of 0 s, a number beyond the largest
        raise Corrupt(path, f"corrupt run record: {type(error).__name__}: {error}") from None


def _taken(source: object, keys: Iterable[str]) -> Row:
    """Attributes, as columns of the same names."""
    return {key: getattr(source, key) for key in keys}


def _run(run_record: RunRecord, asked: Asked, factors: Footprint | None) -> Row:
    accepted, accelerator = run_record.accepted or [], run_record.spec.accelerator
    row = combined(
        RUNS,
        _taken(run_record, RECORDED),
        {
            "accelerator": accelerator,
            "accepted_codes": " ".join(entry.code_digest for entry in accepted) or None,
            "accepted_reasons": join_unique(entry.reason for entry in accepted),
        },
        _environment(run_record.environment, [part.environment for part in run_record.nodes or ()]),
        _certificate(run_record.environment, accelerator),
    )
    if run_record.measurement is None:
        return row
    return combined(RUNS, row, *_measured(run_record, run_record.measurement, asked, factors))


def _measured(run_record: RunRecord, measured: Measurement, asked: Asked, factors: Footprint | None) -> Iterator[Row]:
    """The columns of an ok run, in parts."""
    accelerator = run_record.spec.accelerator
    guess = estimated(run_record, asked, measured.cpu_s, measured.window_s)
    joules = headline(measured.energy, accelerator, measured.conditions.exclusive)
    work = roofline.columns(run_record, measured)
    yield _taken(measured, MEASURED)
    yield {"num_attempts": len(measured.segments or [1])}
    yield {key: getattr(measured.peak_memory, key.removeprefix("peak_")) for key in PEAKS}
    yield _taken(run_record.quality, SCORED)
    yield vars(joules)
    yield vars(beside(measured.energy))
    yield vars(work)
    yield _words(measured, run_record.quality, joules.energy_j)
    yield {"useful_flops_per_j": _ratio(work.useful_flops, joules.energy_j)}
    yield {"estimated_energy_method": guess.method if guess else None, **_estimate_columns(guess)}
    yield _footprint(joules.energy_j, guess, factors)
    yield _flags(measured.flags)
    yield _conditions(measured.conditions)
    yield {"meter_overhead_fraction": _overhead(measured.overhead, measured.total_window_s)}


def _words(measured: Measurement, quality: Quality | None, energy_j: float | None) -> Row:
    """Words, characters, and what they cost; null with a reason of runs that did not count them."""
    texts, num_tokens = measured.texts, measured.num_tokens + measured.num_target_tokens
    per_token = {"energy_per_token_j": _ratio(energy_j, num_tokens)}
    if texts is None or quality is None:
        return {**per_token, "words_reason": "the run is older than counts of words"}
    nats = quality.validation_loss * texts.num_validation_pieces
    return {
        **per_token,
        "num_words": texts.num_words,
        "num_characters": texts.num_characters,
        "pieces_per_word": _ratio(texts.num_pieces, texts.num_words),
        "energy_per_word_j": _ratio(energy_j, texts.num_words),
        "energy_per_character_j": _ratio(energy_j, texts.num_characters),
        "bits_per_character": _ratio(nats / math.log(2), texts.num_validation_characters),
    }


def _environment(environment: Environment, of_nodes: Sequence[Environment]) -> Row:
    versions = environment.versions
    kinds = sorted({fingerprint(one) for one in of_nodes or [environment]})
    return {
        **_taken(environment, MACHINE),
        "gpus": join_unique(gpu.name for gpu in environment.gpus),
        "gpu_uuids": join_unique(gpu.uuid for gpu in environment.gpus),
        **{f"{name}_version": versions.get(name) for name in ("torch", "transformers", "zeus")},
        "environment": kinds[0] if len(kinds) == 1 else short_hash(kinds),
        **_batch(environment.batch),
    }


def _batch(job: BatchJob | None) -> Row:
    """The batch system's job, whose id is no part of the environment that a mean is taken over."""
    if job is None:
        return {}
    return {"batch_system": job.system, "job_id": job.job, **_taken(job, OF_BATCH)}


def _certificate(environment: Environment, accelerator: str) -> dict[str, str | None]:
    """Digests of the certificates of the devices that computed, or why there is none."""
    of_cpu = accelerator == "cpu"
    cited = [citation for citation in _cited(environment) if (citation.name == certificate.HOST) == of_cpu]
    return {
        "certificate": join_unique(citation.digest for citation in cited),
        "certificate_reason": join_unique(citation.reason for citation in cited),
    }


def _cited(environment: Environment) -> list[Citation]:
    """The certificates that a record cites."""
    if environment.certificates is not None:
        return environment.certificates
    names = [*(gpu.uuid for gpu in environment.gpus), certificate.HOST]
    return [Citation(device=name, name=name, reason=UNCITED) for name in names]


def fingerprint(environment: Environment) -> str:
    """Hash of the facts on which runs that share a mean agree: kinds of board, driver, versions.

    Host names, board UUIDs and the cores granted to one job may differ: a cluster spreads equal jobs over equal nodes.
    So may the number of boards: a record lists those of its run, and one board is compared with two.
    """
    boards = frozenset((gpu.name, gpu.memory_bytes) for gpu in environment.gpus)
    versions = tuple(environment.versions.get(name) for name in ("torch", "transformers"))
    return _fingerprint(environment.cpu_model, environment.host_memory_bytes, boards, environment.driver, versions)


@functools.cache
def _fingerprint(
    cpu_model: str, host_memory_bytes: int, boards: Set[tuple[str, int]], driver: str | None, versions: Sequence[str]
) -> str:
    return short_hash(
        {
            "cpu_model": cpu_model,
            "host_memory_gib": round(host_memory_bytes / 2**30),
            "gpus": sorted(boards),
            "driver": driver,
            "torch": versions[0],
            "transformers": versions[1],
        }
    )


def _footprint(energy_j: float | None, guess: Estimate | None, factors: Footprint | None) -> Row:
    """Emissions and cost of measured joules; emissions of estimated joules have their own column."""
    if factors is None:
        return {}
    return {
        "co2e_g": factors.co2e_g(energy_j),
        "cost": factors.cost(energy_j),
        "estimated_co2e_g": factors.co2e_g(guess.mid_j) if guess else None,
    }


def _flags(flags: Sequence[Flag]) -> dict[str, str | None]:
    """Names of the flags, and one line of text for each."""
    texts: dict[str, list[str]] = {}
    for flag in flags:
        if not flag.flag.isidentifier():
            raise ValueError(f"flag is {flag.flag!r}")
        texts.setdefault(flag.flag, []).append(" ".join(flag.text.split()))
    lines = ["; ".join(dict.fromkeys(sentences)) for sentences in texts.values()]
    return {"flags": ", ".join(texts) or None, "flag_texts": "\n".join(lines) or None}


def add_flag(row: Row, flag: str, text: str) -> None:
    """Add a flag to a row of the runs table that does not have it yet."""
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
        "throttle_reasons": join_unique(_all(board.throttle_reasons or () for board in boards)),
        **_taken(conditions, CONDITIONS),
    }


def _all(lists: Iterable[Iterable[str]]) -> list[str]:
    return [value for values in lists for value in values]


def _ratio(value: float | None, per: float | None) -> float | None:
    return value / per if value and per else None


def _overhead(overhead: Overhead, total_window_s: float) -> float | None:
    """Share of the window that measuring took: time in the meter's calls and CPU time of the trace."""
    if overhead.trace_cpu_s is None:
        return None
    return (overhead.meter_s + overhead.trace_cpu_s) / total_window_s


def _estimate_columns(guess: Estimate | None) -> Row:
    values = (guess.mid_j, guess.low_j, guess.high_j) if guess else (None, None, None)
    return dict(zip(ESTIMATED, values, strict=True))


def _epochs(row: Row, run_record: RunRecord, measured: Measurement, asked: Asked) -> Iterator[Row]:
    """Rows of the epochs table, without the run's name. Joules are cumulative; the untrained model has none."""
    headed = headline_rows(measured.energy, run_record.spec.accelerator, measured.conditions.exclusive)
    devices = [device_energy.device for device_energy in headed]
    for epoch in run_record.epochs:
        guess = estimated(run_record, asked, epoch.cpu_s, epoch.elapsed_s) if epoch.epoch else None
        joules, scope = vars(by_epoch(epoch, devices)), {"energy_scope": row.get("energy_scope")}
        part = check(combined(EPOCHS, _taken(epoch, OF_EPOCH), joules, scope), EPOCHS)
        yield combined(EPOCHS, part, _estimate_columns(guess))


def _devices(run_record: RunRecord, measured: Measurement) -> Iterator[Row]:
    """Rows of the devices table, without the run's name."""
    headed = headline_rows(measured.energy, run_record.spec.accelerator, measured.conditions.exclusive)
    in_scope = {entry.device for entry in headed}
    whole = {entry.device: entry for entry in measured.overhead.whole_run_energy}
    cited = {(_node(entry.device), entry.name): entry for entry in _cited(run_record.environment)}
    for row in measured.energy:
        run = whole.get(row.device, WholeRunEnergy(device=row.device, energy_j=None, reason=NOT_TRACED))
        of_host = meters.kind(row.kind) in (meters.CPU, meters.DRAM)  # no certificate is of any other kind without UUID
        name = row.uuid or (certificate.HOST if of_host else row.device)
        citation = cited.get((_node(row.device), name), Citation(device=row.device, name=name, reason=UNCITED))
        parts = (
            _taken(row, OF_DEVICE),
            {"whole_run_energy_j": run.energy_j, "whole_run_reason": run.reason},
            {column: _text(getattr(citation, key)) for key, column in CITED.items()},
            {"in_scope": row.device in in_scope},
        )
        yield check(combined(DEVICES, *parts), DEVICES)


def _node(device: str) -> str:
    """The node in the name of a device, `node1/gpu:0`; empty in a run on one machine."""
    return device.rpartition("/")[0]


def _text(value: str | list[str] | None) -> str | None:
    return join_unique(value) if isinstance(value, list) else value


def _selections(measured: Measurement) -> Iterator[Row]:
    """Rows of the selections table, without the run's name: one per phase in which a method chose the tensors."""
    rating: Phase | None = None
    for phase in measured.phases or ():
        if phase.kind == "rating":
            rating = phase
        elif isinstance(phase, ChosenPhase):
            derived = {"num_chosen": len(phase.chosen), **_counted(phase, rating), **_timed(phase, rating)}
            yield check(combined(SELECTIONS, _taken(phase, OF_CHOICE), derived), SELECTIONS)


def _timed(phase: Phase, rating: Phase | None) -> dict[str, float | None]:
    """Seconds of rating and choosing, and of a step that trains the chosen tensors."""
    return {
        "rating_s": None if rating is None else rating.elapsed_s,
        "step_s": phase.elapsed_s / phase.num_steps if phase.num_steps else None,
    }


def _counted(phase: Phase, rating: Phase | None) -> Row:
    """Cost of the chosen tensors: FLOPs of the phase, as a share of those with every tensor trained.

    Rating needs the gradient of every tensor, so the rating phase has the coefficients of training them all.
    """
    reason = UNRATED if rating is None else phase.flop_reason or rating.flop_reason
    if rating is None or reason:
        return {"counted_cost": None, "cost_reason": reason}
    variants = (phase, dataclasses.replace(phase, flop_coefficients=rating.flop_coefficients))
    # Including what checkpointing recomputes, as the prediction does.
    chosen, every = (roofline.flops(variant, USEFUL) + roofline.recomputed(variant, USEFUL) for variant in variants)
    return {"counted_cost": chosen / every, "cost_reason": None}
