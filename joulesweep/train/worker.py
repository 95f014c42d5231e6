"""The process of one rank: `python -m joulesweep.train.worker JOB`. Starts fast, trains, ends fast.

Python's cycle collector walks every object of torch and transformers several times while they are imported, and once
more at exit: 2.6 of 7.6 s of a short run. So it is off until the model stands (`loop.train` turns it on again for
the training), and at the end everything is declared permanent.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback

from joulesweep.core import processes


def main() -> int:
    """Carry out the job file named on the command line; the exit code is that of `loop.main`, or 1 for a bug.

    A rank that stops or fails leaves at once. Its peers wait for it in a collective until it is gone, and an orderly
    end may take for ever when its GPU or its connections are in no order.
    """
    processes.die_with_parent()  # before the seconds of imports: torchrun's ranks lead process groups of their own
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


if __name__ == "__mp_main__":  # a helper process that Zeus starts for a RAPL counter, and that imports this module
    processes.die_with_parent()
if __name__ == "__main__":
    sys.exit(main())
