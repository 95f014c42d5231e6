"""Report what can be measured on this machine, and how to fix what cannot. Does not train.

Each counter's tick is measured again and kept for later runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from joulesweep.core import bounded, processes
from joulesweep.launch import lease
from joulesweep.measure import devices, machine, meters, sensors
from joulesweep.measure.meters import rapl
from joulesweep.measure.window import NO_COUNTER
from joulesweep.plan import config as config_module
from joulesweep.reference import cpu_estimate

Facts = dict[str, Any]  # of a board, as --json shows them
HELP = "say what can be measured on this machine, and what not"
EXAMPLES = ("joulesweep doctor", "joulesweep doctor --configfile config/mine.yaml --json")

GIB = 2**30
MIN_FREE_GIB = 5.0
LIMIT_S = 60.0  # for a meter to report its problem
#: The sign of each status at the start of a line.
SIGNS = {"ok": "+", "note": "!", "missing": "-"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: what was checked.
        status: "ok", "note" (works, with something to know) or "missing" (cannot be measured or done here).
        found: the state of the subject.
        advice: what to do about it; empty if nothing.
    """

    subject: str
    status: str
    found: str
    advice: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--configfile", type=Path, help="try the plug or PDU that this config names, too")
    parser.add_argument("--json", action="store_true", help="as JSON")


def work(args: argparse.Namespace) -> int:
    """Examine, and print the report."""
    hardware = config_module.load(args.configfile).hardware.model_dump() if args.configfile else {}
    report = examine(meters.settings_in(hardware))
    print(json.dumps(report, indent=1, ensure_ascii=False) if args.json else screen(report))
    return 0


def examine(settings: Mapping[str, meters.Settings | None] | None = None) -> dict[str, Any]:
    """Examine this machine.

    Args:
        settings: the config's `hardware` settings of single meters, by meter name.

    Returns:
        host; measured: devices that runs here get joules of; findings: rows {subject, status, found, advice}; boards:
        rows of every board's readings, null where it gives none.
    """
    rows = [_board(board) for board in devices.boards()]
    zones = rapl.devices()
    findings = [
        *_driver(rows),
        *(_board_finding(row) for row in rows),
        *_visible(),
        _torch(),
        _cpu(zones),
        *(_meter(name, (settings or {}).get(name)) for name in meters.names()),
        *_surroundings(bool(rows or zones)),
        _disk(),
    ]
    counted = [row["device"] + ("" if row["has_counter"] else " (integrated)") for row in rows if not row["mig"]]
    return {
        "host": socket.gethostname(),
        "measured": [*counted, *(zone.device for zone in zones)],
        "findings": [asdict(finding) for finding in findings],
        "boards": rows,
    }


def screen(report: dict[str, Any]) -> str:
    """Format a report as text of at most 100 columns."""
    measured = ", ".join(report["measured"])
    verdict = f"joules can be measured of {measured}" if measured else "no joules can be measured; they will be null"
    lines = [f"{report['host']}: {verdict}", ""]
    for row in report["findings"]:
        head = f"{SIGNS[row['status']]} {row['subject']:<11} "
        lines += textwrap.wrap(row["found"], 100, initial_indent=head, subsequent_indent=" " * 14)
        if row["advice"]:
            lines += textwrap.wrap(f"→ {row['advice']}", 100, initial_indent=" " * 14, subsequent_indent=" " * 16)
    return "\n".join([*lines, "", "+ fine   ! works, read the line   - not here"])


def _board(board: devices.Board) -> Facts:
    sensor = meters.sensor(board)
    return {
        **board.described(),
        "tick_s": sensors.cached_tick(board.uuid, sensor.energy_j, afresh=True) if board.counts else None,
        "power_w": sensor.power_w(),
        "instant": sensor.traits.instant,
        "power_limit_w": sensor.power_limit_w(),
        "temperature_c": sensor.temperature_c(),
        "sm_clock_mhz": sensor.sm_clock_mhz(),
        "throttles": sensor.throttles(),
        "process_ids": sensor.process_ids(),
        "leased": _held(board.uuid),
    }


def _held(name: str) -> bool:
    """Whether a running measurement holds this lock."""
    descriptor = lease.open_lock(name)
    try:
        return not lease.try_lock(descriptor, lease.EXCLUSIVE)
    finally:
        os.close(descriptor)


def _driver(rows: list[Facts]) -> Iterator[Finding]:
    makers = meters.of_boards()
    if rows:
        made_by, version = rows[0]["meter"], devices.driver()
        maker = {"nvidia": "NVIDIA", "amd": "AMD"}.get(made_by, made_by)
        yield Finding(subject="driver", status="ok", found=f"{maker} {version}, {len(rows)} boards")
        return
    problem, absent = makers["nvidia"].start_problem() or ("the NVIDIA driver reports no board", True)
    advice = "runs go to the CPU. In a container, start it with --gpus all"
    advice = advice if absent else "put that right first: nvidia-smi would say the same"
    yield Finding(subject="GPU", status="missing", found=problem, advice=advice)


