"""Build the folder that travels to a machine with a GPU: `make gpu-pack`, or `python -m benchmarks.gpu_pack FOLDER`.

    joulesweep/ benchmarks/ resources/ pyproject.toml   the package, with the programs of the GPU day
    wheels/                                             what that machine's Python lacks; nothing is installed there
    assets/models/ assets/tokens/                       configs, small random weights, tokenizers; made-up texts
    assets/references.json                              losses of the small models on this machine's CPU, fp32
    gpu-pack.json                                       the commit, the versions, a checksum per file

There: `cd FOLDER`, then the two commands of `benchmarks.gpu_day`. It needs torch, transformers, peft, no network.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from email.parser import Parser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from benchmarks import gpu_common
from benchmarks.gpu_common import CLS, COMPARED, MASK, MODELS, PAD, REPOSITORY, SEP, TEXTS, UNK, Pack, Texts
from joulesweep.core import files
from joulesweep.core.errors import UserError
from joulesweep.measure import machine

MOST_BYTES = 60 * 2**20
CODE = ("joulesweep", "benchmarks", "resources", "pyproject.toml", "LICENSE")
LEFT_OUT = ("__pycache__", "results", "models", "datasets", "tokens")
#: For the measuring (Zeus, NVML, what Zeus imports) and for the command line. Nothing is installed there: what the
#: machine lacks, or has older, the programs of the day import from where they unpacked it.
CARRIED = (
    *("zeus", "nvidia-ml-py", "httpx", "httpcore", "h11", "anyio", "idna", "certifi"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "pyyaml"),
)
#: What these want besides and is there with torch, or is imported by no line of Zeus that a run executes.
THERE = {"numpy"}
UNUSED = {"pandas", "scikit-learn", "rich", "tyro", "amdsmi", "python-dateutil"}
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
#: Number of VizWiz's validation questions (CC BY 4.0) by number of words and marks, from 2 on.
LENGTHS = (
    *(8, 31, 630, 583, 501, 400, 215, 153, 117, 88, 78, 55, 43, 40, 21, 27, 23, 16, 19, 14, 8, 10, 11, 6, 6, 4, 4, 7),
    *(5, 7, 2, 4, 6, 3, 2, 2, 2, 1, 2, 3, 2, 1, 4, 2, 0, 1, 0, 1, 0, 3, 1),
)
SPECIAL = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}


def main() -> None:
    """Build the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=REPOSITORY / ".cache" / "gpu-pack")
    parser.add_argument("--no-wheels", action="store_true", help="for a machine whose Python has all that is needed")
    args = parser.parse_args()
    try:
        size = build(args.folder, wheels=() if args.no_wheels else CARRIED)
    except UserError as error:
        parser.error(str(error))
    print(f"{args.folder}: {size / 2**20:.1f} MiB, of {MOST_BYTES / 2**20:.0f} at most")


def build(folder: Path, wheels: Sequence[str] = CARRIED) -> int:
    """Build the folder, completely or not at all; an earlier one is replaced. Returns its bytes.

    Args:
        folder: of the pack.
        wheels: packages that it carries.

    Raises:
        UserError: it cannot be built, or would be too large.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / gpu_common.MANIFEST).exists():
        raise UserError(f"{folder}: holds something else than a pack")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gpu-pack-", dir=folder.parent) as scratch:
        made = Path(scratch) / "pack"
        for name in CODE:
            _copy(REPOSITORY / name, made / name)
        write_assets(Pack(made))
        if wheels:
            download(wheels, made / "wheels")
        files.write_json(made / gpu_common.MANIFEST, _manifest(made))
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise UserError(f"the pack would be {size / 2**20:.1f} MiB, more than {MOST_BYTES / 2**20:.0f}")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return size


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _manifest(folder: Path) -> dict[str, Any]:
    described = machine.describe(1)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": "joulesweep-gpu-pack",
        "version": 1,
        "date": datetime.date.today().isoformat(),
        "git_commit": described.git_commit,
        "git_dirty": described.git_dirty,
        "cpu_model": described.cpu_model,
        "versions": described.versions,
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
    }


def download(names: Iterable[str], folder: Path) -> None:
    """Download wheels of the pinned versions for the other machine's Python.

    Raises:
        UserError: one cannot be had, or wants something that is neither carried nor there.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += ["--constraint", str(REPOSITORY / "constraints.txt"), "--dest", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"wheels for Python {PYTHON}: {reason}")
    missing = lacking(folder)
    if missing:
        raise UserError(f"wheels for Python {PYTHON}: nobody brings {', '.join(missing)}")


