"""The interface of the Snakefile to the package: an object with the sweep's runs, paths and digests."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import inspect
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from snakemake.io import ancient
from snakemake.ioflags import before_update
from snakemake.logging import logger as snakemake_logger
from snakemake.settings.enums import Quietness
from snakemake.settings.types import PersistenceBackend
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_logger_plugins.common import LogEvent

from joulesweep import readers
from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.core.files import read_json, sha256_of
from joulesweep.core.quantities import one
from joulesweep.core.spec import RunSpec, canonical, short_hash, strip
from joulesweep.measure import devices
from joulesweep.measure.machine import resolve_accelerator
from joulesweep.plan import config as config_module
from joulesweep.plan import intact, notes, staleness
from joulesweep.plan.config import DatasetConfig, LocalSource, ModelConfig, TrainedTokenizer
from joulesweep.plan.grid import (
    ExpandedGrid,
    dataset_key,
    dataset_source,
    evaluation_key,
    evaluation_paths,
    evaluation_sources,
    expand,
    model_key,
    model_source,
    text_source,
)
from joulesweep.plan.snakemake_lock import clear_dead_lock
from joulesweep.plan.strict import Place
from joulesweep.runs import aftermath, attempted, record
from joulesweep.runs.headline import headline
from joulesweep.runs.identity import cell_id
from joulesweep.runs.record import RunRecord
from joulesweep.train import evaluations

#: Files of a run that the analysis reads.
READ = ("record.json", "power.jsonl", "summaries.jsonl")
WRITTEN = (*READ, "spec.json", "steps.jsonl", "epochs.jsonl")  # all of its outputs; the record is the last one


Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value")

#: Parts of a path that have a meaning to Snakemake: {wildcard}, <pathvar> and storage addresses.
MARKS = re.compile(r"[{}<>]|://")


def load(workflow: Any) -> Sweep:  # noqa: ANN401 - Snakemake's Workflow
    """Read the config file passed to Snakemake, or else the default one, and expand it.

    The file is read again here, because Snakemake accepts duplicate keys and merges files. This also prepares the
    process for its jobs (see `_prepare_jobs`), and removes the lock of a workflow that was killed.

    Args:
        workflow: Snakemake's `workflow`.

    Raises:
        WorkflowError: one line with file, line and path of the mistake, what was allowed and the nearest name.
    """
    processes.seldom_look_for_cycles()  # Snakemake makes hundreds of objects per job and keeps them
    _tell_errors(workflow)
    _prepare_jobs(str(workflow.current_basedir))
    if workflow.is_main_process:
        clear_dead_lock(Path(".snakemake"))
    try:
        if re.search("[{}]", str(workflow.basedir)):
            raise UserError(f"{workflow.basedir}: braces mean something to Snakemake; move the checkout elsewhere")
        config, where = config_module.located(_configfile(workflow), workflow.config_settings.config_args or ())
        if config.hardware.accelerator == "auto" and not workflow.local_exec:
            raise UserError("hardware.accelerator: auto looks at this machine, the jobs run elsewhere; say cpu or cuda")
        sweep = Sweep(config, where)
        if workflow.is_main_process and not workflow.dryrun:
            sweep.set_aside()  # if an earlier workflow was killed
        if workflow.is_main_process:
            sweep.workflow = workflow
            for path in sweep.damaged:
                print(f"damaged, to be made again: {path}", file=sys.stderr)
            if warning := sweep.outdated_warning():
                print(warning, file=sys.stderr)
        return sweep
    except UserError as error:
        raise refused(str(error), workflow) from None


def _configfile(workflow: Any) -> Path:  # noqa: ANN401 - Snakemake's Workflow
    """The config file of the sweep.

    Raises:
        UserError: there are several.
    """
    files = list(dict.fromkeys(map(Path, workflow.config_settings.configfiles)))
    if len(files) > 1:
        names = ", ".join(map(config_module.shown, files))
        raise UserError(f"--configfile: one file is one complete sweep, and these are {len(files)}: {names}")
    return files[0] if files else config_module.DEFAULT


def refused(reason: str, workflow: Any) -> WorkflowError:  # noqa: ANN401 - Snakemake's Workflow
    """The error to raise; its line is printed here if `--quiet all` keeps Snakemake from printing it."""
    if _is_silent(workflow):
        print(reason, file=sys.stderr)
        _printed.append(reason)
    return WorkflowError(reason)


#: Beginnings of Snakemake's messages on a job that failed, which `_Errors` tells in one line with its log.
TOLD = ("RuleException:\nCalledProcessError", "WorkflowError:\nAt least one job did not complete")
_printed: list[str] = []  # reasons that were already printed


def _is_silent(workflow: Any) -> bool:  # noqa: ANN401 - Snakemake's Workflow
    """Whether Snakemake prints nothing at all, not even why it ends."""
    shown = workflow.output_settings
    return Quietness.ALL in (shown.quiet or ()) and not shown.dryrun


class _Errors(logging.Handler):
    """Prints Snakemake's errors, each once."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) == LogEvent.JOB_ERROR:
            rule, logs = getattr(record, "rule_name", "?"), getattr(record, "log", None) or ()
            if any(aftermath.was_stopped(Path(log).parent) for log in logs):
                return  # not its fault: told in one line for all, at the end
            print(f"Error in rule {rule}; its output: {', '.join(map(str, logs))}", file=sys.stderr)
            return
        message = record.getMessage()
        if message.startswith(TOLD):
            return
        if not any(reason in message for reason in _printed):
            print(message, file=sys.stderr)


