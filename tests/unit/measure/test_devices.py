"""Boards are told apart by UUID, and CUDA_VISIBLE_DEVICES is read as CUDA reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pynvml
import pytest
import tiny_run
from fake_meters import Boards, forget_devices

from joulesweep.core import bounded
from joulesweep.core.errors import UserError
from joulesweep.measure import devices
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import nvidia

UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]


def board(index, **changes):
    given = {"uuid": UUIDS[index or 0], "name": "A100", "memory_bytes": 2**30, "has_counter": True, "mig": False}
    return Board(index=index, **(given | changes))


ALL = [board(i) for i in range(3)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A driver with boards, for the real pynvml in this process; without boards, no driver."""

    def made(*boards):
        nvidia.nvml.cache_clear()
        fake = Boards(tmp_path, boards)
        fake.install(monkeypatch)
        if not boards:
            monkeypatch.delenv("FAKE_NVML")
        return fake

    yield made
    nvidia.nvml.cache_clear()


@pytest.fixture
def three(machine):
    return machine(*({"uuid": uuid} for uuid in UUIDS))


def indices(boards):
    return [board.index for board in boards]


def test_boards_are_those_of_the_driver_with_what_they_can(machine):
    machine(
        {"uuid": "GPU-1", "name": "NVIDIA A100", "memory_mib": 40960, "mig": 0},
        {"uuid": "GPU-2", "name": "Tesla P100", "memory_mib": 16384, "arch": pynvml.NVML_DEVICE_ARCH_PASCAL},
        {"uuid": "GPU-3", "name": "NVIDIA H100", "mig": 1},
    )
    first, old, split = devices.boards()
    assert (first.index, first.uuid, first.name, first.memory_bytes) == (0, "GPU-1", "NVIDIA A100", 40 * 2**30)
    assert (first.has_counter, first.mig, first.device) == (True, False, "gpu:0")
    assert (old.index, old.has_counter, old.mig, old.memory_bytes) == (1, False, False, 16 * 2**30)
    assert (split.index, split.mig, split.device) == (2, True, "gpu:2")
    assert json.loads(json.dumps(first.described())) == {
        "device": "gpu:0",
        "index": 0,
        "uuid": "GPU-1",
        "name": "NVIDIA A100",
        "memory_bytes": 40 * 2**30,
        "has_counter": True,
        "mig": False,
        "meter": "nvidia",
        "no_counter": None,
    }


def test_without_driver_there_are_no_boards(machine):
    machine()
    assert devices.boards() == []
    assert devices.pool("auto", {}) == []
    assert nvidia.nvml_call("nvmlSystemGetDriverVersion") is None


def test_without_the_drivers_library_there_are_no_boards(monkeypatch):
    def absent():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    nvidia.nvml.cache_clear()
    assert devices.boards() == []
    nvidia.nvml.cache_clear()


def test_a_lost_board_leaves_the_others_with_their_numbers(machine):
    machine({"uuid": "GPU-1", "lost": 1}, {"uuid": "GPU-2"})
    assert [(board.index, board.uuid) for board in devices.boards()] == [(1, "GPU-2")]


def test_what_this_pynvml_or_driver_does_not_know_is_not_there(machine, monkeypatch):
    def mismatch():
        raise pynvml.NVMLLibraryMismatchError("Unversioned function called")

    machine({})
    assert nvidia.nvml_call("nvmlDeviceGetCount") == 1
    assert nvidia.nvml_call("nvmlDeviceOfTheFuture") is None
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", mismatch)
    assert nvidia.nvml_call("nvmlSystemGetDriverVersion") is None


