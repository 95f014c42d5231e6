"""Promises about caching and resuming, each kept by real Snakemake on a copy of this checkout.

One tiny model and one tiny text file, so that a training takes a second and its process start the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import polars as pl
import pytest
import yaml
from checkout import COPIED, Checkout
from moving import move
from patience import PATIENCE_S, wait_for
from tiny_run import REPOSITORY, SUPPORT

from joulesweep.plan import config as plan_config
from joulesweep.plan import grid

FINISHED = SUPPORT / "golden" / "finished.tar.gz"
ANALYSIS = {"aggregate", "charts", "exports", "report", "all"}


@pytest.mark.smoke
def test_a_finished_sweep_has_all_its_files(sweep: Checkout) -> None:
    results = sweep.folder / "results" / "tiny"
    assert (results / "report.html").stat().st_size > 10_000
    assert sorted(path.name for path in (results / "tables").iterdir()) == [
        "anchors.parquet",
        "attempts.parquet",
        "cells.parquet",
        "devices.parquet",
        "effects.parquet",
        "epochs.parquet",
        "evaluation_items.parquet",
        "evaluations.parquet",
        "power.parquet",
        "runs.parquet",
        "selections.parquet",
    ]
    exported = {path.name for path in (results / "exports").iterdir()}
    assert exported >= {"cells.csv", "cells.tex", "columns.csv", "emissions.csv", "tables", "charts"}
    for run in sweep.records():
        names = {path.name for path in (results / "runs" / run).iterdir()}
        assert names == {
            "record.json",
            "spec.json",
            "steps.jsonl",
            "epochs.jsonl",
            "power.jsonl",
            "summaries.jsonl",
            "attempts.jsonl",
            "run.log",
        }


def test_a_second_snakemake_has_nothing_to_do(sweep: Checkout) -> None:
    assert "Nothing to be done" in sweep.run()
    assert "Nothing to be done" in sweep.run("--resources", "gpu=2")


def test_what_is_forked_from_a_warm_snakemake_plans_and_fails_as_snakemake_does(sweep: Checkout) -> None:
    sweep.config["grid"]["precision"].append("bf16-true")
    sweep.write_config()
    for arguments, code in ((["-n"], 0), (["-n", "no-such-target"], 1)):
        forked, started = sweep.snakemake(*arguments), sweep.snakemake(*arguments, warm=False)
        assert forked.returncode == started.returncode == code
        assert said(forked) == said(started)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The words that Snakemake printed, in no order, as sets have none; without times and numbers of jobs."""
    left_out = r"\[\w{3} \w{3} .* \d{4}\]|\d{4}-\d\d-\d\d[T ][\d:.]+|Workflow ID: .*|(jobid:|Job) \d+"
    return sorted(word.strip(",") for word in re.sub(left_out, "", done.stdout + done.stderr).split())


def test_no_file_is_written_outside_results_and_resources(sweep: Checkout) -> None:
    known = {*(name.partition("/")[0] for name in COPIED), "data"}
    assert {path.name for path in sweep.folder.iterdir()} == known | {"results", ".snakemake"}


def test_runs_added_on_a_later_day_come_with_an_anchor_and_its_drift(sweep: Checkout) -> None:
    earlier = sorted(sweep.records())
    for run in earlier:
        path = sweep.runs / run / "record.json"
        day = json.loads(path.read_text(encoding="utf-8"))["finished"][:10]
        sweep.edit(str(path.relative_to(sweep.folder)), f'"finished": "{day}', '"finished": "2026-01-02')
    sweep.config["measure"] = {"anchors": 1}
    sweep.write_config()
    assert sweep.planned().get("anchor") is None  # nothing is to be measured
    sweep.config["grid"]["precision"].append("bf16-mixed")
    sweep.write_config()
    output = sweep.run("--until", "aggregate")
    assert output.count("[anchor] single fp32 bs8 r1") == 2
    assert output.index("[anchor]") < output.index("single bf16-mixed bs8")
    (anchor,) = sweep.runs.parent.glob("anchors/*/*/record.json")
    table = pl.read_parquet(sweep.runs.parent / "tables" / "anchors.parquet").row(0, named=True)
    assert (table["run"], table["day"]) == (anchor.parent.name, anchor.parent.parent.name)
    assert table["run"] in earlier and 0 < table["window_ratio"] < 100
    assert sweep.planned().keys().isdisjoint({"anchor", "train", "aggregate"})
    shutil.rmtree(sweep.runs.parent / "anchors")


