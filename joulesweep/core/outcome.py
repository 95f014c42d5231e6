"""Types of a run's results, from a meter's `Reading` to a record's `Measurement`. Standard library only.

Each type is a JSON object of a rank's file or of a record, with its fields as keys; `as_json` writes it.
`joulesweep.runs.record` reads and checks records. Spans are in seconds of the monotonic clock. A value that a device
does not report is null, with a reason beside it. A field with a default is missing in older records, or in those of
other runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from joulesweep.core.work import COUNTED

#: Status of a device's joules: counted; integrated from its power; estimated; too few counter updates; no number.
Status = Literal["measured", "integrated", "estimated", "below_resolution", "unavailable"]
#: Status of a run that ended early with a result.
Ending = Literal["oom", "diverged", "unsupported", "timeout"]
#: Metadata of a field: leave its key out of the JSON if it is None; write its entries as keys of the containing object.
MISSING, FLAT = {"missing": True}, {"flat": True}


def as_json(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Convert a value to JSON types: dataclasses and mappings to objects, lists and tuples to lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries: dict[str, object] = {}
        for attribute in dataclasses.fields(value):
            item = getattr(value, attribute.name)
            if attribute.metadata == FLAT:
                entries |= as_json(item)
            elif item is not None or attribute.metadata != MISSING:
                entries[attribute.name] = as_json(item)
        return entries
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class DeviceTotal:
    """Joules of one device over a whole window.

    Attributes:
        device: `gpu:0`, `cpu:0`, `dram:0`.
        kind: the part of the device's name before the colon; "gpu" for a slice of a board.
        uuid: of a board; None for any other device.
        total_energy_j: joules of the window; None if there is no number.
        status: of the number.
        method: how the number was obtained.
        reason: why there is no number; None if there is one.
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
        begin_j: value of the counter at the begin.
        begin_s: times before and after the call that read it at the begin.
        end_s: the same at the end.
    """

    begin_j: float
    begin_s: tuple[float, float]
    end_s: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Reading(DeviceTotal):
    """A meter's reading of one device, before the trace is taken into account.

    Attributes:
        reads: of a board whose counter was read; None for any other device.
    """

    reads: CounterReads | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class DeviceEnergy(DeviceTotal):
    """Joules of one device per pass of the training, after the trace is taken into account.

    Attributes:
        energy_j: joules per pass.
        tick_s: time between two updates of its counter; None if it has no counter, or the time is unknown.
        mean_power_w: in the window: of a board from its power readings, of the host from its counter.
        power_ratio: mean power times time over the counter's joules; None if they were not compared.
        idle_w: power of the idle baseline.
        net_energy_j: energy_j without idle_w.
        error_j: largest error of energy_j, apart from the sensor's accuracy.
        power_method: "instant", or "as the driver averages it"; None for a device that is not a board.
        ratio_reason: why power_ratio is null.
        idle_reason: why idle_w is null.
        net_reason: why net_energy_j is null.
        doubt: what contradicts the joules, which excludes them from rankings; None if nothing does.
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
    """A window and the idle baseline before it, on the monotonic clock.

    Attributes:
        begin_s: of the window.
        end_s: of the window.
        idle_begin_s: of the idle baseline; equals idle_end_s if there was none.
        idle_end_s: of the idle baseline.
        meter_s: time inside the meter's calls.
        clock_step_s: how much more the wall clock advanced than the monotonic one during the window.
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
        """Length of the window in seconds."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of the work in batches, see `work.UNITS`: padded counts are computed units, the others useful ones."""

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
        """Return the counts alone, by name."""
        return {name: getattr(self, name) for name in COUNTED}


