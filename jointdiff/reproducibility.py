"""Every random draw has its own seed, made from (seed, hospital, round, purpose): no global random state.

So a round repeated after a crash draws the same, and one hospital's draws never depend on another's, or on the order
in which hospitals are served. Not for differential privacy: its noise must come from no seed that the server knows.
"""

from __future__ import annotations

import hashlib

import torch

SERVER = -1  # the "hospital" of draws that the server makes


def seed_for(seed: int, hospital: int, round_number: int, purpose: str) -> int:
    """Return a 63-bit seed: the head of SHA-256 over the four parts.

    Args:
        seed: The run's `seed` or `split-seed`.
        hospital: 0-based index of the hospital, or SERVER.
        round_number: 1-based; 0 for what happens before the first round.
        purpose: What is drawn, e.g. "batches"; different purposes give independent draws.

    >>> seed_for(0, 0, 1, "noise") == seed_for(0, 0, 1, "noise")
    True
    >>> seed_for(0, 0, 1, "noise") == seed_for(0, 1, 0, "noise")
    False
    """
    digest = hashlib.sha256(f"{seed}/{hospital}/{round_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(
    seed: int, hospital: int, round_number: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on `device`, seeded by `seed_for`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed_for(seed, hospital, round_number, purpose))
    return generator
