"""What came of a run, as types: from a meter's `Reading` to a record's `Measurement`. Standard library only.

Each type is a JSON object of a rank's file or of a record, its fields the keys; `as_json` writes it. A record is read
back, and checked, by `joulesweep.runs.record`. Seconds of a span are those of the monotonic clock. What a device did
not say is null, and beside it stands a reason. A field with a default is missing in older records, or in those of
other runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from joulesweep.core.work import COUNTED

#: Of a device's joules: counted; the integral of its power; a guess; no number, too few updates of the counter; none.
Status = Literal["measured", "integrated", "estimated", "below_resolution", "unavailable"]
#: Of a run that ended early with a result.
Ending = Literal["oom", "diverged", "unsupported", "timeout"]
#: Of a field: where it is None, its key is left out of the JSON; its entries are keys of the object that it belongs to.
MISSING, FLAT = {"missing": True}, {"flat": True}


def as_json(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """A value as JSON has it: of dataclasses and mappings objects, of lists and tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, object] = {}
        for one in dataclasses.fields(value):
            item = getattr(value, one.name)
            if one.metadata == FLAT:
                found |= as_json(item)
            elif item is not None or one.metadata != MISSING:
                found[one.name] = as_json(item)
        return found
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class DeviceTotal:
    """Joules of one device over a whole window.

    Attributes:
        device: `gpu:0`, `cpu:0`, `dram:0`.
        kind: of device: the part of its name before the colon, "gpu" of a slice of a board.
        uuid: of a board; None of any other device.
        total_energy_j: joules of the window; None where there is no number.
        status: of the number.
        method: how it came about.
        reason: why there is none; None where there is one.
    """

    device: str
    kind: str
    uuid: str | None
    total_energy_j: float | None
    status: Status
    method: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class CounterReads:
    """When and how a board's counter was read at the edges of a window.

    Attributes:
        begin_j: what it said at the begin.
        begin_s: before and after the call that read it at the begin.
        end_s: the same at the end.
    """

    begin_j: float
    begin_s: tuple[float, float]
    end_s: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Reading(DeviceTotal):
    """What a meter says of one device, before the trace is asked.

    Attributes:
        reads: of a board whose counter was read; None of any other device.
    """

    reads: CounterReads | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class DeviceEnergy(DeviceTotal):
    """A device's joules after the trace was asked: per pass of the training, each number with its status.

    Attributes:
        energy_j: joules per pass.
        tick_s: time between two moves of its counter; None where there is none, or it is unknown.
        mean_power_w: in the window: of a board by its power readings, of the host by its counter.
        power_ratio: mean power times time over the counter's joules; None where they were not compared.
        idle_w: power of the idle baseline.
        net_energy_j: energy_j without idle_w.
        error_j: what energy_j may be off by at most, the sensor's own accuracy apart.
        power_method: "instant", or "as the driver averages it"; None of what is no board.
        ratio_reason: why power_ratio is null.
        idle_reason: why idle_w is null.
        net_reason: why net_energy_j is null.
        doubt: what contradicts the joules: they take part in no ranking; None where nothing does.
    """

    energy_j: float | None
    tick_s: float | None
    mean_power_w: float | None
    power_ratio: float | None
    idle_w: float | None
    net_energy_j: float | None
    error_j: float | None = None
    power_method: str | None = None
    ratio_reason: str | None = None
    idle_reason: str | None = None
    net_reason: str | None = None
    doubt: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochEnergy:
    """Joules of one device from the window's begin to the end of an epoch; names as in `DeviceEnergy`."""

    device: str
    energy_j: float | None
    status: Status
    method: str | None = None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A window and what lay before it, on the monotonic clock.

    Attributes:
        begin_s: of the window.
        end_s: of it.
        idle_begin_s: of the idle baseline; as idle_end_s where there was none.
        idle_end_s: of it.
        meter_s: time inside the meter's calls.
        clock_step_s: how much further the wall clock went than the monotonic one meanwhile.
        weights_s: seconds of the window in which weights were copied, to be scored later.
    """

    begin_s: float
    end_s: float
    idle_begin_s: float = 0.0
    idle_end_s: float = 0.0
    meter_s: float = 0.0
    clock_step_s: float = 0.0
    weights_s: float = 0.0

    @property
    def window_s(self) -> float:
        """Length of the window."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What batches count, see `work.UNITS`: padded counts are of what was computed, the others of what is useful."""

    num_texts: int
    num_tokens: int
    num_padded_tokens: int
    num_predicted: int
    num_head_positions: int
    num_token_pairs: int
    num_padded_token_pairs: int
    num_target_tokens: int
    num_padded_target_tokens: int
    num_target_pairs: int
    num_padded_target_pairs: int
    num_cross_pairs: int
    num_padded_cross_pairs: int

    def counts(self) -> dict[str, int]:
        """The counts alone, by name."""
        return {name: getattr(self, name) for name in COUNTED}


