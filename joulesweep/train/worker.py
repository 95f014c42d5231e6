"""Run the process of one rank, with a fast start and a fast exit: `python -m joulesweep.train.worker JOB`.

Python's cycle collector visits every object of torch and transformers several times while they are imported, and once
more at exit: 2.6 of 7.6 s of a short run. So it is off until the model is built (`loop.train` turns it on for the
training), and at the end all objects are frozen.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback

from joulesweep.core import processes


def main() -> int:
    """Carry out the job file of the command line; return the exit code of `loop.main`, or 1 for a bug.

    A rank that stops or fails exits at once: its peers wait for it in a collective until it is gone, and an orderly
    exit may hang if its GPU or its connections are broken.
    """
    processes.die_with_parent()  # before the slow imports: each rank of torchrun leads its own process group
    gc.disable()
    try:
        from joulesweep.train import loop

        code = loop.main(sys.argv)
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()
    return code


if __name__ == "__mp_main__":  # in the helper process that Zeus starts for a RAPL counter
    processes.die_with_parent()
if __name__ == "__main__":
    sys.exit(main())
