"""What the Snakefile asks of the package, without Snakemake; and whose lock is whose."""

from __future__ import annotations

import atexit
import datetime
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
import tiny_run
import yaml
from patience import PATIENCE_S
from snakemake.io import is_flagged
from snakemake.persistence.file import FilePersistence
from snakemake.settings.enums import Quietness
from snakemake.settings.types import PersistenceBackend
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_logger_plugins.common import LogEvent

from joulesweep.core import files, processes
from joulesweep.core.spec import from_mapping
from joulesweep.measure import machine
from joulesweep.plan import snakemake_lock, staleness
from joulesweep.plan.config import DatasetConfig, ModelConfig, validate
from joulesweep.plan.grid import expand
from joulesweep.plan.sweep import (
    READ,
    Sweep,
    attempt,
    input_folder,
    load,
    of_run,
    output_folder,
    refused,
    runs_folder,
    snakemake_logger,
)
from joulesweep.runs import attempted, record
from joulesweep.runs.identity import run_id


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, an environment to change, and no lock of this process."""
    monkeypatch.chdir(tmp_path)
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    owned: list[int] = []
    monkeypatch.setattr(snakemake_lock, "_owned", owned)
    yield
    for descriptor in owned:
        os.close(descriptor)


def snakemake(*configfiles, config=None, quiet=None):
    """What `load` asks of Snakemake's own object, given what was on its command line."""
    return SimpleNamespace(
        basedir="/base",
        current_basedir="/base",
        is_main_process=True,
        local_exec=True,
        dryrun=True,
        output_settings=SimpleNamespace(quiet=quiet, dryrun=False),
        config_settings=SimpleNamespace(configfiles=configfiles, config_args=config),
    )


def written(name="config/config.yaml", **changes):
    path = Path.cwd() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tiny_run.config(**changes)), encoding="utf-8")
    return path


def sweep(**changes):
    return Sweep(validate(tiny_run.config(**changes)))


def only(found):
    return next(iter(found.runs))


def test_a_sweep_knows_its_runs_and_folder():
    found = sweep(grid__batch_size=[8, 16])
    assert (found.name, found.folder) == ("tiny", "results/tiny")
    assert found.runs == list(expand(validate(tiny_run.config(grid__batch_size=[8, 16]))).runs)
    assert all(run_id(found.spec(run)) == run for run in found.runs)


def test_loading_words_a_mistake_as_a_workflow_error():
    told = r"^config/config\.yaml:16: grid\.precision\[0\]: unknown precision 'fp16'; .*'fp16-mixed'"
    written(grid__precision=["fp16"])
    with pytest.raises(WorkflowError, match=told):
        load(snakemake())


def test_loading_reads_numbers_as_numbers():
    written(grid__lr=["1e-3"])
    found = load(snakemake())
    assert found.spec(only(found)).lr == 1e-3


def test_the_file_that_is_given_replaces_the_default_and_the_command_line_lies_over_it():
    written()
    mine = written("mine.yaml", sweep="mine")
    assert load(snakemake(mine)).name == "mine"
    found = load(snakemake(mine, mine, config=["sweep=other", "grid={batch_size: [4], lr: [1e-2]}"]))
    assert (found.name, found.spec(only(found)).batch_size, found.spec(only(found)).lr) == ("other", 4, 0.01)


def test_a_file_that_is_no_sweep_is_not_merged_with_another():
    written()
    (Path.cwd() / "mine.yaml").write_text("sweep: mine\ntrain: {epochs: 2}\n")
    with pytest.raises(WorkflowError, match=r"^mine\.yaml: models: missing\nmine\.yaml: datasets: missing\n"):
        load(snakemake(Path.cwd() / "mine.yaml"))
    told = r"^--configfile: one file is one complete sweep, and these are 2: config/config\.yaml, mine\.yaml$"
    with pytest.raises(WorkflowError, match=told):
        load(snakemake(written(), written("mine.yaml")))


def test_where_snakemake_is_silent_its_errors_are_told_once(monkeypatch, capsys):
    logger = snakemake_logger
    before = list(logger.handlers)
    written()
    found = snakemake(quiet={Quietness.ALL})
    for _ in range(2):
        load(found)
    raised = refused("the reason", found)
    logger.error("WorkflowError in file x:\n%s", raised)
    logger.error("WildcardError: y")
    logger.error("job", extra={"event": LogEvent.JOB_ERROR, "rule_name": "train", "log": ["a.log"]})
    logger.warning("not this")
    for handler in set(logger.handlers) - set(before):
        logger.removeHandler(handler)
    assert capsys.readouterr().err == "the reason\nWildcardError: y\nError in rule train; its output: a.log\n"


