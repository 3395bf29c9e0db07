"""Exponential moving average of weights, with a warm-up that forgets the random start."""

from __future__ import annotations

import numpy as np

_VALUES_AT_ONCE = 2**20


def ema_decay_at(step: int, decay: float) -> float:
    """Return the decay to use at a 1-based step: min(decay, (step - 1) / step), so the first step copies.

    >>> [round(ema_decay_at(s, 0.9), 2) for s in (1, 2, 10, 100)]
    [0.0, 0.5, 0.9, 0.9]
    """
    return min(decay, (step - 1) / step)


def moving_average(
    average: dict[str, np.ndarray], weights: dict[str, np.ndarray], round_number: int, decay: float
) -> dict[str, np.ndarray]:
    """Return the average of the weights over the rounds, after a round (1-based); the first forgets the random start.

    Args:
        average, weights: A model's tensors by name: the average so far, and those after this round.
        decay: In [0, 1); 0 disables, and the weights themselves come back.

    Raises:
        ValueError: The two do not hold the same names.
    """
    if average.keys() != weights.keys():
        raise ValueError(f"EMA over different tensors: {sorted(average.keys() ^ weights.keys())[:3]}")
    if decay == 0:
        return weights
    share = ema_decay_at(round_number, decay)
    return {name: _mix(average[name], new, share) for name, new in weights.items()}


def _mix(old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
    """Return share * old + (1 - share) * new, in float64 some values at a time: a whole model of it would be large."""
    mixed = np.empty(new.shape, new.dtype)
    flat, old, new = mixed.reshape(-1), np.ravel(old), np.ravel(new)
    for start in range(0, flat.size, _VALUES_AT_ONCE):
        part = slice(start, start + _VALUES_AT_ONCE)
        flat[part] = share * old[part].astype(np.float64) + (1 - share) * new[part].astype(np.float64)
    return mixed
