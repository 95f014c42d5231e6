"""Where the package, its checkout and its resources lie."""

# changes no number: what is read there counts by itself
from __future__ import annotations

from pathlib import Path

import joulesweep

PACKAGE = Path(joulesweep.__file__).parent
#: The checkout; of an installed package the folder that it is installed in.
ROOT = PACKAGE.parent
#: Numbers that others published. An installed package has them inside.
RESOURCES = ROOT / "resources" if (ROOT / "resources").is_dir() else PACKAGE / "resources"
