"""The sums that the classifier head is solved from: each hospital's over its own images, added up over hospitals. Pure.

Shapes: features [N,D]; outputs K.
"""

from __future__ import annotations

import numpy as np

from jointdiff.config import Config


def pack(symmetric: np.ndarray) -> np.ndarray:
    """Return the upper triangle of symmetric matrices [...,D,D] as [...,D(D+1)/2]: half the bytes."""
    rows, columns = np.triu_indices(symmetric.shape[-1])
    return symmetric[..., rows, columns]


def unpack(packed: np.ndarray, size: int) -> np.ndarray:
    """Return what `pack` packed: symmetric matrices [...,size,size]."""
    rows, columns = np.triu_indices(size)
    full = np.zeros((*packed.shape[:-1], size, size))
    full[..., rows, columns] = packed
    full[..., columns, rows] = packed
    return full


def standardisation_sums(features: np.ndarray) -> dict[str, np.ndarray]:
    """Return one hospital's sums over features [N,D] that mean and scale follow from: no label is in them."""
    x = features.astype(np.float64)
    return {"count": np.array(float(len(x))), "sum": x.sum(axis=0), "squares": (x**2).sum(axis=0)}


def head_sums(
    features: np.ndarray, labelled: np.ndarray, labels: np.ndarray, num_outputs: int, *, clean: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the sums of one hospital, in float64; two hospitals' add up to those of their pooled images.

    Args:
        features: Of all training images, [N,D]: they set the standardisation.
        labelled: Features of the labelled images, or of several views of each, [M,D]: they are regressed on.
        labels: Of these, int64 [M] or [M,K].
        clean: Features of the same images without augmentation, [M,D]: they set the thresholds. None = `labelled`.
    """
    x, labelled = features.astype(np.float64), labelled.astype(np.float64)
    sums = standardisation_sums(x) | {"products": pack(x.T @ x)}
    targets = np.eye(num_outputs)[labels] if labels.ndim == 1 else labels.astype(np.float64)
    of_class = targets.T == 1 if labels.ndim == 1 else np.ones((1, len(labelled)), bool)
    groups = [labelled[rows] for rows in of_class]
    clean = labelled if clean is None else clean.astype(np.float64)
    sums["clean_sum"] = np.stack([clean[rows].sum(axis=0) for rows in of_class])
    sums["group_count"] = np.array([float(len(g)) for g in groups])
    sums["group_sum"] = np.stack([g.sum(axis=0) for g in groups])
    sums["group_products"] = pack(np.stack([g.T @ g for g in groups]))
    sums["target_sum"] = targets.sum(axis=0)
    sums["target_products"] = labelled.T @ targets
    return sums


def add_sums(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the sums over hospitals.

    Raises:
        ValueError: No part, or parts of different names or shapes.
    """
    if not parts:
        raise ValueError("no sums to add")
    first = parts[0]
    for part in parts[1:]:
        if part.keys() != first.keys() or any(part[k].shape != first[k].shape for k in first):
            raise ValueError("sums of different names or shapes")
    return {k: np.sum([p[k] for p in parts], axis=0) for k in first}


def no_head_sums(config: Config, num_features: int) -> dict[str, np.ndarray]:
    """Return the sums over no image: they give names, shapes and types of what hospitals send for this head."""
    no_images = np.zeros((0, num_features))
    if config.training.head == "gradient":
        return standardisation_sums(no_images)
    num_outputs = config.model.num_outputs
    no_labels = np.zeros((0, num_outputs) if config.model.task == "multi-label" else 0, np.int64)
    return head_sums(no_images, no_images, no_labels, num_outputs)