def test_jobs_find_this_checkout_and_this_interpreter_first_and_once(monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join(["/somewhere", str(Path(sys.executable).parent)]))
    monkeypatch.setenv("PYTHONPATH", "")
    written()
    for _ in range(2):
        load(snakemake())
        assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/somewhere"]
        assert os.environ["PYTHONPATH"] == "/base"


def test_a_job_is_the_stripped_spec_and_the_digest_of_its_code():
    found = sweep()
    job = json.loads(found.job(only(found)))
    spec = from_mapping(job["spec"])
    assert run_id(spec) == only(found)
    assert job["code"] == staleness.run_digest(spec)
    assert "warmup_steps" not in job["spec"]


def test_models_and_texts_are_described_by_the_key_of_their_folder():
    found = sweep(models__other={"source": {"hub": "x"}})
    run = only(found)
    model, tokens = found.model(run), found.tokens(run)
    dataset = tokens.split("/")[0]
    assert tokens == f"{dataset}/{model}"
    assert ModelConfig.model_validate_json(found.model_json(model)).source.local == "model"
    described = DatasetConfig.model_validate_json(found.dataset_json(dataset))
    assert (described.source.local, described.format) == ("texts.txt", "text")
    assert set(json.loads(found.dataset_json(dataset))) == {"source", "format"}


def test_texts_with_targets_are_described_with_their_prompt():
    section = {"source": {"local": "a.jsonl"}, "format": "scitldr", "prompt": "{source} TL;DR: ", "split_seed": 3}
    found = sweep(datasets={"texts": section})
    described = json.loads(found.dataset_json(found.tokens(only(found)).split("/")[0]))
    assert described == {"source": {"local": "a.jsonl"}, "format": "scitldr", "prompt": "{source} TL;DR: "}


def test_the_config_handed_to_the_manifest_is_the_validated_one():
    found = sweep(grid__lr=[0.5])
    assert validate(json.loads(found.config_json())) == found.config


def test_folders_of_a_jobs_files_are_params():
    assert input_folder(None, ["results/tiny/tables/runs.parquet", "x"]) == "results/tiny/tables"
    assert output_folder(None, ["results/tiny/charts/a.svg", "x"]) == "results/tiny/charts"
    assert runs_folder(None, SimpleNamespace(grid="results/tiny/grid.json")) == "results/tiny/runs"


def test_only_files_that_are_there_are_inputs_and_missing_ones_are_named():
    found = sweep(datasets__texts__source={"local": ["a.txt", "b.txt"]})
    run = only(found)
    dataset = found.tokens(run).split("/")[0]
    assert found.local_files("datasets", dataset) == []
    assert found.missing_files() == [
        "models.bert.source.local: model: no such file or folder",
        "datasets.texts.source.local: a.txt: no such file or folder",
        "datasets.texts.source.local: b.txt: no such file or folder",
    ]
    Path("a.txt").write_text("x")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    assert found.local_files("datasets", dataset) == ["a.txt"]
    assert found.local_files("models", found.model(run)) == ["model/config.json"]
    assert found.missing_files() == ["datasets.texts.source.local: b.txt: no such file or folder"]


def test_a_run_reads_what_its_evaluations_do_and_a_missing_file_says_where_to_find_it():
    found = sweep(evaluate=["crows-pairs", {"held-out": {"dataset": "texts"}}])
    run = only(found)
    items, tokens = found.inputs(run)["evaluations"]
    assert tokens == found.inputs(run)["tokens"] and items.startswith("resources/datasets/crows-pairs-")
    key = Path(items).stem
    assert found.inputs(run)["evaluation_manifests"] == [f"resources/datasets/{key}.json", f"{tokens[:-11]}json"]
    assert json.loads(found.dataset_json(key))["format"] == "crows-pairs" and found.dataset_code(key)
    (lacking,) = [line for line in found.missing_files() if line.startswith("evaluate.")]
    assert lacking.startswith(
        "evaluate.crows-pairs.source.local: data/crows_pairs/crows_pairs_anonymized.csv: no such file or folder; "
        "download it from github.com/nyu-mll/crows-pairs"
    )
    assert sweep().inputs(only(sweep()))["evaluations"] == []