def test_a_new_process_sees_the_boards_and_what_is_left_of_them(tmp_path):
    fake = Boards(tmp_path, [{"uuid": uuid} for uuid in UUIDS])
    code = (
        "from joulesweep.measure import devices; print([b.uuid for b in devices.pool('auto')], len(devices.boards()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=fake.environment(CUDA_VISIBLE_DEVICES="2,GPU-aa1"),
        cwd=tiny_run.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['GPU-bb33', 'GPU-aa11'] 3\n"


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),  # CUDA's order
        (" 1 , 0 ", [1, 0]),
        ("0,-1,1", [0]),  # what follows an entry that names nothing is not seen
        ("0,,1", [0]),
        ("0,3,1", [0]),
        ("3", []),
        ("NoDevFiles", []),  # as some batch systems say "none"
        ("GPU-aa22", [1]),
        ("GPU-bb33,GPU-aa11", [2, 0]),
        ("GPU-b", [2]),  # a beginning is enough
        ("GPU-aa", []),  # where it begins one UUID only
        ("GPU-bb33,GPU-aa,GPU-aa11", [2]),
        ("GPU-cc", []),
        ("bb33", []),
        ("1,1", []),
        ("0,1,0", []),
        ("GPU-bb33,GPU-b", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(setting, left):
    assert indices(devices.visible(ALL, setting, nvidia.named)) == left


def test_a_slice_is_a_board_without_counter_named_by_its_uuid_alone(machine):
    machine({"uuid": "GPU-1", "mig": 1}, {"uuid": "MIG-77", "name": "A100 MIG 1g.5gb", "memory_mib": 4864})
    known, unknown = devices.visible(devices.boards(), "MIG-77,MIG-GPU-1/1/0", nvidia.named)
    assert (known.index, known.device, known.uuid, known.name) == (None, "gpu:MIG-77", "MIG-77", "A100 MIG 1g.5gb")
    assert (known.memory_bytes, known.has_counter, known.mig) == (4864 * 2**20, False, True)
    assert (unknown.uuid, unknown.name, unknown.memory_bytes, unknown.mig) == (
        "MIG-GPU-1/1/0",
        "MIG slice",
        None,
        True,
    )


@pytest.mark.parametrize(
    ("gpus", "setting", "chosen"),
    [
        ("auto", None, [0, 1, 2]),
        ("auto", "1", [1]),
        ("auto", "", []),
        ([2, 0], None, [2, 0]),
        (["2"], None, [2]),
        (["GPU-aa22"], None, [1]),
        (["GPU-b", 0], None, [2, 0]),
        ([1], "2,1", [1]),  # NVML's numbers, not positions in the variable
        (["GPU-aa11"], "1,GPU-aa11", [0]),
    ],
)
def test_the_pool_is_what_config_and_environment_leave(three, gpus, setting, chosen):
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert indices(devices.pool(gpus, environment)) == chosen


@pytest.mark.parametrize(
    ("gpus", "setting", "chosen"),
    [
        ([0, 1], "2", [2]),  # granted instead of those named
        ([0, 1], "1,2", [1, 2]),
        ([0, 7], "1", [1]),  # numbered anew, where a job sees its own boards only
        ([2], "1,2", [2]),  # a whole node, of which a board is named
    ],
)
def test_a_batch_job_takes_the_boards_that_it_is_granted(three, gpus, setting, chosen):
    environment = {"CUDA_VISIBLE_DEVICES": setting, "SLURM_JOB_ID": "7"}
    assert indices(devices.pool(gpus, environment)) == chosen


def test_a_batch_job_that_is_granted_no_board_takes_none_unnamed(three):
    with pytest.raises(UserError, match="unknown GPU of this machine '7'"):
        devices.pool([7], {"SLURM_JOB_ID": "7"})


def test_the_pool_reads_the_environment_of_this_process(three, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert indices(devices.pool("auto")) == [2]


def test_a_slice_may_be_named_where_the_environment_has_it(machine):
    machine({"uuid": "GPU-1", "mig": 1}, {"uuid": "MIG-77"})
    (chosen,) = devices.pool(["MIG-77"], {"CUDA_VISIBLE_DEVICES": "MIG-77"})
    assert (chosen.index, chosen.uuid) == (None, "MIG-77")


@pytest.mark.parametrize(
    ("gpus", "setting", "message"),
    [
        (
            ["GPU-aa23"],
            None,
            "measure.gpus: unknown GPU of this machine 'GPU-aa23'; allowed: 0, 1, 2, GPU-aa11, GPU-aa22, GPU-bb33 "
            "(did you mean 'GPU-aa22'?)",
        ),
        (
            [7],
            None,
            "measure.gpus: unknown GPU of this machine '7'; allowed: 0, 1, 2, GPU-aa11, GPU-aa22, GPU-bb33",
        ),
        ([0, 1], "1", "measure.gpus: 0 is not among the GPUs that CUDA_VISIBLE_DEVICES=1 leaves"),
        (["GPU-b"], "", "measure.gpus: GPU-b is not among the GPUs that CUDA_VISIBLE_DEVICES= leaves"),
        ([2, "GPU-bb33"], None, "measure.gpus: GPU-bb33 is gpu:2 once more; name each board once"),
    ],
)
def test_a_board_that_cannot_be_had_is_the_users_to_mend_in_one_line(three, gpus, setting, message):
    with pytest.raises(UserError) as caught:
        devices.pool(gpus, {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting})
    assert str(caught.value) == message


def test_an_ambiguous_beginning_names_no_board(three):
    with pytest.raises(UserError, match=r"^measure\.gpus: unknown GPU of this machine 'GPU-aa'"):
        devices.pool(["GPU-aa"], {})


def test_a_named_board_on_a_machine_without_driver_is_one_line(machine):
    machine()
    with pytest.raises(UserError, match=r"^measure\.gpus: unknown GPU of this machine '0'; allowed: none$"):
        devices.pool([0], {})


def test_when_the_boards_change_places_their_uuids_tell_them_apart(machine):
    machine({"uuid": "GPU-1"}, {"uuid": "GPU-2"})
    (before,) = devices.pool(["GPU-2"], {})
    machine({"uuid": "GPU-2"}, {"uuid": "GPU-1"})
    (after,) = devices.pool(["GPU-2"], {})
    assert (before.uuid, before.index) == ("GPU-2", 1)
    assert (after.uuid, after.index) == ("GPU-2", 0)
    assert nvidia.exposing([after])["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("changes", "exclusive", "number"),
    [
        ({}, "gpu", 0),
        ({}, "node", 0),
        ({"accelerator": "cuda"}, "gpu", 1),
        ({"accelerator": "cuda", "strategy": "ddp", "devices": 3}, "node", 3),
        ({"gpus": [0, 1]}, "node", 2),  # a run on the CPU, alone, meters every board it was told to
        ({"gpus": [0, 1]}, "gpu", 1),
        ({"accelerator": "cuda", "strategy": "dp", "devices": 2}, "node", 2),
        ({"gpus": [0], "strategy": "ddp", "devices": 2}, "node", 1),
    ],
)
def test_a_run_takes_as_many_boards_as_it_has_devices_or_on_the_cpu_all_named_if_alone(changes, exclusive, number):
    assert devices.num_boards(tiny_run.spec(**changes), exclusive) == number


@pytest.mark.parametrize(
    ("changes", "needed", "setting", "sentence"),
    [
        ({}, 3, None, None),
        ({}, 4, None, "single asks for 4 GPUs; this machine has 3"),
        (
            {"strategy": "ddp", "devices": 2},
            2,
            "1",
            "ddp asks for 2 GPUs; this machine has 3, of which CUDA_VISIBLE_DEVICES=1 leaves 1",
        ),
        ({}, 1, "", "single asks for 1 GPU; this machine has 3, of which CUDA_VISIBLE_DEVICES= leaves 0"),
        (
            {"strategy": "dp", "devices": 3, "gpus": [0, 1]},
            3,
            None,
            "dp asks for 3 GPUs; this machine has 3, and measure.gpus names 2",
        ),
        (
            {"strategy": "dp", "devices": 2, "gpus": [2]},
            2,
            "2,1",
            "dp asks for 2 GPUs; this machine has 3, of which CUDA_VISIBLE_DEVICES=2,1 leaves 2, "
            "and measure.gpus names 1",
        ),
    ],
)
def test_too_few_boards_are_told_with_all_that_narrows_them(three, monkeypatch, changes, needed, setting, sentence):
    spec = tiny_run.spec(accelerator="cuda", **changes)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert devices.too_few(spec, needed, devices.pool(spec.gpus)) == sentence


def test_runs_get_indices_since_zeus_fails_on_uuids(three, monkeypatch):
    from zeus.monitor import ZeusMonitor

    first, _, third = devices.boards()
    assert nvidia.exposing([third, first])["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert nvidia.exposing([])["CUDA_VISIBLE_DEVICES"] == ""
    assert nvidia.exposing([board(None, uuid="MIG-77")])["CUDA_VISIBLE_DEVICES"] == "MIG-77"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nvidia.exposing([third, first])["CUDA_VISIBLE_DEVICES"])
    forget_devices(monkeypatch)
    assert ZeusMonitor(gpu_indices=[0, 1], cpu_indices=[]).gpu_indices == [0, 1]


@pytest.fixture
def hanging(monkeypatch):
    """A call that comes back only when the test ends."""
    gate = threading.Event()
    monkeypatch.setattr(nvidia, "START_S", 0.05)
    monkeypatch.setattr(bounded, "LIMIT_S", 0.05)
    yield gate.wait
    gate.set()


def test_a_driver_that_does_not_answer_is_one_line(monkeypatch, hanging):
    monkeypatch.setattr(nvidia, "nvml_call", lambda function, *args: hanging())
    with pytest.raises(UserError, match=r"^the NVIDIA driver does not tell its boards: no answer within 0.05 s$"):
        devices.boards()
    monkeypatch.setattr(nvidia, "nvml", hanging)
    assert nvidia.start_problem() == ("NVML does not start: no answer within 0.05 s", False)


def test_a_board_that_does_not_answer_is_named_and_left_out(monkeypatch, hanging, capfd):
    def ask(function, *args):
        return hanging() if args == (1,) else {"nvmlDeviceGetCount": 3}.get(function, "GPU-x")

    monkeypatch.setattr(nvidia, "nvml_call", ask)
    monkeypatch.setattr(nvidia, "_board", lambda index, handle: index)
    assert devices.boards() == [0, 2]
    assert capfd.readouterr().err == "gpu:1 is left out: no answer within 0.05 s\n"
