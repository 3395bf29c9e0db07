"""Exponential moving average of weights, with a warm-up that forgets the random start."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def ema_decay_at(step: int, decay: float) -> float:
    """Return the decay to use at a 1-based step: min(decay, (step - 1) / step), so the first step copies.

    >>> [round(ema_decay_at(s, 0.9), 2) for s in (1, 2, 10, 100)]
    [0.0, 0.5, 0.9, 0.9]
    """
    return min(decay, (step - 1) / step)


def ema_update(
    average: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor], decay: float
) -> dict[str, torch.Tensor]:
    """Return decay * average + (1 - decay) * new, tensor by tensor, in float64 and back.

    Raises:
        ValueError: The two do not hold the same names.
    """
    if average.keys() != new.keys():
        raise ValueError(f"EMA over different tensors: {sorted(average.keys() ^ new.keys())[:3]}")
    return {k: (decay * average[k].double() + (1 - decay) * new[k].double()).to(new[k].dtype) for k in new}


def moving_average(
    average: dict[str, np.ndarray], weights: dict[str, np.ndarray], round_number: int, decay: float
) -> dict[str, np.ndarray]:
    """Return the average of the weights over the rounds, after a round (1-based); the first forgets the random start.

    Args:
        average, weights: A model's tensors by name: the average so far, and those after this round.
        decay: In [0, 1); 0 disables, and the weights themselves come back.
    """
    if decay == 0:
        return weights
    as_torch = [{name: torch.from_numpy(np.asarray(a)) for name, a in side.items()} for side in (average, weights)]
    new = ema_update(as_torch[0], as_torch[1], ema_decay_at(round_number, decay))
    return {name: tensor.numpy() for name, tensor in new.items()}