def lacking(folder: Path) -> list[str]:
    """Requirements of the wheels in a folder that none of them satisfies, without those present or never imported."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    here = {parse_wheel_filename(path.name)[0] for path in folder.glob("*.whl")} | THERE | UNUSED
    about = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.3", "extra": "", "sys_platform": "linux"}
    required = set()
    for path in folder.glob("*.whl"):
        with ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(wheel.read(name).decode())
        for line in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(about):
                required.add(canonicalize_name(requirement.name))
    return sorted(required - here)


def write_assets(pack: Pack) -> None:
    """Write models, texts and reference losses."""
    for name, texts in TEXTS.items():
        write_texts(pack.tokens(name), texts)
    for name in MODELS:
        write_model(pack.model(name), name)
    files.write_json(pack.references, references(pack))


def write_texts(path: Path, about: Texts) -> None:
    """Generate texts, identical on every machine, and write them as a token file.

    Words are drawn by Zipf's law; half of those that are not the first follow from the one before.
    """
    import numpy as np

    from joulesweep.prepare import tokens

    draw = np.random.default_rng(0)
    num_words = about.vocab_size - len(SPECIAL)
    share = np.array(LENGTHS) / sum(LENGTHS)
    frequency = 1 / (np.arange(num_words) + 2.7)
    frequency /= frequency.sum()

    def made(most: int) -> list[list[int]]:
        lengths = np.minimum(draw.choice(np.arange(2, 2 + len(LENGTHS)), size=about.number, p=share), most)
        words = iter(draw.choice(num_words, size=int(lengths.sum()), p=frequency).tolist())
        predictable = iter((draw.random(int(lengths.sum())) < 0.5).tolist())
        return [_sentence(list(itertools.islice(words, n)), predictable, num_words) for n in lengths.tolist()]

    bodies, targets = made(60), made(12) if about.targets else []
    groups: dict[tuple[int, ...], int] = {}
    group = [groups.setdefault(tuple(body), len(groups)) for body in bodies]
    flat = {"": bodies, **({"target_": targets} if targets else {})}
    arrays: dict[str, Any] = {"group": np.array(group, dtype="<i4")}
    for name, sentences in flat.items():
        arrays[f"{name}ids"] = np.array([word for sentence in sentences for word in sentence], dtype="<i4")
        arrays[f"{name}offsets"] = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
        texts = [" ".join(f"w{word}" for word in sentence) for sentence in sentences]  # as `write_tokenizer` has them
        arrays |= tokens.sizes(name, texts)
    ends = {"mask_id": MASK, "pad_id": PAD, "bos_id": CLS, "eos_id": SEP, "prefix": [CLS], "suffix": [SEP]}
    counts = {"num_texts": len(bodies), "num_tokens": len(arrays["ids"]), "num_target_tokens": sum(map(len, targets))}
    manifest = {
        "format": tokens.FORMAT,
        "version": tokens.VERSION,
        **counts,
        **ends,
        "vocab_size": about.vocab_size,
        "prompt_before": [],
        "prompt_after": [],
        "special_ids": list(SPECIAL.values()),
    }
    tokens.write(path, tokens.TokenSet(manifest=manifest, **arrays))
    files.write_json(path.with_suffix(".json"), manifest)


def _sentence(words: list[int], predictable: Iterable[bool], num_words: int) -> list[int]:
    """Words as ids, some of which are a function of the previous one."""
    for i, follows in enumerate(itertools.islice(predictable, len(words))):
        if i and follows:
            words[i] = (31 * words[i - 1] + 7) % num_words
    return [len(SPECIAL) + word for word in words]


def write_model(folder: Path, name: str) -> None:
    """Write a model's config, and its random weights and tokenizer if it has any."""
    import torch
    import transformers

    from joulesweep.axes.task import TASKS

    about = MODELS[name]
    config = transformers.AutoConfig.for_model(about.kind, **about.shape)
    if about.weights:
        torch.manual_seed(0)
        getattr(transformers, TASKS[about.task].auto_class).from_config(config).float().save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    if about.tokenizer:
        write_tokenizer(folder, TEXTS[about.texts].vocab_size)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer whose words are the numbers of the ids, which the peers' collators need."""
    words = SPECIAL | {f"w{i}": i for i in range(len(SPECIAL), vocab_size)}
    special = [
        {"id": i, "content": word, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for word, i in SPECIAL.items()
    ]
    described = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    files.write_text(folder / "tokenizer.json", json.dumps({**described, **rest}))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, SPECIAL, strict=True))}
    files.write_json(folder / "tokenizer_config.json", about)


def references(pack: Pack) -> dict[str, dict[str, list[float]]]:
    """Losses of the small models on this CPU in fp32, step by step, for each batching that a model supports."""
    from joulesweep.train import loop
    from joulesweep.train.trainer import RunEnded

    losses: dict[str, dict[str, list[float]]] = {}
    for name, batching in itertools.product(COMPARED, ("fixed", "packed")):
        spec = gpu_common.small_spec(name, "cpu", batching=batching)
        try:
            outcome = loop.train(spec, pack.model(name), pack.tokens(spec.dataset), pack.root)
        except RunEnded:
            continue
        losses.setdefault(name, {})[batching] = outcome.losses
    return losses


if __name__ == "__main__":
    main()
