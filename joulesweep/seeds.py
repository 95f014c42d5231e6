"""Random numbers that depend on what they are for, and not on the rank or the machine."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator whose stream is fixed by the key, the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
