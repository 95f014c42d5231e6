"""A run on several nodes: joules of all, every number with its node, and one end for all of them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import lock_files
import pytest
import several_nodes
import slurm as slurm_module
import tiers
import tiny_run
from patience import PATIENCE_S, wait_for

from joulesweep.analyse import run_rows
from joulesweep.core import processes
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import DeviceEnergy, Flag
from joulesweep.launch import agent, launcher, link, merge, nodes
from joulesweep.launch.node import RunFailed
from joulesweep.measure import machine
from joulesweep.reference.cpu_estimate import Asked
from joulesweep.runs import record
from joulesweep.runs.headline import headline
from joulesweep.runs.identity import run_id

pytestmark = pytest.mark.usefixtures("nothing_is_left")
AGENTS = ("joulesweep.cli.main join", "joulesweep.launch.agent")
ENDLESS = "sys.exit(rank().wait())"


@pytest.fixture
def machines(tmp_path):
    return several_nodes.Machines(tmp_path)


def running(folder) -> dict[int, str]:
    """Living processes of a run in a folder, by id, with their command lines."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            is_agent = (
                any(word in command for word in AGENTS) and str(folder).encode() in (path / "environ").read_bytes()
            )
        except OSError:
            continue
        if state != "Z" and (str(folder) in command or is_agent):
            lines[int(path.name)] = command
    return lines


def locks(machines) -> list[str]:
    return [name for i in range(2) for name in lock_files.held(machines.folder / f"machine{i}" / "locks")]


def logs(machines) -> list[Path]:
    return [machines.folder / "run" / name for name in ("run.log", "run-node1.log")]


def steps(folder) -> list[str]:
    return (folder / "steps.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on two machines, and the same training by two processes of one machine."""
    machines = several_nodes.Machines(tmp_path_factory.mktemp("nodes"))
    with machines.both(max_steps=6, min_seconds=1.13, idle_s=0.5) as children:
        said = [child.communicate(timeout=PATIENCE_S)[1] for child in children]
        assert [child.returncode for child in children] == [0, 0], said
    spec = tiny_run.spec(strategy="ddp", devices=2, max_steps=6)
    alone = machines.folder / run_id(spec)
    assets = {"model_folder": machines.assets.model_folder, "tokens": machines.assets.tokens}
    before = signal.getsignal(signal.SIGTERM)
    launcher.launch(spec, "c0de", **assets, folder=alone, log=alone / "run.log", exclusive="none", with_snakemake=False)
    signal.signal(signal.SIGTERM, before)
    return machines, json.loads((machines.folder / "run" / "record.json").read_text()), alone


@pytest.mark.slow
def test_joules_of_each_node_are_its_boards_and_the_sum_is_the_runs(finished, tmp_path):
    machines, found, _ = finished
    rows = {row["device"]: row for row in found["measurement"]["energy"] if row["kind"] == "gpu"}
    assert list(rows) == ["node0/gpu:0", "node1/gpu:0"]
    by_uuid = dict(zip(machines.uuids, machines.watts, strict=True))
    for row, part in zip(rows.values(), found["nodes"], strict=True):
        assert row["status"] == "measured"
        error_j = row["error_j"] * found["measurement"]["num_passes"]
        assert row["total_energy_j"] == pytest.approx(by_uuid[row["uuid"]] * part["total_window_s"], abs=error_j)
    folder = tmp_path / found["run"]
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(found))
    read = record.read(folder / "record.json")
    assert [part.environment.gpus[0].uuid for part in read.nodes] == machines.uuids
    whole = headline(read.measurement.energy, "cuda", "gpu")  # as of a run on these boards
    assert whole.total_energy_j == pytest.approx(sum(row["total_energy_j"] for row in rows.values()))
    _, tables = run_rows.read(folder / "record.json", Asked(estimate=False, cpu_watts=None), None)
    assert [row["device"] for row in tables["devices"] if row["kind"] == "gpu"] == list(rows)
    power = [json.loads(line) for line in (machines.folder / "run" / "power.jsonl").read_text().splitlines()]
    assert {row["device"] for row in power} == {"node0/gpu:0", "node1/gpu:0"}


