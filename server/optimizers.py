"""The server's own step: the hospitals' mean change is taken as a gradient. Pure: arrays in, arrays out.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Tensors = dict[str, np.ndarray]
BETA_1, BETA_2, TAU = 0.9, 0.99, 1e-3  # the paper's own


def adaptive_step(
    kind: str,
    weights: Mapping[str, np.ndarray],
    mean: Mapping[str, np.ndarray],
    moments: Mapping[str, np.ndarray],
    *,
    learning_rate: float,
) -> tuple[Tensors, Tensors]:
    """Return the new weights and moments of FedAdam or FedYogi.

        d = mean - w;  m = b1 m + (1 - b1) d;  w' = w + lr m / (sqrt(v) + tau)
        FedAdam: v = b2 v + (1 - b2) d^2        FedYogi: v = v - (1 - b2) d^2 sign(v - d^2)

    Args:
        kind: fedadam | fedyogi.
        weights: What the hospitals started from.
        mean: The mean of what they sent.
        moments: What this function returned the round before: `m.<name>` and `v.<name>`; {} before the first round.

    Raises:
        ValueError: Another kind.
    """
    if kind not in ("fedadam", "fedyogi"):
        raise ValueError(f"no such server optimiser: {kind}")
    new: Tensors = {}
    kept: Tensors = {}
    for name, old in weights.items():
        change = mean[name].astype(np.float64) - old
        m = moments.get(f"m.{name}", np.float64(0.0))
        v = moments.get(f"v.{name}", np.full(old.shape, TAU**2))
        m = BETA_1 * m + (1 - BETA_1) * change
        square = change**2
        v = BETA_2 * v + (1 - BETA_2) * square if kind == "fedadam" else v - (1 - BETA_2) * square * np.sign(v - square)
        new[name] = (old + learning_rate * m / (np.sqrt(v) + TAU)).astype(old.dtype)
        kept[f"m.{name}"], kept[f"v.{name}"] = m, v
    return new, kept
