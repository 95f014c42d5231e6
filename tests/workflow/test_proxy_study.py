"""The study of proxies end to end: a sweep whose watts depend on the batch size, under counters that draw them."""

from __future__ import annotations

import math
import statistics
import threading
from pathlib import Path

import polars as pl
import pytest
from checkout import Checkout
from fake_meters import Rapl, rapl_tree

from joulesweep.analyse import tables
from joulesweep.report import ending
from joulesweep.studies import proxy

WATTS = {4: 20.0, 16: 60.0, 64: 300.0}  # by batch size: far more where it is faster
STUDY = {"sweep": "tiny", "studies": ["proxy"], "measure": {"min_seconds": 4}}


def planted(rapl: Rapl, checkout: Checkout, stop: threading.Event) -> None:
    """Let the processor draw what the run that trains is to draw, from before its window on."""
    last = 0
    while not stop.wait(0.02):
        for _, line in list(checkout.processes()):
            size = next((size for size in WATTS if f"bs{size}-" in line), last)
            if "joulesweep.train.worker" in line and size != last:
                rapl.draw("cpu:0", WATTS[size])
                last = size


@pytest.mark.long
def test_the_planted_loss_is_recovered_from_a_sweep_of_real_runs(tmp_path: Path) -> None:
    checkout, stop = Checkout(tmp_path / "checkout"), threading.Event()
    checkout.config |= STUDY
    checkout.config["grid"] |= {"batch_size": list(WATTS), "repeats": 3}
    checkout.write_config()
    with rapl_tree(tmp_path / "powercap", [{"name": "package-0", "watts": 10.0}]) as rapl:
        checkout.wrapped = rapl.command
        watcher = threading.Thread(target=planted, args=[rapl, checkout, stop])
        watcher.start()
        try:
            done = checkout.snakemake("--cores", "1", "--quiet", "all")
        finally:
            stop.set()
            watcher.join()
    assert done.returncode == 0, done.stderr[-3000:]
    folder = checkout.folder / "results" / "tiny"
    read = tables.read(folder / "tables")
    ok = read.runs.filter(pl.col("status") == "ok").to_dicts()
    assert len(ok) == 9 and {row["energy_status"] for row in ok} == {"measured"}
    truth: dict[int, list[float]] = {}
    for row in ok:
        true_j = WATTS[row["batch_size"]] * row["window_s"]
        assert row["energy_j"] == pytest.approx(true_j, rel=0.03)
        truth.setdefault(row["batch_size"], []).append(math.log(true_j))
    logs = {size: statistics.fmean(values) for size, values in truth.items()}
    fastest = min(WATTS, key=lambda size: statistics.fmean(r["window_s"] for r in ok if r["batch_size"] == size))
    told = proxy.answer(read, ending.config(folder))
    (seconds,) = [row for row in told.tables[0].rows if row[0] == "seconds"]
    assert told.answered and str(seconds[1]).endswith(f"bs{fastest}")
    loss = math.expm1(logs[fastest] - min(logs.values()))
    number, interval = seconds[2]
    low, high = (float(end.replace(",", "")) for end in interval.strip("[]").split(", "))
    assert float(number.replace(",", "").strip("+ %")) == pytest.approx(100 * loss, rel=0.05, abs=3)
    assert low <= 100 * loss * 1.03 + 1 and high >= 100 * loss / 1.03 - 1
