"""Add the runs of the configs beside this file to ids.json: `python tests/golden/add.py`.

To add an entry, add a config or a value to one, and run this. An id that is already there is never changed or
removed: whoever sweeps has it as the name of a folder of finished work.
"""

from __future__ import annotations

import json
from pathlib import Path

from joulesweep.core.spec import full
from joulesweep.plan import config
from joulesweep.plan.grid import expand

FOLDER = Path(__file__).parent
IDS = FOLDER / "ids.json"


def main() -> None:
    """Write the ids that are new."""
    ids = json.loads(IDS.read_text(encoding="utf-8")) if IDS.exists() else {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for run, spec in expand(config.load(path)).runs.items():
            ids.setdefault(run, full(spec))
    lines = [f"{json.dumps(run)}: {json.dumps(spec)}" for run, spec in ids.items()]
    IDS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{IDS}: {len(ids)} ids")


if __name__ == "__main__":
    main()
