"""The columns of every table of a sweep: name, dtype, unit, meaning, and when a value is null.

Each column is one row here: `tables.write` puts its unit and description into the parquet file, and `tables.frame`
refuses rows with other columns. A pass is one whole training: all epochs, all devices. A window holds one pass, or
several if a training is shorter than `measure.min_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

#: Names of Polars' dtypes, so that the Snakefile knows the tables without importing Polars.
TEXT, WHOLE, REAL, FLAG, TEXTS = "String", "Int64", "Float64", "Boolean", "List(String)"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the column; ends with its unit if it has one: window_s.
        dtype: of its values, in every sweep: `TEXT`, `WHOLE`, `REAL`, `FLAG` or `TEXTS`.
        unit: of its numbers; None if they have none.
        about: what the number is, and per what, in one line.
        null: when a row of an ok run lacks a value, in words that follow "null"; None: never.
        mean: whether the cells table has its mean over the repeats, with an interval.
        of_joules: whether it is joules or computed from them: no mean over different scopes or statuses.
        heading: of its means in the report's table of configurations; None: not shown. A column that may be null is
            left out there if no cell has a value.
        show: how the report formats a mean: a key of `numbers.FORMATS`.
    """

    name: str
    dtype: str
    unit: str | None
    about: str
    null: str | None = None
    # For the analysis; not written to the file.
    mean: bool = field(default=False, compare=False, kw_only=True)
    of_joules: bool = field(default=False, compare=False, kw_only=True)
    heading: str | None = field(default=None, compare=False, kw_only=True)
    show: str = field(default="number", compare=False, kw_only=True)


Table = dict[str, Column]  # by name, in the order of the file


def _table(*columns: Column) -> Table:
    table = {column.name: column for column in columns}
    if len(table) < len(columns):
        raise ValueError(f"a table has a column twice: {' '.join(column.name for column in columns)}")
    return table


def _of(table: Table, names: str) -> Iterator[Column]:
    """Columns that this table shares with another."""
    return (table[name] for name in names.split())


def named(table: Table, names: str) -> tuple[str, ...]:
    """Names of columns, checked, for code that fills them.

    Raises:
        KeyError: the table has no such column.
    """
    return tuple(column.name for column in _of(table, names))


#: What each ROUGE counts in a generated summary and its references.
ROUGE = {"rouge1": "words", "rouge2": "pairs of words", "rougeL": "the longest common subsequence of words"}
#: The middle, lower and upper end of an estimate: `_estimated` describes them.
ESTIMATED = ("estimated_energy_j", "estimated_energy_low_j", "estimated_energy_high_j")
UNTOLD = "and where it does not tell its jobs"
UNCOUNTED = "where words_reason says why"
NOT_ESTIMATED = "unless the run was on the CPU and the config asks for estimates"


def _quality(after: str) -> tuple[Column, ...]:
    """The columns of held-out quality, after some part of the training."""
    of_texts = f"of the validation texts after {after}"
    choice = f"share of the multiple-choice texts whose right choice has the lowest loss per token, after {after}"
    return (
        Column(
            "validation_loss",
            REAL,
            "nat/token",
            f"mean cross-entropy per predicted token {of_texts}",
            mean=True,
            heading="Validation loss",
        ),
        Column("perplexity", REAL, None, "e to the power of validation_loss", "where it is beyond 1e300", mean=True),
        Column(
            "masked_accuracy",
            REAL,
            None,
            f"share of the predicted tokens {of_texts} that are right",
            mean=True,
            heading="Masked accuracy",
        ),
        Column(
            "choice_accuracy",
            REAL,
            None,
            choice,
            "unless the data set is multiple choice",
            mean=True,
            heading="Choice accuracy",
        ),
    )


#: Held-out quality.
QUALITY = tuple(column.name for column in _quality("training"))


def _estimated(of: str, null: str = NOT_ESTIMATED) -> tuple[Column, ...]:
    """The columns of `ESTIMATED`, of some part of a run: a range, not a confidence interval."""
    words = f"estimated joules {of}, from CPU-seconds and the processor's watts"
    ends = (words, f"{words}: lower end of the range", f"{words}: upper end of the range")
    headings = ("Estimated energy", None, None)
    return tuple(
        Column(name, REAL, "J", about, null, heading=heading)
        for name, about, heading in zip(ESTIMATED, ends, headings, strict=True)
    )


def _interval(column: Column) -> tuple[Column, ...]:
    """The columns of the mean of a quantity over the repeats of a cell, and of the ends of its interval."""
    kind = ", of one scope and status" if column.of_joules else ""
    null, of = (
        f"unless every ok run has the number{kind}",
        f"end of the 95 % t interval of {column.name}_mean, from logs",
    )
    alone = f"{null}, and of a single run"
    return (
        Column(f"{column.name}_mean", REAL, column.unit, f"mean over the repeats: {column.about}", null),
        Column(f"{column.name}_low", REAL, column.unit, f"lower {of} over the repeats", alone),
        Column(f"{column.name}_high", REAL, column.unit, f"upper {of} over the repeats", alone),
    )