@dataclass(frozen=True, kw_only=True)
class TensorChoice:
    """Which tensors a method chose to train, and their predicted cost.

    Attributes:
        chosen: names of the tensors that train.
        candidates: names of all tensors that it chose from.
        num_candidates: number of candidates.
        trained_share: share of the model's parameters that train.
        importance_share: share of the candidates' importance that the chosen ones have; None if it is undefined.
        objective: unit of the budget: "flops" or "time".
        rho: the budget: cost of a step over that of training every candidate.
        predicted_cost: cost of the choice, in the same terms.
        floor: cost of the cheapest choice.
        gap: upper bound on the relative distance from the best choice; None if unknown.
        rates: measured rates that the costs were computed with; None if nothing was measured.
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
    """Predicted work of a step, from the model's shapes.

    Attributes:
        flop_coefficients: FLOPs per unit of work, see `flops.coefficients`; None with a reason.
        bytes_per_step: see `flops.bytes_per_step`; None with a reason.
        flop_reason: why the work is unknown, or None.
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
    """A span of the training in which the set of trained tensors does not change, or in which tensors are rated.

    Attributes:
        kind: "training" or "rating".
        epoch: with which it began.
        elapsed_s: duration in seconds, without the copying of weights.
        num_steps: optimizer steps.
        num_skipped_steps: steps that loss scaling skipped.
        facts: the method's facts about itself, see `methods.describe`; written, but not read back.
    """

    kind: str
    epoch: int
    elapsed_s: float
    num_steps: int
    num_skipped_steps: int
    facts: dict[str, object] = field(default_factory=dict, compare=False, metadata=FLAT)


@dataclass(frozen=True, kw_only=True)
class PlainPhase(Phase):
    """A phase whose tensors were not chosen by a method."""

    chosen: None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class ChosenPhase(Phase, TensorChoice):
    """A phase whose tensors a method chose."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Peak memory in bytes: of the host, summed over processes; of the fullest GPU, or None if the run uses none."""

    host_rss_bytes: int | None
    gpu_allocated_bytes: int | None
    gpu_reserved_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of weights on the validation texts.

    Attributes:
        validation_loss: nats per predicted token.
        perplexity: exponential of the loss; None beyond 1e300.
        masked_accuracy: share of predicted tokens that are right, for every task.
        choice_accuracy: share of texts whose right choice is the likeliest; None unless the data is multiple choice.
        num_validation_texts: number of scored texts.
        num_masked: number of predicted tokens.
    """

    validation_loss: float
    perplexity: float | None
    masked_accuracy: float
    choice_accuracy: float | None
    num_validation_texts: int
    num_masked: int


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """Words, characters and pieces of texts, see `wording.count`; words are what white space separates.

    Attributes:
        num_words: of one pass of the training, targets included.
        num_characters: likewise, white space included.
        num_pieces: likewise, tokens without special ones and without the prompt.
        num_validation_characters: of what is predicted in the validation: the texts, or their targets.
        num_validation_pieces: tokens of these; of masked texts all that could be hidden.
    """

    num_words: int
    num_characters: int
    num_pieces: int
    num_validation_characters: int
    num_validation_pieces: int


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """When an epoch of the training ended; epoch 0 is the untrained model.

    Attributes:
        epoch: number of the epoch.
        elapsed_s: seconds since the window began.
        cpu_s: CPU-seconds of all processes since then.
        num_steps: optimizer steps since then.
        energy: joules since the window began, of each device that has a number.
    """

    epoch: int
    elapsed_s: float
    cpu_s: float
    num_steps: int
    energy: list[EpochEnergy] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Epoch(EpochEnd):
    """State of the training at the end of an epoch; epoch 0 is the untrained model.

    Attributes:
        epoch: as in `EpochEnd`, like the next four.
        elapsed_s: see there.
        cpu_s: see there.
        num_steps: see there.
        energy: see there.
        train_loss: mean over its steps; None for epoch 0.
        validation_loss: as in `Quality`, like the next three.
    """

    train_loss: float | None
    validation_loss: float
    perplexity: float | None
    masked_accuracy: float
    choice_accuracy: float | None
    energy: list[EpochEnergy]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The trained model's output for a held-out text.

    Attributes:
        text: index of the text in the data set.
        summary: the generated text.
        references: texts that it is scored against; missing if the data set has none.
    """

    text: int
    summary: str
    references: list[str] | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class EvaluationScore:
    """A metric of an evaluation, before the training and after it.

    Attributes:
        evaluation: its name, with the data set in brackets if it reads one: `held-out(news)`.
        category: of the items; "all" for all of them.
        metric: what is scored.
        before: of the untrained model; None where the items cannot tell.
        after: of the trained model; None likewise.
        n: number of items.
    """

    evaluation: str
    category: str
    metric: str
    before: float | None
    after: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """A score of every item of an evaluation, before the training and after it; [items] each.

    Attributes:
        score: its name.
        before: of the untrained model.
        after: of the trained model.
    """

    score: str
    before: list[float]
    after: list[float]