@pytest.mark.slow
def test_each_nodes_machine_conditions_and_clock_are_kept(finished):
    _, found, _ = finished
    first, second = found["nodes"]
    assert [part["node"] for part in found["nodes"]] == [0, 1]
    assert (first["clock_offset_s"], first["clock_error_s"], first["window_lag_s"]) == (0.0, 0.0, 0.0)
    assert abs(second["clock_offset_s"]) <= second["clock_error_s"] + 1e-4  # it is the same clock
    assert abs(second["window_lag_s"]) < first["total_window_s"]
    assert [[board["device"] for board in part["conditions"]["boards"]] for part in found["nodes"]] == [
        ["node0/gpu:0"],
        ["node1/gpu:0"],
    ]
    assert len(found["environment"]["gpus"]) == 2
    measured = found["measurement"]
    assert measured["total_window_s"] == max(part["total_window_s"] for part in found["nodes"])
    assert measured["cpu_s"] == pytest.approx(sum(part["cpu_s"] for part in found["nodes"]))


@pytest.mark.slow
def test_two_nodes_learn_to_the_bit_what_two_processes_of_one_do(finished):
    machines, _, alone = finished
    assert steps(machines.folder / "run") == steps(alone)
    assert len(steps(alone)) == 6


@pytest.mark.parametrize("victim", tiers.first(1, ["agent", "rank", "first agent", "parent"]))
def test_the_death_of_a_part_ends_all_of_it_and_frees_the_boards(machines, victim):
    machines.instead_of_torchrun(ENDLESS)
    with machines.both() as (parent, agent):
        wait_for(lambda: all(log.exists() and "works" in log.read_text() for log in logs(machines)))
        wait_for(lambda: sum("a rank" in command for command in running(machines.folder).values()) == 2)
        assert [name for name in locks(machines) if name.startswith("GPU")] == machines.uuids
        ids = running(machines.folder)
        ranks = [pid for pid, command in ids.items() if "a rank" in command and "node1" in command]
        first = [pid for pid in ids if "launch.agent" in ids[pid] and processes.is_below(pid, parent.pid)]
        os.kill({"agent": agent.pid, "first agent": first[0], "rank": ranks[0], "parent": parent.pid}[victim], 9)
        told = {child: child.communicate(timeout=PATIENCE_S)[1] for child in (parent, agent)}
        assert {"agent": -9, "parent": 1}.get(victim, 1) == agent.returncode
        assert parent.returncode == (-9 if victim == "parent" else 1)
        wait_for(lambda: running(machines.folder) == {})
    said = {
        "agent": "RunFailed: node 1 (.*): its agent is gone: ",
        "first agent": "RunFailed: node 0 (.*): its agent is gone: ",
        "rank": "RunFailed: node 1 (.*): a process of the run ended with exit code ",
        "parent": "",
    }[victim]
    assert said.split("(")[0] in told[parent]
    assert said.rpartition(")")[2] in told[parent]
    assert not (machines.folder / "run" / "record.json").exists()
    wait_for(lambda: locks(machines) == [])


@pytest.mark.long
def test_a_real_rank_that_dies_ends_the_ranks_of_the_other_node(machines):
    with machines.both(max_steps=10**7) as (parent, agent):
        wait_for(lambda: logs(machines)[0].exists() and "/10000000" in logs(machines)[0].read_text())
        workers = running(machines.folder)
        rank = next(
            pid
            for pid, command in workers.items()
            if "train.worker" in command and "distributed" not in command and "node1" in command
        )
        os.kill(rank, signal.SIGKILL)
        said = parent.communicate(timeout=PATIENCE_S)[1]
        agent.communicate(timeout=PATIENCE_S)
        assert "RunFailed: node " in said
        wait_for(lambda: running(machines.folder) == {})
    assert locks(machines) == []


def test_a_reason_of_one_node_counts_more_than_the_failure_of_the_others(machines):
    machines.instead_of_torchrun(
        "outcome = {'status': 'oom', 'reason': 'too big', 'oom_bytes': 7}",
        "time.sleep(node)",
        "if node: (work / 'rank1.json').write_text(json.dumps(outcome))",
        "sys.exit(1 + 2 * node)",
    )
    with machines.both() as (parent, agent):
        assert parent.wait(PATIENCE_S) == 0
        agent.wait(PATIENCE_S)
    found = json.loads((machines.folder / "run" / "record.json").read_text())
    assert (found["status"], found["oom_bytes"], found["measurement"]) == ("oom", 7, None)
    assert found["reason"].startswith("node 1 (") and found["reason"].endswith("): too big")
    assert 1 in [part["node"] for part in found["nodes"]]