def test_a_precision_value_added_runs_only_the_new_runs(sweep: Checkout) -> None:
    before = sweep.records()
    sweep.config["grid"]["precision"].append("bf16-true")
    sweep.write_config()
    sweep.run("--until", "train")
    after = sweep.records()
    assert {run: after[run] for run in before} == before
    assert len(after) == 4
    assert all("bf16-true" in run for run in after.keys() - before.keys())
    assert set(sweep.planned()) == ANALYSIS
    sweep.config["grid"]["precision"].pop()
    sweep.write_config()
    assert set(sweep.planned()) == {"grid", *ANALYSIS}, "a smaller grid redraws, trains nothing"


def test_a_precision_row_added_in_code_runs_only_the_new_runs(sweep: Checkout) -> None:
    row = '    "bf16-quick": Precision(about="a row added in code", peak_rate="bf16", autocast="bfloat16"),\n'
    table = "PRECISIONS: dict[str, Precision] = {\n"
    sweep.edit("joulesweep/axes/precision.py", table, table + row)
    assert "train" not in sweep.planned(), "the row alone touches no run"
    sweep.config["grid"]["precision"].append("bf16-quick")
    sweep.write_config()
    assert sweep.planned()["train"] == 2


def test_a_method_file_added_in_code_runs_only_the_new_runs(sweep: Checkout) -> None:
    methods = sweep.folder / "joulesweep" / "methods"
    shutil.copy(methods / "full.py", methods / "full_again.py")
    sweep.config["grid"]["method"] = ["full", "full-again"]
    sweep.write_config()
    assert sweep.planned()["train"] == 2
    (methods / "full_again.py").unlink()


def test_a_new_axis_at_its_omission_value_leaves_finished_runs_valid(sweep: Checkout) -> None:
    for edit in (
        ("joulesweep/core/spec.py", '    "task": "mlm",\n', '    "task": "mlm",\n    "dropout": 0.1,\n'),
        (
            "joulesweep/core/spec.py",
            "    accelerator: str\n",
            '    accelerator: str\n    dropout: float = OMISSION["dropout"]\n',
        ),
        ("joulesweep/plan/grid.py", '    "batching",\n', '    "batching",\n    "dropout",\n'),
        (
            "joulesweep/plan/config.py",
            "    batch_size: Annotated[list[Positive]",
            "    dropout: list[float] = [0.1]\n    batch_size: Annotated[list[Positive]",
        ),
    ):
        sweep.edit(*edit)
    assert "train" not in sweep.planned()
    sweep.config["grid"]["dropout"] = [0.1, 0.0]
    sweep.write_config()
    assert sweep.planned()["train"] == 2


def test_an_edited_chart_redraws_and_trains_nothing(sweep: Checkout) -> None:
    sweep.edit("joulesweep/report/charts/quality.py", "def draw(", "def draw(_=1, *")
    assert set(sweep.planned()) == {"charts", "exports", "report", "all"}


def test_a_carbon_factor_makes_tables_and_exports_again_and_trains_nothing(sweep: Checkout) -> None:
    sweep.config["energy"] = {"estimate": True, "carbon": {"country": "DEU"}}
    sweep.write_config()
    assert set(sweep.planned()) == {"grid", *ANALYSIS}


def test_an_edited_comment_in_the_training_loop_runs_nothing(sweep: Checkout) -> None:
    sweep.edit("joulesweep/train/loop.py", "# DDP and FSDP average", "# an edited comment: DDP and FSDP average")
    assert sweep.planned() == {}


def test_an_edited_training_loop_trains_again(sweep: Checkout) -> None:
    sweep.edit("joulesweep/train/loop.py", "set_to_none=True", "set_to_none=False")
    assert sweep.planned()["train"] == 2