@dataclass(frozen=True, kw_only=True)
class EvaluationItems:
    """Scores of the items of an evaluation, which pair what is compared item by item.

    Attributes:
        evaluation: as in `EvaluationScore`.
        categories: of each item.
        scores: of the items.
    """

    evaluation: str
    categories: list[str]
    scores: list[ItemScores]


@dataclass(frozen=True, kw_only=True)
class Windowed:
    """The window of one process, or of all of them merged by `measurement.merge_ranks`.

    Attributes:
        total_window_s: length of the window in seconds.
        num_passes: number of times that the training was repeated in the window.
        span: of the window.
        energy: readings of each device that this process meters.
        cpu_s: CPU-seconds per pass.
        startup_s: seconds from the start of the process to the end of the warm-up.
        peak_memory: of the training.
        num_steps: optimizer steps of a pass.
        num_compilations_in_window: 0 unless a new shape or branch was compiled there.
    """

    total_window_s: float
    num_passes: int
    span: Span
    energy: list[Reading]
    cpu_s: float
    startup_s: float
    peak_memory: PeakMemory
    num_steps: int
    num_compilations_in_window: int

    @property
    def window_s(self) -> float:
        """Seconds of the window per pass."""
        return self.total_window_s / self.num_passes

    @property
    def num_skipped_steps(self) -> int:
        """Steps of a pass that loss scaling skipped, as far as known."""
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """A rank's part of a checkpoint.

    Attributes:
        name: of the file.
        num_bytes: its size.
        sha256: its checksum.
        write_s: seconds that it took to write.
    """

    name: str
    num_bytes: int
    sha256: str
    write_s: float


@dataclass(frozen=True, kw_only=True)
class Preempted(Windowed):
    """Result of one process of a run that stopped because it was asked to, or of all of them merged.

    Attributes:
        step: number of steps of the training taken so far.
        epochs: ends of the finished epochs, without joules; seconds are those of all attempts.
        files: of the checkpoint.
        status: of such a process.
    """

    step: int
    epochs: list[EpochEnd]
    files: list[CheckpointFile]
    status: Literal["preempted"] = "preempted"


