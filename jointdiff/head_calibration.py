"""Calibration of a learned head: its direction stays, its border and confidence become the solved head's. Pure.

A head that learns on from a dozen labels and its own pseudo-labels orders images well and is far too sure of them, and
its border wanders. The head that is solved on the features of the end knows both better. So the learned logits get the
factor and the offset with which they come nearest to the solved ones, in least squares over all training images: two
numbers, in the manner of Platt (1999), with the solved head for the labels that are missing. Both heads are linear, so
they follow from the sums that solve the head, and no further message travels. For two classes, where there is one
border; a positive factor leaves every ranking, and so the AUC, as it was.
Shapes: features of D; 2 outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jointdiff.head_sums import unpack

Head = Mapping[str, torch.Tensor]


def calibrated(learned: Head, solved: Head, sums: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the learned head with factor and offset of its logits fitted to the solved head's.

    Args:
        learned, solved: `head.mean`, `head.scale` [D], `head.linear.weight` [2,D], `head.linear.bias` [2].
        sums: From `head_sums`, added up over the hospitals: count, sum and products over all training images.

    Returns:
        The same tensors, float32. The learned head as it is where the two do not agree at all: no positive factor.
    """
    n = float(sums["count"])
    mean = sums["sum"] / n
    covariance = unpack(sums["products"], len(mean)) / n - np.outer(mean, mean)
    (w, b), (w_solved, b_solved) = _margin(learned), _margin(solved)
    variance, shared = w @ covariance @ w, w @ covariance @ w_solved
    if not (variance > 0 and shared > 0):
        return dict(learned)
    factor = shared / variance
    offset = (w_solved @ mean + b_solved) - factor * (w @ mean + b)
    weight, bias = (learned[f"head.linear.{name}"].double() for name in ("weight", "bias"))
    return {
        **learned,
        "head.linear.weight": (factor * (weight - weight.mean(dim=0))).float(),
        "head.linear.bias": (factor * (bias - bias.mean()) + offset * torch.tensor([-0.5, 0.5])).float(),
    }


def _margin(head: Head) -> tuple[np.ndarray, float]:
    """Return w [D] and b of the logit of the second class over the first, on features as they are."""
    mean, scale, weight, bias = (
        head[f"head.{name}"].double().numpy() for name in ("mean", "scale", "linear.weight", "linear.bias")
    )
    w = (weight[1] - weight[0]) / scale
    return w, float(bias[1] - bias[0] - w @ mean)