def test_finished_runs_are_kept_over_a_change_that_alters_no_number(sweep: Checkout) -> None:
    sweep.edit("joulesweep/train/loop.py", "set_to_none=True", "set_to_none=not False")
    assert "2 finished runs (" in (told := sweep.run("-n"))
    assert "joulesweep accept --reason" in told
    command = [sys.executable, "-m", "joulesweep.cli.main", "accept", "--reason", "True is not False"]
    for more in (["--dry-run"], []):
        done = subprocess.run(
            [*command, *more], cwd=sweep.folder, env=sweep.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3
        assert ("train" in sweep.planned()) == bool(more)
    sweep.run("--until", "aggregate")
    runs = pl.read_parquet(sweep.folder / "results" / "tiny" / "tables" / "runs.parquet")
    assert runs["accepted_reasons"].to_list() == ["True is not False"] * 2
    assert set(sweep.planned()) == {"charts", "exports", "report", "all"}


def test_a_sweep_that_an_earlier_version_finished_is_complete(tmp_path: Path) -> None:
    """Its runs were recorded when all modules lay in one folder; what the code is called by now does not matter.

    Where a change of the training is meant, its user keeps them by `joulesweep accept`.
    """
    sweep = Checkout(tmp_path / "checkout")
    with tarfile.open(FINISHED) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has one, 3.14 needs one
        archive.extractall(sweep.folder)
    accept = [sys.executable, "-m", "joulesweep.cli.main", "accept", "--reason", "the same numbers"]
    done = subprocess.run(accept, cwd=sweep.folder, env=sweep.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(sweep.planned()) <= {"grid", "fetch_model", "fetch_dataset", "tokenise", *ANALYSIS}
    sweep.run("--until", "aggregate")
    runs = pl.read_parquet(sweep.folder / "results" / "tiny" / "tables" / "runs.parquet")
    assert runs["status"].to_list() == ["ok"] * 8
    assert runs["validation_loss"].null_count() == 0


def test_a_module_that_moves_runs_nothing(sweep: Checkout) -> None:
    move(sweep.folder, "joulesweep.train.data", "joulesweep.nets.corpora")
    move(sweep.folder, "joulesweep.train.worker", "joulesweep.launch.rank")
    assert sweep.planned() == {}


def test_fetching_the_same_texts_by_other_code_trains_nothing(sweep: Checkout) -> None:
    before = sweep.records()
    sweep.edit("joulesweep/prepare/dataset.py", "VERSION = 1", "VERSION = 2 - 1")
    planned = sweep.planned()
    assert planned["fetch_dataset"] == 1 and "train" not in planned
    assert "start snakemake again" not in sweep.run("--until", "train")
    assert sweep.records() == before
    assert set(sweep.planned()) <= ANALYSIS


def test_runs_are_repeated_where_other_code_fetches_other_texts(sweep: Checkout) -> None:
    sweep.edit("joulesweep/prepare/dataset.py", "    if not rows:\n", "    rows.reverse()\n    if not rows:\n")
    assert "2 finished runs were measured with another model or other texts" in sweep.run("--until", "train")
    assert sweep.planned()["train"] == 2
    assert "start snakemake again" not in sweep.run("--until", "train")
    assert set(sweep.planned()) <= ANALYSIS


def test_touched_sources_run_nothing(sweep: Checkout) -> None:
    for path in (sweep.folder / "joulesweep").rglob("*.py"):
        path.touch()
    (sweep.folder / "Snakefile").touch()
    assert sweep.planned() == {}


def test_a_finished_sweep_does_not_need_what_was_fetched(sweep: Checkout) -> None:
    fetched = sweep.folder / "resources" / "models"
    fetched.rename(sweep.folder / "data" / "aside")
    planned = sweep.planned()
    (sweep.folder / "data" / "aside").rename(fetched)
    assert planned == {}


def test_a_changed_text_file_trains_again(sweep: Checkout) -> None:
    file = sweep.folder / "data" / "texts.jsonl"
    before = file.read_bytes()
    file.write_bytes(before + b'{"text": "one more line"}\n')
    planned = sweep.planned()
    assert planned["fetch_dataset"] == planned["tokenise"] == 1
    assert planned["train"] == 2
    file.write_bytes(before)
    assert sweep.planned() == {}, "the same bytes again, written later, change nothing"
    (sweep.folder / "results" / "tiny" / "report.html").unlink()
    assert "start snakemake again" not in sweep.run()
    file.write_bytes(before + b'{"text": "one more line"}\n')
    assert "start snakemake again" not in sweep.run("--until", "train"), "this start has repeated the runs"
    assert set(sweep.planned()) <= ANALYSIS


def test_a_killed_run_leaves_no_record_and_is_the_only_one_repeated(sweep: Checkout) -> None:
    victim = sorted(sweep.records())[0]
    before = sweep.records()
    (sweep.runs / victim / "record.json").unlink()
    with sweep.held():
        process = sweep.start()
        wait_for(sweep.workers, "the run's process")
        os.kill(sweep.workers()[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert f"FAILED {victim}" in output
    assert f"results/tiny/runs/{victim}/run.log" in output
    assert victim not in sweep.records()
    sweep.run("--until", "train")
    after = sweep.records()
    assert {run for run in after if after[run] != before[run]} == {victim}
    assert statuses_of_attempts(sweep, victim) == ["ok", "failed", "ok"], "Snakemake deletes no note of an attempt"


def statuses_of_attempts(sweep: Checkout, run: str) -> list[str]:
    lines = (sweep.runs / run / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["status"] for row in map(json.loads, lines) if "status" in row]


def test_a_killed_snakemake_takes_its_run_along_and_is_simply_started_again(sweep: Checkout) -> None:
    victim = sorted(sweep.records())[0]
    (sweep.runs / victim / "record.json").unlink()
    with sweep.held():
        process = sweep.start()
        wait_for(sweep.workers, "the run's process")
        process.kill()
        process.communicate()
        wait_for(lambda: not sweep.workers(), "the end of the run's process")
    assert list((sweep.folder / ".snakemake" / "locks").glob("*.lock")), "a killed Snakemake leaves its lock"
    assert victim not in sweep.records()
    output = sweep.run("--until", "train")
    assert "[2/2]" in output
    assert len(sweep.records()) == 2
    assert statuses_of_attempts(sweep, victim) == ["ok", "stopped", "ok"]


def test_the_lock_of_a_living_snakemake_is_respected(sweep: Checkout) -> None:
    victim = sorted(sweep.records())[0]
    (sweep.runs / victim / "record.json").unlink()
    with sweep.held():
        first = sweep.start("--until", "train")
        wait_for(sweep.workers, "the run's process")
        second = sweep.snakemake()
    assert second.returncode != 0
    assert "LockException" in second.stdout + second.stderr
    output, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, output


def test_status_and_report_work_beside_a_living_snakemake(sweep: Checkout) -> None:
    victim = sorted(sweep.records())[0]
    (sweep.runs / victim / "record.json").unlink()
    with sweep.held():
        first = sweep.start("--until", "train")
        wait_for(sweep.workers, "the run's process")
        state = json.loads(joulesweep(sweep, "status", "results/tiny", "--json"))
        page = joulesweep(sweep, "report", "results/tiny").splitlines()[-1].removeprefix("Report: ")
    assert (state["states"][victim], state["counts"]) == ("running", {"ok": 1, "running": 1})
    (living,) = state["living"]
    assert (living["run"], living["stage"], living["here"]) == (victim, "trains", True)
    assert [holder["run"] for holder in state["machine"] if holder["what"] == "node"] == [victim]
    assert "1 of 2 runs ok" in Path(page).read_text(encoding="utf-8")
    output, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, output
    assert not (sweep.runs / victim / ".stage.json").exists()
    assert "2 of 2 runs done (2 ok)" in joulesweep(sweep, "status", "results/tiny")


def joulesweep(sweep: Checkout, *arguments: str) -> str:
    line = [sys.executable, "-m", "joulesweep.cli.main", *arguments]
    environ = {**sweep.environ, "PYTHONPATH": os.pathsep.join([".", sweep.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(line, cwd=sweep.folder, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_partial_reports_what_is_finished_and_runs_nothing(sweep: Checkout) -> None:
    sweep.config["grid"]["batch_size"].append(16)
    sweep.write_config()
    before = sweep.records()
    output = sweep.run("partial")
    assert sweep.records() == before
    assert (sweep.folder / "results/tiny/partial/report.html").exists(), output
    assert "2 of 4" in (sweep.folder / "results/tiny/partial/report.html").read_text(encoding="utf-8")
    assert "Nothing to be done" in sweep.run("partial")


@pytest.mark.parametrize(
    ("names", "as_far_as"), [(["record.json"], []), (["power.jsonl", "summaries.jsonl"], ["--until", "aggregate"])]
)
def test_a_corrupt_file_of_a_run_is_named_moved_aside_and_made_again(
    sweep: Checkout, names: list[str], as_far_as: list[str]
) -> None:
    """The record's is followed as far as the page, and the others' as far as the tables."""
    victim, other = sorted(sweep.records())

    def told() -> list[str]:
        table = pl.read_parquet(sweep.runs.parent / "tables" / "runs.parquet")
        page = (sweep.runs.parent / "report.html").read_text(encoding="utf-8")
        texts = " ".join(table["flag_texts"].drop_nulls()) if as_far_as else page
        return [name for name in names if f"{victim}/{name}: " in texts]

    for name in names:
        (sweep.runs / victim / name).write_text("{", encoding="utf-8")
    before = sweep.records()
    output = sweep.run("--quiet", "all", *as_far_as)
    for name in names:
        assert f"moved aside: results/tiny/runs/{victim}/{name}.corrupt; the next snakemake repeats its run" in output
    assert told()  # a flag has one example
    assert sweep.planned()["train"] == 1
    output = sweep.run(*as_far_as)
    assert "moved aside" not in output
    assert json.loads((sweep.runs / victim / "record.json").read_text(encoding="utf-8"))["status"] == "ok"
    assert sweep.records()[other] == before[other]
    for name in names:
        assert (sweep.runs / victim / f"{name}.corrupt").exists()
    assert not told()
    assert set(sweep.planned()) == ({"charts", "exports", "report", "all"} if as_far_as else set())


def test_snakemakes_own_report_is_made(sweep: Checkout) -> None:
    sweep.run("--report", "snakemake-report.html")
    report = sweep.folder / "snakemake-report.html"
    page = report.read_text(encoding="utf-8")
    assert "quality.svg" in page and "marks the recommended configuration" in page
    assert "sweep <em>tiny</em>" in page and "System Message" not in page  # a caption that is no reStructuredText
    assert 0 < page.index('"Answer": {') < page.index('"Charts": {')
    report.unlink()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("grid", "precision", ["bf16"]), "grid.precision[0]: unknown precision 'bf16'"),
        (("grid", "batch_sizes", [8]), "grid.batch_sizes: unknown key 'batch_sizes'"),
        (("grid", "batch_size", []), "grid.batch_size: must not be empty"),
        (("train", "epochs", "two"), "train.epochs: "),
    ],
)
def test_a_mistake_in_the_config_is_one_clear_line(sweep: Checkout, change: tuple[str, str, object], line: str) -> None:
    section, key, value = change
    sweep.config[section][key] = value
    sweep.write_config()
    done = sweep.snakemake()
    assert done.returncode != 0
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_missing_text_file_is_told_before_anything_starts(sweep: Checkout) -> None:
    sweep.config["datasets"]["words"]["source"]["local"] = "data/other.jsonl"
    sweep.write_config()
    assert sweep.planned()["train"] == 2, "a dry run shows the plan all the same"
    done = sweep.snakemake()
    assert done.returncode != 0
    assert "datasets.words.source.local: data/other.jsonl: no such file" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repeats": 0}, "config/mine.yaml:{line}: grid.repeats: input should be greater than 0, got 0"),
        ({"dataset": ["gone"]}, "datasets.gone.source.local: data/gone.jsonl: no such file or folder"),
    ],
)
def test_a_mistake_is_told_though_snakemake_is_quiet(sweep: Checkout, change: dict[str, object], said: str) -> None:
    config = yaml.safe_load((sweep.folder / "config" / "config.yaml").read_text(encoding="utf-8"))
    config["datasets"]["gone"] = {"source": {"local": "data/gone.jsonl"}, "format": "jsonl", "field": "text"}
    config["grid"] |= change
    text = yaml.safe_dump(config)
    (sweep.folder / "config" / "mine.yaml").write_text(text, encoding="utf-8")
    done = sweep.snakemake("--configfile", "config/mine.yaml", "--quiet", "all")
    assert done.returncode != 0
    line = text.partition(f"repeats: {config['grid']['repeats']}")[0].count("\n") + 1
    assert said.format(line=line) in (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("config", "num_runs"), [("gain", 18), ("greentrainer", 132), ("methods-small", 45), ("paper", 120), ("vizwiz", 12)]
)
def test_a_shipped_config_expands_in_a_dry_run(sweep: Checkout, config: str, num_runs: int) -> None:
    output = sweep.run("-n", "--configfile", f"config/{config}.yaml")
    assert re.search(rf"^train +{num_runs}$", output, re.MULTILINE)


def test_every_study_expands_in_a_dry_run(sweep: Checkout) -> None:
    for path in sorted((sweep.folder / "config" / "studies").glob("*.yaml")):
        num_runs = len(grid.expand(plan_config.load(path)).runs)
        output = sweep.run("-n", "--configfile", f"config/studies/{path.name}")
        assert re.search(rf"^train +{num_runs}$", output, re.MULTILINE), path.name


@pytest.mark.registry
def test_the_vizwiz_config_runs_on_an_official_annotation_file(sweep: Checkout, shared_data: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "config" / "vizwiz.yaml").read_text(encoding="utf-8"))
    config["datasets"]["vizwiz"]["source"]["local"] = [str(shared_data / "vizwiz" / "val.json")]
    config["grid"] |= {"strategy": ["single"], "precision": ["fp32"], "repeats": 1}
    config["train"] = {"max_steps": 2, "max_length": 64}
    (sweep.folder / "config" / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    sweep.run("--configfile", "config/mine.yaml")
    (record,) = (sweep.folder / "results" / "vizwiz" / "runs").glob("*/record.json")
    found = json.loads(record.read_text(encoding="utf-8"))
    assert found["status"] == "ok"
    assert found["inputs"]["tokens"]["num_texts"] == 3172
    texts = json.loads(
        next((sweep.folder / "resources" / "datasets").glob("vizwiz-*.json")).read_text(encoding="utf-8")
    )
    assert texts["num_unique"] == 1972


def test_a_prompt_reaches_the_tokens_as_it_is(sweep: Checkout) -> None:
    """Braces mean something to Snakemake, and quotes to the shell."""
    prompt = 'word1, it\'s "word2": {source}\n TL;DR: '
    sweep.config["datasets"]["words"] |= {"target": "text", "prompt": prompt}
    sweep.write_config()
    sweep.run("--until", "tokenise")
    files = (sweep.folder / "resources" / "datasets").glob("words-*.json")
    described = {path.stem: json.loads(path.read_text(encoding="utf-8"))["source"] for path in files}
    (key,) = (stem for stem, source in described.items() if source.get("prompt") == prompt)
    (path,) = (sweep.folder / "resources" / "tokens" / key).glob("*.json")
    tokens = json.loads(path.read_text(encoding="utf-8"))
    assert len(tokens["prompt_before"]) == len(["word1", ",", "it", "'", "s", '"', "word2", '"', ":"])
    assert tokens["num_target_tokens"] == tokens["num_tokens"]


def test_a_bad_data_file_is_one_line_even_where_snakemake_is_quiet(sweep: Checkout) -> None:
    sweep.config["datasets"]["words"]["field"] = "texts"
    sweep.write_config()
    done = sweep.snakemake("--quiet", "all")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "data/texts.jsonl" in line
    assert "'texts'" in line
    assert "did you mean 'text'?" in line
    assert "Traceback" not in done.stderr
    assert len(list((sweep.folder / "resources" / "datasets").glob("words-*.jsonl"))) == 1, "only the good one"


@pytest.mark.registry
def test_the_small_comparison_runs_on_official_abstracts_and_scores_their_summaries(
    sweep: Checkout, shared_data: Path
) -> None:
    config = yaml.safe_load((REPOSITORY / "config" / "methods-small.yaml").read_text(encoding="utf-8"))
    config["datasets"]["scitldr"]["source"]["local"] = str(shared_data / "scitldr" / "dev.jsonl")
    config["grid"] |= {"method": ["full", "greentrainer"], "batch_size": [8], "repeats": 1}
    del config["exclude"]  # it names a method that this grid has not
    config["train"] |= {"max_steps": 2, "epochs": None, "max_length": 32, "threads_per_device": 1}
    config["train"]["generate"] |= {"texts": 3, "beams": 2}
    (sweep.folder / "config" / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    sweep.run("--configfile", "config/mine.yaml")
    results = sweep.folder / "results" / "methods-small"
    runs = pl.read_parquet(results / "tables" / "runs.parquet").sort("task", "method")
    assert runs["status"].to_list() == ["ok"] * 4
    assert runs["num_summaries"].to_list() == [None, None, 3, 3]
    assert runs["rouge1"].is_between(0, 1).to_list() == [None, None, True, True]
    assert runs["flop_reason"].to_list() == [None] * 4
    assert "At equal cost" in (results / "report.html").read_text(encoding="utf-8")
