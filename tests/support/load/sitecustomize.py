"""Lets things happen to a run's fake boards and its wall clock when its window begins and ends.

Python imports it at the start of every process that finds it. LOAD in the environment is JSON: {"begin": [[SECONDS,
WHAT], …], "end": […]}: so many seconds after the window's begin or end WHAT happens: a draw, as in fake_meters.BOARD,
"reset" of the counter, or "clock SECONDS", a step of the wall clock.

In the window each optimizer step is followed by a rest: seconds count there, and not what the CPU does in them.
"""

import contextlib
import json
import os
import pathlib
import sys
import time

REST_S = 0.02


def _happen(events, boards):
    now_s = (time.monotonic_ns() + int(os.environ["FAKE_NVML_CLOCK"])) / 1e9 if events else 0.0
    for after_s, what in events:
        if str(what).startswith("clock"):
            pathlib.Path(os.environ["FAKE_CLOCK"]).write_text(what.split()[1])
            continue
        for board in boards:
            with open(f"{os.environ['FAKE_NVML']}.{board['index']}", "a") as file:  # noqa: PTH123 - no need of a Path
                file.write(f"{now_s + after_s:.9f} {what}\n")


def _install(load, boards):
    from joulesweep.measure.window import Meter

    window = Meter.window

    @contextlib.contextmanager
    def loaded(self):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        with window(self):
            _happen(load.get("begin", ()), boards)
            rests = register_optimizer_step_post_hook(lambda *_: time.sleep(REST_S))
            yield
            rests.remove()
            _happen(load.get("end", ()), boards)

    Meter.window = loaded


_job = next((part for part in sys.orig_argv if part.endswith("job.json")), None)
if _job is not None and "LOAD" in os.environ and "torch.distributed.run" not in sys.orig_argv:
    _install(json.loads(os.environ["LOAD"]), json.loads(pathlib.Path(_job).read_text())["boards"])
