"""`joulesweep certify`: measure how accurate the joules of each board and of the CPU packages are.

Each device gets raw readings (`readings`), the certificate computed from them (`appraise`), and a page. Readings are
written while they are taken; the certificate and the page can be rebuilt from them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from joulesweep import __version__
from joulesweep.certify import appraise, blocks, readings
from joulesweep.certify.blocks import FAST_S, SLOW_S, Load, Subject
from joulesweep.core import bounded, files, processes
from joulesweep.core.errors import UserError, one_of
from joulesweep.launch import lease, node
from joulesweep.measure import certificate, devices, machine, meters
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import nvidia, rapl
from joulesweep.measure.trace import Trace
from joulesweep.measure.watch import Watch
from joulesweep.measure.window import MIG, NO_COUNTER, Meter
from joulesweep.plan import staleness

START_S = 120.0  # limit for importing torch and waking a board
NUM_CALLS = 5  # empty windows that time the meter's calls
VERSIONED = ("torch", "zeus", "nvidia-ml-py")
#: What a board is asked once, with pynvml's functions.
ASKED = {
    "power_limit_mw": "nvmlDeviceGetEnforcedPowerLimit",
    "default_power_limit_mw": "nvmlDeviceGetPowerManagementDefaultLimit",
    "power_limits_mw": "nvmlDeviceGetPowerManagementLimitConstraints",
    "persistence": "nvmlDeviceGetPersistenceMode",
    "ecc": "nvmlDeviceGetEccMode",
    "architecture": "nvmlDeviceGetArchitecture",
    "process_ids": "nvmlDeviceGetComputeRunningProcesses",
}


@dataclass(frozen=True)
class Target:
    """A device to certify.

    Attributes:
        device: `gpu:0`; `cpu:0` means all CPU packages and their memory.
        name: name of its files.
        board: the board, None for the CPU.
        header: first line of the readings, without the time and budget.
        subject: functions that read and load it.
    """

    device: str
    name: str
    board: Board | None
    header: Mapping[str, Any]
    subject: Subject


def tell(line: str) -> None:
    """Print progress at once."""
    print(line, flush=True)


def certify(
    names: Sequence[str],
    budget_s: float | None,
    folder: Path,
    *,
    load: Callable[[Board | None], Load] | None = None,
    say: Callable[[str], None] = tell,
) -> list[Path]:
    """Certify devices of this machine, one after the other.

    Args:
        names: names of the devices: `gpu:0`, a UUID or `cpu:0`; empty: all.
        budget_s: seconds for all devices, divided equally among those with a meter; None: `certificate.BUDGET_S` for
            each of these.
        folder: folder of all certificates.
        load: creates the load of a board, or of the CPU; None: a process that multiplies matrices.
        say: reports progress.

    Returns:
        Paths of the certificates.

    Raises:
        UserError: there is no such device.
    """
    targets = chosen(names, load or Child)
    num_read = sum(bool(target.subject.channels) for target in targets)
    each_s = certificate.BUDGET_S if budget_s is None else budget_s / max(1, num_read)
    made = [_certify(target, each_s, folder, say) for target in targets]
    if folder.resolve() != certificate.FOLDER.resolve():
        say(f"runs that are started here cite certificates under {certificate.FOLDER}, not under {folder}")
    return made


def chosen(names: Sequence[str], load: Callable[[Board | None], Load]) -> list[Target]:
    """The devices with these names; without names, all.

    Raises:
        UserError: there is no such device.
    """
    boards = devices.pool("auto")
    known: dict[str, Board | None] = {certificate.HOST: None}
    known |= {name: board for board in boards for name in (board.uuid, board.device)}
    requested = list(dict.fromkeys(names)) or [*(board.device for board in boards), certificate.HOST]
    for name in requested:
        if name not in known:
            raise UserError(f"--device: {one_of('device', name, known)}")
    chosen_boards = dict.fromkeys(known[name] for name in requested)  # a board may be named twice, by index and by UUID
    return [_host(load) if board is None else _board(board, boards, load) for board in chosen_boards]


def _certify(target: Target, budget_s: float, folder: Path, say: Callable[[str], None]) -> Path:
    path = certificate.place(target.name, folder)
    raw, partial = _raw(path), path.with_name(f"{path.stem}.{os.getpid()}.partial.readings.jsonl.gz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            partial.unlink(missing_ok=True)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            readings.append(partial, {**target.header, "made": now, "budget_s": budget_s})
            blocks.measure(
                target.subject,
                budget_s,
                lambda line: readings.append(partial, line),
                blocks.MONOTONIC,
                lambda line: say(f"{target.device}: {line}"),
            )
            partial.replace(raw)
            return repeat(raw, None, say)
    except OSError as error:
        raise UserError(f"{error.filename or path.parent}: {error.strerror}") from None
    except KeyboardInterrupt:
        kept = f"; joulesweep certify --read {partial} makes a certificate of what was read"
        raise UserError(f"stopped{kept if partial.exists() else ''}") from None


def _raw(path: Path) -> Path:
    """Path of the readings of a certificate."""
    return path.with_name(f"{path.stem}.readings.jsonl.gz")


def _alone(target: Target) -> contextlib.AbstractContextManager[Any]:
    """Exclusive access to a device; waits for the end of runs that use it."""
    if not target.subject.channels:
        return contextlib.nullcontext()
    boards = [] if target.board is None else [target.board]
    return lease.Lease(boards, len(boards), "gpu" if boards else "node", lambda: None)


def repeat(raw: Path, folder: Path | None = None, say: Callable[[str], None] = tell) -> Path:
    """Make a certificate and its page from raw readings. Truncated readings never replace a complete certificate.

    Args:
        raw: path of the readings.
        folder: folder of all certificates; None: write next to the readings.
        say: reports the verdicts.

    Raises:
        UserError: the readings cannot be read, or the files cannot be written.
    """
    raw_readings = readings.read(raw)
    try:
        made = appraise.certificate(raw_readings)
        name = made["name"] if made["complete"] else f"{made['name']}.partial"
        path = certificate.place(name, raw.parent if folder is None else folder, made["host"])
        path = path if folder is not None else raw.parent / path.name
        page, lines = _page(made, raw_readings, say), appraise.lines(made)
        text = json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except readings.MALFORMED as error:
        raise UserError(f"{raw}: no readings of a certificate: {type(error).__name__}: {error}") from None
    kept = path.with_name(f"{name}.{certificate.digest(text.encode())}.json")  # records cite this file: keep it
    try:
        for place, content in ((kept, text), (path, text), (path.with_suffix(".html"), page)):
            if content is not None:
                files.write_text(place, content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    for line in (*lines, str(path)):
        say(line)
    return path


def _page(made: Mapping[str, Any], raw_readings: readings.Readings, say: Callable[[str], None]) -> str | None:
    """The page of a certificate; None if this Python lacks the packages for charts."""
    try:
        from joulesweep.certify.page import build  # a GPU host may lack the packages for charts
    except ImportError as error:
        elsewhere = f"elsewhere, joulesweep certify --read {raw_readings.file} makes it"
        say(f"no page: this Python has no {error.name}; {elsewhere}")
        return None
    return build(made, raw_readings)


def _header(
    device: str, name: str, identity: Mapping[str, object], counters: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    return {
        "format": readings.FORMAT,
        "version": readings.VERSION,
        "host": socket.gethostname(),
        "device": device,
        "name": name,
        "identity": {
            **identity,
            "cpu_model": machine.cpu_model(),
            "cpu_cores": len(os.sched_getaffinity(0)),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "in_container": processes.in_container(),
            "code": {"joulesweep": __version__, "digest": staleness.code_digest(__name__, "certify")},
            "versions": {package: machine.version(package) for package in VERSIONED},
        },
        "devices": counters,
    }


def _counter(device: str, kind: str, range_j: float | None, reason: str | None) -> dict[str, object]:
    return {"device": device, "kind": kind, "range_j": range_j, "no_counter": reason}


def _board(board: Board, boards: Sequence[Board], load: Callable[[Board | None], Load]) -> Target:
    """A GPU as a target; quantities that it does not report are left out, with the reason in the header."""
    sensor, silent = bounded.within(bounded.LIMIT_S, meters.sensor, board)
    reason = MIG if board.mig else None if board.has_counter else NO_COUNTER
    channels: dict[str, tuple[Callable[[], Any], float]] = {}
    driver, _ = bounded.within(bounded.LIMIT_S, devices.driver)
    identity: dict[str, object] = {**board.described(), "driver": driver, "silent": silent}
    if sensor is not None and not board.mig:
        identity |= _asked(sensor) if isinstance(sensor, nvidia.BoardSensor) else {}
        channels |= {board.device: (sensor.energy_j, FAST_S)} if reason is None else {}
        instant = sensor.traits.instant
        channels |= {"instant": (sensor.power_w, FAST_S)} if instant else {}
        channels["average"] = (sensor.average_w, FAST_S if not instant else SLOW_S / 5)
        slow = (("temperature", sensor.temperature_c), ("sm_clock", sensor.sm_clock_mhz))
        channels |= {name: (ask, SLOW_S) for name, ask in slow}
        channels |= {"throttles": (sensor.throttles, 2 * SLOW_S), "processes": (sensor.process_ids, 2 * SLOW_S)}
    counters = [_counter(board.device, "gpu", None, reason or (silent and f"the board does not answer: {silent}"))]
    placed = {boards.index(board): board}
    subject = Subject(
        counters={board.device: None} if board.device in channels else {},
        channels=channels,
        load=lambda: load(board),
        metering=lambda: Metering([board], []),
        calls_s=lambda limit_s: _calls(limit_s, lambda: Meter(placed, host=False, synchronize=lambda: None)),
    )
    identity["instant"] = bool(sensor and sensor.traits.instant)
    header = _header(board.device, board.uuid, identity, counters)
    return Target(board.device, board.uuid, board, header, subject)


def _asked(sensor: nvidia.BoardSensor) -> dict[str, object]:
    """Limits and modes of a board; None for those that it does not report."""
    answers: dict[str, object] = {}
    for name, function in ASKED.items():
        value = nvidia.nvml_call(function, sensor.handle)
        if name == "process_ids" and value is not None:
            value = [process.pid for process in value]
        answers[name] = value
    return answers


def _host(load: Callable[[Board | None], Load]) -> Target:
    """The CPU packages and their memory as a target, as far as RAPL counts them."""
    zones, silent = bounded.within(bounded.LIMIT_S, rapl.devices)
    problem, _ = bounded.within(bounded.LIMIT_S, rapl.problem)
    counters = [_counter(zone.device, zone.device.partition(":")[0], zone.range_j, None) for zone in zones or []]
    if not counters:
        reason = problem or f"the counters do not answer: {silent}"
        counters = [_counter(certificate.HOST, "cpu", None, reason)]
    read_zones = zones or []
    subject = Subject(
        counters={zone.device: zone.range_j for zone in read_zones},
        channels={zone.device: (zone.energy_j, FAST_S) for zone in read_zones},
        load=lambda: load(None),
        metering=lambda: Metering([], read_zones),
        calls_s=lambda limit_s: _calls(limit_s, lambda: Meter({}, host=True, synchronize=lambda: None)),
    )
    header = _header(certificate.HOST, certificate.HOST, {"driver": None, "instant": False}, counters)
    return Target(certificate.HOST, certificate.HOST, None, header, subject)


class Metering:
    """A context in which devices are read as the launching parent of a run reads them.

    Args:
        boards: boards to read.
        zones: RAPL zones to read.
    """

    def __init__(self, boards: Sequence[Board], zones: Sequence[rapl.Zone]) -> None:
        self.trace = Trace(boards, zones)
        self.watch = Watch(self.trace)

    def __enter__(self) -> Metering:
        self.watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.watch.__exit__(kind, error, traceback)

    def used(self, began_s: float, ended_s: float) -> blocks.Used:
        """CPU seconds and number of the readings in a span, on the monotonic clock."""
        return blocks.Used(**self.trace.cost(began_s, ended_s), stopped=self.watch.stopped)


def _calls(limit_s: float, meter: Callable[[], Meter]) -> tuple[list[float] | None, str | None]:
    """Seconds that the calls of a run's meter take around some empty windows, or the reason why they are unknown."""

    def windows() -> tuple[list[float] | None, str | None]:
        made, calls_s = meter(), []
        for _ in range(NUM_CALLS):
            with made.window():
                pass
            calls_s.append(made.calls_s)
        failed = [
            reading.reason for reading in made.readings() if reading.reason is not None and reading.kind != "dram"
        ]
        return (None, failed[0]) if failed else (calls_s, None)

    result, silent = bounded.within(limit_s, windows)
    return result or (None, silent)


