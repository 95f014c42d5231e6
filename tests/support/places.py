"""Where a run computes, as a trainer is told: alone on the CPU, or one of several ranks there."""

from __future__ import annotations

import torch

from joulesweep.train.trainer import Place

CPU = torch.device("cpu")
ALONE = Place(device=CPU, rank=0, world=1, local_rank=0)


def place_of(rank: int, world: int) -> Place:
    """Of one rank among so many."""
    return Place(device=CPU, rank=rank, world=world, local_rank=rank)
