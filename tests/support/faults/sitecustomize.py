"""Lets one training process fail on purpose; Python imports it at the start of every process that finds it.

FAULTS in the environment is JSON: [[{"rank": 1, "batch_size": 8}, "oom"], …]. The first fault whose conditions hold
of a rank and its spec happens in the rank's first optimizer step (`refuse`, and those in CLOCKS, before it). Once a
rank hangs, its time is over: the clock of the launching parent jumps.
"""

import json
import os
import pathlib
import signal
import sys
import time


def oom():
    """What PyTorch's own allocator says when there is no such memory."""
    import torch

    torch.empty(2**50, dtype=torch.uint8)


def no_host_memory():
    bytearray(2**60)


def nan(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.fill_(float("nan"))


def hang():
    pathlib.Path(_job()).with_name("hangs").touch()
    time.sleep(600)


def bug():
    raise RuntimeError("a bug of one rank")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def oom_and_no_end():
    """Out of memory, and then the process cannot end: as after a GPU's context was lost."""
    import threading

    threading.Thread(target=hang).start()
    oom()


def offspring_and_hang():
    """Hang, with a process in a session of its own that does not notice when its parent dies."""
    import subprocess

    code = "import time; print('offspring lives', flush=True); time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
    hang()


#: Seconds that a rank's own clock says its window has after each pass.
CLOCKS = {"fast_clock": (0.1, 0.2), "slow_clock": (0.3, 0.6)}


def _job():
    return next((part for part in sys.orig_argv if part.endswith("job.json")), None)


def _fault():
    job = _job()
    if job is None or "torch.distributed.run" in sys.orig_argv:
        return None
    known = {**json.loads(pathlib.Path(job).read_text())["spec"], "rank": int(os.environ.get("RANK", "0"))}
    faults = json.loads(os.environ.get("FAULTS", "[]"))
    return next((fault for when, fault in faults if when.items() <= known.items()), None)


def _install(fault):
    if fault == "refuse":
        from joulesweep.axes import strategy

        strategy.unsupported_reason = lambda *given: "this rank cannot"
        return
    if fault == "half_written":
        _write_half()
        return
    if fault in CLOCKS:
        from joulesweep.train import loop

        is_short, clock = loop._is_short, iter(CLOCKS[fault])
        loop._is_short = lambda trainer, elapsed_s: is_short(trainer, next(clock))
        return
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    happen = globals()[fault]
    register_optimizer_step_pre_hook(lambda optimizer, *given: happen(optimizer) if fault == "nan" else happen())


def _write_half():
    """Rest after each step; write half of a checkpoint, and then nothing more."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: time.sleep(0.02))

    def save(state, path):
        whole(state, path)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        pathlib.Path(_job()).with_name("halfway").touch()
        time.sleep(600)

    whole, torch.save = torch.save, save


def _jump():
    """In a launching parent: time is over as soon as a rank hangs."""
    hangs = pathlib.Path(sys.orig_argv[sys.orig_argv.index("--folder") + 1], ".work", "hangs")
    monotonic = time.monotonic
    time.monotonic = lambda: monotonic() + (1e6 if hangs.exists() else 0.0)


if "scripts.train" in sys.orig_argv:
    _jump()
if _fault():
    _install(_fault())