class Child:
    """A load in a process of its own: `joulesweep.certify.load`.

    Args:
        board: the board to load; None: the CPU.
    """

    def __init__(self, board: Board | None) -> None:
        self.board = board
        boards, threads = ([], len(os.sched_getaffinity(0))) if board is None else ([board], 1)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "joulesweep.certify.load", "cpu" if board is None else "cuda"],
            env=node.child_environment(threads, boards),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=processes.die_with_parent,
        )
        self._described: Mapping[str, Any] | None = None

    def described(self) -> Mapping[str, object]:
        """The device and its work; waits until the load is ready.

        Raises:
            RuntimeError: it cannot start, or computes on another board.
        """
        if self._described is None:
            self._described = self._answer(START_S)
            uuid = self._described["uuid"]
            if self.board is not None and uuid and not devices.is_board(uuid, self.board.uuid):
                raise RuntimeError(f"PyTorch computes on GPU {uuid}, not on {self.board.uuid}")
        return self._described

    def begin(self, seconds: float, period_s: float | None) -> None:
        """Start to work."""
        if self._process.stdin is None:
            raise RuntimeError("the load has no input")
        try:
            self._process.stdin.write(f"{json.dumps({'seconds': seconds, 'period_s': period_s})}\n".encode())
            self._process.stdin.flush()
        except (OSError, ValueError):  # it ended, or was ended
            raise RuntimeError("the load has ended") from None

    def end(self, limit_s: float) -> blocks.Done:
        """Wait for the end of the work, and return what was done."""
        done = self._answer(limit_s)
        return {"began_s": done["began_s"], "ended_s": done["ended_s"], "num_products": done["num_products"]}

    def _answer(self, limit_s: float) -> Mapping[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError("the load has no output")
        line, silent = bounded.within(limit_s, self._process.stdout.readline)
        if not line:
            raise RuntimeError(f"the load gave {silent}" if silent else "the load has ended")
        answer: Mapping[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Stop the process."""
        processes.kill_group(self._process)
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):
                pipe.close()
