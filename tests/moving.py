"""Move a module of a copy of the package: its file, and every import and text that names it."""

from __future__ import annotations

import re
from pathlib import Path


def move(root: Path, old: str, new: str) -> None:
    """Move a module, given by its dotted name, to another one; `root` holds the package and what uses it."""
    (old_room, old_name), (new_room, new_name) = (name.rsplit(".", 1) for name in (old, new))
    source, target = (root.joinpath(*name.split(".")).with_suffix(".py") for name in (old, new))
    target.parent.mkdir(exist_ok=True)
    (target.parent / "__init__.py").touch()
    source.rename(target)

    def elsewhere(line: re.Match[str]) -> str:
        names = line[2].split(", ")
        if old_name not in names:
            return line[0]
        names.remove(old_name)
        others = [f"{line[1]}from {old_room} import {', '.join(names)}"] if names else []
        return "\n".join([*others, f"{line[1]}from {new_room} import {new_name} as {old_name}"])

    for folder in ("joulesweep", "scripts", "rules"):
        for path in [*(root / folder).rglob("*.py"), *(root / folder).glob("*.smk")]:
            text = re.sub(rf"\b{re.escape(old)}\b", new, path.read_text(encoding="utf-8"))
            text = re.sub(rf"(?m)^( *)from {re.escape(old_room)} import ([\w, ]+)$", elsewhere, text)
            path.write_text(text, encoding="utf-8")