def _ratio(name: str, of: str) -> tuple[Column, ...]:
    """The columns of a cell's ratio to the baseline of its panel."""
    null, noise = (
        "of the baseline, without a common seed, and of joules that do not compare",
        "where nothing tells the noise",
    )
    words = f"{of} / that of compared_with, paired by seed"
    return (
        Column(f"{name}_ratio", REAL, None, words, null),
        Column(f"{name}_ratio_low", REAL, None, f"lower end of the 95 % interval of {name}_ratio", noise),
        Column(f"{name}_ratio_high", REAL, None, f"upper end of the 95 % interval of {name}_ratio", noise),
    )


#: The columns that identify a cell.
IDENTITY = _table(
    Column("cell", TEXT, None, "id of the configuration: the same in all its repeats"),
    Column("name", TEXT, None, "setup and batch size: how charts and report name the cell"),
    Column("label", TEXT, None, "how progress lines name the configuration"),
    Column("setup", TEXT, None, "name without the batch size"),
    Column("panel", TEXT, None, "model, data set, task, environment where they vary: what may be compared"),
    Column("model", TEXT, None, "name of the model in the config"),
    Column("dataset", TEXT, None, "name of the data set in the config"),
    Column("task", TEXT, None, "what is learned: mlm hidden tokens, clm the next token, seq2seq a text's target"),
    Column("method", TEXT, None, "which parameters train: a module of joulesweep.methods"),
    Column("method_params", TEXT, None, "parameters of the method, as JSON"),
    Column("strategy", TEXT, None, "how the training is spread over devices"),
    Column("devices", WHOLE, None, "number of devices: GPUs, or processes on the CPU"),
    Column("nodes", WHOLE, None, "number of machines with equally many of the devices", "where the grid is older"),
    Column("precision", TEXT, None, "number formats of the weights and of the arithmetic"),
    Column("batching", TEXT, None, "how texts become rows: dynamic or fixed padding, or packed into full rows"),
    Column("head", TEXT, None, "where the output layer is computed: masked at predicted positions, dense everywhere"),
    Column("engine", TEXT, None, "how a step is executed: eager, compiled or captured"),
    Column("optimizer", TEXT, None, "what turns gradients into steps: adamw, or adamw-8bit with quantised moments"),
    Column(
        "batch_size", WHOLE, None, "texts per optimizer step: on all devices together, or on each (batch_size_scope)"
    ),
    Column("batch_size_scope", TEXT, None, "what batch_size counts: global all devices, per_device each"),
    Column("batch", TEXT, None, "batch_size as names show it: 32, or 32/device"),
    Column(
        "micro_batch_size", WHOLE, None, "texts per forward pass on each device", "where a batch is computed at once"
    ),
    Column("checkpoint_activations", FLAG, None, "whether activations are recomputed instead of kept"),
    Column("lr", REAL, None, "peak learning rate"),
    Column(
        "lr_rule",
        TEXT,
        None,
        "rules of the grid that give this lr at this batch: constant, sqrt, linear",
        "where the grid is older",
    ),
    Column(
        "max_grad_norm", REAL, None, "norm to which larger gradients of a step are clipped", "where none is clipped"
    ),
)
RUNS = _table(
    Column("run", TEXT, None, "id of the run, and the name of its folder"),
    *IDENTITY.values(),
    Column("repeat", WHOLE, None, "number of the repeat, from 1: the seed of everything random"),
    Column(
        "status", TEXT, None, "ok, oom, diverged, unsupported, timeout; missing: no record; unreadable: a corrupt one"
    ),
    Column("reason", TEXT, None, "why the run is not ok, in a line", "where it is ok"),
    Column(
        "oom_bytes", WHOLE, "bytes", "bytes asked for when memory ran out", "unless status is oom, and where unknown"
    ),
    Column("started", TEXT, None, "when the run's processes started: UTC, ISO 8601"),
    Column("finished", TEXT, None, "when the record was written: UTC, ISO 8601"),
    Column("window_s", REAL, "s", "seconds of one pass: total_window_s / num_passes", mean=True, heading="Time"),
    Column("startup_s", REAL, "s", "seconds from loading to the window: first scoring, idle baseline, warm-up"),
    Column("cpu_s", REAL, "s", "CPU-seconds of all the run's processes in one pass", mean=True),
    Column(
        "energy_j",
        REAL,
        "J",
        "joules of one pass, of the devices in energy_scope",
        "where energy_reason says why",
        mean=True,
        of_joules=True,
        heading="Energy",
    ),
    Column(
        "energy_error_j",
        REAL,
        "J",
        "largest possible error of energy_j, not counting the boards' accuracy",
        "where unknown",
    ),
    Column(
        "net_energy_j",
        REAL,
        "J",
        "energy_j less what idle_w makes in one pass",
        "where a device lacks one of the two",
        mean=True,
        of_joules=True,
        heading="Net of idle",
    ),
    Column("energy_scope", TEXT, None, "kinds of device in energy_j: gpu, gpu+cpu+dram, …", "where energy_j is"),
    Column("energy_status", TEXT, None, "measured (counters), integrated (power), below_resolution or unavailable"),
    Column("energy_method", TEXT, None, "how the joules were read", "where nothing could read them"),
    Column("energy_reason", TEXT, None, "why energy_j is null", "where it is not"),
    Column(
        "energy_doubt", TEXT, None, "what contradicts energy_j: such joules are in no ranking", "where nothing does"
    ),
    Column("energy_tick_s", REAL, "s", "time between two moves of the slowest counter in scope", "where none is known"),
    Column(
        "idle_w", REAL, "W", "mean power before the window, of the devices in energy_scope", "where a device lacks it"
    ),
    Column("power_ratio", REAL, None, "mean power × time / joules, of the device furthest from 1", "where unknown"),
    Column("wall_j", REAL, "J", "joules of one pass at the plug, energy_j among them", "where wall_reason says why"),
    Column("wall_error_j", REAL, "J", "what wall_j may be off by at most, the plug's accuracy apart", "where unknown"),
    Column("wall_method", TEXT, None, "how the plug was read", "where nothing could read it"),
    Column("wall_doubt", TEXT, None, "what contradicts wall_j", "where nothing does"),
    Column("wall_reason", TEXT, None, "why wall_j is null", "where it is not, and where the config names no plug"),
    Column(
        "co2e_g",
        REAL,
        "g",
        "g CO2e of energy_j",
        "where energy_j is, or the config has no factor",
        mean=True,
        of_joules=True,
        heading="CO2e",
    ),
    Column(
        "cost",
        REAL,
        None,
        "price of energy_j, in the config's currency",
        "where energy_j is, or the config has no price",
        mean=True,
        of_joules=True,
        heading="Cost",
    ),
    *_estimated("of one pass"),
    Column(
        "estimated_co2e_g",
        REAL,
        "g",
        "g CO2e of estimated_energy_j",
        "where that is, or the config has no factor",
        heading="Estimated CO2e",
    ),
    Column("estimated_energy_method", TEXT, None, "where the watts of the estimate come from", NOT_ESTIMATED),
    Column("num_attempts", WHOLE, None, "attempts in which it was trained: more than 1 where it was preempted"),
    Column(
        "num_passes", WHOLE, None, "passes in the window: more than 1 where one is shorter than measure.min_seconds"
    ),
    Column("total_window_s", REAL, "s", "seconds of the whole window: all passes"),
    Column("total_energy_j", REAL, "J", "joules of all passes, of the devices in energy_scope", "where energy_j is"),
    Column(
        "meter_overhead_fraction",
        REAL,
        None,
        "(seconds of meter calls + CPU-seconds of trace) / total_window_s",
        "where unknown",
    ),
    Column("flags", TEXT, None, "names of the flags: what to know before comparing the run", "where there is none"),
    Column("flag_texts", TEXT, None, "a line of text for each of the flags", "where there is none"),
    Column(
        "temperature_start_c",
        REAL,
        "°C",
        "temperature of the hottest board as the window begins",
        "where no board reports it",
    ),
    Column(
        "temperature_end_c",
        REAL,
        "°C",
        "temperature of the hottest board as the window ends",
        "where no board reports it",
    ),
    Column(
        "sm_clock_mean_mhz", REAL, "MHz", "clock in the window, mean over time and boards", "where no board reports it"
    ),
    Column(
        "power_limit_w", REAL, "W", "power limit of a board in the window: the highest", "where no board reports it"
    ),
    Column(
        "throttle_reasons",
        TEXT,
        None,
        "what limited the clocks in the window",
        "where nothing did, or no board reports it",
    ),
    Column("cooldown_s", REAL, "s", "seconds that the run waited for boards to settle", "without boards to wait for"),
    Column("idle_s", REAL, "s", "seconds of the idle baseline before the window"),
    Column("settled", FLAG, None, "whether the boards settled before the run", "without boards to wait for"),
    Column(
        "cpu_wait_share", REAL, None, "share of its runnable time in which the run waited for a core", "where unknown"
    ),
    Column("exclusive", TEXT, None, "what only the run used: node the whole machine; gpu, none its boards alone"),
    Column("window_begin", TEXT, None, "when the window began: UTC, ISO 8601"),
    Column("window_end", TEXT, None, "when the window ended: UTC, ISO 8601"),
    Column(
        "peak_gpu_allocated_bytes",
        WHOLE,
        "bytes",
        "most memory in tensors while training, on the fullest GPU",
        "on the CPU",
        mean=True,
    ),
    Column(
        "peak_gpu_reserved_bytes",
        WHOLE,
        "bytes",
        "most memory PyTorch held while training, on the fullest GPU",
        "on the CPU",
        mean=True,
    ),
    Column(
        "peak_host_rss_bytes",
        WHOLE,
        "bytes",
        "most resident host memory while training, summed over processes",
        mean=True,
        heading="Peak memory",
    ),
    Column("num_steps", WHOLE, None, "optimizer steps of one pass"),
    Column("num_skipped_steps", WHOLE, None, "of the steps of one pass, those that loss scaling skipped"),
    Column(
        "num_loss_spikes",
        WHOLE,
        None,
        "of the steps of one pass, those whose loss is above the median of the 50 before by 10 of their MAD",
        "with too few steps, and without steps.jsonl",
    ),
    Column("num_texts", WHOLE, None, "texts that one pass trains on, each as often as there are epochs"),
    Column(
        "num_tokens", WHOLE, None, "tokens that one pass reads, without padding; targets of an encoder-decoder apart"
    ),
    Column(
        "num_words",
        WHOLE,
        None,
        "words that one pass trains on, targets included; a text that was cut counts by the share that was kept",
        UNCOUNTED,
    ),
    Column("num_characters", WHOLE, None, "characters of num_words, with the white space between them", UNCOUNTED),
    Column(
        "pieces_per_word",
        REAL,
        None,
        "tokens of num_words, without special ones and the prompt, per word",
        UNCOUNTED,
        mean=True,
    ),
    Column(
        "energy_per_token_j",
        REAL,
        "J",
        "energy_j / (num_tokens + num_target_tokens)",
        "where energy_j is",
        mean=True,
        of_joules=True,
    ),
    Column(
        "energy_per_word_j",
        REAL,
        "J",
        "energy_j / num_words",
        "where one of the two is",
        mean=True,
        of_joules=True,
    ),
    Column(
        "energy_per_character_j",
        REAL,
        "J",
        "energy_j / num_characters",
        "where one of the two is",
        mean=True,
        of_joules=True,
    ),
    Column(
        "bits_per_character",
        REAL,
        None,
        "validation_loss × predicted tokens / their characters, in bits; of hidden words as if each token were hidden",
        UNCOUNTED,
        mean=True,
    ),
    Column("words_reason", TEXT, None, "why num_words is null", "where it is not"),
    Column("num_padded_tokens", WHOLE, None, "positions that one pass computes for num_tokens, with padding"),
    Column("num_predicted", WHOLE, None, "tokens that one pass predicts"),
    Column("num_head_positions", WHOLE, None, "positions of one pass at which the output layer is computed"),
    Column("num_token_pairs", WHOLE, None, "pairs of tokens of one text, in one pass"),
    Column("num_padded_token_pairs", WHOLE, None, "pairs of positions of one row, in one pass, that are computed"),
    Column(
        "num_target_tokens", WHOLE, None, "tokens of targets that the decoder of an encoder-decoder reads in one pass"
    ),
    Column(
        "num_padded_target_tokens", WHOLE, None, "positions that one pass computes for num_target_tokens, with padding"
    ),
    Column("num_target_pairs", WHOLE, None, "num_token_pairs within targets"),
    Column("num_padded_target_pairs", WHOLE, None, "num_padded_token_pairs within targets"),
    Column("num_cross_pairs", WHOLE, None, "num_token_pairs of a target's token and one of its text"),
    Column("num_padded_cross_pairs", WHOLE, None, "num_padded_token_pairs of a target's position and one of its text"),
    Column(
        "bytes_per_step",
        WHOLE,
        "bytes/step",
        "least memory traffic of a device",
        "where uncounted, or not the same in all",
    ),
    Column("samples_per_s", REAL, "texts/s", "num_texts / window_s", mean=True),
    Column(
        "tokens_per_s", REAL, "tokens/s", "(num_tokens + num_target_tokens) / window_s", mean=True, heading="Tokens/s"
    ),
    Column("padded_tokens_per_s", REAL, "positions/s", "(num_padded_tokens + num_padded_target_tokens) / window_s"),
    Column("epochs_per_minute", REAL, "epochs/min", "epochs per minute of the window", mean=True),
    Column(
        "useful_flops",
        REAL,
        "FLOP",
        "FLOPs of one pass: no padding, nothing twice",
        "where flop_reason says why",
        mean=True,
    ),
    Column(
        "executed_flops",
        REAL,
        "FLOP",
        "FLOPs of one pass: with padding, recomputing and rating",
        "where useful_flops is",
        mean=True,
    ),
    Column("rating_flops", REAL, "FLOP", "FLOPs of executed_flops that rating tensors took", "where useful_flops is"),
    Column("padded_macs", REAL, "MAC", "multiply-adds of one pass with padding alone", "where useful_flops is"),
    Column(
        "padded_flop_share",
        REAL,
        None,
        "share of 2 padded_macs that is not useful_flops",
        "where useful_flops is",
        mean=True,
        heading="Spent on padding",
        show="percent",
    ),
    Column(
        "useful_flops_per_j",
        REAL,
        "FLOP/J",
        "useful_flops / energy_j",
        "where one of the two is",
        mean=True,
        of_joules=True,
    ),
    Column("flop_reason", TEXT, None, "why FLOPs are null", "where they are not"),
    Column(
        "mfu",
        REAL,
        None,
        "useful_flops / (window_s × devices × peak rate)",
        "where floor_reason says why",
        mean=True,
        heading="Of peak rate (MFU)",
        show="percent",
    ),
    Column(
        "floor_distance",
        REAL,
        None,
        "estimated least seconds of one pass / window_s",
        "where floor_reason says why",
        mean=True,
        heading="Of possible speed (distance to floor)",
        show="percent",
    ),
    Column("floor_reason", TEXT, None, "why mfu and floor_distance are null", "where they are not"),
    Column("peak_status", TEXT, None, "whether the peak rate is verified in its source or recalled", "where mfu is"),
    *_quality("the last epoch"),
    *(
        Column(
            name,
            REAL,
            None,
            f"mean F-measure of shared {what}, 0 to 1",
            "without num_summaries",
            mean=True,
            heading=f"ROUGE-{name.removeprefix('rouge')}",
            show="points",
        )
        for name, what in ROUGE.items()
    ),
    Column("num_validation_texts", WHOLE, None, "held-out texts"),
    Column("num_masked", WHOLE, None, "tokens predicted in the held-out texts"),
    Column("num_summaries", WHOLE, None, "texts that the trained model wrote", "where there are none"),
    Column(
        "environment", TEXT, None, "hash of CPU, memory, kinds of board, driver and versions: runs of one mean share it"
    ),
    Column("accelerator", TEXT, None, "what computed: cuda or cpu"),
    Column("hostname", TEXT, None, "name of the machine"),
    Column("batch_system", TEXT, None, "slurm, pbs, lsf, sge or htcondor", "outside a batch system"),
    Column("job_id", TEXT, None, "id of the batch system's job", "outside a batch system"),
    Column("node", TEXT, None, "the batch system's name of the node", f"outside a batch system, {UNTOLD}"),
    Column("account", TEXT, None, "account or project that the job is charged to", f"outside a batch system, {UNTOLD}"),
    Column("partition", TEXT, None, "partition or queue of the job", f"outside a batch system, {UNTOLD}"),
    Column("platform", TEXT, None, "operating system, kernel and processor type"),
    Column("python", TEXT, None, "version of Python"),
    Column("cpu_model", TEXT, None, "name of the processor"),
    Column("cpu_cores", WHOLE, None, "hardware threads that the run was allowed to use"),
    Column("host_memory_bytes", WHOLE, "bytes", "memory of the machine"),
    Column("gpus", TEXT, None, "kinds of the run's boards, whether they computed or were metered", "without boards"),
    Column("gpu_uuids", TEXT, None, "UUIDs of the run's boards", "without boards"),
    Column("driver", TEXT, None, "version of the NVIDIA driver", "where there is none, or it did not answer"),
    Column("torch_version", TEXT, None, "version of PyTorch", "where it is not installed"),
    Column("transformers_version", TEXT, None, "version of transformers", "where it is not installed"),
    Column("zeus_version", TEXT, None, "version of Zeus, which reads the counters", "where it is not installed"),
    Column("threads_per_process", WHOLE, None, "CPU threads that each process computes with"),
    Column(
        "certificate", TEXT, None, "digests of the certificates of what computed", "where certificate_reason says why"
    ),
    Column(
        "certificate_reason",
        TEXT,
        None,
        "why there is no certificate, or what speaks against it",
        "where there is one and nothing does",
    ),
    Column("code_digest", TEXT, None, "digest of the code that measured the run"),
    Column(
        "accepted_codes", TEXT, None, "digests of other code for which the user accepted the run", "where there is none"
    ),
    Column("accepted_reasons", TEXT, None, "why the user accepted them", "where there is none"),
    Column("git_commit", TEXT, None, "commit of the checkout", "outside a checkout"),
    Column("git_dirty", FLAG, None, "whether files differed from that commit", "outside a checkout"),
)
EPOCHS = _table(
    *_of(RUNS, "run cell name setup panel batch environment batch_size repeat"),
    Column("epoch", WHOLE, None, "number of the epoch, from 1; 0 is the untrained model"),
    Column("elapsed_s", REAL, "s", "seconds from the window's begin to the end of the epoch"),
    Column(
        "cpu_s", REAL, "s", "CPU-seconds of all the run's processes from the window's begin to the end of the epoch"
    ),
    Column("num_steps", WHOLE, None, "optimizer steps from the window's begin to the end of the epoch"),
    Column("train_loss", REAL, "nat/token", "mean loss of the epoch's steps", "of epoch 0"),
    *_quality("the epoch"),
    Column(
        "energy_j", REAL, "J", "joules from the window's begin to the end of the epoch", "where energy_reason says why"
    ),
    Column("energy_scope", TEXT, None, "kinds of device whose joules these are", "where the run has no joules"),
    *_of(RUNS, "energy_status energy_reason"),
    *_estimated("from the window's begin to the end of the epoch", f"of epoch 0, and {NOT_ESTIMATED}"),
)
SELECTIONS = _table(
    *_of(RUNS, "run cell name setup panel batch environment batch_size repeat"),
    Column("epoch", WHOLE, None, "first epoch that trained the chosen tensors"),
    Column("num_chosen", WHOLE, None, "chosen tensors"),
    Column("num_candidates", WHOLE, None, "tensors that could be chosen"),
    Column("trained_share", REAL, None, "share of the model's parameters that trained"),
    Column("importance_share", REAL, None, "share of the candidates' importance that was chosen", "where none has any"),
    Column("gap", REAL, None, "share of the best importance within the budget that the choice misses at most"),
    Column("objective", TEXT, None, "what the budget limits: flops or time"),
    Column("rho", REAL, None, "the budget: share of the cost of a step that trains every candidate"),
    Column("floor", REAL, None, "least cost of any choice, a share like rho: forward pass and cheapest tensor"),
    Column(
        "predicted_cost", REAL, None, "cost of the choice by the method's own model, a share like rho, in its objective"
    ),
    Column(
        "counted_cost", REAL, None, "cost that was counted, a share like rho, in FLOPs", "where cost_reason says why"
    ),
    Column("cost_reason", TEXT, None, "why counted_cost is null", "where it is not"),
    Column(
        "rating_s", REAL, "s", "seconds that this rating and choosing took, within the window", "without rating before"
    ),
    Column("step_s", REAL, "s", "mean seconds of a step until the next choice", "where no step followed"),
    Column("chosen", TEXTS, None, "names of the tensors that trained, from the output to the input"),
    Column("candidates", TEXTS, None, "names of all candidates, from the output to the input"),
)
DEVICES = _table(
    *_of(RUNS, "run name setup panel batch batch_size repeat"),
    Column("device", TEXT, None, "gpu:0, cpu:0, dram:0, …: its kind and number"),
    Column("kind", TEXT, None, "gpu, cpu (a processor package), dram (the memory of one), or another meter's"),
    Column("uuid", TEXT, None, "UUID of a board", "of CPU and DRAM"),
    Column("status", TEXT, None, "measured (a counter), integrated (power), below_resolution or unavailable"),
    Column("method", TEXT, None, "how its joules were read", "where nothing could read them"),
    Column("reason", TEXT, None, "why energy_j is null", "where it is not"),
    Column("doubt", TEXT, None, "what contradicts energy_j", "where nothing does"),
    Column("idle_reason", TEXT, None, "why idle_w is null", "where it is not"),
    Column("net_reason", TEXT, None, "why net_energy_j is null", "where it is not"),
    Column("ratio_reason", TEXT, None, "why power_ratio is null", "where it is not"),
    Column(
        "power_method", TEXT, None, "how a board reports its power: instant or averaged", "of CPU and DRAM, or unread"
    ),
    Column("certificate", TEXT, None, "digest of the device's certificate", "where certificate_reason says why"),
    Column("certificate_made", TEXT, None, "when the certificate was made: UTC, ISO 8601", "where certificate is"),
    Column(
        "certificate_holds", TEXT, None, "promises of the meter that hold", "where none does, or certificate is null"
    ),
    Column(
        "certificate_fails", TEXT, None, "promises of the meter that fail", "where none does, or certificate is null"
    ),
    Column("certificate_not_tried", TEXT, None, "promises of the meter that were not tried", "where there are none"),
    *_of(RUNS, "certificate_reason"),
    Column("energy_j", REAL, "J", "joules of one pass", "where reason says why"),
    Column(
        "error_j", REAL, "J", "largest possible error of energy_j, not counting the board's accuracy", "where unknown"
    ),
    Column("total_energy_j", REAL, "J", "joules of the whole window: all passes", "where energy_j is"),
    Column("net_energy_j", REAL, "J", "energy_j less what idle_w makes in one pass", "where net_reason says why"),
    Column("idle_w", REAL, "W", "mean power in the idle baseline before the window", "where idle_reason says why"),
    Column("tick_s", REAL, "s", "time between two moves of the counter", "where unknown, and of integrated power"),
    Column("mean_power_w", REAL, "W", "mean power in the window, by the trace", "where it has too few readings"),
    Column("power_ratio", REAL, None, "mean_power_w × total_window_s / total_energy_j", "where ratio_reason says why"),
    Column(
        "whole_run_energy_j",
        REAL,
        "J",
        "joules of start-up, idling, window and scoring",
        "where whole_run_reason says why",
    ),
    Column("whole_run_reason", TEXT, None, "why whole_run_energy_j is null", "where it is not"),
    Column("in_scope", FLAG, None, "whether energy_j is part of the run's"),
)
POWER = _table(
    *_of(RUNS, "run name setup panel batch batch_size repeat"),
    Column("device", TEXT, None, "gpu:0, cpu:0, dram:0, …: its kind and number"),
    Column("t_s", REAL, "s", "seconds since the window's begin; negative before it"),
    Column(
        "power_w", REAL, "W", "power at t_s; of CPU and DRAM the mean since the sample before", "where it was not read"
    ),
    Column("window_s", REAL, "s", "seconds of the whole window: all passes"),
)
UNREADABLE = "unreadable"  # status of a run or an anchor with an unreadable record; no record has it
ANCHORS = _table(
    Column("day", TEXT, None, "when the run was measured again: YYYY-MM-DD"),
    *_of(RUNS, "run name panel"),
    Column("status", TEXT, None, "status of the later measurement; unreadable: its record is corrupt"),
    Column("window_s", REAL, "s", "seconds of one pass, first measurement", "unless it was ok"),
    Column("energy_j", REAL, "J", "joules of one pass, first measurement", "where it has none"),
    Column("anchor_window_s", REAL, "s", "seconds of one pass, later measurement", "unless it was ok"),
    Column("anchor_energy_j", REAL, "J", "joules of one pass, later measurement", "where it has none"),
    Column("anchor_total_energy_j", REAL, "J", "joules of all passes, later measurement", "where it has none"),
    Column("anchor_energy_status", TEXT, None, "energy_status of the later measurement", "unless it was ok"),
    Column("anchor_energy_scope", TEXT, None, "kinds of device in anchor_energy_j", "where that is"),
    Column(
        "window_ratio", REAL, None, "anchor_window_s / window_s", "unless both were ok, in one environment, by one code"
    ),
    Column("energy_ratio", REAL, None, "anchor_energy_j / energy_j", "where window_ratio is, and unless same_scope"),
    Column(
        "same_environment", FLAG, None, "whether both were measured in one environment", "where one of them is unknown"
    ),
    Column("same_code", FLAG, None, "whether both count as measured by one code", "where one of them is unknown"),
    Column("same_scope", FLAG, None, "whether both have joules of one scope and status", "where one has no joules"),
)
ATTEMPTS = _table(
    Column("kind", TEXT, None, "run: of the sweep itself; anchor: measured again on a later day; by hand"),
    *_of(RUNS, "run cell label"),
    Column("began", TEXT, None, "when the attempt began: UTC, ISO 8601"),
    Column("ended", TEXT, None, "when it ended: UTC, ISO 8601", "where it was killed, or still runs"),
    Column(
        "status",
        TEXT,
        None,
        "as of a run; failed: no record; stopped: ended from outside; preempted: so, and kept to go on later; "
        "open: killed without a word, or still running",
    ),
    Column("reason", TEXT, None, "why it is not ok, in a line", "where it is ok, and where nobody knows"),
    Column("is_kept", FLAG, None, "whether it left the present record, or was preempted and did a part of that run"),
    Column("waited_s", REAL, "s", "seconds until it had its boards or the machine", "where they were not noted"),
    Column("held_s", REAL, "s", "seconds in which it had them; of older runs from begin to end", "where it never had"),
    Column("window_s", REAL, "s", "seconds of its own window: all passes", "unless it is kept, and ok or preempted"),
    Column(
        "energy_j", REAL, "J", "joules of the whole attempt: around the window, too", "where energy_reason says why"
    ),
    Column("window_energy_j", REAL, "J", "joules of its own window", "unless window_s and energy_j are there"),
    Column("energy_status", TEXT, None, "measured or integrated", "where energy_j is"),
    Column("energy_scope", TEXT, None, "kinds of device in energy_j", "where energy_j is"),
    Column("energy_reason", TEXT, None, "why energy_j is null, or is of the window alone", "where it is the whole"),
    Column(
        "estimated_energy_j",
        REAL,
        "J",
        "estimated joules of the whole attempt, or of its window where nothing else is known",
        NOT_ESTIMATED,
    ),
)
#: Each has `_mean`, `_low` and `_high` in the cells table: mean and 95 % t interval over repeats.
QUANTITIES = tuple(column.name for column in RUNS.values() if column.mean)
CELLS = _table(
    *IDENTITY.values(),
    Column("environment", TEXT, None, "environment of the runs whose means these are", "of a cell without ok run"),
    Column("gpus", TEXT, None, "kinds of the boards of its runs", "without boards, and of a cell without ok run"),
    Column("num_ok", WHOLE, None, "ok runs of the cell in this environment, over which means are taken"),
    Column("num_runs", WHOLE, None, "runs of the cell, of every status, in all environments"),
    Column("statuses", TEXT, None, "how many runs of the cell have each status: 1 oom, 2 ok"),
    Column("num_flagged", WHOLE, None, "ok runs with a flag that concerns their numbers"),
    Column("flags", TEXT, None, "the flags of its runs that concern their numbers", "where there is none"),
    Column("energy_scope", TEXT, None, "kinds of device in its joules, each once", "where there are no joules"),
    Column("energy_status", TEXT, None, "statuses of its joules, each once", "of a cell without ok run"),
    Column(
        "energy_doubt", TEXT, None, "what contradicts the joules of its runs: it is in no ranking", "where nothing does"
    ),
    Column(
        "energy_error_j",
        REAL,
        "J",
        "mean over the repeats of the largest possible error of energy_j",
        "where a run has none, or scopes differ",
    ),
    *(column for name in QUANTITIES for column in _interval(RUNS[name])),
    *_estimated("of one pass, mean over the repeats"),
    *_of(RUNS, "estimated_co2e_g"),
    Column(
        "compared_with",
        TEXT,
        None,
        "name of the panel's baseline, which energy_ratio, time_ratio, … compare with",
        "of a cell without ok run",
    ),
    Column(
        "compared_why",
        TEXT,
        None,
        "why compared_with is not the grid's first configuration",
        "where it is, and of a cell without ok run",
    ),
    *(
        column
        for name, of in {
            "energy": "measured joules",
            "time": "window_s",
            "memory": "peak memory, of the GPUs if they computed, else of the host",
            "loss": "validation_loss",
        }.items()
        for column in _ratio(name, of)
    ),
    Column(
        "above_best",
        REAL,
        None,
        "by how much the cell's quality is worse than the best of its panel, as a fraction of it",
        "where no run has the measure of quality",
    ),
    Column("above_best_low", REAL, None, "with 95 % above_best is at least this", "where nothing tells the noise"),
    Column("above_best_high", REAL, None, "with 95 % above_best is at most this", "where nothing tells the noise"),
    Column(
        "quality_verdict",
        TEXT,
        None,
        "within the margin of the best, beyond it, or cannot be told yet",
        "where above_best is",
    ),
    Column(
        "baseline",
        TEXT,
        None,
        "name of the baseline of the same batch size, over which speedup is taken",
        "of a cell without ok run",
    ),
    Column(
        "baseline_why",
        TEXT,
        None,
        "why another baseline stands in for the one that computes as the grid's first configuration does",
        "where none does",
    ),
    Column("is_baseline", FLAG, None, "whether the cell is the baseline", "of a cell without ok run"),
    Column(
        "speedup",
        REAL,
        None,
        "samples_per_s / the baseline's, geometric mean, paired by seed",
        "without a common seed",
    ),
    Column("speedup_low", REAL, None, "lower end of the 95 % interval of speedup", "where nothing tells the noise"),
    Column("speedup_high", REAL, None, "upper end of the 95 % interval of speedup", "where nothing tells the noise"),
    Column(
        "speedup_n", WHOLE, None, "seeds that the cell and its baseline share", "where speedup is, and of the baseline"
    ),
    Column(
        "speedup_verdict",
        TEXT,
        None,
        "baseline, or on which side of 1 the interval of speedup is",
        "where speedup is",
    ),
)
EFFECTS = _table(
    RUNS["panel"],
    Column(
        "kind", TEXT, None, "effect, interaction (an effect at one value of another axis), or share of the variance"
    ),
    Column("axis", TEXT, None, "the axis that changes; of a share also rest (three axes or more), seed or noise"),
    Column("from_value", TEXT, None, "the value before the change", "of a share"),
    Column("to_value", TEXT, None, "the value after it", "of a share"),
    Column(
        "other_axis", TEXT, None, "the axis on which the effect depends, or that shares the variance", "of an effect"
    ),
    Column(
        "other_value", TEXT, None, "the value of the other axis at which the effect is this", "unless an interaction"
    ),
    Column("quantity", TEXT, None, "what changes: a column of the runs table"),
    Column(
        "ratio",
        REAL,
        None,
        "quantity after / before, geometric mean over the pairs; of a share its part of the variance of logs",
    ),
    Column(
        "low", REAL, None, "lower end of the 95 % interval of ratio", "where nothing tells the noise, and of a share"
    ),
    Column(
        "high", REAL, None, "upper end of the 95 % interval of ratio", "where nothing tells the noise, and of a share"
    ),
    Column("smallest", REAL, None, "ratio of the pair with the smallest", "of a share"),
    Column("largest", REAL, None, "ratio of the pair with the largest", "of a share"),
    Column("num_pairs", WHOLE, None, "pairs of cells that differ in the axis alone", "of a share"),
    Column("text", TEXT, None, "the interaction in words", "unless an interaction"),
)
EVALUATIONS = _table(
    *_of(RUNS, "run cell name setup panel batch environment batch_size repeat"),
    Column("evaluation", TEXT, None, "name of the evaluation, with the data set in brackets if it reads one"),
    Column("category", TEXT, None, "of the items; all: every one of them"),
    Column("metric", TEXT, None, "what is scored; the evaluation's page says how"),
    Column("before", REAL, None, "the metric of the untrained model", "where no item counts for it"),
    Column("after", REAL, None, "the metric of the trained model", "where no item counts for it"),
    Column("n", WHOLE, None, "items that the metric is of"),
)
EVALUATION_ITEMS = _table(
    RUNS["run"],
    EVALUATIONS["evaluation"],
    Column("item", WHOLE, None, "number of the item, from 0: the same in all runs"),
    Column("category", TEXT, None, "of the item"),
    Column("score", TEXT, None, "what of the item is scored"),
    Column("before", REAL, None, "the score by the untrained model"),
    Column("after", REAL, None, "the score by the trained model"),
)
#: The tables, by the names of their files.
TABLES: dict[str, Table] = {
    "runs": RUNS,
    "cells": CELLS,
    "epochs": EPOCHS,
    "selections": SELECTIONS,
    "devices": DEVICES,
    "power": POWER,
    "anchors": ANCHORS,
    "effects": EFFECTS,
    "attempts": ATTEMPTS,
    "evaluations": EVALUATIONS,
    "evaluation_items": EVALUATION_ITEMS,
}
ABOUT = {
    "runs": "A row per run of the manifest, in its order. What is measured is null unless status is ok.",
    "cells": "A row per cell and environment. Without an ok run a cell has one row, and its numbers are null.",
    "epochs": "A row per ok run and epoch, epoch 0 being the untrained model. Joules and seconds are cumulative.",
    "selections": "A row per ok run and choice of tensors.",
    "devices": "A row per ok run and device that was read, or could not be.",
    "power": "The power traces of the ok runs: a row per sample and device.",
    "anchors": "A row per run that was measured again on a later day.",
    "effects": "A row per change of an axis and quantity, per value of another axis that it depends on, and per share.",
    "attempts": "A row per attempt at a run of the sweep, at an anchor or by hand: all that the sweep itself took.",
    "evaluations": "A row per ok run and metric of an evaluation that the config asks for, by category of its items.",
    "evaluation_items": "A row per ok run and score of an item of an evaluation: what pairs runs item by item.",
}