def test_sources_elsewhere_and_sections_that_the_grid_does_not_name_need_no_file():
    found = sweep(models__bert__source={"hub": "x"}, datasets__unused={"source": {"local": "no"}, "format": "text"})
    assert found.local_files("models", found.model(only(found))) == []
    assert found.missing_files() == ["datasets.texts.source.local: texts.txt: no such file or folder"]


@pytest.mark.parametrize(
    ("accelerator", "exclusive", "cores", "threads"),
    [
        ("cpu", "node", 8, 8),
        ("cpu", "none", 8, 6),
        ("cpu", "node", None, 6),
        ("cpu", "node", 2, 6),
        ("cuda", "none", 8, 6),
        ("cuda", "node", 8, 8),
    ],
)
def test_a_measured_run_takes_its_cores_or_all_of_them(accelerator, exclusive, cores, threads):
    found = sweep(
        grid__strategy=["ddp"],
        train__threads_per_device=3,
        hardware__accelerator=accelerator,
        measure={"exclusive": exclusive},
    )
    assert found.threads(only(found), cores) == threads


def test_what_every_job_asks_need_not_be_looked_into_again():
    found = sweep()
    threads = of_run(found.threads, 8)
    for function, names in ((threads, ["wildcards"]), (attempt, ["wildcards", "attempt"])):
        assert list(function.__signature__.parameters) == names
    assert attempt(None, attempt=2) == 2
    assert threads(SimpleNamespace(run=only(found))) == found.threads(only(found), 8)


@pytest.mark.parametrize(
    ("accelerator", "strategy", "gpus"), [("cpu", "ddp", 0), ("cuda", "ddp", 2), ("cuda", "single", 1)]
)
def test_a_run_takes_a_gpu_per_device(accelerator, strategy, gpus):
    found = sweep(grid__strategy=[strategy], hardware__accelerator=accelerator)
    assert found.gpus(only(found)) == gpus


@pytest.mark.parametrize(
    ("accelerator", "exclusive", "gpus"),
    [("cpu", "node", 3), ("cpu", "gpu", 1), ("cuda", "node", 1), ("cuda", None, 1)],
)
def test_a_run_on_the_cpu_alone_on_its_machine_meters_all_boards_that_are_named(accelerator, exclusive, gpus):
    found = sweep(hardware__accelerator=accelerator, measure={"gpus": [0, 1, 2], "exclusive": exclusive})
    assert found.gpus(only(found)) == gpus


@pytest.mark.parametrize(("accelerator", "threads"), [("cpu", 8), ("cuda", 1)])
def test_what_the_config_leaves_open_is_settled_once_for_all_jobs(accelerator, threads):
    found = sweep(hardware__accelerator=accelerator)
    measure = json.loads(found.config_json())["measure"]
    assert None not in measure.values()
    assert measure["exclusive"] == {"cpu": "node", "cuda": "gpu"}[accelerator]
    assert found.threads(only(found), 8) == threads


def in_order(found):
    return sorted(found.runs, key=found.priority, reverse=True)


def test_runs_come_repeat_by_repeat_and_shuffled_within_each():
    found = sweep(grid__batch_size=[1, 2, 4, 8, 16, 32], grid__repeats=3)
    order = [(found.spec(run).repeat, found.spec(run).batch_size) for run in in_order(found)]
    assert [repeat for repeat, _ in order] == [1] * 6 + [2] * 6 + [3] * 6
    sizes = [[size for repeat, size in order if repeat == wanted] for wanted in (1, 2, 3)]
    assert all(sorted(row) == [1, 2, 4, 8, 16, 32] != row for row in sizes)
    assert sizes[0] != sizes[1] != sizes[2]  # no cell is always the first
    assert len({found.priority(run) for run in found.runs}) == len(found.runs)
    assert (
        0 < min(map(found.priority, found.runs)) <= max(map(found.priority, found.runs)) < 1_000_000_000
    )  # an anchor's


def test_a_value_that_is_added_does_not_reorder_the_others():
    few = sweep(grid__batch_size=[2, 8, 32], grid__repeats=2)
    many = sweep(grid__batch_size=[1, 2, 4, 8, 16, 32], grid__repeats=3)
    assert [run for run in in_order(many) if run in set(few.runs)] == in_order(few)
    assert in_order(sweep(grid__batch_size=[32, 2, 8], grid__repeats=2)) == in_order(few)


