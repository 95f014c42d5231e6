"""Paths of the package, its checkout and its resources."""

# changes no number: files that are read there enter the digest themselves
from __future__ import annotations

from pathlib import Path

import joulesweep

#: Of a preempted run, in its folder: what is listed there is kept until the run has its record.
CHECKPOINT = Path(".checkpoint", "manifest.json")
PACKAGE = Path(joulesweep.__file__).parent
#: The checkout; for an installed package, the folder that it is installed in.
ROOT = PACKAGE.parent
#: Numbers that others published. An installed package contains them.
RESOURCES = ROOT / "resources" if (ROOT / "resources").is_dir() else PACKAGE / "resources"
