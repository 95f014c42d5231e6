from __future__ import annotations

import argparse
import importlib.util
import subprocess

import pytest
import tiny_run

from benchmarks import peer_assets, peers
from joulesweep.launch import node

PROGRAMS = [name for name in peers.PEERS if name != "trainer-compiled"]  # a compiler takes a minute


def run(contestant, seed, speed, loss, **changes):
    return {
        "contestant": contestant,
        "seed": seed,
        "num_texts": 100,
        "num_steps": 4,
        "samples_per_cpu_s": speed,
        "samples_per_s": speed,
        "j_per_sample": None,
        "peak_memory_bytes": 10**8,
        "process_cpu_s": 1.0,
        "first_validation_loss": 8.0,
        "validation_loss": loss,
        **changes,
    }


def summary(*runs):
    return {row["contestant"]: row for row in peers.summarise(runs, "samples_per_cpu_s")}


def test_ratios_and_losses_are_paired_by_seed_whatever_the_order_of_the_runs():
    ours = [run("ours", 1, 400.0, 3.0), run("ours", 2, 200.0, 2.0), run("ours", 3, 100.0, 1.0)]
    theirs = [run("trainer", 3, 25.0, 1.1), run("trainer", 1, 100.0, 3.1), run("trainer", 2, 50.0, 2.1)]
    row = summary(*theirs, *ours)["trainer"]
    assert row["ours_over_this"] == pytest.approx({"ratio": 4.0, "low": 4.0, "high": 4.0, "n": 3})
    assert row["loss_minus_ours"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert row["samples_per_cpu_s"]["mean"] == pytest.approx(175 / 3)
    assert row["j_per_sample"] is None


def test_ours_comes_first_and_is_compared_with_nobody():
    rows = peers.summarise([run("trainer", 1, 1.0, 1.0), run("ours", 1, 2.0, 1.0)], "samples_per_s")
    assert [row["contestant"] for row in rows] == ["ours", "trainer"]
    assert rows[0]["ours_over_this"] is None
    assert rows[1]["ours_over_this"] == {"ratio": pytest.approx(2.0), "low": None, "high": None, "n": 1}


OTHER = {"num_texts": 99, "num_steps": 5, "seed": 2, "first_validation_loss": 8.1}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_comparable_is_not_compared(name):
    with pytest.raises(ValueError, match="trainer, seed"):
        summary(run("ours", 1, 2.0, 1.0), {**run("trainer", 1, 1.0, 1.0), name: OTHER[name]})


def test_every_contestant_begins_once():
    names = ["ours", "trainer", "fabric"]
    orders = [peers.turns(names, seed) for seed in (1, 2, 3, 4)]
    assert [order[0] for order in orders] == ["ours", "trainer", "fabric", "ours"]
    assert all(sorted(order) == sorted(names) for order in orders)


def options(**changes):
    given = {"model": "tiny", "batch_size": 16, "precision": "fp32", "epochs": 1, "max_steps": None, "lr": 5e-3}
    return argparse.Namespace(**{**given, **changes})


@pytest.fixture
def assets(tmp_path):
    found = tiny_run.assets(tmp_path)
    named = {name: getattr(tiny_run.spec(), name) for name in ("model", "model_source", "dataset", "dataset_source")}
    return peer_assets.Assets(model_folder=found.model_folder, tokens=found.tokens, named=named)


@pytest.mark.parametrize("plain", [True, False])
def test_all_processes_have_the_environment_of_a_run(assets, monkeypatch, plain):
    started = []

    def note(command, *, env, cwd, **_):
        started.append((command[2], env, cwd))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(peers, "prepare", lambda *_: assets)
    monkeypatch.setattr(peers, "lacking", lambda contestant: None)
    report = peers.compare(
        options(seeds=1, peers=list(peers.PEERS), levers=True, accelerator="cpu", plain_environment=plain,
                data=None, assets=None)
    )  # fmt: skip
    assert {module for module, *_ in started} > {"joulesweep.train.worker", "benchmarks.peer_trainer"}
    assert len(started) == len(peers.PEERS) + len(peers.LEVERS) + 1
    assert all(environ == started[0][1] and cwd == started[0][2] for _, environ, cwd in started)
    expected = node.child_environment(1, [])
    for name in node.ALLOCATOR if plain else ():
        del expected[name]
    assert started[0][1] == expected
    assert report["contestants"] == []
    assert all("exit code 1" in reason for reason in report["left_out"].values())
    assert "Left out: Joulesweep: exit code 1" in peers.table(report)


def test_contestants_differ_in_their_way_alone(assets):
    base = peers.base_spec(options(), assets, "cpu")
    for name in peers.CONTESTANTS_AND_LEVERS:
        spec = peers.Job(name=name, seed=3, base=base, assets=assets, boards=[], folder=assets.tokens.parent).spec()
        differing = {key for key in vars(base) if getattr(spec, key) != getattr(base, key)}
        assert differing - {"repeat"} <= {"batching", "head", "engine", "min_seconds"}
        assert spec.repeat == 3


def test_the_numbers_of_a_run():
    found = {
        "measurement": {
            "num_texts": 50,
            "num_steps": 2,
            "total_window_s": 10.0,
            "num_passes": 2,
            "cpu_s": 2.0,
            "peak_memory": {"host_rss_bytes": 7, "gpu_allocated_bytes": None, "gpu_reserved_bytes": None},
            "energy": [
                {"kind": "cpu", "total_energy_j": 100.0},
                {"kind": "gpu", "total_energy_j": None},
            ],
        },
        "epochs": [{"validation_loss": 8.0}, {"validation_loss": 5.0}, {"validation_loss": 4.0}],
    }
    numbers = peers.numbers(found, "cpu")
    assert (numbers["samples_per_cpu_s"], numbers["samples_per_s"], numbers["j_per_sample"]) == (25.0, 10.0, 1.0)
    assert (numbers["first_validation_loss"], numbers["validation_loss"], numbers["peak_memory_bytes"]) == (8.0, 4.0, 7)
    assert peers.numbers(found, "cuda")["j_per_sample"] is None


def test_the_table_says_what_was_compared_and_where():
    spec = {"epochs": 1, "max_steps": None, "precision": "fp32", "batch_size": 32, "threads_per_device": 1}
    runs = [run(name, seed, speed + seed, 3.0) for name, speed in (("ours", 400), ("trainer", 99)) for seed in (1, 2)]
    report = {
        "machine": {
            "date": "2026-01-02",
            "cpu": "a CPU",
            "cores": 2,
            "gpus": [],
            "python": "3",
            "versions": {"torch": "2"},
        },
        "model": "tiny: small",
        "dataset": "vizwiz",
        "whole_epochs": True,
        "allocator_settings": {},
        "spec": spec,
        "contestants": peers.summarise(runs, "samples_per_cpu_s"),
        "left_out": {"Lightning Fabric": "not installed"},
    }
    lines = peers.table(report).splitlines()
    assert "vizwiz" in lines[0] and "2 seed(s)" in lines[0] and "plain environment" in lines[0]
    assert lines[4].startswith("| Joulesweep | 401.5 (395.1 to 407.9)")
    assert lines[5].startswith("| transformers.Trainer, length groups | 100.5") and "4.00" in lines[5]
    assert "Left out: Lightning Fabric: not installed" in lines
    assert "a CPU, 2 cores" in lines[-1]
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {len(peers.HEADER) + 1}


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, pytest.param(None, marks=pytest.mark.long)], ids=["the first", "all"])
def test_a_whole_epoch_of_ours_and_of_each_peer_that_is_installed(assets, tmp_path, monkeypatch, most):
    monkeypatch.setattr(peers, "SHORTEST_S", 0.5)
    base = peers.base_spec(options(), assets, "cpu")
    environ = peers.shared_environment(base, [], plain=False)
    here = [name for name in PROGRAMS if peers.lacking(peers.CONTESTANTS[name]) is None][:most]
    if not here:
        pytest.skip("no peer is installed; make bench-peers does that")
    results = []
    for name in ("ours", *here):
        job = peers.Job(name=name, seed=1, base=base, assets=assets, boards=[], folder=tmp_path / "runs")
        result = job.run(environ)
        assert result["status"] == "ok", result
        results.append({"contestant": name, "seed": 1, **result})
    assert results[0]["num_texts"] == tiny_run.NUM_TEXTS * 4 // 5
    rows = peers.summarise(results, "samples_per_cpu_s")  # refuses unequal counts and unequal first losses
    assert [row["contestant"] for row in rows] == ["ours", *here]
    assert all(run["validation_loss"] < run["first_validation_loss"] for run in results)


