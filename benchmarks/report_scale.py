"""Time and size of tables, charts and report, on synthetic sweeps of 135, 480 and 10,560 runs.

    python -m benchmarks.report_scale [--runs 135 480] [--keep FOLDER]

It prints CPU-seconds and the largest resident memory of each step (each in a process of its own, as the workflow runs
them), the size of the page, and the seconds until a headless Chromium has loaded it and drawn its charts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import known_sweeps
import synthetic

from joulesweep.core import files
from joulesweep.plan import config, grid

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--window-size=1400,1000",
    "--dump-dom",
)


def write(folder: Path, num_runs: int, samples: int) -> None:
    """Write grid.json, records and traces of a sweep of so many runs."""
    validated = config.validate(synthetic.raw_config(known_sweeps.BY_SIZE[num_runs], **synthetic.GPU_CONFIG))
    files.write_json(folder / "grid.json", grid.manifest(validated))
    for run, a_spec in grid.expand(validated).runs.items():
        row = known_sweeps.on_a30(synthetic.ok_record(run, a_spec))
        files.write_json(folder / "runs" / run / "record.json", row)
        if row["status"] == "ok":
            files.write_lines(folder / "runs" / run / "power.jsonl", known_sweeps.trace(row, samples))


def steps(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of the workflow's rules."""
    grid_file, tables = ("--grid", str(folder / "grid.json")), ("--tables", str(folder / "tables"))
    runs, output = str(folder / "runs"), "--output"
    yield "aggregate", ["scripts.aggregate", *grid_file, "--runs", runs, output, str(folder / "tables")]
    yield "charts", ["scripts.charts", *grid_file, *tables, output, str(folder / "charts")]
    yield "report", ["scripts.report", *grid_file, *tables, output, str(folder / "report.html")]


def cost(command: list[str]) -> tuple[float, float]:
    """CPU-seconds of a module's process, and its largest resident memory in MB."""
    process = subprocess.Popen([sys.executable, "-m", *command])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def load_s(page: Path) -> float | None:
    """Seconds until a browser has loaded the page, its own start taken off; None without a browser."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        return None
    empty = page.with_name("empty.html")
    empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")
    took = []
    for one in (empty, page):
        begin = time.monotonic()
        subprocess.run([browser, *FLAGS, one.as_uri()], capture_output=True, check=True)
        took.append(time.monotonic() - begin)
    return took[1] - took[0]


def main() -> None:
    """Write sweeps, run the steps, and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", choices=known_sweeps.BY_SIZE, default=list(known_sweeps.BY_SIZE))
    parser.add_argument("--samples", type=int, default=100, help="readings of power of each board and run")
    parser.add_argument("--keep", type=Path, help="folder for the sweeps, which are written there once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for num_runs in arguments.runs:
            folder = (arguments.keep or Path(temporary)) / str(num_runs)
            if not (folder / "grid.json").exists():
                write(folder, num_runs, arguments.samples)
            for name, command in steps(folder):
                cpu_s, rss_mb = cost(command)
                print(f"{num_runs:6} runs  {name:9} {cpu_s:6.1f} CPU-s {rss_mb:6.0f} MB", flush=True)
            page = folder / "report.html"
            seconds = load_s(page)
            loaded = "no browser" if seconds is None else f"loads in {seconds:.1f} s"
            print(f"{num_runs:6} runs  page      {page.stat().st_size / 1e6:6.2f} MB, {loaded}", flush=True)


if __name__ == "__main__":
    main()