def test_another_seed_is_another_order_and_the_same_one_the_same():
    def order(seed):
        return in_order(sweep(grid__batch_size=[1, 2, 4, 8, 16, 32], grid__repeats=1, measure={"order_seed": seed}))

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


DAY = datetime.datetime.now(datetime.UTC).date()
YESTERDAY, TODAY = (DAY - datetime.timedelta(days=1)).isoformat(), DAY.isoformat()


def finish(found, run, day, code=None, folder="runs"):
    """A run's record, finished on a day."""
    a_record = synthetic.ok_record(run, found.spec(run))
    about = {"finished": f"{day}T12:00:00+00:00", "code_digest": code or staleness.run_digest(found.spec(run))}
    path = Path(found.folder, folder, run, "record.json")
    files.write_json(path, {**a_record, **about})
    return path


def asking(**changes):
    """What `records` asks of Snakemake's own object."""
    asked = {
        "touch": False,
        "executor_plugin": "local",
        "deployment": (),
        "backend": PersistenceBackend.FILE,
        **changes,
    }
    forced = {name: asked.get(name) for name in ("forceall", "forcerun", "forcetargets", "until")}
    return SimpleNamespace(
        executor_plugin=asked["executor_plugin"],
        touch=asked["touch"],
        dag_settings=SimpleNamespace(**forced),
        deployment_settings=SimpleNamespace(deployment_method=asked["deployment"]),
        workflow_settings=SimpleNamespace(persistence_backend=asked["backend"]),
    )


def finished_with_files(found, run, **changes):
    """A run whose files all exist."""
    path = finish(found, run, TODAY, **changes)
    for name in READ:
        path.with_name(name).touch()  # the record keeps its content
    return path


def with_jobs(found, **changes):
    """The runs for whose files Snakemake looks for jobs."""
    paths = [path for path in found.records(asking(**changes)) if not is_flagged(path, "before_update")]
    return list(dict.fromkeys(Path(path).parent.name for path in paths))


def test_only_runs_that_are_not_finished_get_jobs():
    found = sweep(grid__batch_size=[8, 16], grid__repeats=2)
    first, *others = found.runs
    finished_with_files(found, first)
    assert with_jobs(found) == others
    assert [str(path) for path in found.records(asking())] == [
        f"results/tiny/runs/{run}/{name}" for name in READ for run in found.runs
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"executor_plugin": None},
        {"touch": True},
        {"forceall": True},
        {"forcerun": {"train"}},
        {"forcetargets": True},
        {"until": {"train"}},
        {"deployment": {"conda"}},
        {"backend": PersistenceBackend.DB},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_all_runs_get_jobs_where_finished_ones_take_part(asked):
    found = sweep(grid__repeats=2)
    finished_with_files(found, found.runs[0])
    assert with_jobs(found, **asked) == found.runs


def test_a_run_by_other_code_gets_a_job_until_it_is_accepted():
    found = sweep(grid__repeats=1)
    (run,) = found.runs
    path = finished_with_files(found, run, code="0" * 16)
    assert with_jobs(found) == [run]
    record.accept(path, staleness.run_digest(found.spec(run)), "the same numbers")
    assert with_jobs(sweep(grid__repeats=1)) == []


@pytest.mark.parametrize("name", READ)
def test_a_run_that_lost_a_file_gets_a_job_and_the_file_is_named(name):
    found = sweep(grid__repeats=2)
    paths = [finished_with_files(found, run) for run in found.runs]
    Path(found.folder, "tables").mkdir()
    assert found.lost_files() == []
    (lost := paths[1].with_name(name)).unlink()
    assert found.lost_files() == [str(lost)]
    assert with_jobs(found) == [found.runs[1]]


def test_no_file_is_named_that_the_tables_will_ask_for():
    assert sweep().lost_files() == []


def test_a_run_with_other_inputs_than_the_current_ones_gets_a_job():
    found = sweep(grid__repeats=1)
    (run,) = found.runs
    path = finished_with_files(found, run)
    manifest = Path("resources/models", f"{found.model(run)}.json")
    files.write_json(manifest, {"files": {"weights": "a" * 64}})
    found = sweep(grid__repeats=1)
    assert (with_jobs(found), found.prepared_files()) == ([run], [str(manifest)])
    row = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, {**row, "inputs": {"model": {"files": {"weights": "a" * 64}}, "tokens": None}})
    assert with_jobs(sweep(grid__repeats=1)) == []


