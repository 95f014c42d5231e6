"""Make what `benchmarks.scale` measures: a copy of a checkout with a large sweep, and runs that are finished on disk.

    python benchmarks/scale_sweep.py copy FOLDER --runs 10080      a copy of the checkout on PYTHONPATH, with a config
    python benchmarks/scale_sweep.py fill                          in the copy: records and other outputs, made up
    python benchmarks/scale_sweep.py touch                         in the copy: Snakemake's own notes about them

It is started by its path, so that all it imports comes from the checkout that is measured: PYTHONPATH names that
checkout and its tests/support. Snakemake itself writes its notes: `snakemake --touch` handles every job as one that
went well, here without the tenth of a second for which it pauses before each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

#: Runs per value of the learning rate: 3 precisions × 2 batchings × 8 batch sizes × 10 repeats.
RUNS_PER_VALUE = 480
AXES: dict[str, Any] = {
    "precision": ["fp32", "bf16-mixed", "bf16-true"],
    "batching": ["dynamic", "packed"],
    "batch_size": [4, 8, 12, 16, 24, 32, 48, 64],
    "repeats": 10,
}
#: Files of a run beside its record and its spec.
EMPTY = ("steps.jsonl", "epochs.jsonl", "power.jsonl", "summaries.jsonl")


def lr_values(num_runs: int) -> list[float]:
    """Learning rates of a grid of so many runs."""
    return [round(i * 1e-4, 6) for i in range(1, num_runs // RUNS_PER_VALUE + 1)]


def copy(folder: Path, num_runs: int) -> None:
    """Copy the checkout, and give it a tiny model, a few texts and a config of so many runs."""
    from checkout import Checkout

    made = Checkout(folder)
    made.config["sweep"] = "large"
    made.config["grid"] = {"model": ["tiny"], "dataset": ["words"], **AXES, "lr": lr_values(num_runs)}
    made.write_config()


def fill() -> None:
    """Write every output of the sweep: records as runs would have left them, the rest empty."""
    import polars as pl

    from joulesweep.analyse import columns
    from joulesweep.plan.config import load
    from joulesweep.plan.sweep import Sweep
    from joulesweep.report import charts, exports

    sweep = Sweep(load(Path("config/config.yaml")))
    _write_runs(sweep)
    folder = Path(sweep.folder)
    names = [f"charts/{chart}.{kind}" for chart in charts.names() for kind in ("svg", "html", "rst")]
    for table in columns.TABLES:
        path = folder / "tables" / f"{table}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"run": ["made up"]}).write_parquet(path)
    for name in ["report.html", *names, *(f"exports/{file}" for file in exports.names())]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _write_runs(sweep: Any) -> None:  # noqa: ANN401 - a Sweep of the checkout that is measured
    import synthetic

    from joulesweep.plan import staleness

    key, texts = sweep.model(sweep.runs[0]), sweep.tokens(sweep.runs[0])
    manifests = {"model": f"resources/models/{key}.json", "tokens": f"resources/tokens/{texts}.json"}
    inputs = {name: json.loads(Path(path).read_text(encoding="utf-8")) for name, path in manifests.items()}
    for run in sweep.runs:
        spec = sweep.spec(run)
        row = synthetic.ok_record(run, spec) | {"inputs": inputs, "code_digest": staleness.run_digest(spec)}
        folder = sweep.record_path(run).parent
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        (folder / "spec.json").write_text(json.dumps(row["spec"]) + "\n", encoding="utf-8")
        (folder / "run.log").touch()
        for name in EMPTY:
            (folder / name).touch()


def touch() -> None:
    """Let Snakemake note every job as done."""
    import snakemake.cli
    from snakemake.executors.touch import Executor

    Executor.SLEEPING_TIME = 0.0
    snakemake.cli.main(["--cores", "2", "--touch", "--forceall", "--quiet", "all"])


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("copy", "fill", "touch"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the copy")
    parser.add_argument("--runs", type=int, default=10_080)
    args = parser.parse_args()
    sys.path.pop(0)  # this folder, whose modules are those of another checkout
    if args.step == "copy":
        copy(args.folder.resolve(), args.runs)
    else:
        {"fill": fill, "touch": touch}[args.step]()


if __name__ == "__main__":
    main()
