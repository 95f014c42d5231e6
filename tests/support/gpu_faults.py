"""Programs that stand in for those of the GPU day: pieces that answer, raise, end or hang; a contestant likewise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import gpu_items
from benchmarks.gpu_common import NotTried


def answers(job, piece):
    return {"pid": os.getpid(), "value": float("nan")}


def raises(job, piece):
    raise ValueError("two\nlines")


def refuses(job, piece):
    raise NotTried("there is none here")


def ends(job, piece):
    os._exit(7)


def hangs(job, piece):
    """With a process in a session of its own, as a training has them."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (job.out / "grandchild").write_text(str(child.pid))
    time.sleep(600)


def waits(job, piece):
    """For what a piece of another lane does."""
    while not (job.out / piece["file"]).exists():
        time.sleep(0.01)
    return {}


def touches(job, piece):
    (job.out / piece["file"]).touch()
    return {}


def tells(job, piece):
    """How many threads PyTorch's compiler would have."""
    return {"threads": os.environ["TORCHINDUCTOR_COMPILE_THREADS"]}


PIECES = {one.__name__: one for one in (answers, raises, refuses, ends, hangs, waits, touches, tells)}


def contestant(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    name = job["name"]
    if name == "ends":
        sys.exit(5)
    if name == "trainer-compiled":  # and is never done with it
        time.sleep(30)
    print(json.dumps({"left_out": "not installed"} if name == "lacks" else {"ready": True}), flush=True)
    for turn, size in enumerate(sys.stdin):
        if name == "ends-later" and turn == 1:
            sys.exit(6)
        found = {"num_texts": int(size), "num_steps": 1, "window_s": 1.0, "order": time.monotonic()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    if "name" in json.loads(job_file.read_text(encoding="utf-8")):
        contestant(job_file)
    else:
        gpu_items.PIECES = PIECES
        gpu_items.main()