def test_a_run_with_a_record_was_not_interrupted_whatever_a_killed_snakemake_left():
    found = sweep(grid__repeats=2)
    for run in found.runs:
        finished_with_files(found, run)
    output = str(found.record_path(found.runs[0]))
    FilePersistence(path=Path.cwd() / ".snakemake")._mark_incomplete(output, None)
    assert with_jobs(found) == []


def anchored(anchors=1, **changes):
    return sweep(**{"grid__batch_size": [8, 16], "grid__repeats": 2, **changes, "measure": {"anchors": anchors}})


def anchor_paths(found, day, *runs):
    return [f"results/tiny/anchors/{day}/{run}/record.json" for run in sorted(runs)]


def test_there_is_nothing_to_anchor_on_the_first_day():
    found = anchored()
    assert found.anchors() == []
    finish(found, found.runs[0], TODAY)
    assert found.anchors() == []  # nor when the first day's work goes on


def test_runs_added_on_a_later_day_measure_the_first_cell_again():
    found = anchored(anchors=1)
    finish(found, found.runs[0], YESTERDAY)
    assert found.anchors() == anchor_paths(found, TODAY, found.runs[0])


@pytest.mark.parametrize(("anchors", "number"), [(0, 0), (1, 1), (2, 2), (5, 2)])
def test_as_many_anchors_as_asked_for_are_repeats_of_the_first_cell(anchors, number):
    found = anchored(anchors)
    for run in found.runs:
        finish(found, run, YESTERDAY)
    found = anchored(anchors, grid__batch_size=[8, 16, 32])
    first = [run for run in found.runs if found.spec(run).batch_size == 8][:number]
    assert found.anchors() == anchor_paths(found, TODAY, *first)


def test_the_first_cell_that_was_measured_before_is_the_anchor():
    found = anchored(2)
    finish(found, found.runs[1], YESTERDAY)  # of the second cell: the first one may be new
    assert found.anchors() == anchor_paths(found, TODAY, found.runs[1])


def test_a_record_that_cannot_be_read_is_none():
    found = anchored()
    for run in found.runs:
        finish(found, run, YESTERDAY)
    Path(found.folder, "runs", found.runs[-1], "record.json").write_text("{")
    assert found.anchors() == anchor_paths(found, TODAY, found.runs[0])


def test_nothing_to_measure_is_nothing_to_anchor():
    found = anchored()
    for run in found.runs:
        finish(found, run, YESTERDAY)
    assert found.anchors() == []


def test_a_run_made_stale_by_new_code_is_one_to_be_measured():
    found = anchored()
    for run in found.runs:
        finish(found, run, YESTERDAY, code="older" if run == found.runs[-1] else None)
    assert found.anchors() == anchor_paths(found, TODAY, found.runs[0])


def test_anchors_of_earlier_days_stay_and_this_day_has_one():
    found = anchored()
    first = found.runs[0]
    finish(found, first, "2026-01-02")
    earlier = finish(found, first, "2026-01-05", folder="anchors/2026-01-05")
    before = found.runs[1]  # when the grid began with another cell
    finish(found, before, "2026-01-05", folder="anchors/2026-01-05")
    days = [*anchor_paths(found, "2026-01-05", *sorted([first, before])), *anchor_paths(found, TODAY, first)]
    assert found.anchors() == sorted(days)
    finish(found, first, TODAY, folder=f"anchors/{TODAY}")
    assert found.anchors() == sorted(days)  # killed and started again on the same day
    for run in found.runs[1:]:
        finish(found, run, TODAY)
    assert found.anchors() == sorted(days)
    earlier.unlink()
    assert found.anchors() == sorted(set(days) - set(anchor_paths(found, "2026-01-05", first)))


def test_a_finished_anchor_keeps_its_code_and_a_new_one_has_todays():
    found = anchored()
    first = found.runs[0]
    finish(found, first, "2026-01-05", code="0lder", folder="anchors/2026-01-05")
    kept, new = (json.loads(found.anchor_job(day, first)) for day in ("2026-01-05", TODAY))
    assert kept["code"] == "0lder"
    assert new == json.loads(found.job(first))
    assert kept["spec"] == new["spec"]


