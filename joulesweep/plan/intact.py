"""Tell whether files are whole that Snakemake would believe in because they are there.

It notes in `.snakemake` what made a file, and looks at times. Neither helps where a disk or a copy truncated a file, or
where results came here without these notes; so what files say decides.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PARQUET = b"PAR1"  # begins and ends every parquet file


def is_json(path: Path, expected: Mapping[str, Any] | None = None) -> bool:
    """Whether a file holds a JSON object, with these values if any are expected."""
    try:
        row: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and all(row.get(key) == value for key, value in (expected or {}).items())


def is_safetensors(path: Path) -> bool:
    """Whether a file of tensors has the length that its header tells; its numbers are not looked at."""
    try:
        with path.open("rb") as file:
            (num_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(num_bytes, path.stat().st_size)))
        ends = [int(row["data_offsets"][1]) for name, row in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + int(num_bytes) + max(ends, default=0)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError, struct.error):
        return False


def is_parquet(path: Path) -> bool:
    """Whether a file begins and ends as a table does."""
    try:
        with path.open("rb") as file:
            first = file.read(len(PARQUET))
            file.seek(-len(PARQUET), os.SEEK_END)
            return first == PARQUET == file.read() and file.tell() > 2 * len(PARQUET)
    except OSError:
        return False


def is_model(manifest: Path) -> bool:
    """Whether a model's manifest is a manifest, and the tensors in the folder beside it are whole."""
    return is_json(manifest) and all(map(is_safetensors, manifest.with_suffix("").glob("*.safetensors")))


def inputs(model_folder: Path, tokens: Path) -> dict[Path, Callable[[Path], bool]]:
    """What a run reads, each with its test.

    Args:
        model_folder: of the fetched model; its manifest is beside it.
        tokens: the token file; so is its.
    """
    manifest = model_folder.with_name(f"{model_folder.name}.json")
    return {manifest: is_model, tokens.with_suffix(".json"): is_json, tokens: is_safetensors}


def damaged(tests: Mapping[Path, Callable[[Path], bool]]) -> list[Path]:
    """The files that are there and do not pass their test."""
    return [path for path, is_whole in tests.items() if path.exists() and not is_whole(path)]