@dataclass(frozen=True, kw_only=True)
class TensorChoice:
    """Which tensors a method chose to train, and what that should cost.

    Attributes:
        chosen: names of the tensors that train.
        candidates: names of all that it chose from.
        num_candidates: how many.
        trained_share: of the model's parameters, those that train.
        importance_share: of the importance of all candidates, that of the chosen ones; None where there is none.
        objective: what the budget is of.
        rho: the budget: cost of a step over that of training every candidate.
        predicted_cost: the same as the choice has it.
        floor: the least that a choice costs.
        gap: how far at most the choice is from the best one, relative; None where that is not known.
        rates: what the costs were computed with; None where nothing was measured for it.
    """

    chosen: list[str]
    candidates: list[str]
    num_candidates: int
    trained_share: float
    importance_share: float | None
    objective: str
    rho: float
    predicted_cost: float
    floor: float
    gap: float | None
    rates: dict[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step should cost by the model's shapes.

    Attributes:
        flop_coefficients: FLOPs per unit of work, see `flops.coefficients`; None with a reason.
        bytes_per_step: see `flops.bytes_per_step`; None with a reason.
        flop_reason: why the work is not known, or None.
    """

    flop_coefficients: dict[str, float] | None
    bytes_per_step: int | None
    flop_reason: str | None

    def __post_init__(self) -> None:
        """Refuse unknown work without a reason."""
        if self.flop_reason is None and (self.flop_coefficients is None or self.bytes_per_step is None):
            raise ValueError("neither the work of a step nor a reason why it is not known")


@dataclass(frozen=True, kw_only=True)
class Phase(Counts, Work):
    """A span of the training in which the same tensors trained, or were rated.

    Attributes:
        kind: "training" or "rating".
        epoch: that it began with.
        elapsed_s: seconds that it took, without those of copying weights.
        num_steps: optimizer steps.
        num_skipped_steps: of these, left out by loss scaling.
        facts: what the method says of itself, see `methods.described`; written, and not read back.
    """

    kind: str
    epoch: int
    elapsed_s: float
    num_steps: int
    num_skipped_steps: int
    facts: dict[str, object] = field(default_factory=dict, compare=False, metadata=FLAT)


@dataclass(frozen=True, kw_only=True)
class PlainPhase(Phase):
    """A phase before which nothing was chosen."""

    chosen: None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class ChosenPhase(Phase, TensorChoice):
    """A phase whose tensors a method chose."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Peak memory in bytes: of the host over all processes, of the GPU of the fullest one; None on a run without."""

    host_rss_bytes: int | None
    gpu_allocated_bytes: int | None
    gpu_reserved_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good weights are on the validation texts.

    Attributes:
        validation_loss: nats per predicted token.
        perplexity: its exponential; None beyond 1e300.
        masked_accuracy: share of right tokens among the predicted ones, whatever the task.
        choice_accuracy: share of texts whose right choice is the likeliest; None but for multiple choice.
        num_validation_texts: how many were scored.
        num_masked: how many tokens were predicted.
    """

    validation_loss: float
    perplexity: float | None
    masked_accuracy: float
    choice_accuracy: float | None
    num_validation_texts: int
    num_masked: int


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Where the training stood when an epoch ended; epoch 0 is the untrained model.

    Attributes:
        epoch: its number.
        elapsed_s: since the window began.
        cpu_s: CPU-seconds of all processes since then.
        num_steps: optimizer steps since then.
        train_loss: mean of its steps; None of epoch 0.
        validation_loss: and the next three, as in `Quality`.
        energy: joules since the window began, of each device that has any.
    """

    epoch: int
    elapsed_s: float
    cpu_s: float
    num_steps: int
    train_loss: float | None
    validation_loss: float
    perplexity: float | None
    masked_accuracy: float
    choice_accuracy: float | None
    energy: list[EpochEnergy]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the trained model wrote for a held-out text.

    Attributes:
        text: its place in the data set.
        summary: what was written.
        references: what it is scored against; missing where the data set has none.
    """

    text: int
    summary: str
    references: list[str] | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """What one process of a run saw; of all of them together, see `measurement.merge_ranks`, the same.

    Attributes:
        total_window_s: length of its window.
        num_passes: over the training in it.
        span: of it.
        energy: what the meter said of each device that it counts.
        cpu_s: its CPU-seconds per pass.
        startup_s: seconds from its begin to the end of the warm-up.
        peak_memory: of the training.
        phases: of the first pass, in order.
        num_steps: optimizer steps of a pass.
        products: see `onednn.choose`.
        attention: see `assembly.attention`.
        num_compilations_in_window: 0 unless a compiler met something new there.
        epochs: with their quality, but without joules.
        quality: after the last epoch.
        losses: of every step.
        summaries: that it wrote.
        num_train_texts: of the whole data set.
        status: of a run that went well; see `Stopped` for the others.
    """

    total_window_s: float
    num_passes: int
    span: Span
    energy: list[Reading]
    cpu_s: float
    startup_s: float
    peak_memory: PeakMemory
    phases: list[PlainPhase | ChosenPhase]
    num_steps: int
    products: dict[str, object]
    attention: dict[str, object]
    num_compilations_in_window: int
    epochs: list[Epoch]
    quality: Quality
    losses: list[float]
    summaries: list[Summary]
    num_train_texts: int
    status: Literal["ok"] = "ok"

    @property
    def window_s(self) -> float:
        """Seconds per pass."""
        return self.total_window_s / self.num_passes

    @property
    def training(self) -> list[Phase]:
        """The phases in which tensors trained."""
        return [phase for phase in self.phases if phase.kind == "training"]

    @property
    def num_skipped_steps(self) -> int:
        """Steps of a pass that loss scaling left out."""
        return sum(phase.num_skipped_steps for phase in self.training)


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run that ended early with a result.

    Attributes:
        status: why.
        reason: in one line.
        oom_bytes: bytes asked for when memory ran out; None where they are not known.
    """

    status: Ending
    reason: str
    oom_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """A rank that could not begin since the user's input is at fault: no result, and no record."""

    reason: str
    status: Literal["error"] = "error"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A condition that weakens a comparison.

    Attributes:
        flag: its name.
        text: what was seen, in a line.
    """

    flag: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CpuUse:
    """What a run got of the CPU in its window; None where unknown.

    Attributes:
        cpu_share: CPU time of its processes, of the window times their threads.
        cpu_pressure_share: of the time, in which some process of the machine waited for a core.
        cpu_wait_share: of the time that the run's threads were ready, in which they waited.
        foreign_cpu_s: CPU-seconds of others.
        cpu_steal_s: CPU-seconds that a hypervisor took.
        cpu_unknown: why some of these are None, by name.
    """

    cpu_share: float | None = None
    cpu_pressure_share: float | None = None
    cpu_wait_share: float | None = None
    foreign_cpu_s: float | None = None
    cpu_steal_s: float | None = None
    cpu_unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BoardConditions:
    """One board in the window.

    Attributes:
        device: `gpu:0`.
        uuid: of the board.
        temperature_start_c: at the window's begin.
        temperature_end_c: at its end.
        sm_clock_mean_mhz: in it.
        sm_clock_min_mhz: in it.
        throttle_reasons: what held its clocks down; None where it did not always tell.
        settled_by: see `settling.Rest`, as the next two.
        slope_c_per_min: of its temperature when the wait ended.
        anchor_c: temperature at rest that it was compared with.
        power_limit_w: in force in the window.
        other_processes: when others computed on it: "before", "during", "after"; None where that is not known.
    """

    device: str
    uuid: str
    temperature_start_c: float | None
    temperature_end_c: float | None
    sm_clock_mean_mhz: float | None
    sm_clock_min_mhz: float | None
    throttle_reasons: list[str] | None
    settled_by: str | None = None
    slope_c_per_min: float | None = None
    anchor_c: float | None = None
    power_limit_w: float | None
    other_processes: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions(CpuUse):
    """Under which conditions a run was measured.

    Attributes:
        boards: each board of the run.
        cooldown_s: seconds waited for them to settle; None where there was nothing to wait for.
        settled: whether they did; None where that is not known.
        settled_by: by which rules.
        idle_s: length of the idle baseline.
        exclusive: whom the run kept out, see `lease.Lease`.
        window_begin: UTC, ISO 8601.
        window_end: the same.
    """

    boards: list[BoardConditions]
    cooldown_s: float | None
    settled: bool | None
    settled_by: str | None = None
    idle_s: float
    exclusive: str
    window_begin: str
    window_end: str


@dataclass(frozen=True, kw_only=True)
class WholeRunEnergy:
    """Joules of one device from the trace's first to its last reading; None with a reason."""

    device: str
    energy_j: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What measuring cost.

    Attributes:
        meter_s: seconds of the window inside the meter's calls.
        weights_s: seconds of the window in which weights were copied, to be scored later.
        trace_cpu_s: CPU-seconds of the trace in the window; None where it was read less than twice.
        num_samples: how often it was read there.
        whole_run_s: from the trace's first to its last reading: start-up, idling, window and scoring.
        whole_run_energy: joules of that time.
    """

    meter_s: float
    weights_s: float | None = None
    trace_cpu_s: float | None
    num_samples: int
    whole_run_s: float | None
    whole_run_energy: list[WholeRunEnergy]


@dataclass(frozen=True, kw_only=True)
class Measurement(Counts):
    """What was measured of a run: per pass of the training unless it says otherwise; counts are of the training phases.

    Attributes:
        window_s: seconds.
        num_passes: in the window.
        total_window_s: seconds of the whole window.
        startup_s: seconds from the begin of the processes to the end of the warm-up.
        cpu_s: CPU-seconds of all processes.
        energy: a row per device, as `verdict.finalise_energy` judges it.
        peak_memory: of the training.
        num_steps: optimizer steps.
        num_skipped_steps: of these, left out by loss scaling.
        phases: of the training; missing in records of before they were counted.
        products: which library computed the matrix products of the CPU, with the times of both.
        attention: whose implementation, and PyTorch's kernels that it may take.
        num_compilations_in_window: 0 unless a compiler met something new there.
        samples_per_s: texts.
        tokens_per_s: real tokens, read and written.
        padded_tokens_per_s: with padding.
        epochs_per_minute: passes over the training texts.
        flags: what to know before comparing.
        conditions: of the measuring.
        overhead: of it.
    """

    window_s: float
    num_passes: int
    total_window_s: float
    startup_s: float
    cpu_s: float
    energy: list[DeviceEnergy]
    peak_memory: PeakMemory
    num_steps: int
    num_skipped_steps: int
    phases: list[PlainPhase | ChosenPhase] | None = field(default=None, metadata=MISSING)
    products: dict[str, object] | None = field(default=None, metadata=MISSING)
    attention: dict[str, object] | None = field(default=None, metadata=MISSING)
    num_compilations_in_window: int | None = field(default=None, metadata=MISSING)
    samples_per_s: float
    tokens_per_s: float
    padded_tokens_per_s: float
    epochs_per_minute: float
    flags: list[Flag]
    conditions: Conditions
    overhead: Overhead


@dataclass(frozen=True, kw_only=True)
class BoardIdentity:
    """Which board it was; index and mig are missing in some older records."""

    index: int | None = None
    name: str
    uuid: str
    memory_bytes: int | None
    mig: bool | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class Citation:
    """What a record says of the certificate of a board or of its host.

    Attributes:
        device: `gpu:0`, `cpu:0`.
        name: of the certificate: a board's UUID, or `certificate.HOST`.
        digest: of the certificate; None where there is none, as of the next four.
        made: when.
        holds: names of the promises that hold.
        fails: of those that do not.
        not_tried: of those that nobody can tell.
        reason: why there is no certificate, or what weakens it; None where there is nothing to say.
    """

    device: str
    name: str
    digest: str | None = None
    made: str | None = None
    holds: list[str] | None = None
    fails: list[str] | None = None
    not_tried: list[str] | None = None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a number was measured on.

    Attributes:
        hostname: of the machine.
        platform: kernel and C library.
        python: its version.
        cpu_model: as the kernel names it.
        cpu_cores: that the processes may use.
        host_memory_bytes: of the machine.
        gpus: the run's boards.
        driver: NVIDIA's.
        versions: of the libraries, None where one is not installed.
        git_commit: of the checkout; None outside of one.
        git_dirty: whether tracked files differed from it.
        threads_per_process: that each process may compute with.
        certificates: of the boards and the host; missing in records of before there were any.
    """

    hostname: str
    platform: str
    python: str
    cpu_model: str
    cpu_cores: int
    host_memory_bytes: int
    gpus: list[BoardIdentity]
    driver: str | None
    versions: dict[str, str | None]
    git_commit: str | None
    git_dirty: bool | None
    threads_per_process: int
    certificates: list[Citation] | None = field(default=None, metadata=MISSING)


def read_rank(row: Mapping[str, Any]) -> RankResult | Stopped | BadInput:
    """What a rank left, from its JSON."""
    if row["status"] != "ok":
        return BadInput(**row) if row["status"] == "error" else Stopped(**row)
    return RankResult(
        **{
            **row,
            "span": Span(**row["span"]),
            "energy": [read_reading(**one) for one in row["energy"]],
            "peak_memory": PeakMemory(**row["peak_memory"]),
            "phases": [read_phase(one) for one in row["phases"]],
            "epochs": [Epoch(**one) for one in row["epochs"]],  # without joules, which no rank knows
            "quality": Quality(**row["quality"]),
            "summaries": [Summary(**one) for one in row["summaries"]],
        }
    )


def read_reading(reads: Mapping[str, Any] | None = None, **of_device: Any) -> Reading:  # noqa: ANN401 - its fields
    """A reading from the keys of its JSON."""
    if reads is None:
        return Reading(**of_device)
    begin_s, end_s = tuple(reads["begin_s"]), tuple(reads["end_s"])
    return Reading(reads=CounterReads(begin_j=reads["begin_j"], begin_s=begin_s, end_s=end_s), **of_device)


def read_phase(row: Mapping[str, Any]) -> PlainPhase | ChosenPhase:
    """A phase from its JSON; what is none of its fields are facts of the method."""
    kind = ChosenPhase if "chosen" in row else PlainPhase
    names = {one.name for one in dataclasses.fields(kind)}
    facts = {name: value for name, value in row.items() if name not in names}
    return kind(facts=facts, **{name: value for name, value in row.items() if name in names})
