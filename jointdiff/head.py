"""The classifier head, solved for all hospitals together from sums that each of them adds up over its own images.

Ridge regression on standardised features: the sites send sums of features and of their products, never one image's
features alone unless it is their only labelled one; the server adds the sums and solves. The solution is exactly that
of pooled data. Shapes: features [N,D]; outputs K.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jointdiff.augment import strong_view
from jointdiff.config import Config
from jointdiff.data.hospital import HospitalData
from jointdiff.evaluation import extract_features
from jointdiff.model import JointModel, to_network
from jointdiff.reproducibility import generator_for

MAX_VIEWS = 4096  # views in all per hospital: with many labels fewer of each
NUM_PUBLIC = 512  # phantoms that a private run's head is standardised on
LOGIT_SPREAD = 2.5  # standard deviation of a solved logit over all images


def _pack(symmetric: np.ndarray) -> np.ndarray:
    """Return the upper triangle of symmetric matrices [...,D,D] as [...,D(D+1)/2]: half the bytes."""
    rows, columns = np.triu_indices(symmetric.shape[-1])
    return symmetric[..., rows, columns]


def _unpack(packed: np.ndarray, size: int) -> np.ndarray:
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
    sums = standardisation_sums(x) | {"products": _pack(x.T @ x)}
    targets = np.eye(num_outputs)[labels] if labels.ndim == 1 else labels.astype(np.float64)
    of_class = targets.T == 1 if labels.ndim == 1 else np.ones((1, len(labelled)), bool)
    groups = [labelled[rows] for rows in of_class]
    clean = labelled if clean is None else clean.astype(np.float64)
    sums["clean_sum"] = np.stack([clean[rows].sum(axis=0) for rows in of_class])
    sums["group_count"] = np.array([float(len(g)) for g in groups])
    sums["group_sum"] = np.stack([g.sum(axis=0) for g in groups])
    sums["group_products"] = _pack(np.stack([g.T @ g for g in groups]))
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


def solve_head(sums: Mapping[str, np.ndarray], config: Config) -> dict[str, torch.Tensor]:
    """Solve the head from merged sums: class-balanced ridge regression on standardised features.

    Args:
        sums: From `head_sums`, added up over the hospitals.
        config: `training.ridge` is the L2 penalty per labelled image, on features of unit variance; > 0.

    Returns:
        The head's tensors: mean, scale [D]; weight [K,D]; bias [K], float32. For a gradient head the standardisation
        alone: mean and scale.
    """
    ridge, multi_label = config.training.ridge, config.model.task == "multi-label"
    n = float(sums["count"])
    mean = sums["sum"] / n
    scale = np.sqrt(np.clip(sums["squares"] / n - mean**2, 1e-6, None))
    standardisation = {"head.mean": torch.from_numpy(mean).float(), "head.scale": torch.from_numpy(scale).float()}
    if config.training.head == "gradient":
        return standardisation
    covariance = _unpack(sums["products"], len(mean)) / n - np.outer(mean, mean)
    covariance = covariance / np.outer(scale, scale)
    counts, group_sum, group_products = (
        sums["group_count"],
        sums["group_sum"],
        _unpack(sums["group_products"], len(mean)),
    )
    present = counts > 0
    weights = np.where(present, 1 / np.clip(counts, 1, None), 0) / max(1, present.sum())
    x_mean = (weights @ group_sum - mean) / scale
    raw = np.einsum("g,gij->ij", weights, group_products)
    first = weights @ group_sum
    second = (raw - np.outer(first, mean) - np.outer(mean, first) + np.outer(mean, mean)) / np.outer(scale, scale)
    gram = second - np.outer(x_mean, x_mean)
    if multi_label:
        total = max(1.0, float(counts[0]))
        y_mean = sums["target_sum"] / total
        cross = (sums["target_products"] / total - np.outer(mean, y_mean)) / scale[:, None] - np.outer(x_mean, y_mean)
    else:
        y_mean = np.where(present, 1 / max(1, present.sum()), 0)
        class_means = np.where(present[:, None], group_sum / np.clip(counts, 1, None)[:, None] - mean, 0) / scale
        cross = class_means.T * y_mean - np.outer(x_mean, y_mean)
    weight = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)
    bias = y_mean - x_mean @ weight
    if not multi_label:
        # The views give the direction; the images as they are give the thresholds, halfway between the class means.
        clean_means = (
            np.where(present[:, None], sums["clean_sum"] / np.clip(counts, 1, None)[:, None] - mean, 0) / scale
        )
        bias = y_mean - (np.where(present, 1 / max(1, present.sum()), 0) @ clean_means) @ weight
        # Softmax ignores what all logits share.
        weight, bias = weight - weight.mean(axis=1, keepdims=True), bias - bias.mean()
        spread = np.sqrt(np.einsum("dk,de,ek->", weight, covariance, weight) / max(1, weight.shape[1] - 1))
        factor = LOGIT_SPREAD / max(float(spread), 1e-12) / np.sqrt(2)
        weight, bias = weight * factor, bias * factor
    else:
        spread = np.sqrt(np.clip(np.einsum("dk,de,ek->k", weight, covariance, weight), 1e-24, None))
        weight, bias = weight / spread * LOGIT_SPREAD, (bias - 0.5) / spread * LOGIT_SPREAD
    return {
        **standardisation,
        "head.linear.weight": torch.from_numpy(weight.T.copy()).float(),
        "head.linear.bias": torch.from_numpy(bias).float(),
    }


def public_standardisation(model: JointModel, config: Config, device: torch.device) -> dict[str, np.ndarray]:
    """Return the sums that standardise a gradient head, over phantoms: for runs in which no site's sums may travel."""
    from jointdiff.data.registry import load_dataset

    name = "phantom:rgb" if config.model.channels == 3 else "phantom"
    images = load_dataset(name, image_size=config.model.image_size).train.images[:NUM_PUBLIC]
    return standardisation_sums(extract_features(model, images, device=device).cpu().numpy())


def head_statistics(
    model: JointModel, data: HospitalData, config: Config, device: torch.device
) -> dict[str, np.ndarray]:
    """Return one hospital's sums over the features of its training images, and of strong views of the labelled ones.

    The views are the same in every round (seeded by the labelled images' number and the run's seed).
    """
    train, views = data.train, config.training.head_views
    features = extract_features(model, train.images, device=device).cpu().numpy()
    if config.training.head == "gradient":
        return standardisation_sums(features)
    rows = np.flatnonzero(train.labelled)
    if not views or not len(rows):
        return head_sums(features, features[rows], train.labels[rows], config.model.num_outputs)
    generator = generator_for(config.run.seed, len(rows), 0, "head views", device)
    seen = np.repeat(rows, max(1, min(views, MAX_VIEWS // len(rows))))
    parts = []
    with torch.no_grad():
        for start in range(0, len(seen), 256):
            x = to_network(train.images[seen[start : start + 256]], device)
            parts.append(model.features(strong_view(x, generator)).cpu().numpy())
    labels = train.labels[seen]
    return head_sums(features, np.concatenate(parts), labels, config.model.num_outputs, clean=features[seen])