def test_the_time_limit_holds_on_all_nodes_and_is_a_record(machines):
    machines.instead_of_torchrun(ENDLESS)
    with machines.both(timeout_s=0.5) as (parent, agent):
        assert parent.wait(PATIENCE_S) == 0
        agent.wait(PATIENCE_S)
        assert running(machines.folder) == {}
    found = json.loads((machines.folder / "run" / "record.json").read_text())
    assert found["status"] == "timeout"
    assert found["reason"].endswith("): stopped after timeout_s = 0.5 s")


@pytest.mark.slow
def test_a_node_that_never_comes_ends_the_run(machines):
    parent = machines.parent(join_s=10)  # its own comes within that on a busy machine too
    assert "RunFailed: 1 of 2 nodes joined within 10 s" in parent.communicate(timeout=PATIENCE_S)[1]
    assert running(machines.folder) == {}
    assert locks(machines) == []


def test_two_agents_of_one_machine_are_refused(machines):
    parent, again = machines.parent(), machines.agent(0)
    said = parent.communicate(timeout=PATIENCE_S)[1]
    again.communicate(timeout=PATIENCE_S)
    assert "UserError: two agents are on one machine, " in said


def test_a_node_that_lacks_boards_is_a_record_that_names_it(machines):
    machines.instead_of_torchrun("raise SystemExit('it was started')")
    with machines.both(gpus="auto", accelerator="cuda", devices=4) as (parent, agent):
        assert parent.wait(PATIENCE_S) == 0
        agent.wait(PATIENCE_S)
    found = json.loads((machines.folder / "run" / "record.json").read_text())
    assert found["status"] == "unsupported"
    assert found["reason"].endswith("): ddp asks for 2 GPUs; this machine has 1")


def test_who_does_not_know_the_key_takes_no_part(machines):
    parent, stranger = machines.parent(join_s=20), machines.agent(JOULESWEEP_KEY="another")
    said = stranger.communicate(timeout=PATIENCE_S)[1]
    assert stranger.returncode == 2
    assert "what listens there does not know the run's key" in said
    parent.terminate()
    parent.communicate(timeout=PATIENCE_S)


def puppet(port, host, told):
    """An agent that leases nothing, and fails as soon as it may train."""
    end = link.connect(f"127.0.0.1:{port}", "key", 5.0, host=host, locks="/locks")
    agent._first(end, "job")
    for point in ("lease", "settle", "train"):
        end.send(at=point, port=1)
        agent._first(end, "go")
        if point == "lease":
            told.append(f"{host} may")
            time.sleep(0.2)  # as if another run had the boards
            told.append(f"{host} holds")
    end.send(failed=f"{host} has failed")
    end.close()


def job_of(spec, folder):
    """A job that nothing is done of."""
    return launcher.Job(
        spec=spec,
        model_folder=folder,
        tokens=folder,
        folder=folder,
        log=None,
        exclusive="gpu",
        meter_settings={},
        code_digest="c0de",
        grace_s=1.0,
        attempt=None,
    )


def test_nodes_are_leased_in_the_order_of_their_names_however_they_came(tmp_path):
    """So two runs on the same nodes never hold one each and wait for the other."""
    told: list[str] = []
    spec = tiny_run.spec(strategy="ddp", devices=4, nodes=2)
    crew = nodes._Crew(job_of(spec, tmp_path), lambda: None)
    with nodes._listening(0, 2) as listener:
        puppets = [threading.Thread(target=puppet, args=(listener.getsockname()[1], host, told)) for host in ("b", "a")]
        for one in puppets:
            one.start()
            time.sleep(0.05)
        crew.gather(listener, "key")
        with pytest.raises(nodes._Over):
            crew.lead("auto", False)
        crew.dismiss()
        for one in puppets:
            one.join()
    assert [member.host for member in crew.members] == ["a", "b"]
    assert told == ["a may", "a holds", "b may", "b holds"]
    with pytest.raises(RunFailed, match=r"^node \d \((a|b)\): \1 has failed$"):
        crew.results()