def _tell_errors(workflow: Any) -> None:  # noqa: ANN401 - Snakemake's Workflow
    """Print Snakemake's errors even with `--quiet all`."""
    handlers = snakemake_logger.handlers
    if _is_silent(workflow) and not any(isinstance(handler, _Errors) for handler in handlers):
        snakemake_logger.addHandler(_Errors(logging.ERROR))


def _prepare_jobs(basedir: str) -> None:
    """Set PYTHONPATH and PATH so that `python -m scripts.x` in a rule uses this checkout and this interpreter.

    An activated conda environment puts its own Python first again.
    """
    for variable, first in (("PYTHONPATH", basedir), ("PATH", str(Path(sys.executable).parent))):
        rest = [part for part in os.environ.get(variable, "").split(os.pathsep) if part and part != first]
        os.environ[variable] = os.pathsep.join([first, *rest])


def described(function: Function) -> Function:
    """A function that carries its signature: Snakemake asks every function for it, several times for every job.

    Working it out takes longer than most of these functions.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def of_run(value: Callable[..., Value], *more: object) -> Callable[[Any], Value]:
    """What a rule needs to know of a run, as a function of Snakemake's wildcards.

    Args:
        value: of a run's id, and of what follows.
        more: what follows.
    """
    return described(lambda wildcards: value(wildcards.run, *more))


@described
def attempt(wildcards: Any, attempt: int) -> int:  # noqa: ANN401 - Snakemake's names and types
    """The number of a job's attempt, as a resource."""
    return attempt


@described
def input_folder(wildcards: Any, input: Any) -> str:  # noqa: ANN401 - Snakemake's names and types
    """The folder of a job's first input, as a param."""
    return str(Path(input[0]).parent)


@described
def output_folder(wildcards: Any, output: Any) -> str:  # noqa: ANN401 - Snakemake's types
    """The folder of a job's first output, as a param."""
    return str(Path(output[0]).parent)


@described
def anchors_folder(wildcards: Any, input: Any) -> str:  # noqa: ANN401 - Snakemake's names and types
    """The folder of the anchors, next to the grid's manifest."""
    return str(Path(input.grid).parent / "anchors")


@described
def runs_folder(wildcards: Any, input: Any) -> str:  # noqa: ANN401 - Snakemake's names and types
    """The folder of the runs, next to the grid's manifest."""
    return str(Path(input.grid).parent / "runs")


def _local(entry: ModelConfig | DatasetConfig) -> list[tuple[str, Path]]:
    """The user's own files and folders of a model or a data set, each with the key that names it."""
    tokenizer = getattr(entry, "tokenizer", None)
    sources = [("source", entry.source), ("tokenizer", tokenizer), ("tokenizer.like", getattr(tokenizer, "like", None))]
    return [(key, path) for key, source in sources if isinstance(source, LocalSource) for path in source.paths]


