"""The runs as codecarbon writes them, for tools that read its `emissions.csv`: a row per ok run.

Joules are of one training, kilowatt-hours as codecarbon counts them, which multiplies by the PUE. `emissions.csv` has
joules that were measured or integrated from power and are not doubtful, and no others; a run without such joules has
empty entries. Estimated joules are in `emissions-estimated.csv` alone, which is empty unless the config asks for
estimates. What Joulesweep does not know, such as the position, stays empty. Without a carbon factor there are no
emissions.
"""

from __future__ import annotations

import polars as pl

from joulesweep.analyse.tables import Row
from joulesweep.reference.footprint import J_PER_KWH, intensities
from joulesweep.report.exports.data import csv_text
from joulesweep.report.results import Results

#: The columns of codecarbon 3.3.2 in their order (codecarbon/output_methods/emissions_data.py).
_NAMES = """
timestamp project_name run_id experiment_id duration emissions emissions_rate cpu_power gpu_power ram_power
cpu_energy gpu_energy ram_energy energy_consumed water_consumed country_name country_iso_code region cloud_provider
cloud_region os python_version codecarbon_version cpu_count cpu_model gpu_count gpu_model longitude latitude
ram_total_size tracking_mode cpu_utilization_percent gpu_utilization_percent ram_utilization_percent ram_used_gb
on_cloud pue wue
"""
COLUMNS = tuple(_NAMES.split())
#: Kinds of device by codecarbon's name.
KINDS = {"cpu": "cpu", "gpu": "gpu", "ram": "dram"}


def contents(results: Results) -> dict[str, str]:
    """Both files."""
    ok = results.tables.runs.filter(pl.col("status") == "ok")
    parts = _by_kind(results.tables.devices)
    estimated = ok.drop_nulls("estimated_energy_j")
    return {
        "emissions.csv": _text([_measured(row, parts, results) for row in ok.iter_rows(named=True)]),
        "emissions-estimated.csv": _text([_estimated(row, results) for row in estimated.iter_rows(named=True)]),
    }


def _text(rows: list[Row]) -> str:
    entries = [[row.get(name) for name in COLUMNS] for row in rows]
    return csv_text(pl.DataFrame(entries, COLUMNS, orient="row", infer_schema_length=None))


def _by_kind(devices: pl.DataFrame) -> dict[tuple[str, str], float]:
    """Joules of each run by kind of device, of the devices that its headline counts."""
    counted = devices.filter("in_scope").drop_nulls("energy_j")
    return {(run, kind): joules for run, kind, joules in counted.group_by("run", "kind").agg(pl.sum("energy_j")).rows()}


def _measured(row: Row, parts: dict[tuple[str, str], float], results: Results) -> Row:
    if row["energy_j"] is None or row["energy_doubt"] is not None:
        return _described(row, results)
    kinds = {name: parts.get((row["run"], kind)) for name, kind in KINDS.items()}
    return _described(row, results) | _energy(row, row["energy_j"], kinds, row["co2e_g"], results)


def _estimated(row: Row, results: Results) -> Row:
    joules = row["estimated_energy_j"]
    return _described(row, results) | _energy(row, joules, {"cpu": joules}, row["estimated_co2e_g"], results)


def _described(row: Row, results: Results) -> Row:
    """What is known of a run besides its joules."""
    energy = results.manifest["config"]["energy"]
    country = (energy["carbon"] or {}).get("country")
    uuids = row["gpu_uuids"]
    return {
        "timestamp": row["finished"],
        "project_name": results.manifest["sweep"],
        "run_id": row["run"],
        "experiment_id": row["cell"],
        "duration": row["window_s"],
        "country_name": intensities()[country].name if country else None,
        "country_iso_code": country,
        "os": row["platform"],
        "python_version": row["python"],
        "cpu_count": row["cpu_cores"],
        "cpu_model": row["cpu_model"],
        "gpu_count": len(uuids.split(", ")) if uuids else None,
        "gpu_model": row["gpus"],
        "ram_total_size": row["host_memory_bytes"] / 2**30,
        "tracking_mode": "machine",
        "pue": energy["pue"],
    }


def _energy(row: Row, joules: float, kinds: dict[str, float | None], grams: float | None, results: Results) -> Row:
    """Kilowatt-hours, watts and kilograms; a kind of device that is not among the joules stays empty."""
    pue, kg = results.manifest["config"]["energy"]["pue"], None if grams is None else grams / 1000
    parts: Row = {}
    for name, value in ((name, value * pue) for name, value in kinds.items() if value is not None):
        parts |= {f"{name}_energy": value / J_PER_KWH, f"{name}_power": value / row["window_s"]}
    return {
        **parts,
        "energy_consumed": joules * pue / J_PER_KWH,
        "emissions": kg,
        "emissions_rate": None if kg is None else kg / row["window_s"],
    }