def test_an_anchor_that_cannot_be_read_does_not_stop_the_sweep():
    found = anchored()
    path = finish(found, found.runs[0], "2026-01-05", folder="anchors/2026-01-05")
    path.write_text("{")
    assert found.anchor_job("2026-01-05", found.runs[0]) == found.job(found.runs[0])


@pytest.mark.parametrize(("exclusive", "extra"), [("node", "--exclusive"), ("gpu", ""), ("none", "")])
def test_slurm_is_asked_for_a_whole_node_where_a_run_must_be_alone(exclusive, extra):
    found = sweep(measure={"exclusive": exclusive})
    assert (found.slurm_extra(), found.whole_node()) == (extra, len(extra) > 0)
    assert found.on_nodes(lambda spec: spec.nodes) is None  # nothing to evaluate for each of ten thousand jobs


@pytest.mark.parametrize(
    ("accelerator", "gpus", "extra"),
    [("cpu", 0, "--exclusive --ntasks-per-node=1"), ("cuda", 6, "--ntasks-per-node=1 --gpus-per-node=3")],
)
def test_slurm_is_asked_for_equal_shares_of_several_nodes(accelerator, gpus, extra):
    axes = {"grid__strategy": ["single", "ddp"], "grid__devices": [{"nodes": 2, "per_node": 3}]}
    found = sweep(
        **axes, grid__batch_size=[12], hardware__accelerator=accelerator, train__threads_per_device=2, grid__repeats=1
    )
    one, two = (SimpleNamespace(run=run) for run in found.runs)
    assert (found.gpus(two.run), found.threads(two.run, None)) == (gpus, 6)
    assert found.slurm_extra()(two) == extra
    assert found.slurm_extra()(one) == extra.split("--ntasks")[0].strip()
    assert [found.on_nodes(lambda spec: spec.nodes)(wildcards) for wildcards in (one, two)] == [None, 2]


def test_a_batch_system_is_asked_for_the_time_limit_and_some_more():
    found = sweep(train__timeout_s=61.0)
    assert found.runtime_min(only(found)) == 12
    cooling = sweep(train__timeout_s=61.0, measure={"cooldown_s": 60.0})
    assert cooling.runtime_min(only(cooling)) == 13


def test_a_batch_system_is_asked_for_more_of_what_a_run_lacked():
    found = sweep(train__timeout_s=60.0, hardware__memory_mb=500)
    note = Path(found.folder, "runs", only(found), attempted.FILE)
    note.parent.mkdir(parents=True)
    limit = {"batch": {"job": "7", "minutes": 10}}
    lacked = [
        {"attempt": "a", "began": "2026-01-01T10:00:00+00:00", **limit},
        {"attempt": "a", "ended": "2026-01-01T10:09:50+00:00", "status": "stopped", "reason": "ended from outside"},
        {"attempt": "b", "began": "2026-01-01T11:00:00+00:00", **limit},
        {"attempt": "b", "ended": "2026-01-01T11:01:00+00:00", "status": "failed", "reason": attempted.HOST_OOM},
    ]
    asked = []
    for i in range(0, 5, 2):
        note.write_text("".join(json.dumps(row) + "\n" for row in lacked[:i]), encoding="utf-8")
        asked.append((found.memory_mb(only(found)), found.runtime_min(only(found))))
    assert asked == [(500, 11), (500, 22), (1000, 22)]


def test_what_is_finished_changes_with_the_records_of_this_grid_alone():
    found = sweep(grid__repeats=2)
    nothing = found.finished()
    for name in ("other-run", found.runs[0]):
        path = Path(found.folder, "runs", name, "record.json")
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        if name == "other-run":
            assert found.finished() == nothing
    one = found.finished()
    assert one != nothing
    os.utime(path, ns=(1, 1))
    assert found.finished() not in (one, nothing)


def locks(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "locks").glob("*"))


def lock(folder: Path) -> None:
    """As Snakemake leaves it."""
    (folder / "locks").mkdir(parents=True)
    for name in ("0.input.lock", "0.output.lock"):
        (folder / "locks" / name).write_text("results/x\n")


def another_workflow(folder: Path, *, then: str) -> subprocess.Popen:
    """Another process that has claimed the folder."""
    code = (
        "import sys, os; from pathlib import Path; from joulesweep.plan import sweep as workflow\n"
        f"workflow.clear_dead_lock(Path({str(folder)!r})); print('claimed', flush=True); {then}"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tiny_run.REPOSITORY, **pipes)
    assert other.stdout.readline() == "claimed\n"
    return other