def _place(entry: Mapping[str, object]) -> tuple[str, str]:
    """The section of the config that has what an entry of `evaluate` reads, and its name there."""
    return ("datasets", str(entry["dataset"])) if "dataset" in entry else ("evaluate", str(entry["name"]))


def _from(section: str, name: str) -> str:
    """Where the items of an evaluation can be had, for errors; empty for a data set."""
    return f"; download it from {evaluations.load(name).FROM}, or name your path" if section == "evaluate" else ""


def _lacking(path: Path) -> str | None:
    """Reason why a path cannot be read, or None."""
    try:
        return None if path.exists() else "no such file or folder"
    except OSError as error:
        return error.strerror


def _without(paths: str | list[str], left_out: Collection[str]) -> str | list[str]:
    """A path, or several, without those that are left out; a single one that is leaves nothing."""
    if isinstance(paths, str):
        return [] if paths in left_out else paths
    return [path for path in paths if path not in left_out]


def _lacks(folder: str, names: Sequence[str]) -> list[str]:
    """Paths of the files that a folder lacks."""
    return [path for path in (f"{folder}/{name}" for name in names) if not os.path.exists(path)]  # noqa: PTH110 - fast


def counted(rows: Sequence[RunRecord]) -> str:
    """Number and cost of runs: `12 finished runs (340 s and 3.4 kJ of training; 2 without joules) were`."""
    ok = [(row.measurement, row.spec.accelerator) for row in rows if row.measurement is not None]
    joules = [
        headline(measured.energy, accelerator, measured.conditions.exclusive).total_energy_j
        for measured, accelerator in ok
    ]
    known = [value for value in joules if value is not None]
    parts = [f"{math.fsum(measured.total_window_s for measured, _ in ok):.0f} s"]
    parts += [one(math.fsum(known), "J")] if known else []
    lacking = f"; {len(joules) - len(known)} without joules" if known and len(known) < len(joules) else ""
    finished = f"{len(rows)} finished run{'s' if len(rows) > 1 else ''}"
    cost = f" ({' and '.join(parts)} of training{lacking})" if ok else ""
    return f"{finished}{cost} {'were' if len(rows) > 1 else 'was'}"


def is_forced(workflow: Any) -> bool:  # noqa: ANN401 - Snakemake's Workflow
    """Whether the user wants jobs to be done again."""
    asked = workflow.dag_settings
    return bool(asked.forceall or asked.forcerun or asked.forcetargets)


def asks_for_all_jobs(workflow: Any) -> bool:  # noqa: ANN401 - Snakemake's Workflow
    """Whether Snakemake was asked for something that jobs of finished runs take part in.

    Forcing, touching and `--until` do, also its own report, summaries and graphs, which use no executor. With
    environments of its own or notes in a database it decides itself.
    """
    asked = workflow.dag_settings
    return bool(
        workflow.executor_plugin is None
        or workflow.touch
        or (is_forced(workflow) or asked.until)
        or workflow.deployment_settings.deployment_method
        or workflow.workflow_settings.persistence_backend is not PersistenceBackend.FILE
    )


@dataclass(frozen=True)
class Look:
    """What a run's record names, found without decoding it.

    Attributes:
        names_code: today's code, as what measured it or what it was accepted for.
        names_inputs: the current model and tokens.
        is_accepted: it was accepted for other code than it was measured by.
    """

    names_code: bool
    names_inputs: bool
    is_accepted: bool