def test_a_kind_of_device_that_one_node_lacks_is_in_no_sum():
    def row(device, kind):
        return DeviceEnergy(
            device=device, kind=kind, uuid=None, total_energy_j=1.0, status="measured", method="counter", reason=None,
            energy_j=1.0, tick_s=0.1, mean_power_w=1.0, power_ratio=1.0, idle_w=1.0, net_energy_j=0.5, error_j=0.1,
        )  # fmt: skip

    both = [[row("node0/cpu:0", "cpu"), row("node0/dram:0", "dram")], [row("node1/cpu:0", "cpu")]]
    rows = merge._energy(both)
    assert [(one.device, one.status) for one in rows][-1] == ("node1/dram", "unavailable")
    found = headline(rows, "cpu", "node")
    assert (found.energy_scope, found.energy_j) == ("cpu", 2.0)
    assert headline(both[0] + both[1], "cpu", "node").energy_scope == "cpu+dram"  # what the row is for


@pytest.mark.parametrize(
    ("changes", "text"),
    [({}, None), ({"cpu_model": "B", "driver": "2"}, "the nodes have different processors, drivers")],
)
def test_nodes_of_two_kinds_are_flagged(changes, text):
    one = machine.describe(1)
    assert [flag.text for flag in merge._unlike([one, replace(one, **changes)])] == ([text] if text else [])


def test_flags_name_their_node_unless_all_nodes_say_the_same():
    shared, own = Flag(flag="one_device", text="x"), Flag(flag="throttled", text="gpu:0")
    assert merge._flags([[shared], [shared, own]], ["node 0 (a)", "node 1 (b)"]) == [
        shared,
        Flag(flag="throttled", text="node 1 (b): gpu:0"),
    ]


def test_several_nodes_without_slurm_or_a_rendezvous_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    paths = {name: tmp_path / name for name in ("model_folder", "tokens", "folder", "log")}
    spec = tiny_run.spec(strategy="ddp", devices=4, nodes=2)
    with pytest.raises(UserError, match=r"^the run needs 2 nodes: in a job of Slurm, or started by hand"):
        launcher.launch(spec, "c0de", **paths, exclusive="none", with_snakemake=False)
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_slurm_starts_one_agent_on_each_node_with_its_share(tmp_path):
    spec = tiny_run.spec(strategy="ddp", devices=8, nodes=2, accelerator="cuda", threads_per_device=3)
    words = nodes.srun(job_of(spec, tmp_path))
    assert words[:2] == ["srun", "--overlap"]
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12", "--gpus-per-node=4"} <= set(words)


def test_a_step_of_its_own_inherits_nothing_of_the_parents_step():
    environ = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SRUN_DEBUG": "3", "CUDA_VISIBLE_DEVICES": "0", "HOME": "/"}
    assert nodes._outside_of_steps(environ) == {"SLURM_JOB_ID": "7", "HOME": "/"}


@pytest.fixture
def slurm(machines, tmp_path):
    """A Slurm whose two nodes are the two machines."""
    reason = slurm_module.lacking()
    if reason:
        pytest.skip(reason)
    tmp_path.chmod(0o755)
    (tmp_path / "slurm").mkdir()
    of_nodes = dict(zip(("n1", "n2"), machines.of_nodes(), strict=True))
    with slurm_module.running(tmp_path / "slurm", of_nodes, gpus=1) as two_nodes:
        yield two_nodes


SHARE = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gpus=2", "--gpus-per-node=1", "--cpus-per-task=1"]


@pytest.mark.slow
def test_srun_starts_a_run_on_two_nodes_of_slurm_and_scancel_ends_both(machines, slurm, tmp_path):
    def job(**changes):
        return slurm.submit(tmp_path / "job.log", tiny_run.REPOSITORY, SHARE, machines.command(**changes))

    first = job(max_steps=4)
    wait_for(lambda: slurm.state(first) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.state(first) == "COMPLETED", (tmp_path / "job.log").read_text()
    found = json.loads((tmp_path / "run" / "record.json").read_text())
    batches = [part["environment"]["batch"] for part in found["nodes"]]
    assert [(batch["job"], batch["node"]) for batch in batches] == [(first, "n1"), (first, "n2")]
    rows = [row for row in found["measurement"]["energy"] if row["kind"] == "gpu"]
    assert [row["uuid"] for row in rows] == machines.uuids
    machines.instead_of_torchrun(ENDLESS)
    for node, variables in zip(slurm.nodes, machines.of_nodes(), strict=True):
        slurm.set_on(node, variables)
    second = job()
    wait_for(lambda: sum("a rank" in command for command in running(machines.folder).values()) == 2)
    slurm.call("scancel", second)
    wait_for(lambda: not any(str(tmp_path / "slurm") not in line for line in running(tmp_path).values()))
    wait_for(lambda: slurm.state(second) == "CANCELLED")
    assert locks(machines) == []
