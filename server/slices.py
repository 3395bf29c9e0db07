"""Hospitals' tensors read some values at a time, so that memory is the same for 4 and for 64 hospitals. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

Tensors = dict[str, np.ndarray]
VALUES_AT_ONCE = 2**20  # over all hospitals that are read side by side: 8 MB in float64


class Sliced(Protocol):
    """One hospital's tensors, readable in slices."""

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return elements [start, stop) of the flattened tensor `name`."""


class InMemory:
    """Tensors that are in memory already, read like those that are not."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = tensors

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return elements [start, stop) of the flattened tensor `name`."""
        return self.tensors[name].reshape(-1)[start:stop]


def slices(like: Mapping[str, np.ndarray], side_by_side: int = 1) -> Iterator[tuple[str, int, int]]:
    """Yield (name, start, stop) over all tensors of `like`.

    Args:
        side_by_side: How many hospitals' values are in memory at the same time.
    """
    length = max(1, VALUES_AT_ONCE // max(1, side_by_side))
    for name, array in like.items():
        for start in range(0, array.size, length):
            yield name, start, min(start + length, array.size)
