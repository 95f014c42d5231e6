"""Run ours with PyTorch's own matrix products: `python -m benchmarks.ours_without_onednn JOB`."""

from __future__ import annotations

import sys

from joulesweep.nets import onednn
from joulesweep.train import worker


def main() -> int:
    """Run `joulesweep.train.worker` without oneDNN's products."""
    onednn.available = lambda: False
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