def test_the_lock_of_a_killed_workflow_is_removed(tmp_path):
    folder = tmp_path / ".snakemake"
    with another_workflow(folder, then="os.kill(os.getpid(), 9)") as other:
        other.wait()
    lock(folder)
    assert snakemake_lock.clear_dead_lock(folder) is True
    assert locks(folder) == []


def test_the_lock_of_a_living_workflow_is_left_alone(tmp_path):
    folder = tmp_path / ".snakemake"
    with another_workflow(folder, then="sys.stdin.read()") as other:
        lock(folder)
        assert snakemake_lock.clear_dead_lock(folder) is False
        assert locks(folder) == ["0.input.lock", "0.output.lock"]
        os.close(snakemake_lock._owned.pop())  # as at the end of this process
        other.communicate("", timeout=PATIENCE_S)
    assert snakemake_lock.clear_dead_lock(folder) is True  # and when that one has ended, it is dead


def test_no_lock_is_nothing_to_remove(tmp_path):
    assert snakemake_lock.clear_dead_lock(tmp_path / ".snakemake") is False


def test_a_workflow_does_not_remove_its_own_lock(tmp_path):
    folder = tmp_path / ".snakemake"
    snakemake_lock.clear_dead_lock(folder)
    lock(folder)
    assert snakemake_lock.clear_dead_lock(folder) is False
    assert len(locks(folder)) == 2


def test_a_claim_is_held_until_its_process_ends(tmp_path):
    folder = tmp_path / ".snakemake"
    snakemake_lock.clear_dead_lock(folder)
    lock(folder)
    with another_workflow(folder, then="pass") as other:  # it claims nothing, for this process lives
        other.wait()
    assert len(locks(folder)) == 2


@pytest.mark.parametrize(
    ("change", "is_dead"), [({"pid": 2**22 + 1}, True), ({}, False), ({"host": "elsewhere"}, False), (None, False)]
)
def test_without_file_locks_a_dead_lock_is_known_by_the_names_left(tmp_path, monkeypatch, change, is_dead):
    def refuse(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    folder = tmp_path / ".snakemake"
    lock(folder)
    if change is not None:
        files.write_json(folder / f"{snakemake_lock.OWNER}other-1.json", {**processes.identity(), **change})
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(atexit, "register", lambda *given, **named: None)
    assert snakemake_lock.clear_dead_lock(folder) is is_dead
    assert len(locks(folder)) == (0 if is_dead else 2)
    assert json.loads((folder / f"{snakemake_lock.OWNER}{socket.gethostname()}-{os.getpid()}.json").read_text())


def test_a_living_workflow_is_seen_without_taking_its_lock(tmp_path, monkeypatch):
    assert snakemake_lock.is_alive(tmp_path) is False
    with (tmp_path / snakemake_lock.FILE).open("w") as file:
        assert snakemake_lock.is_alive(tmp_path) is False
        fcntl.flock(file, fcntl.LOCK_SH)
        assert snakemake_lock.is_alive(tmp_path) is True
        monkeypatch.setattr(snakemake_lock, "LOCKS", tmp_path / "none")
        assert snakemake_lock.is_alive(tmp_path) is None


def test_auto_is_refused_where_the_jobs_run_elsewhere():
    cluster = SimpleNamespace(**{**vars(snakemake()), "local_exec": False})
    written(hardware__accelerator="auto")
    with pytest.raises(WorkflowError, match="accelerator: auto looks at this machine"):
        load(cluster)
    written(hardware__accelerator="cuda")
    assert load(cluster).gpus


def test_auto_is_settled_before_the_manifest_is_asked_for(monkeypatch):
    monkeypatch.setattr(machine, "probe_accelerator", lambda: "cuda")
    found = sweep(hardware__accelerator="auto")
    assert json.loads(found.config_json())["hardware"]["accelerator"] == "cuda"


def test_a_local_tokenizer_is_an_input_too():
    Path("words").mkdir()
    Path("words/tokenizer.json").write_text("{}")
    found = sweep(models__bert={"source": {"hub": "x"}, "tokenizer": {"local": "words"}})
    assert found.local_files("models", found.model(only(found))) == ["words/tokenizer.json"]