@dataclass(frozen=True, kw_only=True)
class RankResult(Windowed):
    """Result of one process of a run, or of all of them merged by `measurement.merge_ranks`.

    Attributes:
        phases: of the first pass, in order.
        products: see `onednn.choose`.
        attention: see `assembly.attention`.
        epochs: with their quality, but without joules.
        quality: after the last epoch.
        losses: of every step.
        summaries: that this process generated.
        num_train_texts: of the whole data set.
        evaluations: scores of the spec's evaluations, the same on every rank.
        evaluation_items: scores of their items, likewise.
        texts: what the texts count, the same on every rank; None if they were tokenised without.
        status: of a successful run; see `Stopped` for the others.
    """

    phases: list[PlainPhase | ChosenPhase]
    products: dict[str, object]
    attention: dict[str, object]
    epochs: list[Epoch]
    quality: Quality
    losses: list[float]
    summaries: list[Summary]
    num_train_texts: int
    evaluations: list[EvaluationScore] = field(default_factory=list)
    evaluation_items: list[EvaluationItems] = field(default_factory=list)
    texts: TextCounts | None = None
    status: Literal["ok"] = "ok"

    @property
    def training(self) -> list[Phase]:
        """The phases in which tensors trained."""
        return [phase for phase in self.phases if phase.kind == "training"]

    @property
    def num_skipped_steps(self) -> int:
        """Steps of a pass that loss scaling skipped."""
        return sum(phase.num_skipped_steps for phase in self.training)


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run that ended early with a result.

    Attributes:
        status: how it ended.
        reason: why, in one line.
        oom_bytes: bytes requested when memory ran out; None if unknown.
    """

    status: Ending
    reason: str
    oom_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """A rank that could not start because the user's input is wrong: no result and no record."""

    reason: str
    status: Literal["error"] = "error"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A condition that weakens a comparison.

    Attributes:
        flag: name of the condition.
        text: what was observed, in one line.
    """

    flag: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CpuUse:
    """CPU time that a run got in its window; None where unknown.

    Attributes:
        cpu_share: CPU time of the run's processes over the window times their threads.
        cpu_pressure_share: share of the time in which some process of the machine waited for a core.
        cpu_wait_share: share of the run's runnable time in which its threads waited for a core.
        foreign_cpu_s: CPU-seconds of other processes.
        cpu_steal_s: CPU-seconds that a hypervisor took.
        cpu_unknown: by name, why some of these are None.
    """

    cpu_share: float | None = None
    cpu_pressure_share: float | None = None
    cpu_wait_share: float | None = None
    foreign_cpu_s: float | None = None
    cpu_steal_s: float | None = None
    cpu_unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BoardConditions:
    """Conditions of one board in the window.

    Attributes:
        device: `gpu:0`.
        uuid: of the board.
        temperature_start_c: at the window's begin.
        temperature_end_c: at the window's end.
        sm_clock_mean_mhz: in the window.
        sm_clock_min_mhz: in the window.
        throttle_reasons: what reduced its clocks; None unless the board always reported it.
        settled_by: see `settling.Rest`, like the next two.
        slope_c_per_min: slope of its temperature when the wait ended.
        anchor_c: temperature at rest with which it was compared.
        power_limit_w: in force in the window.
        other_processes: when other processes used it: "before", "during", "after"; None if unknown.
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
    """The conditions under which a run was measured.

    Attributes:
        boards: each board of the run.
        cooldown_s: seconds waited for the boards to settle; None if there was nothing to wait for.
        settled: whether they settled; None if unknown.
        settled_by: the rules by which they settled.
        idle_s: length of the idle baseline.
        exclusive: what the run reserved for itself, see `lease.Lease`.
        window_begin: UTC, ISO 8601.
        window_end: likewise.
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
    """Joules of one device from the first to the last reading of the trace; None with a reason."""

    device: str
    energy_j: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """The cost of measuring.

    Attributes:
        meter_s: seconds of the window inside the meter's calls.
        weights_s: seconds of the window in which weights were copied, to be scored later.
        trace_cpu_s: CPU-seconds of the trace in the window; None if it has fewer than two readings there.
        num_samples: readings of the trace in the window.
        whole_run_s: from the first to the last reading of the trace: start-up, idling, window and scoring.
        whole_run_energy: joules over that time.
    """

    meter_s: float
    weights_s: float | None = None
    trace_cpu_s: float | None
    num_samples: int
    whole_run_s: float | None
    whole_run_energy: list[WholeRunEnergy]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What one attempt did of a training that was preempted.

    Attributes:
        attempt: its name in `attempts.jsonl`; None if it was not noted.
        hostname: of the machine.
        first_step: number of the first step that it took, from 1.
        last_step: of the last one, in the first pass.
        window_s: seconds of its window, with all passes.
        cpu_s: CPU-seconds of all processes in it.
        took_s: seconds from the start of its processes to their end.
        energy: a row per device, as of one pass: joules of its whole window.
        flags: conditions that weaken a comparison.
        conditions: of its measurement.
        overhead: cost of its measurement.
        checkpoint_bytes: size of the checkpoint at its end; None at the end of the training.
        checkpoint_s: seconds that it took to write; None likewise.
    """

    attempt: str | None
    hostname: str
    first_step: int
    last_step: int
    window_s: float
    cpu_s: float
    took_s: float
    energy: list[DeviceEnergy]
    flags: list[Flag]
    conditions: Conditions
    overhead: Overhead
    checkpoint_bytes: int | None = None
    checkpoint_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class LostEnergy:
    """Joules that a counter rose by while an attempt held its devices; None with a reason."""

    device: str
    kind: str
    energy_j: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class LostAttempt:
    """An attempt at a run whose work is not in its record: it was killed, or nothing could be kept of it.

    Attributes:
        attempt: its name in `attempts.jsonl`.
        began: UTC, ISO 8601.
        status: how it ended; None if nobody knows, like the next three.
        reason: why.
        held_s: seconds in which it held its devices.
        energy: joules in that time; empty if none were read.
    """

    attempt: str
    began: str
    status: str | None
    reason: str | None
    held_s: float | None
    energy: list[LostEnergy]


