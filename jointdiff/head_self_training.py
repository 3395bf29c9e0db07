"""Self-training of the solved head: it labels the images that it is sure of, and is solved again with these. Pure.

A closed form of pseudo-labelling (Scudder 1965; Lee 2013) on frozen features, in which hospitals send the same sums as
for the labelled images. Every hospital's mixture (pseudo_labels.mixture) estimates how common the classes are there.
Many images bear a weaker penalty than a dozen, and directions that the dozen could not tell from chance get their
weight. For multi-class tasks: several findings at once have one group of images, and there it made the head worse.
Shapes: features [N,D]; outputs K.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jointdiff import pseudo_labels
from jointdiff.config import Config

Sums = Mapping[str, np.ndarray]
_OF_GROUP = ("clean_sum", "group_sum", "group_products")


def confident(probs: torch.Tensor, labels: torch.Tensor, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that the head is sure of, and what it says of them.

    Args:
        probs: Of one hospital's training images, [N,K].
        labels: int64 [N], below 0 where unknown: known ones are kept.
        config: `training.threshold` on the mixture's posterior.

    Returns:
        Indices [M], and labels int64 [M].
    """
    posterior = pseudo_labels.mixture(probs, labels).cpu().numpy()
    rows = np.flatnonzero(posterior.max(axis=1, initial=0) >= config.training.threshold)
    return rows, posterior[rows].argmax(axis=1)


def mixed(labelled: Sums, pseudo: Sums, share: float) -> dict[str, np.ndarray]:
    """Return sums in which the labelled images of each class weigh `share`, and those that the head labelled the rest.

    Args:
        labelled: From `head.head_sums`, added up over the hospitals.
        pseudo: The same over the images that the head is sure of.
        share: 0 to 1. A class that one of the two has no image of is all the other's.
    """
    counts = [part["group_count"] for part in (labelled, pseudo)]
    there = [count > 0 for count in counts]
    own = np.where(there[1], share, 1.0) * there[0]
    weights = (own, (1 - own) * there[1])
    factors = [weight / np.clip(count, 1, None) for weight, count in zip(weights, counts, strict=True)]
    sums = dict(labelled)
    for name in _OF_GROUP:
        shape = (-1,) + (1,) * (labelled[name].ndim - 1)
        sums[name] = factors[0].reshape(shape) * labelled[name] + factors[1].reshape(shape) * pseudo[name]
    sums["group_count"] = (there[0] | there[1]).astype(np.float64)
    return sums
