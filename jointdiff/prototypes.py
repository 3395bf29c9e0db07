"""Prototypes: the most typical image of each class, drawn by the generator and chosen by the model itself.

A prototype is a drawing, not a patient: what this model believes a class looks like. It says nothing about how often
patients look like that, and it shows the model's prejudices as readily as its knowledge. A generator can copy a scan
that it was trained on, so a prototype may resemble a patient: it stays at the site, unless the site's policy lets the
server draw samples (server-samples).

Shapes: N candidates of one class, D features, H x W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jointdiff.config import Config
from jointdiff.evaluation import extract_features
from jointdiff.model import JointModel
from jointdiff.reproducibility import SERVER, generator_for
from jointdiff.showcase import guided_samples
from jointdiff.spaces import PIXELS, Space

NUM_CANDIDATES = 32  # drawn for each class


@dataclass(frozen=True)
class Prototypes:
    """What was kept of one class, the most typical first."""

    images: np.ndarray  # uint8 [k,H,W,C], k at most the number asked for
    probs: np.ndarray  # [k] the class's probability
    distances: np.ndarray  # [k] to the mean feature of the candidates, in standard deviations, root mean square
    num_decided: int  # candidates that the model itself gives the class
    num_candidates: int


def most_typical(features: np.ndarray, confidence: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the records that are both near the mean and confident: those whose worse rank of the two is the best.

    Confidence alone would choose extremes: guidance can push a picture as far as it likes.

    Args:
        features: [N,D], of comparable spread.
        confidence: [N].
        count: How many; fewer where there are fewer.

    Returns:
        Their indices, the most typical first, and the distances of these to the mean, root mean square over D.

    >>> features, confidence = np.array([[0.0], [1.0], [1.1], [9.0]]), np.array([0.5, 0.9, 0.8, 1.0])
    >>> most_typical(features, confidence, 2)[0].tolist()
    [1, 2]
    """
    distances = np.sqrt(((features - features.mean(axis=0)) ** 2).mean(axis=1))
    near, sure = _ranks(distances), _ranks(-confidence)
    chosen = np.lexsort((distances, near + sure, np.maximum(near, sure)))[:count]
    return chosen, distances[chosen]


def draw_prototypes(
    model: JointModel,
    config: Config,
    target: int,
    *,
    per_class: int,
    num_candidates: int = NUM_CANDIDATES,
    seed: int,
    device: torch.device,
    space: Space = PIXELS,
) -> Prototypes:
    """Draw candidates guided to a class and keep the most typical of those that the model gives the class.

    Args:
        target: Class, or of a multi-label task the finding to show.
        per_class: How many to keep; fewer where the model itself disowns the others.
        num_candidates: How many to draw.
        seed: Gives the same prototypes again; those of another class do not depend on them.
        space: Where the network works.
    """
    generator = generator_for(seed, SERVER, 0, f"prototypes of {target}")
    targets = np.full(num_candidates, target)
    images = guided_samples(model, config, targets, device=device, generator=generator)
    features = extract_features(model, images, device=device)
    with torch.no_grad():
        probs = model.probabilities(model.head(features)).cpu().numpy()
        standardised = ((features - model.head.mean) / model.head.scale).cpu().numpy()
    confidence = probs[:, target]
    multi_class = config.model.task == "multi-class"
    decided = np.flatnonzero(probs.argmax(axis=1) == target if multi_class else confidence > 0.5)
    if not len(decided):
        return Prototypes(images[:0], confidence[:0], confidence[:0], 0, num_candidates)
    chosen, distances = most_typical(standardised[decided], confidence[decided], per_class)
    kept = decided[chosen]
    return Prototypes(space.pictures(images[kept]), confidence[kept], distances, len(decided), num_candidates)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return how many values are smaller than each; equal values share their rank."""
    return np.searchsorted(np.sort(values), values)