@dataclass(frozen=True, kw_only=True)
class Measurement(Counts):
    """Measurement of a run, per pass of the training unless stated otherwise; counts are of the training phases.

    Attributes:
        window_s: seconds of the window.
        num_passes: in the window.
        total_window_s: seconds of the whole window.
        startup_s: seconds from the start of the processes to the end of the warm-up.
        cpu_s: CPU-seconds of all processes.
        energy: a row per device, from `verdict.finalise_energy`.
        peak_memory: of the training.
        num_steps: optimizer steps.
        num_skipped_steps: steps that loss scaling skipped.
        phases: of the training; missing in older records.
        products: which library computed the CPU's matrix products, with the times of both.
        attention: the implementation, and the kernels that PyTorch may use.
        num_compilations_in_window: 0 unless a new shape or branch was compiled there.
        samples_per_s: texts.
        tokens_per_s: real tokens, read and written.
        padded_tokens_per_s: tokens with padding.
        epochs_per_minute: passes over the training texts.
        flags: conditions that weaken a comparison.
        conditions: of the measurement; those of the last attempt if there were several.
        overhead: cost of the measurement.
        segments: of a run that was preempted: what each attempt did, in order; missing otherwise. Seconds and joules
            of the measurement are their sums.
        texts: words, characters and pieces; missing in older records.
        lost: of such a run: the attempts since the last record whose work is not in this one; missing otherwise.
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
    segments: list[Segment] | None = field(default=None, metadata=MISSING)
    lost: list[LostAttempt] | None = field(default=None, metadata=MISSING)
    texts: TextCounts | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class BoardIdentity:
    """Identity of a board; index and mig are missing in some older records."""

    index: int | None = None
    name: str
    uuid: str
    memory_bytes: int | None
    mig: bool | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A record's reference to the certificate of a board or of the host.

    Attributes:
        device: `gpu:0`, `cpu:0`.
        name: of the certificate: a board's UUID, or `certificate.HOST`.
        digest: of the certificate; None if there is none, like the next four.
        made: when it was made.
        holds: names of the promises that hold.
        fails: names of those that do not hold.
        not_tried: names of those that cannot be checked.
        reason: why there is no certificate, or what weakens it; None otherwise.
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
class BatchJob:
    """The batch system's job in which a run was measured; None where the system does not tell.

    Attributes:
        system: slurm, pbs, lsf, sge or htcondor.
        job: its id; a task of an array follows after a dot.
        node: the system's name of the node.
        account: account or project that the job is charged to.
        partition: partition or queue.
    """

    system: str
    job: str | None
    node: str | None
    account: str | None
    partition: str | None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and the software of a measurement.

    Attributes:
        hostname: of the machine.
        platform: kernel and C library.
        python: version of Python.
        cpu_model: as the kernel names it.
        cpu_cores: number that the processes may use.
        host_memory_bytes: of the machine.
        gpus: the run's boards.
        driver: version of NVIDIA's driver.
        versions: of the libraries; None for one that is not installed.
        git_commit: of the checkout; None outside a checkout.
        git_dirty: whether tracked files differed from the commit.
        threads_per_process: number of threads that each process may use.
        certificates: of the boards and the host; missing in older records.
        batch: the batch system's job; missing outside a batch system and in older records.
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
    batch: BatchJob | None = field(default=None, metadata=MISSING)


@dataclass(frozen=True, kw_only=True)
class NodePart:
    """The part of one machine in a run on several; its devices are named as in the measurement: `node1/gpu:0`.

    Attributes:
        node: its number, from 0.
        environment: the machine and its software.
        conditions: of the measurement there; None unless ok.
        flags: of this machine alone.
        total_window_s: seconds of the whole window there; None unless ok.
        cpu_s: CPU-seconds of its processes, per pass; None unless ok.
        clock_offset_s: how far its wall clock was ahead of the first node's, before the run.
        clock_error_s: largest error of clock_offset_s: half the time of a question and its answer on each side.
        window_lag_s: how much later its window began than the first node's, clock_offset_s taken into account; None
            unless ok.
    """

    node: int
    environment: Environment
    conditions: Conditions | None
    flags: list[Flag]
    total_window_s: float | None
    cpu_s: float | None
    clock_offset_s: float
    clock_error_s: float
    window_lag_s: float | None


def read_rank(row: Mapping[str, Any]) -> RankResult | Preempted | Stopped | BadInput:
    """Decode the result of a rank from its JSON."""
    if row["status"] not in ("ok", "preempted"):
        return BadInput(**row) if row["status"] == "error" else Stopped(**row)
    window = {
        "span": Span(**row["span"]),
        "energy": [read_reading(**item) for item in row["energy"]],
        "peak_memory": PeakMemory(**row["peak_memory"]),
    }
    if row["status"] == "preempted":
        epochs = [EpochEnd(**epoch) for epoch in row["epochs"]]
        return Preempted(
            **{**row, **window, "epochs": epochs, "files": [CheckpointFile(**file) for file in row["files"]]}
        )
    return RankResult(
        **{
            **row,
            **window,
            "phases": [read_phase(item) for item in row["phases"]],
            "epochs": [Epoch(**item) for item in row["epochs"]],  # without joules, which no rank knows
            "quality": Quality(**row["quality"]),
            "summaries": [Summary(**item) for item in row["summaries"]],
            "evaluations": [EvaluationScore(**item) for item in row.get("evaluations", ())],
            "evaluation_items": [read_items(item) for item in row.get("evaluation_items", ())],
            "texts": TextCounts(**row["texts"]) if row.get("texts") else None,
        }
    )


def read_items(row: Mapping[str, Any]) -> EvaluationItems:
    """Decode the items of an evaluation from their JSON."""
    return EvaluationItems(**{**row, "scores": [ItemScores(**score) for score in row["scores"]]})


def read_reading(reads: Mapping[str, Any] | None = None, **of_device: Any) -> Reading:  # noqa: ANN401 - its fields
    """Decode a reading from the keys of its JSON."""
    if reads is None:
        return Reading(**of_device)
    begin_s, end_s = tuple(reads["begin_s"]), tuple(reads["end_s"])
    return Reading(reads=CounterReads(begin_j=reads["begin_j"], begin_s=begin_s, end_s=end_s), **of_device)


def read_phase(row: Mapping[str, Any]) -> PlainPhase | ChosenPhase:
    """Decode a phase from its JSON; keys that are not fields are facts of the method."""
    kind = ChosenPhase if "chosen" in row else PlainPhase
    names = {item.name for item in dataclasses.fields(kind)}
    facts = {name: value for name, value in row.items() if name not in names}
    return kind(facts=facts, **{name: value for name, value in row.items() if name in names})