def _board_finding(row: Facts) -> Finding:
    """A board's finding; its first problem decides the status."""
    forms = {
        "power_w": "{:.0f} W now",
        "power_limit_w": "limit {:.0f} W",
        "temperature_c": "{:.0f} °C",
        "sm_clock_mhz": "{:.0f} MHz",
        "tick_s": "counter moves every {:.3g} s",
    }
    facts = [form.format(row[key]) for key, form in forms.items() if row[key] is not None]
    facts += ["no list of its processes"] if row["process_ids"] is None else []
    status, advice = _board_advice(row)
    text = ", ".join([row["name"], *facts, row["uuid"]])
    return Finding(subject=row["device"], status=status, found=text, advice=advice)


def _board_advice(row: Facts) -> tuple[str, str]:
    if row["mig"]:
        return (
            "missing",
            "MIG is on: NVML counts the whole board, slices have no joules; to measure: nvidia-smi -mig 0",
        )
    if not row["has_counter"]:
        return "note", f"{row['no_counter'] or NO_COUNTER}: its power readings are integrated, and labelled so"
    if row["tick_s"] is None:
        limit_s = f"{sensors.TICK_LIMIT_S:g} s"
        return (
            "note",
            f"its counter moved less than three times in {limit_s}: each run finds out how often it moves under load; "
            "where it cannot, its joules are doubtful",
        )
    if row["throttles"]:
        return (
            "note",
            f"clocks are held down by {', '.join(row['throttles'])}: see to cooling or power first",
        )
    if row["leased"]:
        return "note", "a measured run has it now: readings are that run's"
    if row["process_ids"]:
        pids = ", ".join(map(str, row["process_ids"]))
        return "note", f"other processes compute on it ({pids}): their joules would be counted; runs will be flagged"
    return "ok", ""


def _visible() -> Iterator[Finding]:
    boards, hiding = devices.left()
    if hiding is None:
        return
    left = [board.device for board in boards]
    advice = "" if left else "runs on GPUs will not start; unset it, or name boards of this machine"
    text = f"{hiding} leaves {', '.join(left) or 'no board'} to the runs"
    yield Finding(subject="visible", status="ok" if left else "note", found=text, advice=advice)


def _torch() -> Finding:
    version = machine.version("torch")
    if version is None:
        return Finding(subject="torch", status="missing", found="not installed", advice="make environment")
    build, boards = machine.torch_build(), devices.boards()
    needed = meters.of_board(boards[0]).BUILD if boards else build
    idle = build != needed
    word = {"cuda": "CUDA", "hip": "ROCm"}
    advice = f"this build does not compute on the boards; install one with {word[needed]}" if needed and idle else ""
    kind = f"with {word[build]}" if build else "CPU build"
    return Finding(subject="torch", status="note" if idle else "ok", found=f"{version}, {kind}", advice=advice)


def _cpu(zones: list[rapl.Zone]) -> Finding:
    problem = rapl.problem()
    if problem is None:
        ticks = {zone.device: sensors.cached_tick(zone.device, zone.energy_j, afresh=True) for zone in zones}
        counters = [f"{device} (moves every {tick_s:.2g} s)" if tick_s else device for device, tick_s in ticks.items()]
        return Finding(subject="CPU energy", status="ok", found=f"RAPL: {', '.join(counters)}")
    model = machine.cpu_model()
    rows = cpu_estimate.candidates(model)
    known = rows[0].microarchitecture if len(rows) == 1 else f"one of {len(rows)} microarchitectures"
    advice = f"energy.estimate: true estimates from CPU-seconds, labelled so ({model}: {known})"
    return Finding(subject="CPU energy", status="missing", found=problem, advice=advice)


def _meter(name: str, settings: meters.Settings | None) -> Finding:
    """The finding of a meter: its devices, or why it has none."""
    meter = meters.load(name)
    problem, silent = bounded.within(LIMIT_S, meter.problem, settings)
    if problem is not None or silent is not None:
        return Finding(subject=f"meter {name}", status="missing", found=problem or silent or "")
    names = ", ".join(device.device for device in meter.devices(settings))
    about = meter.__doc__.splitlines()[0].rstrip(".")
    return Finding(subject=f"meter {name}", status="ok", found=f"{about}: {names}")


def _surroundings(measured: bool) -> Iterator[Finding]:
    if measured and processes.in_container():
        text = "this is a container: readings are of whole boards and packages, co-tenants included"
        advice = "measure when nobody else uses the machine"
        yield Finding(subject="container", status="note", found=text, advice=advice)
    daemon = [name for name in os.environ if name.startswith("ZEUSD_")]
    if daemon:
        text = f"{', '.join(daemon)} is set: Zeus asks its daemon instead of the driver"
        yield Finding(subject="zeusd", status="note", found=text, advice="unset it if energy comes out as unavailable")
    if _held("node"):
        text = "a measured run is on this machine now"
        yield Finding(subject="runs", status="note", found=text, advice="other measured runs may wait for its end")


def _disk() -> Finding:
    here, locks = Path.cwd(), lease.folder()
    free_gib = shutil.disk_usage(here).free / GIB
    if not os.access(here, os.W_OK) or not os.access(locks, os.W_OK):
        text = f"{here if not os.access(here, os.W_OK) else locks} cannot be written"
        return Finding(subject="disk", status="missing", found=text, advice="results and the GPUs' locks go there")
    low = free_gib < MIN_FREE_GIB
    advice = "models, texts and kept models need room" if low else ""
    return Finding(subject="disk", status="note" if low else "ok", found=f"{free_gib:.0f} GiB free here", advice=advice)
