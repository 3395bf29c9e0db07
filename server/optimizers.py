"""The server's own step: the hospitals' mean change is taken as a gradient. Pure: arrays in, arrays out.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from server.slices import Tensors, slices

ADAPTIVE = ("fedadam", "fedyogi")
BETA_1, BETA_2, TAU = 0.9, 0.99, 1e-3  # the paper's own


def initial_moments(kind: str, weights: Mapping[str, np.ndarray]) -> Tensors:
    """Return the moments before the first round, float32: m = 0 and v = tau^2; {} for strategies without."""
    if kind not in ADAPTIVE:
        return {}
    first = {f"m.{name}": np.zeros(array.shape, np.float32) for name, array in weights.items()}
    return first | {f"v.{name}": np.full(array.shape, TAU**2, np.float32) for name, array in weights.items()}


def adaptive_step(
    kind: str, weights: Mapping[str, np.ndarray], mean: Tensors, moments: Tensors, *, learning_rate: float
) -> tuple[Tensors, Tensors]:
    """Return the new weights and moments of FedAdam or FedYogi, computed in float64.

        d = mean - w;  m = b1 m + (1 - b1) d;  w' = w + lr m / (sqrt(v) + tau)
        FedAdam: v = b2 v + (1 - b2) d^2        FedYogi: v = v - (1 - b2) d^2 sign(v - d^2)

    Args:
        kind: fedadam | fedyogi.
        weights: What the hospitals started from.
        mean: The mean of what they sent; overwritten by the new weights, so that memory holds no second model.
        moments: What this function returned the round before, or `initial_moments`; overwritten likewise.

    Raises:
        ValueError: Another kind.
    """
    if kind not in ADAPTIVE:
        raise ValueError(f"no such server optimiser: {kind}")
    new = {name: np.require(array, requirements=["C", "W"]) for name, array in mean.items()}
    kept = {name: np.require(array, requirements=["C", "W"]) for name, array in moments.items()}
    for name, start, stop in slices(weights, side_by_side=4):
        w, kept_m, kept_v, old = (
            array.reshape(-1)[start:stop]
            for array in (new[name], kept[f"m.{name}"], kept[f"v.{name}"], np.ascontiguousarray(weights[name]))
        )
        change = w.astype(np.float64) - old
        m = BETA_1 * kept_m.astype(np.float64) + (1 - BETA_1) * change
        v, square = kept_v.astype(np.float64), change**2
        v = BETA_2 * v + (1 - BETA_2) * square if kind == "fedadam" else v - (1 - BETA_2) * square * np.sign(v - square)
        kept_m[:], kept_v[:] = m, v
        w[:] = old + learning_rate * m / (np.sqrt(v) + TAU)
    return new, kept
