"""Which configurations fit in a GPU of 8, 16 or 24 GB, and what each way to save memory costs in joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from joulesweep.analyse.cells import comparable_groups, finished, method_words, why_not_ranked
from joulesweep.analyse.comparisons import BEYOND, Comparisons, asked, key_of, qualities
from joulesweep.analyse.statistics import Ratio, change
from joulesweep.analyse.studies.published import rows as published
from joulesweep.analyse.tables import Row, Tables
from joulesweep.core.quantities import one
from joulesweep.studies import Answer, Entry, Table

QUESTION = "What fits in a GPU of 8, 16 or 24 GB, and what does each way to save memory cost in joules?"
PROTOCOL = (
    "Micro-batches, activation checkpointing, LoRA, QLoRA and AdamW of 8 bits vary; texts per optimizer step are the "
    "same in all. A run fits in a card if the most memory that PyTorch held while training (peak_gpu_reserved_bytes, "
    "the largest of the repeats) and 1 GiB for the CUDA context and the display fit in its GiB; the smallest such card "
    "is the cell's. Each cell is compared with the one that saves no memory, paired by seed. Of the cells that fit in "
    "a card and whose quality is not shown to be beyond the margin of the best of them, the one with the fewest "
    "measured joules is named."
)
SOURCE = "Huang et al. 2024 (arXiv 2309.13192), which compares time and FLOPs on a GPU of 80 GB alone"
CARDS = (8, 16, 24)  # GiB
RESERVE_BYTES = 2**30  # of a card, for what PyTorch's allocator does not count: an assumption
MEMORY = "peak_gpu_reserved_bytes"
NEEDED = "peak host memory is not a card's; it takes runs on a GPU: joulesweep study small-cards --run there"
#: Axes on which compared cells agree: all but those that save memory.
SHARED = ("panel", "environment", "strategy", "devices", "nodes", "precision", "batch_size", "batch_size_scope", "lr")


def answer(tables: Tables, config: Mapping[str, Any]) -> Answer:
    """The cheapest cell of each card, in every panel with memory of GPUs; why there is none if no panel has it."""
    cells = finished(tables.cells, f"{MEMORY}_mean")
    if cells.is_empty():
        runs = tables.runs.filter(status="ok").height
        why = f"no run measured the memory of a GPU, and {NEEDED}" if runs else "no run has finished"
        return Answer(sentence=f"What fits in a small card cannot be told: {why}.", answered=False)
    comparisons, peaks = Comparisons(tables.runs), _peaks(tables.runs)
    parts, shown = [], []
    for panel, of_panel in comparable_groups(cells):
        rows, where = of_panel.to_dicts(), f"{panel}: " if panel else ""
        parts.append(f"{where}{_cards(rows, peaks, comparisons, config, why_not_ranked(of_panel))}")
        shown.append(_table(panel, rows, peaks, comparisons))
    findings = []
    if cells.filter(method="qlora").height:
        findings = [
            f"Published: {row['quantity']}: {row['figure']} ({row['source']})." for row in published("formats.csv")[1:]
        ]
    return Answer(sentence=f"By memory: {'; '.join(parts)}.", answered=True, findings=findings, tables=shown)


def _peaks(runs: pl.DataFrame) -> dict[str, int]:
    """The largest memory of a cell's runs, with the reserve, in bytes."""
    largest = runs.filter(status="ok").group_by("cell").agg(pl.col(MEMORY).max()).drop_nulls()
    return {cell: peak + RESERVE_BYTES for cell, peak in largest.rows()}


def smallest_card(peak_bytes: int) -> int | None:
    """The smallest of `CARDS` that holds so many bytes, in GiB; None if none does."""
    return next((size for size in CARDS if peak_bytes <= size * 2**30), None)


def _cards(
    rows: Sequence[Row], peaks: Mapping[str, int], comparisons: Comparisons, config: Mapping[str, Any], why: str | None
) -> str:
    """What is cheapest on each card, in words; without joules, what fits."""
    words = []
    for size in CARDS:
        fits = [row for row in rows if peaks[row["cell"]] <= size * 2**30]
        if not fits:
            words.append(f"nothing fits in {size} GB")
        elif why is not None:
            words.append(f"{len(fits)} of {len(rows)} configurations fit in {size} GB")
        else:
            words.append(f"in {size} GB {_cheapest(fits, rows, peaks, comparisons, config)}")
    return ", ".join(words) + (f"; which costs the fewest joules cannot be told: {why}" if why else "")


def _cheapest(
    fits: Sequence[Row],
    rows: Sequence[Row],
    peaks: Mapping[str, int],
    comparisons: Comparisons,
    config: Mapping[str, Any],
) -> str:
    margin, measure = asked(config)
    fit = comparisons.fit(fits[0]["panel"], measure)
    verdicts = {} if fit is None else qualities(fit, measure, margin, {key_of(row) for row in fits})
    sound = [row for row in fits if key_of(row) not in verdicts or verdicts[key_of(row)].verdict != BEYOND]
    known = [row for row in sound if row["energy_j_mean"] is not None and row["energy_doubt"] is None]
    if not known:
        return f"{len(fits)} configurations fit, without undoubted joules"
    least = min(known, key=lambda row: row["energy_j_mean"])
    plain = _plain(least, rows)
    ratio = None if plain is None else comparisons.ratio(least, plain, "energy_j")
    against = "" if ratio is None else f", {change(ratio)} measured joules over {plain['name']}, n = {ratio.n}"  # type: ignore[index]
    return (
        f"{least['name']} costs the fewest joules of {len(fits)} that fit ({one(peaks[least['cell']], 'B')}{against})"
    )


def _plain(row: Row, rows: Sequence[Row]) -> Row | None:
    """The cell that saves no memory and is otherwise the same; None if there is none, or if it is the row."""
    for other in rows:
        saves = other["method"] != "full" or other["micro_batch_size"] or other["checkpoint_activations"]
        if not saves and other["optimizer"] == "adamw" and all(other[axis] == row[axis] for axis in SHARED):
            return None if other is row else other
    return None


def _table(panel: str, rows: Sequence[Row], peaks: Mapping[str, int], comparisons: Comparisons) -> Table:
    """A row per cell: its memory, smallest card, and what it changes against the cell that saves no memory."""
    headings = {
        "Configuration": "text",
        "Method": "text",
        "Memory": "",
        "Smallest card": "",
        "Memory change": "",
        "Energy": "",
    }
    entries: list[list[Entry]] = []
    for row in sorted(rows, key=lambda row: peaks[row["cell"]]):
        peak, plain = peaks[row["cell"]], _plain(row, rows)
        card = smallest_card(peak)
        ratios = [plain and comparisons.ratio(row, plain, quantity) for quantity in (MEMORY, "energy_j")]
        changes = [change(ratio) if isinstance(ratio, Ratio) else "–" for ratio in ratios]
        entries.append([row["name"], method_words(row), one(peak, "B"), f"{card} GB" if card else "larger", *changes])
    return Table(title="Memory and its price" + (f": {panel}" if panel else ""), headings=headings, rows=entries)
