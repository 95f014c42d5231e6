"""Where a run computes, as a trainer is told: alone on the CPU, or one of several ranks there."""

from __future__ import annotations

import torch

from joulesweep.train.trainer import RankContext

CPU = torch.device("cpu")
ALONE = RankContext(device=CPU, rank=0, world=1, local_rank=0)


def place_of(rank: int, world: int) -> RankContext:
    """Of one rank among so many."""
    return RankContext(device=CPU, rank=rank, world=world, local_rank=rank)
