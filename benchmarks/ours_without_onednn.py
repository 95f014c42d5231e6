"""A run of ours whose matrix products stay PyTorch's: `python -m benchmarks.ours_without_onednn JOB`."""

from __future__ import annotations

import sys

from joulesweep.nets import onednn
from joulesweep.train import worker


def main() -> int:
    """As `joulesweep.train.worker`."""
    onednn.available = lambda: False
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