@pytest.mark.slow
def test_ours_runs_through_the_benchmark_with_and_without_a_lever(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SHORTEST_S", 0.5)
    base = peers.base_spec(options(max_steps=4, batch_size=20), assets, "cpu")
    environ = peers.shared_environment(base, [], plain=True)
    found = {}
    for name in ("ours", "plain"):
        job = peers.Job(name=name, seed=1, base=base, assets=assets, boards=[], folder=tmp_path / "runs")
        found[name] = job.run(environ)
        assert found[name]["status"] == "ok", found[name]
        assert found[name]["num_texts"] == 68  # of 48 training texts: 20, 20 and 8, then 20 of the next epoch
    assert found["ours"]["validation_loss"] == pytest.approx(found["plain"]["validation_loss"], rel=1e-4)  # dropout 0


def test_a_missing_package_is_a_reason_and_no_failure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "accelerate" in peers.lacking(peers.CONTESTANTS["trainer"])
    assert peers.lacking(peers.CONTESTANTS["ours"]) is None


def test_both_models_of_the_check_are_pinned():
    for name in ("tiny", "minilm"):
        source = peer_assets.MODELS[name].source.source
        assert "==" in source.wheel and len(source.sha256) == 64


def test_each_candidate_names_contestants_that_there_are_and_only_padding_free_ones_of_its_own():
    own = {name for candidate in peer_assets.MODELS.values() for name in candidate.peers}
    assert (
        own
        == {"trainer-flattened", "trainer-sparse", "trainer-unpadded"}
        == set(peers.CONTESTANTS)
        - {
            "ours",
            "ours-graph",
            *peers.PEERS,
        }
    )


def test_what_needs_a_gpu_is_said_to_be_not_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flash_attn" else object())
    assert peers.lacking(peers.CONTESTANTS["trainer-unpadded"]).endswith(
        "flash-attn, which computes on NVIDIA GPUs alone: not run"
    )
    assert peers.lacking(peers.CONTESTANTS["trainer-flattened"]) is None


@pytest.mark.long  # a contest of its own, most of a minute each
@pytest.mark.parametrize(("kind", "program"), [("llama", "trainer-flattened"), ("modernbert", "trainer-sparse")])
def test_a_padding_free_peer_learns_as_a_padded_one(tmp_path, kind, program):
    """With as many texts in a step as there are, order does not matter, and without dropout nor masks nothing else."""
    if peers.lacking(peers.CONTESTANTS[program]) is not None:
        pytest.skip("accelerate is not installed; make bench-peers does that")
    found = tiny_run.assets(tmp_path, kind, eos_id=tiny_run.SEP)
    task = tiny_run.task_of(kind)
    named = {name: getattr(tiny_run.spec(), name) for name in ("model", "model_source", "dataset", "dataset_source")}
    on = peer_assets.Assets(model_folder=found.model_folder, tokens=found.tokens, named={**named, "task": task})
    base = peers.base_spec(options(batch_size=48), on, "cpu")
    environ = peers.shared_environment(base, [], plain=True)
    results = [
        peers.Job(name=name, seed=1, base=base, assets=on, boards=[], folder=tmp_path / "runs").run(environ)
        for name in ("trainer", program)
    ]
    assert [result["status"] for result in results] == ["ok"] * 2, results
    padded, free = (result["validation_loss"] for result in results)
    assert free == pytest.approx(padded, rel=1e-4 if task == "clm" else 0.1)  # masks of mlm are drawn by chance