class Sweep:
    """A validated sweep and its folder.

    Args:
        config: the validated config.
        where: the place of its values, for errors.

    Attributes:
        name: the sweep's name.
        folder: `results/<name>`.
        grid: the expanded runs.
        workflow: Snakemake's; None without one, and in the processes that it starts for single jobs.
    """

    def __init__(self, config: config_module.SweepConfig, where: Place | None = None) -> None:
        accelerator = resolve_accelerator(config.hardware.accelerator)  # once, so that all parts agree
        hardware = config.hardware.model_copy(update={"accelerator": accelerator})
        config = config.model_copy(update={"hardware": hardware, "measure": config.measure.resolved(accelerator)})
        self.config = config
        self.name = config.sweep
        self.folder = f"results/{config.sweep}"
        self.grid: ExpandedGrid = expand(config, where)
        shuffled = sorted(self.grid.runs, key=lambda run: (self.spec(run).repeat, self._shuffled(run)))
        self._priorities = {run: len(shuffled) - i for i, run in enumerate(shuffled)}
        self._model_keys = {
            name: model_key(name, model_source(model, config.datasets)) for name, model in config.models.items()
        }
        self._text_keys = {name: dataset_key(name, dataset_source(data)) for name, data in config.datasets.items()}
        self._models = {key: name for name, key in self._model_keys.items()}
        self._datasets = {self._text_keys[name]: data for name, data in config.datasets.items()}
        evaluated = evaluation_sources(config)
        self._evaluated = {_place(entry): data for entry, data in evaluated}
        for entry, data in evaluated:
            self._datasets[evaluation_key({**entry, "source": dataset_source(data)})] = data
        self._sums: dict[str, list[bytes]] = {}
        self._older: dict[str, bool] = {}
        self._looks: dict[str, Look | None] = {}
        self.workflow: Any = None
        self._outdated: dict[str, RunRecord] = {}  # as told at the start
        self._is_corrected = False
        self._is_there: dict[str, bool] = {}

    @property
    def runs(self) -> list[str]:
        """Every run's id."""
        return list(self.grid.runs)

    def config_json(self) -> str:
        """The validated config as JSON, for the manifest's script."""
        return canonical(self.config.model_dump(mode="json"))

    def runs_digest(self) -> str:
        """A digest of the run ids: the manifest is rewritten when any of them changes."""
        return short_hash(self.runs)

    def model_json(self, key: str) -> str:
        """The source of a key's model as JSON, for its script."""
        return canonical(model_source(self.config.models[self._models[key]], self.config.datasets))

    def tokenizer_texts(self, key: str) -> list[str]:
        """The texts that the tokenizer of a key's model is trained on; none of a model that comes with one."""
        tokenizer = self.config.models[self._models[key]].tokenizer
        if not isinstance(tokenizer, TrainedTokenizer):
            return []
        return [f"resources/datasets/{self._text_keys[str(tokenizer.trained_on)]}.jsonl"]

    def tasks(self, key: str) -> str:
        """The tasks of all runs with a key's model, separated by commas."""
        name = self._models[key]
        return ",".join(sorted({spec.task for spec in self.grid.runs.values() if spec.model == name}))

    def dataset_json(self, key: str) -> str:
        """The source of a key's texts as JSON, for their script."""
        return canonical(text_source(dataset_source(self._datasets[key])))

    def dataset_code(self, key: str) -> str:
        """Digest of the code that fetches a key's texts; it covers only the reader of their format."""
        reader = readers.path(self._datasets[key].format)
        return staleness.code_digest("scripts.fetch_dataset", "main", reader)

    def local_files(self, section: str, key: str) -> list[str]:
        """The user's own files of a model or a data set that exist: changing one fetches it again.

        Missing files are no inputs, so that a dry run works before the data is downloaded. Files whose names have a
        meaning to Snakemake are in `marked_files`.
        """
        return [path for path in self._own_files(section, key) if not MARKS.search(path)]

    def marked_files(self, section: str, key: str) -> list[list[str]]:
        """The user's own files whose names Snakemake takes for patterns, each with its SHA-256, as a rule's param."""
        return [[path, sha256_of(Path(path))] for path in self._own_files(section, key) if MARKS.search(path)]

    def _own_files(self, section: str, key: str) -> list[str]:
        entry = self.config.models[self._models[key]] if section == "models" else self._datasets[key]
        files: list[Path] = []
        for _, path in _local(entry):
            with contextlib.suppress(OSError):  # unreadable: the fetch reports why
                files += [file for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
        return [str(path) for path in files]

    def missing_files(self) -> list[str]:
        """The user's own files that runs still need and that do not exist, a line each."""
        config = self.config
        named: list[tuple[tuple[str, str], ModelConfig | DatasetConfig, str]] = [
            *((("models", name), config.models[name], "") for name in config.grid.model),
            *((("datasets", name), config.datasets[name], "") for name in config.grid.dataset),
            *((at, data, _from(*at)) for at, data in self._evaluated.items()),
        ]
        lacking = {
            f"{'.'.join(of)}.{key}.local: {path}: {problem}{hint}": of
            for of, entry, hint in named
            for key, path in _local(entry)
            if (problem := _lacking(path))
        }
        if not lacking:
            return []  # without a look at every run
        left = [self.spec(run) for run in self.runs if not self._is_left_alone(run)]
        needed = {("models", spec.model) for spec in left} | {("datasets", spec.dataset) for spec in left}
        needed |= {_place(entry) for spec in left for entry in spec.evaluate}
        return [line for line, of in lacking.items() if of in needed]

    def _shuffled(self, run: str) -> str:
        return hashlib.sha256(f"{self.config.measure.order_seed} {run}".encode()).hexdigest()

    def spec(self, run: str) -> RunSpec:
        """A run's spec."""
        return self.grid.runs[run]

    def job(self, run: str) -> str:
        """A run's spec and code digest as one JSON string: Snakemake repeats the run when it changes.

        One string, because Snakemake compares the params of a job as a set without names.
        """
        return self._job(run, self._code(run))

    def _code(self, run: str) -> str:
        """Digest of the current code, or of the code that measured the run if its record was accepted."""
        today, look = staleness.run_digest(self.spec(run)), self._look(run)
        row = self._record(run) if look and look.is_accepted else None
        return row.code_digest if row and today in row.codes else today

    def inputs(self, run: str, day: str = "") -> Mapping[str, Any]:
        """What a run reads, by the names that its rule uses: one function, since Snakemake asks each for every run.

        The manifests of model and tokens make a run stale, unless it was measured with what they stand for: fetching or
        tokenising the same again does not repeat it. Where the user's own files are newer than their manifests,
        Snakemake decides. A file that is not there, as where results were brought home without it, is no input of a run
        that is done: it would be made, if only for another run, and Snakemake repeats whoever reads a file that was not
        there before.

        Args:
            run: the run.
            day: of an anchor, whose measurement belongs to its day: nothing that it reads makes it stale.
        """
        self.correct_notes()
        model, tokens = f"resources/models/{self.model(run)}", f"resources/tokens/{self.tokens(run)}"
        read = self._evaluation_paths(run)
        manifests: dict[str, str | list[str]] = {
            "model_manifest": f"{model}.json",
            "tokens_manifest": f"{tokens}.json",
            "evaluation_manifests": [str(path.with_suffix(".json")) for path in read],
        }
        others: dict[str, str | list[str]] = {
            "grid": f"{self.folder}/grid.json",
            "model_folder": model,
            "tokens": f"{tokens}.safetensors",
            "texts": f"resources/datasets/{self.texts(run)}.jsonl",
            "evaluations": [str(path) for path in read],
        }
        if not day and not self._is_settled(run):
            return {**manifests, **{name: ancient(path) for name, path in others.items()}}
        files = {**manifests, **others}
        every = [path for paths in files.values() for path in ([paths] if isinstance(paths, str) else paths)]
        absent = [path for path in every if not self._exists(path)]
        left_out = absent if absent and self._is_left_alone(run, day) else ()
        return {name: ancient(_without(paths, left_out)) for name, paths in files.items()}

    def _evaluation_paths(self, run: str) -> list[Path]:
        return evaluation_paths(self.spec(run), self.model(run)) if self._evaluated else []

    def _exists(self, path: str) -> bool:
        if path not in self._is_there:
            self._is_there[path] = os.path.exists(path)  # noqa: PTH110 - fast
        return self._is_there[path]

    def _is_left_alone(self, run: str, day: str = "") -> bool:
        """Whether a run, or an anchor, will not be repeated: neither by itself nor because the user wants it."""
        if self.workflow and is_forced(self.workflow):
            return False
        return not _lacks(f"{self.folder}/anchors/{day}/{run}", WRITTEN) if day else self._is_done(run, WRITTEN)

    def _is_done(self, run: str, files: Sequence[str]) -> bool:
        """Whether a run was measured by today's code with the current inputs, and none of some of its files is lost."""
        look = self._look(run)
        is_todays = look is not None and look.names_code and self._is_settled(run)
        return is_todays and not _lacks(f"{self.folder}/runs/{run}", files)

    def _is_settled(self, run: str) -> bool:
        look = self._look(run)
        if look is None or not look.names_inputs:
            return False
        model, texts = (f"resources/models/{self.model(run)}.json", f"resources/datasets/{self.texts(run)}.json")
        evaluated = [f"resources/datasets/{evaluation_key(entry)}.json" for entry in self.spec(run).evaluate]
        return not (
            self._is_older("models", model) or any(self._is_older("datasets", path) for path in (texts, *evaluated))
        )

    def records(self, workflow: Any) -> list[Any]:  # noqa: ANN401 - Snakemake's Workflow and marked paths
        """Every run's record, trace and summaries, as inputs of the tables; those of a run without a job are marked.

        Snakemake looks for no job that makes a marked file, so that a sweep costs what is left of it to do.
        """
        whole = asks_for_all_jobs(workflow)
        paths = {run: self.record_path(run) for run in self.runs}
        kept = {run for run in paths if not whole and self._is_done(run, READ)}
        return [
            before_update(file) if run in kept else file
            for name in READ
            for run, path in paths.items()
            for file in (str(path.with_name(name)),)
        ]

    def lost_files(self) -> list[str]:
        """Files of runs that are missing though there are tables, as inputs of the whole: their runs are repeated.

        Without tables every record is asked for anyway.
        """
        if not Path(self.folder, "tables").exists():
            return []
        return [path for run in self.runs for path in _lacks(f"{self.folder}/runs/{run}", READ)]

    def prepared_files(self) -> list[str]:
        """The manifests of models and tokens that exist, as inputs of the whole, so that stale ones are made again."""
        pairs = {(spec.model, spec.dataset): run for run, spec in self.grid.runs.items()}
        stems = dict.fromkeys(
            stem for run in pairs.values() for stem in (f"models/{self.model(run)}", f"tokens/{self.tokens(run)}")
        )
        read = dict.fromkeys(
            path.with_suffix(".json") for run in pairs.values() for path in self._evaluation_paths(run)
        )
        return [str(path) for path in (*(Path(f"resources/{stem}.json") for stem in stems), *read) if path.exists()]

    def unsettled(self) -> str | None:
        """A notice if finished runs were measured with other texts or models than the current ones, else None."""
        self._sums.clear()  # what was fetched meanwhile counts
        self._looks.clear()
        number = sum(not look.names_inputs for look in map(self._look, self.runs) if look)
        changed = f"{number} finished runs were measured with another model or other texts than were fetched now"
        return f"{changed}: start snakemake again, and they are repeated" if number else None

    def _look(self, run: str) -> Look | None:
        """What a run's record names, None without one; the file is read once, and no JSON decoded."""
        if run not in self._looks:
            self._looks[run] = self._looked(run)
        return self._looks[run]

    def _looked(self, run: str) -> Look | None:
        try:
            measured = self.record_path(run).read_bytes()
        except OSError:
            return None
        manifests = [f"resources/models/{self.model(run)}.json", f"resources/tokens/{self.tokens(run)}.json"]
        manifests += [str(path.with_suffix(".json")) for path in self._evaluation_paths(run)]
        return Look(
            names_code=f'"{staleness.run_digest(self.spec(run))}"'.encode() in measured,
            names_inputs=all(checksum in measured for name in manifests for checksum in self._checksums(name)),
            is_accepted=b'"accepted"' in measured,
        )

    def _checksums(self, manifest: str) -> list[bytes]:
        """The checksums in a manifest, in the form that records have; none if it does not exist."""
        if manifest not in self._sums:
            row = self._described(manifest)
            sums = [row.get("sha256"), *row.get("files", {}).values()]
            self._sums[manifest] = [f'"{checksum}"'.encode() for checksum in sums if checksum]
        return self._sums[manifest]

    def _described(self, manifest: str) -> Mapping[str, Any]:
        """The content of a manifest; empty if it cannot be read."""
        try:
            return read_json(Path(manifest), "manifest")
        except UserError:
            return {}

    def _is_older(self, section: str, manifest: str) -> bool:
        """Whether one of the user's own files is newer than the manifest that describes it, and other than it says.

        A file that was copied is newer, and the same.
        """
        if manifest not in self._older:
            sources = self._own_files(section, Path(manifest).stem)
            made_s = Path(manifest).stat().st_mtime if sources and Path(manifest).exists() else math.inf
            newer = [path for path in sources if Path(path).stat().st_mtime > made_s]
            sums = self._described(manifest).get("files", {}) if newer else {}
            known = {path: sums.get(path) or sums.get(Path(path).name) for path in newer}
            self._older[manifest] = any(sums and sums != sha256_of(Path(path)) for path, sums in known.items())
        return self._older[manifest]

    def prepared(self) -> dict[Path, Callable[[Path], bool]]:
        """Files that cost seconds to make, each with the test that it must pass where it is there; see `intact`."""
        tests: dict[Path, Callable[[Path], bool]] = {Path(self.folder, "grid.json"): intact.is_json}
        for run in {(spec.model, spec.dataset): run for run, spec in self.grid.runs.items()}.values():
            tokens = Path(f"resources/tokens/{self.tokens(run)}.safetensors")
            tests |= intact.inputs(Path("resources/models", self.model(run)), tokens)
        tables = [path for place in ("", "partial") for path in Path(self.folder, place, "tables").glob("*.parquet")]
        return {**tests, **dict.fromkeys(tables, intact.is_parquet)}

    @functools.cached_property
    def damaged(self) -> list[Path]:
        """Files of seconds of work that are there and damaged; see `intact`."""
        return intact.damaged(self.prepared())

    def correct_notes(self) -> list[str]:
        """Correct what Snakemake notes; see `notes`. An input function: called as soon as there are jobs, no input."""
        if self.workflow is not None and not self._is_corrected:
            self._is_corrected = True
            grid, outdated = Path(self.folder, "grid.json"), map(self.record_path, self._outdated)
            is_todays = not grid.exists() or intact.is_json(grid, {"config": self.config.model_dump(mode="json")})
            recorded = (path.parent for path in map(self.record_path, self.runs) if path.exists())
            notes.correct(
                self.workflow,
                not_believed=[*self.damaged, *outdated, *([] if is_todays else [grid])],
                written=(folder / name for folder in recorded for name in WRITTEN),
            )
        return []

    def outdated(self) -> dict[str, RunRecord]:
        """Records that older code made and that were not accepted for the current code, by run in the grid's order."""
        self._looks.clear()
        looks = {run: self._look(run) for run in self.runs}
        records = {run: self._record(run) for run, look in looks.items() if look and not look.names_code}
        return {run: row for run, row in records.items() if row}

    def outdated_warning(self) -> str | None:
        """A warning with the cost of repeating outdated runs and how to keep them; None if there are none."""
        self._outdated = self.outdated()
        rows = list(self._outdated.values())
        if not rows:
            return None
        return (
            f"{counted(rows)} measured by other code than today's, and will be measured again. Where the change alters"
            ' no number, keep them: joulesweep accept --reason "…" (--dry-run lists them)'
        )

    def _job(self, run: str, code: str) -> str:
        return json.dumps({"spec": strip(self.spec(run)), "code": code}, sort_keys=True)

    def priority(self, run: str) -> int:
        """Snakemake's priority: repeat by repeat, shuffled within each, so that drift affects all cells alike.

        Adding runs does not change the order of the existing ones.
        """
        return self._priorities[run]

    def anchors(self) -> list[str]:
        """Paths of anchor records: those of earlier days, and today's if runs are added on a later day.

        They repeat the first cell of the grid that the current code measured before today.
        """
        num_anchors, folder = self.config.measure.anchors, Path(self.folder, "anchors")
        if not num_anchors:
            return []
        there = {path for path in folder.glob("*/*/record.json") if path.parent.name in self.grid.runs}
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        current = self.current()
        earlier = [run for run, row in current.items() if row.finished[:10] < today]
        if earlier and len(current) < len(self.runs):
            first = [run for run in earlier if self.cell(run) == self.cell(earlier[0])]
            there |= {folder / today / run / "record.json" for run in first[:num_anchors]}
        return sorted(map(str, there))

    def anchor_job(self, day: str, run: str) -> str:
        """An anchor's job: a measured anchor is kept even if the code has changed since."""
        path, code = Path(self.folder, "anchors", day, run, "record.json"), staleness.run_digest(self.spec(run))
        with contextlib.suppress(UserError, KeyError):
            code = read_json(path, "run record")["code_digest"]
        return self._job(run, code)

    def current(self) -> dict[str, RunRecord]:
        """The records that count as measured by the current code, by run, in the grid's order."""
        records = {run: self._record(run) for run in self.runs}
        return {run: row for run, row in records.items() if row and staleness.run_digest(self.spec(run)) in row.codes}

    def record_path(self, run: str) -> Path:
        """Path of a run's record, which may not exist."""
        return Path(self.folder, "runs", run, "record.json")

    def _record(self, run: str) -> RunRecord | None:
        try:
            return record.read(self.record_path(run))
        except UserError:
            return None

    def cell(self, run: str) -> str:
        """The id of a run's cell."""
        return cell_id(self.spec(run))

    def model(self, run: str) -> str:
        """Folder of a run's model under resources/models."""
        return self._model_keys[self.spec(run).model]

    def tokens(self, run: str) -> str:
        """Path of a run's tokens under resources/tokens, without its suffix."""
        return f"{self.texts(run)}/{self.model(run)}"

    def texts(self, run: str) -> str:
        """Key of a run's texts under resources/datasets."""
        return self._text_keys[self.spec(run).dataset]

    def gpus(self, run: str) -> int:
        """Number of GPUs that a run takes on all its nodes: to compute on, or to meter while it runs on the CPU."""
        spec = self.spec(run)
        return spec.nodes * devices.num_boards(spec, str(self.config.measure.exclusive))

    def threads(self, run: str, cores: int | None) -> int:
        """Number of CPU cores that a run takes on each node: its own, or all of the machine if it must run alone.

        Args:
            run: the run.
            cores: Snakemake's `--cores`; None on a cluster, where the batch system hands out cores.
        """
        spec = self.spec(run)
        needed = spec.node_devices * spec.threads_per_device
        return max(needed, cores) if self.config.measure.exclusive == "node" and cores else needed

    def memory_mb(self, run: str) -> int:
        """MB of host memory to request from a batch system: more for a run that was killed for want of it."""
        return int(self.config.hardware.memory_mb * 2 ** self._doublings(run)[0])

    def runtime_min(self, run: str) -> int:
        """Minutes to request from a batch system: the run's time limit, its start and its scoring.

        More for a run that a batch job's limit ended all the same.
        """
        spec = self.spec(run)
        minutes = math.ceil((spec.timeout_s + spec.cooldown_s) / 60) + 10
        return int(minutes * 2 ** self._doublings(run)[1])

    def _doublings(self, run: str) -> tuple[int, int]:
        path = f"{self.folder}/runs/{run}/{attempted.FILE}"
        return attempted.doublings(attempted.notes(Path(path))) if os.path.exists(path) else (0, 0)  # noqa: PTH110 - fast

    def whole_node(self) -> int:
        """Whether a run requests a node of its own from a batch system, as 0 or 1: it must be alone."""
        return int(self.config.measure.exclusive == "node")

    def on_nodes(self, value: Callable[[RunSpec], int | str]) -> Callable[[Any], int | str | None] | None:
        """A resource that only runs on several nodes have, as a function of wildcards; None where the grid has none."""
        if all(spec.nodes == 1 for spec in self.grid.runs.values()):
            return None

        def resource(wildcards: Any) -> int | str | None:  # noqa: ANN401 - Snakemake's wildcards
            spec = self.spec(wildcards.run)
            return value(spec) if spec.nodes > 1 else None

        return resource

    def slurm_extra(self) -> str | Callable[[Any], str]:
        """Slurm's extra options: a node of its own for a run that must be alone, equal shares of several nodes."""
        alone = ["--exclusive"] if self.whole_node() else []
        shares = self.on_nodes(self._shares)
        if shares is None:
            return " ".join(alone)
        return lambda wildcards: " ".join([*alone, str(shares(wildcards) or "")]).strip()

    def _shares(self, spec: RunSpec) -> str:
        gpus = devices.num_boards(spec, str(self.config.measure.exclusive))
        return "--ntasks-per-node=1" + (f" --gpus-per-node={gpus}" if gpus else "")

    def set_aside(self) -> None:
        """Move away the files that the aggregation marked as corrupt."""
        record.set_aside(Path(self.folder, "runs"))

    def finished(self) -> str:
        """A digest of the existing records: the target `partial` is remade when it changes."""
        records = [self.record_path(run) for run in self.grid.runs]
        records += map(Path, self.anchors())
        return short_hash([[str(path), path.stat().st_mtime_ns] for path in records if path.exists()])
